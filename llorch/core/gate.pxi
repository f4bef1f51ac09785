"""gate, cast."""

cdef extern from "llorch.h" nogil:
    ctypedef struct ll_gate_args:
        const void *g
        const void *u
        void *y
        Py_ssize_t g_stride, u_stride, y_stride
        size_t rows, n
        int dtype, op
    ctypedef struct ll_cast_args:
        const void *x
        void *y
        Py_ssize_t x_stride, y_stride
        size_t rows, n
        int from_ "from"
        int to
    void ll_gate(const ll_gate_args *)
    void ll_cast(const ll_cast_args *)


def gate(g, u, *, activation, out=None):
    """``activation(g) * u``, the gated product of a feed-forward layer, every bit specified.

    Parameters
    ----------
    g, u : arrays of one shape and type, float32, float16 or bfloat16
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory; any shape and strides.
    activation : "silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh", "exp" or "erf"
    out : array like g, optional
        Receives the result: g or u itself, or memory that they don't share.

    Returns
    -------
    out, or a new array of the type and shape of g: the correctly rounded function in float32, times u, rounded once.
    16-bit values widen exactly, a 16-bit result is the float32 one, rounded once more.

    Raises
    ------
    TypeError
        Another element type, or two; float64 is never narrowed silently.
    ValueError
        u of another shape, an unknown activation, an out that overlaps in part or is read-only.

    Notes
    -----
    Shazeer, "GLU variants improve Transformer", arXiv:2002.05202. `llorch.reference.gate` defines the bits.
    """
    cdef Operand og, ou, oout
    cdef ll_gate_args a
    cdef Py_ssize_t count
    cdef list keep = []
    _clear(&og); _clear(&ou); _clear(&oout)
    try:
        a.op = _function(activation)
        _take(&og, g, "g", False, keep)
        _take(&ou, u, "u", False, keep)
        _check_like(&ou, "u", og.dtype, _shape(&og), "g")
        if out is None:
            out = _new(&og, g)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            _check_like(&oout, "out", og.dtype, _shape(&og), "g")
            _check_places(&oout, "out")
            _check_apart(&oout, "out", &og, "g", True)
            _check_apart(&oout, "out", &ou, "u", True)
        _as_row(&og); _as_row(&ou); _as_row(&oout)
        count = _count(&og)
        if count:
            a.dtype = og.dtype
            a.n = og.shape[og.ndim - 1]
            a.rows = <size_t>count // a.n
            a.g = _rows(&og, count, True)
            a.g_stride = og.row_stride
            a.u = _rows(&ou, count, True)
            a.u_stride = ou.row_stride
            a.y = _rows(&oout, count, False)
            a.y_stride = oout.row_stride
            if count < RELEASE_FROM:
                ll_gate(&a)
            else:
                with nogil:
                    ll_interrupts_on()
                    ll_gate(&a)
                _check_interrupted()
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        _drop(&og); _drop(&ou); _drop(&oout)
    return out


def cast(x, dtype, *, out=None):
    """x as another type: widened exactly, or rounded once to nearest even.

    Parameters
    ----------
    x : array of float32, float16 or bfloat16
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory; any shape and strides.
    dtype : "float32", "float16" or "bfloat16", or a NumPy dtype of that name
    out : array of dtype and x's shape, optional
        Receives the result; shares no memory with x.

    Returns
    -------
    out, or a new array. Too large becomes an infinity, a subnormal value stays one, NaN gives NaN.

    Raises
    ------
    TypeError
        Another element type, of x or out.
    ValueError
        An unknown dtype, an out of another shape, that overlaps x or is read-only. A bfloat16 array needs the package
        ml_dtypes (TypeError), or an out of your own.
    """
    cdef Operand ox, oout
    cdef ll_cast_args a
    cdef Py_ssize_t count
    cdef list keep = []
    _clear(&ox); _clear(&oout)
    try:
        a.to = _format(dtype)
        _take(&ox, x, "x", False, keep)
        if out is None:
            out = _new_array(a.to, _shape(&ox), None)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            if oout.dtype != a.to:
                raise TypeError(f"out is {_dtype_name(oout.dtype)}, it must be {_dtype_name(a.to)}, as dtype says")
            _check_like(&oout, "out", a.to, _shape(&ox))
            _check_places(&oout, "out")
            _check_apart(&oout, "out", &ox, "x", False)
        _as_row(&ox); _as_row(&oout)
        count = _count(&ox)
        if count:
            a.from_ = ox.dtype
            a.n = ox.shape[ox.ndim - 1]
            a.rows = <size_t>count // a.n
            a.x = _rows(&ox, count, True)
            a.x_stride = ox.row_stride
            a.y = _rows(&oout, count, False)
            a.y_stride = oout.row_stride
            if count < RELEASE_FROM:
                ll_cast(&a)
            else:
                with nogil:
                    ll_interrupts_on()
                    ll_cast(&a)
                _check_interrupted()
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        _drop(&ox); _drop(&oout)
    return out
