"""exp, tanh, erf, sigmoid, silu, gelu, relu: functions of every value."""

cdef extern from "llorch.h" nogil:
    int LL_EXP, LL_TANH, LL_ERF, LL_SIGMOID, LL_SILU, LL_GELU, LL_GELU_TANH, LL_RELU
    ctypedef struct ll_unary_args:
        const void *x
        void *y
        Py_ssize_t x_stride, y_stride
        size_t rows, n
        int dtype, op
    void ll_unary(const ll_unary_args *)


cdef inline void _as_row(Operand *o) noexcept:
    """A zero-dimensional array as a row of one value."""
    if o.ndim == 0:
        o.ndim = 1
        o.shape[0] = 1
        o.strides[0] = o.itemsize


cdef object _unary(int op, x, out):
    cdef Operand ox, oout, none
    cdef ll_unary_args a
    cdef Py_ssize_t count
    cdef list keep = []
    _clear(&ox); _clear(&oout); _clear(&none)
    try:
        _take(&ox, x, "x", False, keep)
        if out is None:
            out = _new(&ox, x)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            _check_out(&oout, "out", &ox, NULL, &none, &none)
        _as_row(&ox)
        _as_row(&oout)
        count = _count(&ox)
        if count:
            a.op = op
            a.dtype = ox.dtype
            a.n = ox.shape[ox.ndim - 1]
            a.rows = <size_t>count // a.n
            a.x = _rows(&ox, count, True)
            a.x_stride = ox.row_stride
            a.y = _rows(&oout, count, False)
            a.y_stride = oout.row_stride
            if count < RELEASE_FROM:
                ll_unary(&a)
            else:
                with nogil:
                    ll_interrupts_on()
                    ll_unary(&a)
                _check_interrupted()
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        _drop(&ox); _drop(&oout)
    return out


def exp(x, *, out=None):
    """e to the power of every value of x, correctly rounded.

    Parameters
    ----------
    x : array of float32, float16 or bfloat16
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory; any shape and strides; may be
        read-only. Zero values are fine.
    out : array like x, optional
        Receives the result: x itself, or memory that x doesn't share.

    Returns
    -------
    out, or a new array of the type and shape of x. Each value is the float32 nearest to the true real number, ties
    to even; 16-bit results are that, rounded once more.

    Raises
    ------
    TypeError
        Another element type; float64 is never narrowed silently.
    ValueError
        An out of another shape, that overlaps x in part, or that is read-only.

    Notes
    -----
    A result too large is infinity, too small a subnormal or 0; NaN gives NaN. Proved by comparing all 2**32 inputs
    (docs/exhaustive.md). Ziv, "Fast evaluation of elementary mathematical functions with correctly rounded last
    bit", ACM TOMS 17 (1991).
    """
    return _unary(LL_EXP, x, out)


def tanh(x, *, out=None):
    """The hyperbolic tangent of every value of x, correctly rounded.

    Parameters, result, errors and notes are those of `exp`. -0 gives -0, infinities give 1 and -1.
    """
    return _unary(LL_TANH, x, out)


def erf(x, *, out=None):
    """The error function of every value of x, correctly rounded.

    Parameters, result, errors and notes are those of `exp`. -0 gives -0, infinities give 1 and -1.
    """
    return _unary(LL_ERF, x, out)


def sigmoid(x, *, out=None):
    """``1 / (1 + exp(-x))`` of every value of x, correctly rounded.

    Parameters, result, errors and notes are those of `exp`. Infinities give 1 and 0.
    """
    return _unary(LL_SIGMOID, x, out)


def silu(x, *, out=None):
    """``x / (1 + exp(-x))`` of every value of x, correctly rounded; also called swish.

    Parameters, result, errors and notes are those of `exp`. -0 and -infinity give -0.
    SiLU: Elfwing, Uchibe, Doya, arXiv:1702.03118.
    """
    return _unary(LL_SILU, x, out)


def relu(x, *, out=None):
    """x where it is above 0, else +0, of -0 too; a NaN stays one.

    Parameters, result, errors and notes are those of `exp`.
    """
    return _unary(LL_RELU, x, out)


def gelu(x, *, approximate="none", out=None):
    """GELU of every value of x, correctly rounded.

    ``approximate="none"`` is ``x * Phi(x)`` with the normal distribution's Phi; ``"tanh"``, as in GPT-2, is
    ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``, with both constants as exact real numbers.

    The other parameters, result, errors and notes are those of `exp`; another approximate is a ValueError. -0 and
    -infinity give -0. GELU: Hendrycks, Gimpel, arXiv:1606.08415.
    """
    if approximate == "none":
        return _unary(LL_GELU, x, out)
    if approximate == "tanh":
        return _unary(LL_GELU_TANH, x, out)
    raise ValueError(f'approximate must be "none" or "tanh", got {approximate!r}')
