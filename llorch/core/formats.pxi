"""dequantize, and the raw bytes of weights and strings as files store them."""


cdef int _storage(format) except -1:
    """A format by its name in GGUF files."""
    cdef int i
    for i in range(LL_FORMATS):
        if format == ll_formats[i].name.decode():
            return i
    raise ValueError(f"format is {format!r}, it must be one of "
                     f"{', '.join([ll_formats[i].name.decode() for i in range(LL_FORMATS)])}")


cdef int _take_bytes(Py_buffer *view, data, size_t wanted, str what) except -1:
    """The memory of data, which must be this many contiguous bytes: its own elements may be of any size."""
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except (TypeError, BufferError, ValueError):
        raise TypeError(f"data must be contiguous bytes with the buffer protocol, got {type(data).__name__}") from None
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
        "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K" or "MXFP4".
    shape : tuple of int
        Of the result, in NumPy's order. A block's values lie along the last axis, whose length is a multiple of theirs.

    Returns
    -------
    A new float32 array. Every value is the format's, exactly (`llorch.reference.dequantize` defines the bits).

    Raises
    ------
    TypeError
        data without contiguous memory.
    ValueError
        An unknown format, a shape that isn't whole blocks, a data of another length.
    """
    cdef Py_buffer view
    cdef int kind = _storage(format)
    cdef size_t count = 1, values = ll_formats[kind].values
    shape = tuple(shape)
    for n in shape:
        count *= _natural(n, "a length of shape", 0)
    if not shape or shape[-1] % values:
        raise ValueError(f"shape is {shape}, its last length must be a multiple of {values}, the values of a block")
    y = _empty(shape, _float32)
    cdef float *to = <float *><uintptr_t>y.ctypes.data
    _take_bytes(&view, data, count // values * ll_formats[kind].bytes, f"{format} of shape {shape}")
    try:
        with nogil:
            ll_interrupts_on()
            ll_dequantize(view.buf, kind, count, to)
        _check_interrupted()
    finally:
        PyBuffer_Release(&view)
    return y


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
