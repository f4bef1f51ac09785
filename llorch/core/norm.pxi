"""layer_norm, rms_norm, add_layer_norm, add_rms_norm."""

cdef extern from "llorch.h" nogil:
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
        int dtype
    void ll_layer_norm(const ll_norm_args *)
    void ll_add_layer_norm(const ll_norm_args *)
    void ll_rms_norm(const ll_norm_args *)
    void ll_add_rms_norm(const ll_norm_args *)


cdef double _eps(eps) except? -1.0:
    cdef double value = _number(eps, "eps")
    if not (value >= 0.0 and value < FLOAT32_END):  # also false for NaN
        raise ValueError(f"eps must be finite in float32 and not negative, got {eps!r}")
    return value


cdef enum:
    LAYER_NORM
    ADD_LAYER_NORM
    RMS_NORM
    ADD_RMS_NORM


cdef object _norm(int op, x, residual, weight, bias, eps, out, sum_out):
    cdef Operand ox, oresidual, oweight, obias, oout, osum
    cdef ll_norm_args a
    cdef Py_ssize_t count
    cdef bint add = op == ADD_LAYER_NORM or op == ADD_RMS_NORM
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
        count = _count(&ox)
        a.n = ox.shape[ox.ndim - 1]
        if a.n > LL_MAX_ROW:
            raise ValueError(f"x has rows of {a.n} values, at most {LL_MAX_ROW} (2**24) are specified")
        a.rows = <size_t>count // a.n if a.n else 0
        a.dtype = ox.dtype
        a.weight = _vector(&oweight, weight, "weight", a.n, "value of the last axis of x", keep)
        a.bias = _vector(&obias, bias, "bias", a.n, "value of the last axis of x", keep)
        if add:
            _take(&oresidual, residual, "residual", False, keep)
            _check_like(&oresidual, "residual", ox.dtype, _shape(&ox))
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
            _check_out(&oout, "out", &ox, &oresidual if add else NULL, &oweight, &obias)
            if add and _overlap(&oout, &osum):
                raise ValueError("out overlaps sum_out, they must share no memory")
        if count:
            a.x = _rows(&ox, count, True)
            a.x_stride = ox.row_stride
            a.y = _rows(&oout, count, False)
            a.y_stride = oout.row_stride
            if add:
                a.residual = _rows(&oresidual, count, True)
                a.residual_stride = oresidual.row_stride
                a.sum = _rows(&osum, count, False)
                a.sum_stride = osum.row_stride
            if count < RELEASE_FROM:
                _run(op, &a)
            else:
                with nogil:
                    ll_interrupts_on()
                    _run(op, &a)
                _check_interrupted()
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
            if osum.scratch != NULL:
                _copy_strided(&osum, <char *>osum.scratch, False)
    finally:
        _drop(&ox); _drop(&oresidual); _drop(&oweight); _drop(&obias); _drop(&oout); _drop(&osum)
    return (out, sum_out) if add else out


cdef void _run(int op, const ll_norm_args *a) noexcept nogil:
    if op == LAYER_NORM:
        ll_layer_norm(a)
    elif op == ADD_LAYER_NORM:
        ll_add_layer_norm(a)
    elif op == RMS_NORM:
        ll_rms_norm(a)
    else:
        ll_add_rms_norm(a)


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

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`; ValueError also where out and sum_out share memory.
    """
    return _norm(ADD_LAYER_NORM, x, residual, weight, bias, eps, out, sum_out)


def add_rms_norm(x, residual, weight=None, *, eps=1e-5, out=None, sum_out=None):
    """``h = x + residual`` and ``rms_norm(h, weight)`` in one pass over memory.

    Parameters, result, errors and notes are those of `add_layer_norm`; there is no bias. (normalised, sum) has the bits
    of ``h = x + residual; rms_norm(h), h``.
    """
    return _norm(ADD_RMS_NORM, x, residual, weight, None, eps, out, sum_out)
