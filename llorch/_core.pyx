# cython: language_level=3, binding=True, embedsignature=False, freethreading_compatible=True
"""The compiled core: checks, allocation and one call without the GIL. No float arithmetic happens here.

Arrays come in by the buffer protocol, raw (typed memoryviews cost three times as much), or by DLPack.
"""
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t, uintptr_t
from libc.string cimport memcpy

import os

import numpy as np


cdef extern from "llorch.h" nogil:
    int LL_F32, LL_F16, LL_BF16, LL_MAX_THREADS
    size_t LL_MAX_ROW
    ctypedef struct ll_norm_args:
        const void *x
        const void *residual
        void *sum
        void *y
        Py_ssize_t x_stride, residual_stride, sum_stride, y_stride
        const float *weight
        const float *bias
        size_t rows, n
        double eps
        int dtype, stream
    void ll_layer_norm(ll_norm_args *)
    void ll_add_layer_norm(ll_norm_args *)
    void ll_rms_norm(ll_norm_args *)
    void ll_widen(const void *, int, float *, size_t)
    const char *ll_isa_name(int)
    int ll_isa_supported(int)
    int ll_isa_active()
    int ll_isa_select(int)
    const char *ll_compiler()
    int llorch_get_num_threads()
    void llorch_set_num_threads(int)
    int ll_default_num_threads()


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
cdef str _TYPES = "float32, float16 or bfloat16"


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
    try:
        capsule = obj.__dlpack__(max_version=(1, 0))
    except TypeError:  # a producer older than DLPack 1.0
        capsule = obj.__dlpack__()
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
    for i in range(o.ndim):
        o.shape[i] = o.view.shape[i]
        o.strides[i] = o.view.strides[i]
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


cdef bint _overlap(Operand *a, Operand *b) noexcept:
    """True unless a and b are seen to be disjoint: apart, or rows of equal stride that pass by each other."""
    cdef uintptr_t alow, ahigh, blow, bhigh
    cdef Py_ssize_t distance, arow, brow
    _extent(a, &alow, &ahigh)
    _extent(b, &blow, &bhigh)
    if ahigh <= blow or bhigh <= alow:
        return False
    if a.ndim and b.ndim and _rows_collapse(a) and _rows_collapse(b) and a.row_stride == b.row_stride > 0:
        arow = a.shape[a.ndim - 1] * a.itemsize
        brow = b.shape[b.ndim - 1] * b.itemsize
        distance = <Py_ssize_t>((<uintptr_t>b.data - <uintptr_t>a.data) % <uintptr_t>a.row_stride
                                if b.data >= a.data else
                                (a.row_stride - (<uintptr_t>a.data - <uintptr_t>b.data) % <uintptr_t>a.row_stride)
                                % a.row_stride)
        return not (distance >= arow and distance + brow <= a.row_stride)
    return True


cdef bint _overlaps_itself(Operand *o) noexcept:
    """Dimensions from the smallest stride up: each must step over all that is inside it."""
    cdef Py_ssize_t order[MAX_NDIM]
    cdef Py_ssize_t i, j, k, count = 0, size = o.itemsize
    for i in range(o.ndim):
        if o.shape[i] == 0:
            return False
        if o.shape[i] > 1:
            j = count
            while j > 0 and abs(o.strides[order[j - 1]]) > abs(o.strides[i]):
                order[j] = order[j - 1]
                j -= 1
            order[j] = i
            count += 1
    for k in range(count):
        i = order[k]
        if abs(o.strides[i]) < size:
            return True
        size += (o.shape[i] - 1) * abs(o.strides[i])
    return False


cdef int _check_out(Operand *out, str name, Operand *x, Operand *residual, Operand *weight, Operand *bias) except -1:
    """out has x's type and shape and may be x (or residual) itself, but overlaps nothing in another way."""
    cdef Py_ssize_t i
    if out.dtype != x.dtype:
        raise TypeError(f"{name} is {_dtype_name(out.dtype)}, it must have the type of x, {_dtype_name(x.dtype)}")
    if _shape(out) != _shape(x):
        raise ValueError(f"{name} has shape {_shape(out)}, it must have the shape of x, {_shape(x)}")
    if _overlaps_itself(out):
        raise ValueError(f"{name} overlaps itself (strides {tuple([out.strides[i] for i in range(out.ndim)])} bytes), "
                         "each of its elements must have a place of its own")
    if not _same_layout(out, x) and _overlap(out, x):
        raise ValueError(f"{name} overlaps x in part: it must be x itself or share no memory with it")
    if residual != NULL and not _same_layout(out, residual) and _overlap(out, residual):
        raise ValueError(f"{name} overlaps residual in part: it must be residual itself or share no memory with it")
    if weight.ndim and _overlap(out, weight):
        raise ValueError(f"{name} overlaps weight, it must share no memory with it")
    if bias.ndim and _overlap(out, bias):
        raise ValueError(f"{name} overlaps bias, it must share no memory with it")
    return 0


# ---- arguments ------------------------------------------------------------------------------------

cdef double _eps(eps) except? -1.0:
    cdef double value
    if type(eps) is not float:
        try:
            if isinstance(eps, (str, bytes)):
                raise TypeError
            eps = float(eps)
        except (TypeError, ValueError):
            raise TypeError(f"eps must be a number, got {type(eps).__name__}") from None
    value = eps
    # also false for NaN; 0x1.ffffffp127 is the first float64 that rounds to infinity in float32
    if not (value >= 0.0 and value < 3.4028235677973366e38):
        raise ValueError(f"eps must be finite in float32 and not negative, got {eps!r}")
    return value


cdef const float *_vector(Operand *o, obj, str name, Py_ssize_t n, list keep) except? NULL:
    """weight or bias as n contiguous float32: its own memory, or a widened copy. NULL for None."""
    cdef char *packed
    cdef float *wide
    if obj is None:
        return NULL
    _take(o, obj, name, False, keep)
    if o.ndim != 1 or o.shape[0] != n:
        raise ValueError(f"{name} has shape {_shape(o)}, it must be ({n},), one value for each of the last axis of x")
    if o.dtype == LL_F32 and (n <= 1 or o.strides[0] == o.itemsize):
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
        if n > 1 and o.strides[0] != o.itemsize:
            packed = <char *>(wide + n)
            _copy_strided(o, packed, True)
        ll_widen(packed, o.dtype, wide, n)
    return wide


cdef object _new(Operand *like, obj):
    """An uninitialised array of the type and shape of obj."""
    if like.dtype == LL_F32:
        dtype = _float32
    elif like.dtype == LL_F16:
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
    return _empty(_shape(like), dtype)


cdef enum:
    LAYER_NORM
    ADD_LAYER_NORM
    RMS_NORM
    # Values from which on the GIL is released: a shorter kernel is done before another thread could wake.
    RELEASE_FROM = 4096


cdef object _norm(int op, x, residual, weight, bias, eps, out, sum_out):
    cdef Operand ox, oresidual, oweight, obias, oout, osum
    cdef ll_norm_args a
    cdef Py_ssize_t i, count
    cdef list keep = []
    _clear(&ox); _clear(&oresidual); _clear(&oweight); _clear(&obias); _clear(&oout); _clear(&osum)
    a.residual = NULL
    a.sum = NULL
    a.residual_stride = a.sum_stride = 0
    try:
        a.eps = _eps(eps)
        _take(&ox, x, "x", False, keep)
        if ox.ndim == 0:
            raise ValueError("x has no axis to normalise over: its shape is (), it must be (..., n)")
        count = 1
        for i in range(ox.ndim):
            count *= ox.shape[i]
        a.n = ox.shape[ox.ndim - 1]
        if a.n > LL_MAX_ROW:
            raise ValueError(f"x has rows of {a.n} values, at most {LL_MAX_ROW} (2**24) are specified")
        a.rows = <size_t>count // a.n if a.n else 0
        a.dtype = ox.dtype
        a.weight = _vector(&oweight, weight, "weight", a.n, keep)
        a.bias = _vector(&obias, bias, "bias", a.n, keep)
        if op == ADD_LAYER_NORM:
            _take(&oresidual, residual, "residual", False, keep)
            if oresidual.dtype != ox.dtype:
                raise TypeError(f"residual is {_dtype_name(oresidual.dtype)}, it must have the type of x, "
                                f"{_dtype_name(ox.dtype)}")
            if _shape(&oresidual) != _shape(&ox):
                raise ValueError(f"residual has shape {_shape(&oresidual)}, it must have the shape of x, {_shape(&ox)}")
            if sum_out is None:
                sum_out = _new(&ox, x)
                _take(&osum, sum_out, "sum_out", True, keep)
            else:
                _take(&osum, sum_out, "sum_out", True, keep)
                _check_out(&osum, "sum_out", &ox, &oresidual, &oweight, &obias)
        if out is None:
            out = _new(&ox, x)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            _check_out(&oout, "out", &ox, &oresidual if op == ADD_LAYER_NORM else NULL, &oweight, &obias)
            if op == ADD_LAYER_NORM and _overlap(&oout, &osum):
                raise ValueError("out overlaps sum_out, they must share no memory")
        if count:
            a.x = _rows(&ox, count, True)
            a.x_stride = ox.row_stride
            a.y = _rows(&oout, count, False)
            a.y_stride = oout.row_stride
            if op == ADD_LAYER_NORM:
                a.residual = _rows(&oresidual, count, True)
                a.residual_stride = oresidual.row_stride
                a.sum = _rows(&osum, count, False)
                a.sum_stride = osum.row_stride
            if count < RELEASE_FROM:
                _run(op, &a)
            else:
                with nogil:
                    _run(op, &a)
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
            if osum.scratch != NULL:
                _copy_strided(&osum, <char *>osum.scratch, False)
    finally:
        _drop(&ox); _drop(&oresidual); _drop(&oweight); _drop(&obias); _drop(&oout); _drop(&osum)
    return (out, sum_out) if op == ADD_LAYER_NORM else out


cdef void _run(int op, ll_norm_args *a) noexcept nogil:
    if op == LAYER_NORM:
        ll_layer_norm(a)
    elif op == ADD_LAYER_NORM:
        ll_add_layer_norm(a)
    else:
        ll_rms_norm(a)


# ---- public functions -----------------------------------------------------------------------------

def layer_norm(x, weight=None, bias=None, *, eps=1e-5, out=None):
    """LayerNorm over the last axis: ``(x - mean) / sqrt(var + eps) * weight + bias``, every bit specified.

    Parameters
    ----------
    x : array (..., n) of float32, float16 or bfloat16
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory; any strides; may be read-only.
        n is at most 2**24. Zero rows are fine.
    weight, bias : array (n,), optional
        float32, float16 or bfloat16; widened exactly. Without them 1 and 0.
    eps : float
        Finite, not negative; rounded once to float32.
    out : array like x, optional
        Receives the result: x itself, or memory that x, weight and bias don't share.

    Returns
    -------
    out, or a new array of the type and shape of x. 16-bit results are the float32 ones, rounded once.

    Raises
    ------
    TypeError
        An argument of another element type; float64 is never narrowed silently.
    ValueError
        A wrong shape, an eps that is negative, NaN or infinite, an out that overlaps in part or is read-only.

    Notes
    -----
    A NaN or infinity makes its own row NaN and touches no other. Finite rows give finite results also where
    their sum or squares overflow float32. The bits don't depend on batch, strides, alignment, threads or
    processor: `llorch.reference.layer_norm` defines them. Corrected two-pass variance: Chan, Golub, LeVeque,
    "Algorithms for computing the sample variance", 1983; LayerNorm: Ba, Kiros, Hinton, arXiv:1607.06450.
    """
    return _norm(LAYER_NORM, x, None, weight, bias, eps, out, None)


def rms_norm(x, weight=None, *, eps=1e-5, out=None):
    """RMSNorm over the last axis: ``x / sqrt(mean(x * x) + eps) * weight``, every bit specified.

    Parameters, result, errors and notes are those of `layer_norm`; there is no bias.
    RMSNorm: Zhang, Sennrich, arXiv:1910.07467.
    """
    return _norm(RMS_NORM, x, None, weight, None, eps, out, None)


def add_layer_norm(x, residual, weight=None, bias=None, *, eps=1e-5, out=None, sum_out=None):
    """``h = x + residual`` and ``layer_norm(h, weight, bias)`` in one pass over memory.

    Parameters
    ----------
    x, residual : arrays (..., n) of one shape and type
        As in `layer_norm`.
    weight, bias, eps
        As in `layer_norm`.
    out, sum_out : arrays like x, optional
        Receive the normalised values and the sum. Each may be x or residual itself (not both the same).

    Returns
    -------
    (normalised, sum) : the same bits as ``h = x + residual; layer_norm(h), h``. 16-bit sums are added in
    float32 and rounded once; what is normalised is the rounded sum.
    """
    return _norm(ADD_LAYER_NORM, x, residual, weight, bias, eps, out, sum_out)


def set_num_threads(n):
    """Let llorch use up to n threads (an int >= 1; above 256 it is 256). Changes no bit of any result."""
    import operator

    try:
        value = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an int, got {type(n).__name__}") from None
    if value < 1:
        raise ValueError(f"n must be at least 1, got {value}")
    llorch_set_num_threads(min(value, LL_MAX_THREADS))


def get_num_threads():
    """How many threads a call may use; first LLORCH_NUM_THREADS, or what affinity and the cgroup's quota allow."""
    return llorch_get_num_threads()


def isa():
    """The instruction set whose kernels run: "avx512", "avx2", "neon" or "generic"."""
    return ll_isa_name(ll_isa_active()).decode()


def _compiled_isas():
    names = []
    while ll_isa_name(len(names)) != NULL:
        names.append(ll_isa_name(len(names)).decode())
    return tuple(names)


def available_isas():
    """The instruction sets compiled in that this machine can run, best first. All give the same bits."""
    return tuple([name for i, name in enumerate(_compiled_isas()) if ll_isa_supported(i)])


def _select_isa(name):
    compiled = _compiled_isas()
    if name not in compiled:
        raise ValueError(f"instruction set {name!r} is unknown here, this build has {', '.join(compiled)}")
    if ll_isa_select(compiled.index(name)):
        raise RuntimeError(f"instruction set {name!r} can't run on this machine, it has {', '.join(available_isas())}")


def _compiler():
    return ll_compiler().decode()


def _default_num_threads():
    return ll_default_num_threads()


def _from_environment():
    """LLORCH_ISA and LLORCH_NUM_THREADS; a value that can't be followed is an error, never ignored."""
    name = os.environ.get("LLORCH_ISA", "")
    if name:
        try:
            _select_isa(name)
        except ValueError as error:
            raise ValueError(f"LLORCH_ISA: {error}") from None
        except RuntimeError as error:
            raise RuntimeError(f"LLORCH_ISA: {error}") from None
    threads = os.environ.get("LLORCH_NUM_THREADS", "")
    if threads:
        if not (threads.isascii() and threads.isdigit() and int(threads) >= 1):
            raise ValueError(f"LLORCH_NUM_THREADS must be an integer of at least 1, got {threads!r}")
        set_num_threads(int(threads))


_from_environment()
