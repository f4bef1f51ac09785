"""rope, and the table's rows for llorch/_rope.py."""

cdef extern from "llorch.h" nogil:
    ctypedef struct ll_rope_args:
        const void *x
        void *y
        Py_ssize_t x_row, x_head, y_row, y_head
        size_t rows, heads, D, R
        const float *cos
        const float *sin
        const int64_t *positions
        int dtype
    void ll_rope(const ll_rope_args *)
    size_t ll_rope_table(const double *f_hi, const double *f_lo, size_t half, double factor_hi, double factor_lo,
                         size_t first, size_t count, float *cos, float *sin)


cdef bint _heads_collapse(Operand *o, Py_ssize_t *row, Py_ssize_t *head) noexcept:
    """True where o (..., T, D) has contiguous last axes, and its leading axes are one sequence of heads."""
    cdef Py_ssize_t i, last = o.ndim - 1, expected = 0
    cdef bint have = False
    row[0] = o.strides[last - 1]
    head[0] = 0
    if o.shape[last] > 1 and o.strides[last] != o.itemsize:
        return False
    for i in range(last - 2, -1, -1):
        if o.shape[i] == 1:
            continue
        if not have:
            head[0] = o.strides[i]
            have = True
        elif o.strides[i] != expected:
            return False
        expected = o.strides[i] * o.shape[i]
    return True


cdef char *_heads(Operand *o, Py_ssize_t count, Py_ssize_t *row, Py_ssize_t *head, bint copy_in) except? NULL:
    """Where o's heads begin: its own memory, or a contiguous copy of it."""
    if _heads_collapse(o, row, head):
        return o.data
    o.scratch = PyMem_Malloc(count * o.itemsize)
    if o.scratch == NULL:
        raise MemoryError(f"no memory for a contiguous copy of {count * o.itemsize} bytes")
    if copy_in:
        _copy_strided(o, <char *>o.scratch, True)
    row[0] = o.shape[o.ndim - 1] * o.itemsize
    head[0] = o.shape[o.ndim - 2] * row[0]
    return <char *>o.scratch


cdef const float *_table(Operand *o, obj, str name, list keep) except? NULL:
    """cos or sin as contiguous rows of float32."""
    _take(o, obj, name, False, keep)
    if o.dtype != LL_F32:
        raise TypeError(f"{name} is {_dtype_name(o.dtype)}, it must be float32")
    if o.ndim != 2:
        raise ValueError(f"{name} has shape {_shape(o)}, it must be (P, R/2)")
    if _rows_collapse(o) and (o.shape[0] < 2 or o.row_stride == o.shape[1] * o.itemsize):
        return <const float *>o.data
    o.scratch = PyMem_Malloc(o.shape[0] * o.shape[1] * o.itemsize + 1)
    if o.scratch == NULL:
        raise MemoryError(f"no memory for a copy of {name}")
    _copy_strided(o, <char *>o.scratch, True)
    return <const float *>o.scratch


def rope(x, cos, sin, positions=None, *, out=None):
    """Rotary positions: the first R values of each head rotated by halves, every bit specified.

    Parameters
    ----------
    x : array (..., H, T, D) of float32, float16 or bfloat16; (T, D) is one head
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory, at any strides.
    cos, sin : arrays (P, R/2) of float32, R at most D
        Of `rope_table`: a row for each position. Values R .. D - 1 of a head are copied.
    positions : integers (T,), optional
        The row that each token takes, in [0, P). Without them 0 .. T - 1.
    out : array like x, optional
        Receives the result: x itself, or memory that x, cos and sin don't share.

    Returns
    -------
    out, or a new array of the type and shape of x: for i < R/2 ``y[i] = fma(x[i], cos[i], -(x[i + R/2] * sin[i]))`` and
    ``y[i + R/2] = fma(x[i + R/2], cos[i], x[i] * sin[i])``. 16-bit values widen exactly, results are rounded once.

    Raises
    ------
    TypeError
        Another element type; positions that aren't integers.
    ValueError
        A shape that doesn't fit, an out that overlaps in part or is read-only.
    IndexError
        A position that has no row in cos and sin.

    Notes
    -----
    The halves are as Hugging Face lays a head out. Su et al., "RoFormer", arXiv:2104.09864. `llorch.reference.rope`
    defines the bits.
    """
    cdef Operand ox, ocos, osin, oout
    cdef ll_rope_args a
    cdef Py_ssize_t count, i, T
    cdef int64_t place
    cdef list keep = []
    _clear(&ox); _clear(&ocos); _clear(&osin); _clear(&oout)
    try:
        _take(&ox, x, "x", False, keep)
        if ox.ndim < 2:
            raise ValueError(f"x has shape {_shape(&ox)}, it must be (..., T, D)")
        T = ox.shape[ox.ndim - 2]
        a.D = ox.shape[ox.ndim - 1]
        a.cos = _table(&ocos, cos, "cos", keep)
        a.sin = _table(&osin, sin, "sin", keep)
        if _shape(&osin) != _shape(&ocos) or 2 * <size_t>ocos.shape[1] > a.D:
            raise ValueError(f"cos has shape {_shape(&ocos)} and sin {_shape(&osin)}, both must be (P, R/2) with R at most "
                             f"{a.D}, the values of a head")
        a.R = 2 * ocos.shape[1]
        given = np.arange(T) if positions is None else np.asarray(positions)
        if given.size and given.dtype.kind not in "iu":
            raise TypeError(f"positions must be integers, got {given.dtype.name}")
        if given.shape != (T,):
            raise ValueError(f"positions has shape {given.shape}, it must be {(T,)}, one for each token of x")
        places = np.array(given, _int64, order="C")  # a copy: what is checked is what is used
        a.positions = <const int64_t *>_address(places)
        for i in range(T):
            place = a.positions[i]
            if place < 0 or place >= ocos.shape[0]:
                raise IndexError(f"positions[{i}] is {given[i]}, cos and sin have {ocos.shape[0]} rows: positions must be "
                                 f"in [0, {ocos.shape[0]})")
        if out is None:
            out = _new(&ox, x)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            _check_like(&oout, "out", ox.dtype, _shape(&ox))
            _check_places(&oout, "out")
            _check_apart(&oout, "out", &ox, "x", True)
            _check_apart(&oout, "out", &ocos, "cos", False)
            _check_apart(&oout, "out", &osin, "sin", False)
        count = _count(&ox)
        if count:
            a.dtype = ox.dtype
            a.rows = T
            a.heads = <size_t>count // (a.D * <size_t>T)
            a.x = _heads(&ox, count, &a.x_row, &a.x_head, True)
            a.y = _heads(&oout, count, &a.y_row, &a.y_head, False)
            if count < RELEASE_FROM:
                ll_rope(&a)
            else:
                with nogil:
                    ll_interrupts_on()
                    ll_rope(&a)
                _check_interrupted()
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        _drop(&ox); _drop(&ocos); _drop(&osin); _drop(&oout)
    return out


def _rope_rows(high, low, double factor_high, double factor_low, places, cos, sin):
    """Rows of the table, for llorch/_rope.py, which checks: float64 (half,) twice, int64 (P,), float32 (P, half) twice.

    Returns how many values a double-double couldn't decide: they are NaN.
    """
    cdef const double *hi = <const double *>_address(high)
    cdef const double *lo = <const double *>_address(low)
    cdef const int64_t *p = <const int64_t *>_address(places)
    cdef float *c = <float *>_address(cos)
    cdef float *s = <float *>_address(sin)
    cdef size_t half = high.shape[0], count = places.shape[0], first = 0, end, undecided = 0
    with nogil:
        ll_interrupts_on()
        while first < count:  # positions that follow one another go together
            end = first + 1
            while end < count and p[end] == p[end - 1] + 1:
                end += 1
            undecided += ll_rope_table(hi, lo, half, factor_high, factor_low, <size_t>p[first], end - first,
                                       c + first * half, s + first * half)
            first = end
    _check_interrupted()
    return undecided
