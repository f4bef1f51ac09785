"""Arrays of a call: how they come in (buffer protocol, DLPack), what layout they have, whether they overlap.

Included by _core.pyx, as are its neighbours; names that begin with _ are shared between them.
"""

# ---- DLPack: the part of its ABI that describes a tensor (dlpack.h) ------------------------------

cdef struct DLTensor:
    void *data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t type_code
    uint8_t type_bits
    uint16_t type_lanes
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

cdef struct DLManagedTensorVersioned:
    uint64_t version
    void *manager_ctx
    void *deleter
    uint64_t flags
    DLTensor tensor

cdef enum:
    DL_CPU = 1
    DL_FLOAT = 2
    DL_BFLOAT = 4
    DL_READ_ONLY = 1
    MAX_NDIM = 32


# ---- one array of a call --------------------------------------------------------------------------

cdef struct Operand:
    Py_buffer view
    bint held               # view is to be released (an array that came by DLPack has none)
    char *data
    Py_ssize_t ndim, itemsize
    Py_ssize_t shape[MAX_NDIM]
    Py_ssize_t strides[MAX_NDIM]   # bytes
    int dtype
    void *scratch           # a contiguous copy, where the layout needs one
    Py_ssize_t row_stride


cdef object _float32 = np.dtype(np.float32)
cdef object _float16 = np.dtype(np.float16)
cdef object _empty = np.empty
cdef object _ndarray = np.ndarray
cdef object _as_index = operator.index
cdef str _TYPES = "float32, float16 or bfloat16"


cdef void *_address(array) except? NULL:
    """Where a contiguous NumPy array lies, whoever holds it. (array.ctypes is Python, and takes 20 us out of a cold cache.)"""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    PyBuffer_Release(&view)
    return view.buf


cdef str _dtype_name(int dtype):
    return "float32" if dtype == LL_F32 else "float16" if dtype == LL_F16 else "bfloat16"


cdef tuple _shape(Operand *o):
    return tuple([o.shape[i] for i in range(o.ndim)])


cdef object _refuse_type(str name, str got):
    if got == "float64":
        return TypeError(f"{name} is float64, llorch needs {_TYPES} and narrows nothing silently: "
                         f"write {name}.astype(np.float32) if float32 is what you want")
    return TypeError(f"{name} has elements of type {got}, llorch needs {_TYPES}")


cdef object _struct_names = {"d": "float64", "g": "longdouble", "i": "int32", "l": "int64", "q": "int64",
                             "h": "int16", "b": "int8", "B": "uint8", "H": "uint16", "I": "uint32",
                             "L": "uint64", "Q": "uint64", "?": "bool", "Zf": "complex64", "Zd": "complex128"}


cdef int _take_dlpack(Operand *o, obj, str name, bint writable, list keep) except -1:
    cdef DLTensor *t
    cdef DLManagedTensorVersioned *v
    is_neg = getattr(obj, "is_neg", None)  # PyTorch's lazy minus, of which DLPack knows nothing
    if is_neg is not None and is_neg():
        raise ValueError(f"{name} has its negative bit set, its memory holds the other sign: write {name}.resolve_neg()")
    try:
        try:
            capsule = obj.__dlpack__(max_version=(1, 0))
        except TypeError:  # a producer older than DLPack 1.0
            capsule = obj.__dlpack__()
    except (BufferError, RuntimeError) as error:  # no memory of its own, or not in strides: PyTorch's meta, sparse, ...
        raise ValueError(f"{name} is a {type(obj).__name__} that can't be shared by DLPack: {error}") from None
    keep.append(capsule)
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        v = <DLManagedTensorVersioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        t = &v.tensor
        if writable and v.flags & DL_READ_ONLY:
            raise ValueError(f"{name} is read-only, it must be writable")
    else:
        t = <DLTensor *>PyCapsule_GetPointer(capsule, "dltensor")
    if t.device_type != DL_CPU:
        raise ValueError(f"{name} is on another device (DLPack device type {t.device_type}), llorch needs it "
                         "in the CPU's memory")
    if t.type_lanes == 1 and t.type_code == DL_FLOAT and t.type_bits == 32:
        o.dtype = LL_F32
    elif t.type_lanes == 1 and t.type_code == DL_FLOAT and t.type_bits == 16:
        o.dtype = LL_F16
    elif t.type_lanes == 1 and t.type_code == DL_BFLOAT and t.type_bits == 16:
        o.dtype = LL_BF16
    elif t.type_code == DL_FLOAT and t.type_bits == 64:
        raise _refuse_type(name, "float64")
    else:
        kind = {0: "int", 1: "uint", DL_FLOAT: "float", DL_BFLOAT: "bfloat", 5: "complex", 6: "bool"}.get(t.type_code)
        raise _refuse_type(name, f"{kind}{t.type_bits}" if kind else f"DLPack code {t.type_code}")
    if t.ndim > MAX_NDIM:
        raise ValueError(f"{name} has {t.ndim} dimensions, at most {MAX_NDIM} are supported")
    o.itemsize = t.type_bits // 8
    o.ndim = t.ndim
    o.data = <char *>t.data + t.byte_offset
    cdef Py_ssize_t step = o.itemsize, i
    for i in range(t.ndim - 1, -1, -1):
        o.shape[i] = t.shape[i]
        o.strides[i] = t.strides[i] * o.itemsize if t.strides else step
        step *= t.shape[i]
    return 0


cdef int _take(Operand *o, obj, str name, bint writable, list keep) except -1:
    """Fills o from any object with the buffer protocol or __dlpack__."""
    cdef int flags = PyBUF_FORMAT | PyBUF_STRIDES
    cdef const char *f
    cdef Py_ssize_t i
    cdef bint bfloat16 = False
    if not PyObject_CheckBuffer(obj):
        if hasattr(obj, "__dlpack__"):
            return _take_dlpack(o, obj, name, writable, keep)
        raise TypeError(f"{name} must be an array (buffer protocol or __dlpack__ on the CPU) of {_TYPES}, "
                        f"got {type(obj).__name__}")
    if writable:
        flags |= PyBUF_WRITABLE
    try:
        PyObject_GetBuffer(obj, &o.view, flags)
    except (ValueError, BufferError):
        # NumPy has no buffer format for the types of ml_dtypes: look at their bits
        if isinstance(obj, _ndarray) and obj.dtype.name == "bfloat16":
            bfloat16 = True
            obj = obj.view(np.uint16)
            keep.append(obj)
        if writable and isinstance(obj, _ndarray) and not obj.flags.writeable:
            raise ValueError(f"{name} is read-only, it must be writable") from None
        if not bfloat16:
            if writable and memoryview(obj).readonly:
                raise ValueError(f"{name} is read-only, it must be writable") from None
            if isinstance(obj, _ndarray):
                raise _refuse_type(name, obj.dtype.name) from None
            raise
        PyObject_GetBuffer(obj, &o.view, flags)
    o.held = True
    f = o.view.format
    o.itemsize = o.view.itemsize
    if bfloat16:
        o.dtype = LL_BF16
    else:
        if f != NULL and (f[0] == c"<" or f[0] == c"=" or f[0] == c"@" or f[0] == c"^"):
            f += 1
        if f != NULL and f[0] == c"f" and f[1] == 0:
            o.dtype = LL_F32
        elif f != NULL and f[0] == c"e" and f[1] == 0:
            o.dtype = LL_F16
        else:
            got = "B" if f == NULL else (<bytes>f).decode()
            if isinstance(obj, _ndarray):
                got = obj.dtype.name + (" of the other byte order" if got[0] == ">" else "")
            raise _refuse_type(name, _struct_names.get(got, got))
    if o.view.ndim > MAX_NDIM:
        raise ValueError(f"{name} has {o.view.ndim} dimensions, at most {MAX_NDIM} are supported")
    o.data = <char *>o.view.buf
    o.ndim = o.view.ndim
    cdef Py_ssize_t step = o.itemsize
    for i in range(o.ndim - 1, -1, -1):
        o.shape[i] = o.view.shape[i]
        o.strides[i] = o.view.strides[i] if o.view.strides != NULL else step  # ctypes gives none, though asked for
        step *= o.shape[i]
    return 0


cdef inline void _clear(Operand *o) noexcept:
    o.held = False
    o.scratch = NULL
    o.ndim = 0


cdef inline void _drop(Operand *o) noexcept:
    if o.scratch != NULL:
        PyMem_Free(o.scratch)
    if o.held:
        PyBuffer_Release(&o.view)


cdef inline Py_ssize_t _count(Operand *o) noexcept:
    """How many values it has."""
    cdef Py_ssize_t i, count = 1
    for i in range(o.ndim):
        count *= o.shape[i]
    return count


cdef object _integer(value, str name):
    """An int, or whatever stands for one, but a bool: the check of every number of things that a kernel takes."""
    if value is True or value is False:
        raise TypeError(f"{name} must be an int, got bool")
    try:
        return _as_index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None


# ---- layout ---------------------------------------------------------------------------------------

cdef bint _rows_collapse(Operand *o) noexcept:
    """True where the leading dimensions are one sequence of contiguous rows; sets row_stride."""
    cdef Py_ssize_t i, last = o.ndim - 1, expected = 0
    cdef bint have = False
    o.row_stride = o.shape[last] * o.itemsize
    if o.shape[last] > 1 and o.strides[last] != o.itemsize:
        return False
    for i in range(last - 1, -1, -1):
        if o.shape[i] == 1:
            continue
        if not have:
            o.row_stride = o.strides[i]
            have = True
        elif o.strides[i] != expected:
            return False
        expected = o.strides[i] * o.shape[i]
    return True


cdef void _copy_strided(Operand *o, char *contiguous, bint inwards) noexcept nogil:
    """o, in C order, to or from contiguous memory, element by element."""
    cdef Py_ssize_t index[MAX_NDIM]
    cdef Py_ssize_t i, total = 1
    cdef char *p = o.data
    for i in range(o.ndim):
        index[i] = 0
        total *= o.shape[i]
    while total > 0:
        if inwards:
            memcpy(contiguous, p, o.itemsize)
        else:
            memcpy(p, contiguous, o.itemsize)
        contiguous += o.itemsize
        total -= 1
        i = o.ndim - 1
        while i >= 0:
            index[i] += 1
            p += o.strides[i]
            if index[i] < o.shape[i]:
                break
            p -= o.shape[i] * o.strides[i]
            index[i] = 0
            i -= 1


cdef char *_rows(Operand *o, Py_ssize_t count, bint copy_in) except? NULL:
    """Where o's rows begin: its own memory, or a contiguous copy of it."""
    if _rows_collapse(o):
        return o.data
    o.scratch = PyMem_Malloc(count * o.itemsize)
    if o.scratch == NULL:
        raise MemoryError(f"no memory for a contiguous copy of {count * o.itemsize} bytes")
    if copy_in:
        _copy_strided(o, <char *>o.scratch, True)
    o.row_stride = o.shape[o.ndim - 1] * o.itemsize
    return <char *>o.scratch


cdef void _extent(Operand *o, uintptr_t *low, uintptr_t *high) noexcept:
    cdef Py_ssize_t i, down = 0, up = o.itemsize
    for i in range(o.ndim):
        if o.shape[i] == 0:
            low[0] = high[0] = 0
            return
        if o.strides[i] < 0:
            down += (o.shape[i] - 1) * o.strides[i]
        else:
            up += (o.shape[i] - 1) * o.strides[i]
    low[0] = <uintptr_t>(o.data + down)
    high[0] = <uintptr_t>(o.data + up)


cdef bint _same_layout(Operand *a, Operand *b) noexcept:
    cdef Py_ssize_t i
    if a.data != b.data or a.ndim != b.ndim or a.itemsize != b.itemsize:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i] or (a.shape[i] > 1 and a.strides[i] != b.strides[i]):
            return False
    return True


cdef int _by_stride(Operand *o, Py_ssize_t *order) noexcept:
    """The axes that lead to other memory, from the smallest stride up; how many."""
    cdef Py_ssize_t i, j
    cdef int count = 0
    for i in range(o.ndim):
        if o.shape[i] > 1:
            j = count
            while j > 0 and abs(o.strides[order[j - 1]]) > abs(o.strides[i]):
                order[j] = order[j - 1]
                j -= 1
            order[j] = i
            count += 1
    return count


cdef bint _as_rows(Operand *o, Py_ssize_t *row, Py_ssize_t *stride) noexcept:
    """True where o's memory, its axes in any order, is rows of `row` bytes every `stride` bytes; 0 for one row."""
    cdef Py_ssize_t order[MAX_NDIM]
    cdef Py_ssize_t i, step, expected = 0
    row[0] = o.itemsize
    stride[0] = 0
    for k in range(_by_stride(o, order)):
        i = order[k]
        step = abs(o.strides[i])
        if step == 0:
            continue
        if stride[0] == 0 and step == row[0]:
            row[0] *= o.shape[i]
        elif stride[0] == 0 or step == expected:
            stride[0] = stride[0] or step
            expected = step * o.shape[i]
        else:
            return False
    return True


cdef bint _overlap(Operand *a, Operand *b) noexcept:
    """True unless a and b are seen to be disjoint: apart, or rows of equal stride that pass by each other."""
    cdef uintptr_t alow, ahigh, blow, bhigh, distance, stride
    cdef Py_ssize_t arow, brow, astride, bstride
    _extent(a, &alow, &ahigh)
    _extent(b, &blow, &bhigh)
    if ahigh <= blow or bhigh <= alow:
        return False
    if _as_rows(a, &arow, &astride) and _as_rows(b, &brow, &bstride) and (astride == bstride or not astride or not bstride):
        stride = astride or bstride
        if stride:
            distance = (blow - alow) % stride if blow >= alow else (stride - (alow - blow) % stride) % stride
            return not (distance >= <uintptr_t>arow and distance + brow <= stride)
    return True


cdef bint _overlaps_itself(Operand *o) noexcept:
    """Dimensions from the smallest stride up: each must step over all that is inside it."""
    cdef Py_ssize_t order[MAX_NDIM]
    cdef Py_ssize_t i, k, size = o.itemsize
    for i in range(o.ndim):
        if o.shape[i] == 0:
            return False
    for k in range(_by_stride(o, order)):
        i = order[k]
        if abs(o.strides[i]) < size:
            return True
        size += (o.shape[i] - 1) * abs(o.strides[i])
    return False


cdef int _check_like(Operand *o, str name, int dtype, tuple shape, str of="x") except -1:
    """o has the type of the argument `of`, and this shape."""
    if o.dtype != dtype:
        raise TypeError(f"{name} is {_dtype_name(o.dtype)}, it must have the type of {of}, {_dtype_name(dtype)}")
    if _shape(o) != shape:
        raise ValueError(f"{name} has shape {_shape(o)}, it must be {shape}")
    return 0


cdef int _check_places(Operand *out, str name) except -1:
    if _overlaps_itself(out):
        raise ValueError(f"{name} overlaps itself (strides {tuple([out.strides[i] for i in range(out.ndim)])} bytes), "
                         "each of its elements must have a place of its own")
    return 0


cdef int _check_apart(Operand *out, str name, Operand *other, str other_name, bint may_be) except -1:
    """out shares no memory with other (no array at all if its ndim is 0), or, if it may, is other itself."""
    if other.ndim == 0 or (may_be and _same_layout(out, other)) or not _overlap(out, other):
        return 0
    if may_be:
        raise ValueError(f"{name} overlaps {other_name} in part: it must be {other_name} itself or share no memory "
                         "with it")
    raise ValueError(f"{name} overlaps {other_name}, it must share no memory with it")


cdef int _check_out(Operand *out, str name, Operand *x, Operand *residual, Operand *weight, Operand *bias) except -1:
    """out has x's type and shape and may be x (or residual) itself, but overlaps nothing in another way."""
    _check_like(out, name, x.dtype, _shape(x))
    _check_places(out, name)
    _check_apart(out, name, x, "x", True)
    if residual != NULL:
        _check_apart(out, name, residual, "residual", True)
    _check_apart(out, name, weight, "weight", False)
    _check_apart(out, name, bias, "bias", False)
    return 0


# ---- arguments that every family has -----------------------------------------------------------------

cdef enum:
    # Values from which on the GIL is released: a shorter kernel is done before another thread could wake.
    RELEASE_FROM = 4096


# The least float64 that rounds to infinity in float32.
cdef double FLOAT32_END = 3.4028235677973366e38


cdef double _number(value, str name) except? -1.0:
    """A float, or what makes one; not a string."""
    if type(value) is not float:
        try:
            if isinstance(value, (str, bytes, np.complexfloating)):  # float() drops NumPy's imaginary parts
                raise TypeError
            value = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None
        except OverflowError:
            raise ValueError(f"{name} must be finite in float32, got {type(value).__name__} too large for a float") from None
    return value


cdef const float *_vector(Operand *o, obj, str name, Py_ssize_t n, str each, list keep) except? NULL:
    """weight or bias as n contiguous float32: its own memory, or a widened copy. NULL for None."""
    if obj is None:
        return NULL
    _take(o, obj, name, False, keep)
    if o.ndim != 1 or o.shape[0] != n:
        raise ValueError(f"{name} has shape {_shape(o)}, it must be ({n},), one value for each {each}")
    return _wide(o, n, name)


cdef const float *_wide(Operand *o, Py_ssize_t n, str name) except? NULL:
    """All n values of o, in C order, as contiguous float32: its own memory, or a widened copy that goes with o."""
    cdef char *packed
    cdef float *wide
    cdef Py_ssize_t i, step = o.itemsize
    cdef bint contiguous = True
    for i in range(o.ndim - 1, -1, -1):
        contiguous = contiguous and (o.shape[i] <= 1 or o.strides[i] == step)
        step *= o.shape[i]
    if o.dtype == LL_F32 and contiguous:
        return <const float *>o.data
    # n float32, and behind them the packed 16-bit values, if they have gaps
    o.scratch = PyMem_Malloc(n * 4 + n * 2 + 1)
    if o.scratch == NULL:
        raise MemoryError(f"no memory for a copy of {name}")
    wide = <float *>o.scratch
    if o.dtype == LL_F32:
        _copy_strided(o, <char *>wide, True)
    else:
        packed = o.data
        if not contiguous:
            packed = <char *>(wide + n)
            _copy_strided(o, packed, True)
        ll_widen(packed, o.dtype, wide, n)
    return wide


cdef object _new(Operand *like, obj):
    """An uninitialised array of the type and shape of obj."""
    return _new_array(like.dtype, _shape(like), obj)


cdef object _new_array(int kind, tuple shape, obj):
    """An uninitialised array of this type and shape; obj is an argument of that type."""
    if kind == LL_F32:
        dtype = _float32
    elif kind == LL_F16:
        dtype = _float16
    elif isinstance(obj, _ndarray):
        dtype = obj.dtype
    else:
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError("a bfloat16 result needs the package ml_dtypes (pip install ml_dtypes), "
                            "or an array of your own as out") from None
        dtype = np.dtype(ml_dtypes.bfloat16)
    return _empty(shape, dtype)
