"""dequantize and quantize, and the raw bytes of weights and strings as files store them."""


cdef size_t MOST_VALUES = <size_t>1 << 60  # NumPy counts bytes up to 2**63


cdef int _storage(format, int first=0) except -1:
    """A format by its name in GGUF files, in lower case too; first: LL_DTYPES for one of blocks."""
    cdef int i
    if isinstance(format, str):
        for i in range(first, LL_FORMATS):
            if format.upper() == ll_formats[i].name.decode():
                return i
    raise ValueError(f"format is {format!r}, it must be one of "
                     f"{', '.join([ll_formats[i].name.decode() for i in range(first, LL_FORMATS)])}")


cdef int _take_bytes(Py_buffer *view, data, size_t wanted, str what) except -1:
    """The memory of data, which must be this many contiguous bytes: its own elements may be of any size."""
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except (TypeError, BufferError, ValueError):
        what = type(data).__name__
        if isinstance(data, _ndarray) and not data.flags.c_contiguous:
            what += " that isn't contiguous"
        raise TypeError(f"data must be contiguous bytes with the buffer protocol, got {what}") from None
    if <size_t>view.len != wanted:
        length = view.len
        PyBuffer_Release(view)
        raise ValueError(f"data has {length} bytes, {what} takes {wanted}")
    return 0


def dequantize(data, format, shape):
    """The float32 values of a weight as GGUF files store it.

    Parameters
    ----------
    data : bytes, or anything contiguous with the buffer protocol
        Blocks of the format, one after another.
    format : str
        "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K" or "MXFP4", in
        lower case too.
    shape : tuple of int
        Of the result, in NumPy's order. A block's values lie along the last axis, whose length is a multiple of theirs.

    Returns
    -------
    A new float32 array. Every value is the format's, exactly (`llorch.reference.dequantize` defines the bits).

    Raises
    ------
    TypeError
        data without contiguous memory; a shape that is no tuple of int.
    ValueError
        An unknown format, a shape that isn't whole blocks, a data of another length.
    """
    cdef Py_buffer view
    cdef int kind = _storage(format)
    cdef size_t count = 1, length, values = ll_formats[kind].values
    cdef float *to
    try:
        shape = tuple(shape)
    except TypeError:
        raise TypeError(f"shape must be a tuple of int, got {type(shape).__name__}") from None
    for n in shape:
        length = _natural(n, "a length of shape", 0)
        if length and count > MOST_VALUES // length:
            raise ValueError(f"shape is {shape}, which is more values than there can be")
        count *= length
    if not shape:
        raise ValueError("shape is (), it must have a last axis, along which blocks lie")
    if shape[-1] % values:
        raise ValueError(f"shape is {shape}, its last length must be a multiple of {values}, the values of a block")
    _take_bytes(&view, data, count // values * ll_formats[kind].bytes, f"{format} of shape {shape}")
    try:
        y = _empty(shape, _float32)
        to = <float *>_address(y)
        with nogil:
            ll_interrupts_on()
            ll_dequantize(view.buf, kind, count, to)
        _check_interrupted()
    finally:
        PyBuffer_Release(&view)
    return y


cdef object _not_stored(Operand *o, size_t row, int format, str name, bint columns):
    """Why a row can't be stored. Its values, widened, are looked at."""
    cdef Py_ssize_t i, left = <Py_ssize_t>row
    values = _empty(o.shape[o.ndim - 1], _float32)
    ll_widen((o.data if o.scratch == NULL else <char *>o.scratch) + left * o.row_stride, o.dtype,
             <float *>_address(values), o.shape[o.ndim - 1])
    index = []
    for i in range(o.ndim - 2, -1, -1):
        index.insert(0, left % o.shape[i])
        left //= o.shape[i]
    wrong = np.flatnonzero(~np.isfinite(values))
    index.append(wrong[0] if wrong.size else ":")
    place = f"{name}[{', '.join(map(str, index[::-1] if columns else index))}]"
    kind = ll_formats[format].name.decode()
    if wrong.size:
        return ValueError(f"{place} is {values[wrong[0]]}, {kind} has finite values only")
    return ValueError(f"{place} has values as large as {abs(values).max():.4g}: too large for the scales of {kind}")


cdef object _quantized(Operand *o, int format, str name, bint columns):
    """The blocks of o's rows, which are whole blocks; columns: they are columns of what the caller gave."""
    cdef ll_quantize_args a
    cdef Py_ssize_t count = _count(o)
    cdef size_t stored
    a.format = format
    a.n = o.shape[o.ndim - 1]
    blocks = _empty((*_shape(o)[:-1], a.n // ll_formats[format].values * ll_formats[format].bytes), np.uint8)
    if not count:
        return blocks
    a.rows = <size_t>count // a.n
    a.dtype = o.dtype
    a.x = _rows(o, count, True)
    a.x_stride = o.row_stride
    a.y = <void *>_address(blocks)
    with nogil:
        ll_interrupts_on()
        stored = ll_quantize_rows(&a)
    _check_interrupted()
    if stored < a.rows:
        raise _not_stored(o, stored, format, name, columns)
    return blocks


def quantize(weights, format):
    """float32 weights as blocks of integers with scales, as GGUF files store them.

    Parameters
    ----------
    weights : array (..., K) of float32, float16 or bfloat16
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory; any strides. K is a multiple of a block's
        values: 256 of a K-quant, 32 of the others.
    format : str
        "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K" or "MXFP4", in lower case too.

    Returns
    -------
    A new uint8 array (..., bytes of a row), for `dequantize`, `PackedLinear.from_blocks` and GGUF files. The same bytes on
    every machine and with any number of threads (`llorch.reference.quantize` defines them); of Q8_0, Q4_0, Q4_1, Q5_0 and
    Q5_1 they are those of ggml's own rounding. K-quants are rounded for the smallest sum of squared errors.

    Raises
    ------
    TypeError
        Another element type.
    ValueError
        An unknown format, a K that isn't whole blocks, a weight that is infinite, NaN, or too large for float16 scales.
    """
    cdef Operand o
    cdef list keep = []
    cdef int kind = _storage(format, LL_DTYPES)
    cdef size_t values = ll_formats[kind].values
    _clear(&o)
    try:
        _take(&o, weights, "weights", False, keep)
        if not o.ndim or o.shape[o.ndim - 1] % values:
            raise ValueError(f"weights has shape {_shape(&o)}, its last length must be a multiple of {values}, the values "
                             f"of a block of {format}")
        return _quantized(&o, kind, "weights", False)
    finally:
        _drop(&o)


def _strings_end(bytes data, size_t at, size_t count):
    """Where `count` strings end that begin at byte `at`, each its length in 8 little-endian bytes and then as many; -1
    where one goes on behind data."""
    cdef const uint8_t *bytes = <const uint8_t *><const char *>data
    cdef size_t size = len(data), length, i, j
    if at > size:
        return -1
    for i in range(count):
        if size - at < 8:
            return -1
        length = 0
        for j in range(8):
            length |= <size_t>bytes[at + j] << (8 * j)
        at += 8
        if length > size - at:
            return -1
        at += length
    return at
