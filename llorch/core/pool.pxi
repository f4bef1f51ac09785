"""mean_pool, normalize."""

cdef extern from "llorch.h" nogil:
    ctypedef struct ll_pool_args:
        const void *x
        void *y
        Py_ssize_t x_stride, y_stride
        const int64_t *starts
        size_t count, n, skip
        int dtype
    void ll_mean_pool(const ll_pool_args *)
    void ll_normalize(const ll_softmax_args *)


cdef object _starts(lengths, Py_ssize_t rows, Py_ssize_t skip):
    """Where sequences of these lengths begin among `rows`, and where the last one ends: int64 [count + 1]."""
    cdef Py_ssize_t length, end = 0, i
    cdef list ends = [0]
    try:
        given = list(lengths)
    except TypeError:
        raise TypeError(f"lengths must be ints, one a sequence, got {type(lengths).__name__}") from None
    for i, each in enumerate(given):
        number = _integer(each, f"lengths[{i}]")
        if not skip < number <= LL_MAX_ROW:
            raise ValueError(f"lengths[{i}] is {number}, it must be at least {skip + 1}, as there is no mean of no rows"
                             + (f" (skip leaves out the first {skip})" if skip else "")
                             + f", and at most {LL_MAX_ROW} (2**24)")
        length = number
        end += length
        ends.append(end)
    if end != rows:
        raise ValueError(f"lengths sum to {end}, they must sum to the {rows} rows of x")
    return np.array(ends, _int64)


def mean_pool(x, lengths, *, skip=0, out=None):
    """The mean of each sequence's rows, every bit specified; the sequences lie in x one below the other, without padding.

    Parameters
    ----------
    x : array (T, n) of float32, float16 or bfloat16
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory; any strides; may be read-only.
    lengths : ints
        Rows of each sequence, in order: they sum to T, and each is more than skip, at most 2**24.
    skip : int
        So many rows at the beginning of each sequence stay out of its mean, as a prompt's may.
    out : array (len(lengths), n) of the type of x, optional
        Receives the result; shares no memory with x.

    Returns
    -------
    out, or a new array: row i is the mean over the rows of sequence i, ``sum64(rows) / count``. 16-bit results are the
    float32 ones, rounded once.

    Raises
    ------
    TypeError
        x or out of another element type, lengths or skip that aren't ints.
    ValueError
        An x that isn't (T, n), lengths that don't sum to T, a sequence without a row to take the mean of, an out of
        another shape, that overlaps x or is read-only.

    Notes
    -----
    A sequence's bits don't depend on what lies beside it, threads or processor: `llorch.reference.mean_pool` defines
    them. A NaN or an infinity shows in its own sequence and column.
    """
    cdef Operand ox, oout
    cdef ll_pool_args a
    cdef Py_ssize_t count
    cdef list keep = []
    _clear(&ox); _clear(&oout)
    try:
        _take(&ox, x, "x", False, keep)
        if ox.ndim != 2:
            raise ValueError(f"x has shape {_shape(&ox)}, it must be (T, n)")
        number = _integer(skip, "skip")
        if not 0 <= number < LL_MAX_ROW:
            raise ValueError(f"skip must be at least 0 and less than {LL_MAX_ROW} (2**24), got {number}")
        a.skip = number
        starts = _starts(lengths, ox.shape[0], number)
        a.count = len(starts) - 1
        a.starts = <const int64_t *>_address(starts)
        a.n = ox.shape[1]
        a.dtype = ox.dtype
        shape = (<Py_ssize_t>a.count, ox.shape[1])
        if out is None:
            out = _new_array(ox.dtype, shape, x)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            _check_like(&oout, "out", ox.dtype, shape)
            _check_places(&oout, "out")
            _check_apart(&oout, "out", &ox, "x", False)
        count = _count(&ox)
        if count and a.count:
            a.x = _rows(&ox, count, True)
            a.x_stride = ox.row_stride
            a.y = _rows(&oout, _count(&oout), False)
            a.y_stride = oout.row_stride
            if count < RELEASE_FROM:
                ll_mean_pool(&a)
            else:
                with nogil:
                    ll_interrupts_on()
                    ll_mean_pool(&a)
                _check_interrupted()
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        _drop(&ox); _drop(&oout)
    return out


def normalize(x, *, out=None):
    """Each row over the last axis divided by its length, ``x / max(sqrt(sum64(x * x)), 1e-12)``, every bit specified.

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
    A row of zeros stays one. A row with a NaN is NaN; an infinity is NaN, and the finite values beside it are zeros, as
    they are where the sum of squares overflows. The bits don't depend on batch, strides, alignment, threads or processor:
    `llorch.reference.normalize` defines them.
    """
    return _by_rows(x, out, "normalise over", ll_normalize)
