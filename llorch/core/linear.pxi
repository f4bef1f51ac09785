"""linear, PackedLinear."""

cdef extern from "llorch.h" nogil:
    enum:
        LL_PANEL
    ctypedef struct ll_linear_args:
        const void *x
        const void *weight
        const float *bias
        const void *residual
        void *y
        Py_ssize_t x_stride, y_stride, residual_stride, weight_k, weight_n
        size_t M, K, N
        int dtype, weight_dtype, packed, activation
        void *scratch
    size_t ll_linear_scratch(const ll_linear_args *)
    void ll_linear(ll_linear_args *)
    size_t ll_packed_bytes(size_t K, size_t N, int dtype)
    void ll_pack(const void *weight, int dtype_in, Py_ssize_t weight_k, Py_ssize_t weight_n, size_t K, size_t N,
                 int dtype, void *packed)
    void ll_packed_column(const void *packed, int dtype, size_t K, size_t N, size_t n, float *y)
    void ll_packed_row(const void *packed, int dtype, size_t K, size_t N, size_t k, float *y)
    void *ll_scratch_take(size_t)
    void ll_scratch_give(void *)
    void *ll_memory_new(size_t)
    void ll_memory_free(void *)


cdef dict _activations = {None: 0, "gelu": 1, "gelu_tanh": 2, "silu": 3}  # the numbers of llorch.h


cdef int _activation(activation) except -1:
    if activation is None:
        return 0
    try:
        return _activations[activation]
    except (KeyError, TypeError):
        raise ValueError(f"activation must be None, 'gelu', 'gelu_tanh' or 'silu', got {activation!r}") from None


cdef object _linear(ll_linear_args *a, x, residual, out, Operand *oweight, Operand *obias, list keep):
    """a has weight, bias, K, N and activation; here x, residual and out come in, and the product is made."""
    cdef Operand ox, oresidual, oout
    cdef Py_ssize_t i, xs = 1, ys
    cdef size_t scratch
    _clear(&ox); _clear(&oresidual); _clear(&oout)
    a.residual = NULL
    a.residual_stride = 0
    a.scratch = NULL
    try:
        _take(&ox, x, "x", False, keep)
        if ox.ndim == 0 or <size_t>ox.shape[ox.ndim - 1] != a.K:
            raise ValueError(f"x has shape {_shape(&ox)}, its last axis must be the {a.K} rows of weight")
        for i in range(ox.ndim - 1):
            xs *= ox.shape[i]
        a.M = xs
        a.dtype = ox.dtype
        ys = xs * <Py_ssize_t>a.N
        xs *= <Py_ssize_t>a.K
        shape = _shape(&ox)[:-1] + (a.N,)
        if residual is not None:
            _take(&oresidual, residual, "residual", False, keep)
            _check_like(&oresidual, "residual", ox.dtype, shape)
        if out is None:
            out = _new_array(ox.dtype, shape, x)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            _check_like(&oout, "out", ox.dtype, shape)
            _check_places(&oout, "out")
            _check_apart(&oout, "out", &ox, "x", False)
            _check_apart(&oout, "out", &oresidual, "residual", True)
            _check_apart(&oout, "out", oweight, "weight", False)
            _check_apart(&oout, "out", obias, "bias", False)
        if ys:
            a.x = NULL
            a.x_stride = 0
            if xs:
                a.x = _rows(&ox, xs, True)
                a.x_stride = ox.row_stride
            a.y = _rows(&oout, ys, False)
            a.y_stride = oout.row_stride
            if residual is not None:
                a.residual = _rows(&oresidual, ys, True)
                a.residual_stride = oresidual.row_stride
            scratch = ll_linear_scratch(a)
            if scratch:
                a.scratch = ll_scratch_take(scratch)
                if a.scratch == NULL:
                    raise MemoryError(f"no memory for {scratch} bytes of working space")
            if <size_t>ys * a.K < RELEASE_FROM * 16:
                ll_linear(a)
            else:
                with nogil:
                    ll_linear(a)
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        ll_scratch_give(a.scratch)
        _drop(&ox); _drop(&oresidual); _drop(&oout)
    return out


cdef int _take_weight(Operand *o, weight, list keep) except -1:
    _take(o, weight, "weight", False, keep)
    if o.ndim != 2:
        raise ValueError(f"weight has shape {_shape(o)}, it must be (K, N)")
    for i in range(2):
        if <size_t>o.shape[i] > LL_MAX_ROW:
            raise ValueError(f"weight has shape {_shape(o)}, at most {LL_MAX_ROW} (2**24) rows and columns are specified")
    return 0


def linear(x, weight, bias=None, *, activation=None, residual=None, out=None):
    """``activation(x @ weight + bias) + residual``, every bit specified.

    Parameters
    ----------
    x : array (..., K) of float32, float16 or bfloat16
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory, at any strides.
    weight : array (K, N)
        As GPT-2 stores it (Conv1D): one column for each output. ``w.T`` of a (N, K) array is as good. Any of the
        three types; 16-bit values widen exactly.
    bias : array (N,), optional
    activation : None, "gelu", "gelu_tanh" or "silu"
        Applied to the float32 sum, correctly rounded, before the result goes to memory.
    residual : array (..., N) of x's type, optional
        Added last, in float32. Where x is float32, activation and residual have the bits of calls of their own.
    out : array (..., N) of x's type, optional
        Receives the result. May be residual itself; shares no memory with the others.

    Returns
    -------
    out, or a new array (..., N) of x's type. A 16-bit result is the float32 one, rounded once.

    Raises
    ------
    TypeError
        An argument of another element type; float64 is never narrowed silently.
    ValueError
        A shape that doesn't fit, more than 2**24 rows or columns of weight, an unknown activation, an out that overlaps
        or is read-only.

    Notes
    -----
    The sum over K is `llorch.reference.dot128`: chains of 128 fma, added in order to the bias. A row's bits don't
    depend on the other rows, on the number of threads or on the processor. A weight that is used more than once is
    faster as a `PackedLinear`.
    """
    cdef Operand oweight, obias
    cdef ll_linear_args a
    cdef list keep = []
    _clear(&oweight); _clear(&obias)
    try:
        a.activation = _activation(activation)
        _take_weight(&oweight, weight, keep)
        a.K = oweight.shape[0]
        a.N = oweight.shape[1]
        a.weight = oweight.data
        a.weight_dtype = oweight.dtype
        a.weight_k = oweight.strides[0]
        a.weight_n = oweight.strides[1]
        a.packed = 0
        a.bias = _vector(&obias, bias, "bias", a.N, "column of weight", keep)
        return _linear(&a, x, residual, out, &oweight, &obias, keep)
    finally:
        _drop(&oweight); _drop(&obias)


cdef class PackedLinear:
    """A weight that is packed once into panels of 16 columns, which a product then streams; callable like `linear`.

    Parameters
    ----------
    weight : array (K, N), or (N, K) with transposed=True
        float32, float16 or bfloat16, at any strides; it is copied.
    bias : array (N,), optional
        Copied, as float32.
    dtype : "float32", "bfloat16" or "float16"
        How the packed weight is kept. 16-bit weights stay 16 bits in memory and widen exactly in registers. A wider
        weight is rounded once, to nearest even, when it is packed; products have the bits of `linear` on that.
    transposed : bool
        weight is (N, K), one row for each output, as PyTorch's Linear and an embedding store it.

    Attributes
    ----------
    in_features, out_features : int
        K and N.
    shape : (K, N)
    dtype : str
    bias : array (N,) of float32, read-only, or None
    nbytes : int
        Memory of the packed weight.

    Raises
    ------
    TypeError, ValueError
        As `linear`; ValueError also for an unknown dtype. MemoryError where the packed weight doesn't fit.
    """
    cdef void *_packed
    cdef int _dtype
    cdef readonly size_t in_features, out_features
    cdef readonly object bias

    def __init__(self, weight, bias=None, *, dtype="float32", transposed=False):
        cdef Operand oweight, obias
        cdef const float *b
        cdef size_t K, N
        cdef Py_ssize_t weight_k, weight_n
        cdef int kind
        cdef void *packed = NULL
        cdef list keep = []
        _clear(&oweight); _clear(&obias)
        kind = LL_F32 if dtype == "float32" else LL_F16 if dtype == "float16" else LL_BF16 if dtype == "bfloat16" else -1
        if kind < 0:
            raise ValueError(f"dtype must be 'float32', 'bfloat16' or 'float16', got {dtype!r}")
        try:
            _take_weight(&oweight, weight, keep)
            K, N = oweight.shape[0], oweight.shape[1]
            weight_k, weight_n = oweight.strides[0], oweight.strides[1]
            if transposed:
                K, N = N, K
                weight_k, weight_n = weight_n, weight_k
            b = _vector(&obias, bias, "bias", N, "output", keep)
            kept = None
            if bias is not None:
                kept = _empty(N, _float32)
                if N:
                    memcpy(<void *><uintptr_t>kept.ctypes.data, b, N * sizeof(float))
                kept.flags.writeable = False
            packed = ll_memory_new(ll_packed_bytes(K, N, kind))
            if packed == NULL:
                raise MemoryError(f"no memory for a packed weight of {ll_packed_bytes(K, N, kind)} bytes")
            with nogil:
                ll_pack(oweight.data, oweight.dtype, weight_k, weight_n, K, N, kind, packed)
            if self._packed != NULL:  # a product in another thread may be reading it
                raise TypeError("a PackedLinear is made once: make another one")
            packed, self._packed = NULL, packed
            self._dtype = kind
            self.in_features, self.out_features, self.bias = K, N, kept
        finally:
            ll_memory_free(packed)
            _drop(&oweight); _drop(&obias)

    def __dealloc__(self):
        ll_memory_free(self._packed)

    @property
    def shape(self):
        return self.in_features, self.out_features

    @property
    def dtype(self):
        return _dtype_name(self._dtype)

    @property
    def nbytes(self):
        return ll_packed_bytes(self.in_features, self.out_features, self._dtype)

    def __repr__(self):
        return (f"PackedLinear({self.in_features}, {self.out_features}, dtype={self.dtype!r}"
                f"{'' if self.bias is None else ', bias'})")

    def __reduce__(self):
        raise TypeError("a PackedLinear can't be pickled or copied: make one from the weight")

    def __call__(self, x, *, activation=None, residual=None, out=None):
        """``activation(x @ weight + bias) + residual``; arguments, result and errors are those of `linear`."""
        cdef Operand none, obias
        cdef ll_linear_args a
        cdef list keep = []
        _clear(&none); _clear(&obias)
        try:
            a.activation = _activation(activation)
            a.K = self.in_features
            a.N = self.out_features
            a.weight = self._packed
            a.weight_dtype = self._dtype
            a.weight_k = a.weight_n = 0
            a.packed = 1
            a.bias = _vector(&obias, self.bias, "bias", a.N, "output", keep)
            return _linear(&a, x, residual, out, &none, &none, keep)
        finally:
            _drop(&obias)

    def row(self, k):
        """Row k of the (K, N) weight, widened: a new (N,) float32. IndexError unless 0 <= k < K."""
        cdef size_t index = _index(k, "k", self.in_features, "rows")
        y = _empty(self.out_features, _float32)
        if self.out_features:
            ll_packed_row(self._packed, self._dtype, self.in_features, self.out_features, index,
                          <float *><uintptr_t>y.ctypes.data)
        return y

    def column(self, n):
        """Column n of the (K, N) weight, widened: a new (K,) float32. IndexError unless 0 <= n < N.

        Of an embedding (V, E), packed with transposed=True as the LM head, it is the vector of token n.
        """
        cdef size_t index = _index(n, "n", self.out_features, "columns")
        y = _empty(self.in_features, _float32)
        if self.in_features:
            ll_packed_column(self._packed, self._dtype, self.in_features, self.out_features, index,
                             <float *><uintptr_t>y.ctypes.data)
        return y


cdef size_t _index(value, str name, size_t length, str what) except? 0:
    import operator

    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None
    if not 0 <= index < length:
        raise IndexError(f"{name} is {index}, the weight has {length} {what}")
    return index
