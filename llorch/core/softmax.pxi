"""softmax, and what other functions of rows share with it."""

cdef extern from "llorch.h" nogil:
    ctypedef struct ll_softmax_args:
        const void *x
        void *y
        Py_ssize_t x_stride, y_stride
        size_t rows, n
        int dtype
    void ll_softmax(const ll_softmax_args *)


cdef object _by_rows(x, out, str purpose, void (*kernel)(const ll_softmax_args *) noexcept nogil):
    """A function of each row of x."""
    cdef Operand ox, oout
    cdef ll_softmax_args a
    cdef Py_ssize_t count
    cdef list keep = []
    _clear(&ox); _clear(&oout)
    try:
        _take(&ox, x, "x", False, keep)
        if ox.ndim == 0:
            raise ValueError(f"x has no axis to {purpose}: its shape is (), it must be (..., n)")
        count = _count(&ox)
        a.n = ox.shape[ox.ndim - 1]
        if a.n > LL_MAX_ROW:
            raise ValueError(f"x has rows of {a.n} values, at most {LL_MAX_ROW} (2**24) are specified")
        a.rows = <size_t>count // a.n if a.n else 0
        a.dtype = ox.dtype
        if out is None:
            out = _new(&ox, x)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            _check_like(&oout, "out", ox.dtype, _shape(&ox))
            _check_places(&oout, "out")
            _check_apart(&oout, "out", &ox, "x", True)
        if count:
            a.x = _rows(&ox, count, True)
            a.x_stride = ox.row_stride
            a.y = _rows(&oout, count, False)
            a.y_stride = oout.row_stride
            if count < RELEASE_FROM:
                kernel(&a)
            else:
                with nogil:
                    ll_interrupts_on()
                    kernel(&a)
                _check_interrupted()
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        _drop(&ox); _drop(&oout)
    return out


def softmax(x, *, out=None):
    """Softmax over the last axis: ``exp(x - max) / sum64(exp(x - max))``, every bit specified.

    Parameters
    ----------
    x : array (..., n) of float32, float16 or bfloat16
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory; any strides; may be read-only.
        n is at most 2**24. Zero rows and empty rows are fine.
    out : array like x, optional
        Receives the result: x itself, or memory that x doesn't share.

    Returns
    -------
    out, or a new array of the type and shape of x. 16-bit results are the float32 ones, rounded once.

    Raises
    ------
    TypeError
        x or out is of another element type; float64 is never narrowed silently.
    ValueError
        x has no axis, out has another shape, overlaps x in part or is read-only.

    Notes
    -----
    A row with a NaN, a +infinity or nothing but -infinity is NaN; a single -infinity has the weight 0. exp is correctly
    rounded; the bits don't depend on batch, strides, alignment, threads or processor: `llorch.reference.softmax`
    defines them.
    """
    return _by_rows(x, out, "take the softmax over", ll_softmax)
