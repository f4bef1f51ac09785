"""linear, PackedLinear."""

cdef extern from "llorch.h" nogil:
    int LL_NONE, LL_FLOAT32, LL_INT16
    ctypedef struct ll_linear_args:
        const void *x
        ll_weight weight
        const float *bias
        const void *residual
        void *y
        Py_ssize_t x_stride, y_stride, residual_stride
        size_t M
        int dtype, activation, gated
    int ll_linear(const ll_linear_args *)
    size_t ll_linear_scratch(const ll_linear_args *)
    size_t ll_packed_bytes(size_t K, size_t N, int format)
    void ll_pack(const ll_weight *, int format, void *to)
    void ll_pack_part(const ll_weight *, int format, size_t k, size_t K, void *to)
    void ll_packed_column(const ll_weight *, size_t n, float *y)
    void ll_packed_row(const ll_weight *, size_t k, float *y)
    void *ll_memory_new(size_t)
    void ll_memory_free(void *)
    ctypedef struct ll_weight_memory:
        void *data
    ll_weight_memory ll_weight_new(size_t)
    void ll_weight_free(const ll_weight_memory *)
    void ll_weights_end()


cdef dict _functions = {"gelu": LL_GELU, "gelu_tanh": LL_GELU_TANH, "silu": LL_SILU, "relu": LL_RELU,
                        "sigmoid": LL_SIGMOID, "tanh": LL_TANH, "exp": LL_EXP, "erf": LL_ERF}


cdef int _function(name) except -1:
    try:
        return _functions[name]
    except (KeyError, TypeError):
        raise ValueError(f"activation must be one of {', '.join(_functions)}, got {name!r}") from None


cdef int _activation(name) except -1:
    if name is None:
        return LL_NONE
    try:
        return _functions[name]
    except (KeyError, TypeError):
        raise ValueError(f"activation must be None or one of {', '.join(_functions)}, got {name!r}") from None


cdef object _linear(ll_linear_args *a, x, residual, out, Operand *oweight, Operand *obias, list keep):
    """a has weight, bias and activation; here x, residual and out come in, and the product is made."""
    cdef Operand ox, oresidual, oout
    cdef Py_ssize_t i, xs = 1, ys
    cdef size_t K = a.weight.K, N = a.weight.N
    cdef int failed
    _clear(&ox); _clear(&oresidual); _clear(&oout)
    a.residual = NULL
    a.residual_stride = 0
    a.gated = 0
    try:
        _take(&ox, x, "x", False, keep)
        if ox.ndim == 0 or <size_t>ox.shape[ox.ndim - 1] != K:
            raise ValueError(f"x has shape {_shape(&ox)}, its last axis must be the {K} rows of weight")
        for i in range(ox.ndim - 1):
            xs *= ox.shape[i]
        a.M = xs
        a.dtype = ox.dtype
        ys = xs * <Py_ssize_t>N
        xs *= <Py_ssize_t>K
        shape = _shape(&ox)[:-1] + (N,)
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
            if <size_t>ys * K < RELEASE_FROM * 16:
                failed = ll_linear(a)
            else:
                with nogil:
                    ll_interrupts_on()
                    failed = ll_linear(a)
                _check_interrupted()
            if failed:
                raise MemoryError(f"no memory for {ll_linear_scratch(a)} bytes of working space")
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        _drop(&ox); _drop(&oresidual); _drop(&oout)
    return out


cdef int _take_weight(Operand *o, ll_weight *w, weight, bint transposed, list keep) except -1:
    """w is the (K, N) weight; transposed: it comes as (N, K)."""
    _take(o, weight, "weight", False, keep)
    if o.ndim != 2:
        raise ValueError(f"weight has shape {_shape(o)}, it must be (K, N)")
    for i in range(2):
        if <size_t>o.shape[i] > LL_MAX_ROW:
            raise ValueError(f"weight has shape {_shape(o)}, at most {LL_MAX_ROW} (2**24) rows and columns are specified")
    w.data = o.data
    w.format = o.dtype
    w.packed, w.compute = 0, LL_FLOAT32
    w.K = o.shape[transposed]
    w.N = o.shape[not transposed]
    w.k_stride = o.strides[transposed]
    w.n_stride = o.strides[not transposed]
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
    activation : None, "gelu", "gelu_tanh", "silu", "relu", "sigmoid", "tanh", "exp" or "erf"
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
        _take_weight(&oweight, &a.weight, weight, False, keep)
        a.bias = _vector(&obias, bias, "bias", a.weight.N, "column of weight", keep)
        return _linear(&a, x, residual, out, &oweight, &obias, keep)
    finally:
        _drop(&oweight); _drop(&obias)


cdef int _format(dtype) except -1:
    """A type by its name: how a packed weight is kept, what a cast gives."""
    if not isinstance(dtype, str):
        try:
            dtype = np.dtype(dtype).name
        except TypeError:
            pass
    if dtype == "float32":
        return LL_F32
    if dtype == "float16":
        return LL_F16
    if dtype == "bfloat16":
        return LL_BF16
    raise ValueError(f"dtype must be 'float32', 'bfloat16' or 'float16', got {dtype!r}")


cdef int _kept(dtype) except -1:
    """How a packed weight is kept: a type, or a format of blocks by its name in lower case."""
    cdef int i
    if isinstance(dtype, str):
        for i in range(LL_F32, LL_FORMATS):
            if i not in (LL_F32, LL_F16, LL_BF16) and dtype.upper() == ll_formats[i].name.decode():
                return i
    try:
        return _format(dtype)
    except ValueError:
        raise ValueError(f"dtype must be {', '.join([repr(_kept_name(i)) for i in range(LL_FORMATS)])}, got {dtype!r}") from None


cdef str _kept_name(int format):
    return _dtype_name(format) if format in (LL_F32, LL_F16, LL_BF16) else ll_formats[format].name.decode().lower()


cdef int _compute(compute, int format) except -1:
    """How products are made with a weight that is kept so."""
    if compute == "float32":
        return LL_FLOAT32
    if compute != "int16":
        raise ValueError(f"compute must be 'float32' or 'int16', got {compute!r}")
    if format in (LL_F32, LL_F16, LL_BF16, LL_MXFP4):
        raise ValueError(f"compute='int16' needs a weight of integers in blocks, such as 'q8_0', not {_kept_name(format)!r}")
    return LL_INT16


cdef int _check_blocks(size_t K, int kind) except -1:
    if K % ll_formats[kind].values:
        raise ValueError(f"K is {K}, it must be a multiple of {ll_formats[kind].values}, the values of a block of "
                         f"{ll_formats[kind].name.decode()}")
    return 0


cdef void _set_blocks(ll_weight *w, int kind) noexcept:
    """A weight (K, N) that lies as GGUF files store it: N rows of blocks."""
    w.format, w.packed, w.compute = kind, 0, LL_FLOAT32
    w.k_stride = ll_formats[kind].bytes  # of F32, F16 and BF16; a block's values have none
    w.n_stride = w.K // ll_formats[kind].values * ll_formats[kind].bytes


cdef class PackedLinear:
    """A weight that is packed once into panels of 16 columns, which a product then streams; callable like `linear`.

    Parameters
    ----------
    weight : array (K, N), or (N, K) with transposed=True
        float32, float16 or bfloat16, at any strides; it is copied.
    bias : array (N,), optional
        Copied, as float32.
    dtype : "float32", "bfloat16", "float16", or "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k" ... "q6_k", "mxfp4"
        How the packed weight is kept. 16-bit weights stay 16 bits in memory and widen exactly in registers. A wider
        weight is rounded once, to nearest even, when it is packed; blocks are those of `quantize`, along K. Products have
        the bits of `linear` on that. Weights that are blocks already come by `from_blocks`.
    compute : "float32" or "int16"
        How products are made. "int16" is another function, of weights in blocks of integers alone, and faster: x becomes
        16-bit integers, 128 together, and sums of products are exact (`llorch.reference.linear_int16`).
    transposed : bool
        weight is (N, K), one row for each output, as PyTorch's Linear and an embedding store it.

    Attributes
    ----------
    in_features, out_features : int
        K and N.
    shape : (K, N)
    dtype, compute : str
    bias : array (N,) of float32, read-only, or None
    nbytes : int
        Memory of the packed weight.

    Raises
    ------
    TypeError, ValueError
        As `linear` and `quantize`; ValueError also for an unknown dtype. MemoryError where the packed weight doesn't fit.
    """
    cdef ll_weight _weight
    cdef ll_weight_memory _packed
    cdef readonly object bias

    def __init__(self, weight, bias=None, *, dtype="float32", transposed=False, compute="float32"):
        cdef Operand oweight
        cdef ll_weight w
        cdef list keep = []
        cdef int format = _kept(dtype), made = _compute(compute, format)
        _clear(&oweight)
        try:
            _take_weight(&oweight, &w, weight, transposed, keep)
            if format not in (LL_F32, LL_F16, LL_BF16):
                _check_blocks(w.K, format)
                oweight.shape[0], oweight.shape[1] = w.N, w.K
                oweight.strides[0], oweight.strides[1] = w.n_stride, w.k_stride
                blocks = _quantized(&oweight, format, "weight", not transposed)
                _set_blocks(&w, format)
                w.data = <const void *>_address(blocks)
            self._pack(&w, bias, format, made)
        finally:
            _drop(&oweight)

    @classmethod
    def from_blocks(cls, data, format, K, N, bias=None, *, dtype=None, compute="float32"):
        """A PackedLinear (K, N) of a weight as GGUF files store it: N rows of blocks along K.

        Parameters
        ----------
        data : bytes, or anything contiguous with the buffer protocol
            N rows of K values, in blocks of format, one after another. It is read once and not kept.
        format : str
            As `dequantize` has it. K is a multiple of its block's values.
        K, N : int
            What a product takes and gives: the file's shape is (N, K).
        bias, compute
            As in the class.
        dtype : str, optional
            None keeps the blocks as they are: their bits in panels, whose values are widened when a product needs them.
            "float32" keeps every value; 16 bits round it once.

        Raises
        ------
        TypeError, ValueError
            As `dequantize`, and as the class.
        """
        cdef Py_buffer view
        cdef ll_weight w
        cdef int kind = _storage(format), kept = kind if dtype is None else _kept(dtype), made = _compute(compute, kept)
        cdef PackedLinear packed = cls.__new__(cls)
        w.K = _natural(K, "K", 0)
        w.N = _natural(N, "N", 0)
        _check_blocks(w.K, kind)
        _set_blocks(&w, kind)
        _take_bytes(&view, data, w.N * <size_t>w.n_stride, f"{format} of {w.N} rows of {w.K}")
        try:
            w.data = view.buf
            packed._pack(&w, bias, kept, made)
        finally:
            PyBuffer_Release(&view)
        return packed

    cdef int _pack(self, const ll_weight *w, bias, int format, int compute) except -1:
        _check_packing(w, format)
        cdef Operand obias
        cdef const float *b
        cdef ll_weight_memory packed
        cdef size_t bytes = ll_packed_bytes(w.K, w.N, format)
        cdef list keep = []
        _clear(&obias)
        memset(&packed, 0, sizeof(packed))
        try:
            b = _vector(&obias, bias, "bias", w.N, "output", keep)
            kept = None
            if bias is not None:
                kept = _empty(w.N, _float32)
                if w.N:
                    memcpy(<void *>_address(kept), b, w.N * sizeof(float))
                kept.flags.writeable = False
            packed = ll_weight_new(bytes)
            if packed.data == NULL:
                raise MemoryError(f"no memory for a packed weight of {bytes} bytes")
            with nogil:
                ll_interrupts_on()
                ll_pack(w, format, packed.data)
            _check_interrupted()
            with cython.critical_section(self):
                if self._packed.data != NULL:  # a product in another thread may be reading it
                    raise TypeError("a PackedLinear is made once: make another one")
                packed, self._packed = self._packed, packed
                self._weight.data = self._packed.data
                self._weight.format, self._weight.compute = format, compute
                self._weight.packed = 1
                self._weight.k_stride = self._weight.n_stride = 0
                self._weight.K, self._weight.N, self.bias = w.K, w.N, kept
        finally:
            ll_weight_free(&packed)
            _drop(&obias)
        return 0

    def __dealloc__(self):
        ll_weight_free(&self._packed)

    @property
    def in_features(self):
        return self._weight.K

    @property
    def out_features(self):
        return self._weight.N

    @property
    def shape(self):
        return self._weight.K, self._weight.N

    @property
    def dtype(self):
        return _kept_name(self._weight.format)

    @property
    def compute(self):
        return "int16" if self._weight.compute == LL_INT16 else "float32"

    @property
    def nbytes(self):
        return ll_packed_bytes(self._weight.K, self._weight.N, self._weight.format)

    def __repr__(self):
        return (f"PackedLinear({self._weight.K}, {self._weight.N}, dtype={self.dtype!r}"
                f"{', compute=' + repr(self.compute) if self._weight.compute != LL_FLOAT32 else ''}"
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
            a.weight = self._weight
            a.bias = _vector(&obias, self.bias, "bias", a.weight.N, "output", keep)
            return _linear(&a, x, residual, out, &none, &none, keep)
        finally:
            _drop(&obias)

    def row(self, k):
        """Row k of the (K, N) weight, widened: a new (N,) float32. IndexError unless 0 <= k < K."""
        cdef size_t index = _index(k, "k", self._weight.K, "the weight has", "rows")
        y = _empty(self._weight.N, _float32)
        if self._weight.N:
            ll_packed_row(&self._weight, index, <float *>_address(y))
        return y

    def column(self, n):
        """Column n of the (K, N) weight, widened: a new (K,) float32. IndexError unless 0 <= n < N.

        Of an embedding (V, E), packed with transposed=True as the LM head, it is the vector of token n.
        """
        cdef size_t index = _index(n, "n", self._weight.N, "the weight has", "columns")
        y = _empty(self._weight.K, _float32)
        if self._weight.K:
            ll_packed_column(&self._weight, index, <float *>_address(y))
        return y


cdef size_t _index(value, str name, size_t length, str has, str what) except? 0:
    index = _integer(value, name)
    if not 0 <= index < length:
        raise IndexError(f"{name} is {index}, {has} {length} {what}")
    return index


# ---- a packed weight in parts ---------------------------------------------------------------------------------


cdef int _check_packing(const ll_weight *w, int format) except -1:
    """Whether a weight can be kept in this format."""
    if format not in (LL_F32, LL_F16, LL_BF16) and format != w.format:
        raise ValueError(f"a weight of {_kept_name(w.format)} can't be kept as {_kept_name(format)!r}: llorch.quantize makes "
                         f"its blocks, from_blocks takes them")
    return 0


def _packed_reserve(K, N, dtype, compute="float32"):
    """A PackedLinear of this size whose columns are still to be filled in, by `_packed_fill`."""
    cdef PackedLinear packed = PackedLinear.__new__(PackedLinear)
    cdef ll_weight *w = &packed._weight
    w.K, w.N = _natural(K, "K", 0), _natural(N, "N", 0)
    w.format, w.packed = _kept(dtype), 1
    w.compute = _compute(compute, w.format)
    _check_blocks(w.K, w.format)
    w.k_stride = w.n_stride = 0
    packed._packed = ll_weight_new(ll_packed_bytes(w.K, w.N, w.format))
    if packed._packed.data == NULL:
        raise MemoryError(f"no memory for a packed weight of {ll_packed_bytes(w.K, w.N, w.format)} bytes")
    w.data = packed._packed.data
    return packed


def _packed_end():
    """All of a model are reserved, and none is filled in: what they have begun of a large page takes no more than it needs."""
    ll_weights_end()


cdef int _fits(size_t begin, size_t count, size_t length, size_t whole) except -1:
    """Whether [begin, begin + count) is a part of [0, length) in units of `whole`, or with what is less than one at the end."""
    return begin <= length and count <= length - begin and not begin % whole and (not count % whole or begin + count == length)


def _packed_fill(PackedLinear packed not None, size_t first, weight, bint transposed, size_t row=0):
    """Columns [first, first + N) of rows [row, row + K) are those of weight (K, N), or (N, K) transposed. first is a
    multiple of 16, and so is N unless these are the last columns; row is even, and so is K unless these are the last rows."""
    cdef Operand o
    cdef ll_weight w
    cdef list keep = []
    cdef size_t at
    _clear(&o)
    try:
        _take_weight(&o, &w, weight, transposed, keep)
        if not (_fits(first, w.N, packed._weight.N, LL_PANEL) and _fits(row, w.K, packed._weight.K, 2)):
            raise ValueError(f"weight has shape {_shape(&o)}, it doesn't fit {packed!r} at row {row} and column {first}")
        _check_packing(&w, packed._weight.format)
        at = ll_packed_bytes(packed._weight.K, first, packed._weight.format)
        with nogil:
            ll_pack_part(&w, packed._weight.format, row, packed._weight.K, <char *>packed._packed.data + at)
    finally:
        _drop(&o)


def _packed_fill_blocks(PackedLinear packed not None, size_t first, blocks, format):
    """The same of a weight as GGUF files store it: rows of blocks, uint8 (N, bytes of a row)."""
    cdef Py_buffer view
    cdef ll_weight w
    cdef int kind = _storage(format)
    cdef size_t at
    w.K, w.N = packed._weight.K, blocks.shape[0]
    _set_blocks(&w, kind)
    if w.K % ll_formats[kind].values or not _fits(first, w.N, packed._weight.N, LL_PANEL):
        raise ValueError(f"blocks of {format} and shape {blocks.shape} don't fit {packed!r} at column {first}")
    _take_bytes(&view, blocks, w.N * <size_t>w.n_stride, f"{format} of {w.N} rows of {w.K}")
    try:
        w.data = view.buf
        _check_packing(&w, packed._weight.format)
        at = ll_packed_bytes(w.K, first, packed._weight.format)
        with nogil:
            ll_pack_part(&w, packed._weight.format, 0, w.K, <char *>packed._packed.data + at)
    finally:
        PyBuffer_Release(&view)


def _packed_bias(PackedLinear packed, bias):
    """Gives a PackedLinear its bias, a float32 array (N,) that it keeps."""
    if bias.dtype != _float32 or bias.shape != (packed._weight.N,) or not bias.flags.c_contiguous:
        raise ValueError(f"bias is {bias.dtype} of shape {bias.shape}, it must be float32 ({packed._weight.N},)")
    bias.flags.writeable = False
    packed.bias = bias
