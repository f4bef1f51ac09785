"""attention, KVCache."""

cdef extern from "llorch.h" nogil:
    enum:
        LL_BLOCK
    ctypedef struct ll_kv:
        const void *k
        const void *v
        Py_ssize_t k_stride, v_stride
        float **blocks
        size_t offset, Tk
    ctypedef struct ll_attention_head:
        const void *q
        void *y
        Py_ssize_t q_stride, y_stride
        size_t Tq, kv
    ctypedef struct ll_attention_args:
        const ll_attention_head *heads
        const ll_kv *kv
        size_t count, kv_count, D
        double scale, softcap
        int default_scale, dtype, causal
        size_t window
    ctypedef struct ll_cache_rows:
        const void *k
        const void *v
        Py_ssize_t k_head, k_stride, v_head, v_stride
        int k_dtype, v_dtype
        size_t heads, D, first, T
    int ll_attention(const ll_attention_args *)
    size_t ll_chunk_floats(size_t)
    float *ll_block_new(size_t heads, size_t D)
    float *ll_block_share(float *)
    void ll_block_release(float *)
    int ll_block_shared(const float *)
    void ll_cache_append(const ll_cache_rows *, float **blocks)
    void ll_cache_read(float **blocks, size_t heads, size_t D, size_t T, int values, float *)


cdef struct Mask:
    # what attention takes besides its arrays
    double scale, softcap
    int default_scale, causal
    size_t window


cdef int _mask(Mask *m, scale, causal, window, softcap) except -1:
    m.default_scale = scale is None
    m.scale = m.softcap = 0.0
    if scale is not None:
        m.scale = _number(scale, "scale")
        if not abs(m.scale) < FLOAT32_END:
            raise ValueError(f"scale must be finite in float32, got {scale!r}")
    if causal is not True and causal is not False:
        raise TypeError(f"causal must be True or False, got {causal!r}")
    m.causal = causal
    m.window = 0
    if window is not None:
        m.window = _natural(window, "window", 1)
        if not m.causal:
            raise ValueError(f"window is {m.window} with causal=False: windows are causal ones only")
    if softcap is not None:
        m.softcap = _number(softcap, "softcap")
        if not FLOAT32_TINY <= m.softcap < FLOAT32_END:
            raise ValueError(f"softcap must be positive and finite in float32, got {softcap!r}")
    return 0


# The least float64 that doesn't round to zero in float32.
cdef double FLOAT32_TINY = 7.006492321624087e-46


cdef int _contiguous_last(Operand *o, Py_ssize_t count, bint copy_in) except -1:
    """Makes the last axis of o contiguous: by its own memory, or a copy of all of it."""
    cdef Py_ssize_t i, step = o.itemsize
    if o.shape[o.ndim - 1] <= 1 or o.strides[o.ndim - 1] == o.itemsize:
        return 0
    o.scratch = PyMem_Malloc(count * o.itemsize)
    if o.scratch == NULL:
        raise MemoryError(f"no memory for a contiguous copy of {count * o.itemsize} bytes")
    if copy_in:
        _copy_strided(o, <char *>o.scratch, True)
    return 0


cdef char *_head(Operand *o, size_t index) noexcept:
    """Where matrix `index` of all leading axes, in C order, begins: in o's own memory or in its copy."""
    cdef Py_ssize_t i
    cdef char *p = o.data
    if o.scratch != NULL:
        return <char *>o.scratch + <Py_ssize_t>index * o.shape[o.ndim - 2] * o.shape[o.ndim - 1] * o.itemsize
    for i in range(o.ndim - 3, -1, -1):
        p += <Py_ssize_t>(index % <size_t>o.shape[i]) * o.strides[i]
        index //= <size_t>o.shape[i]
    return p


cdef Py_ssize_t _row_step(Operand *o) noexcept:
    return o.shape[o.ndim - 1] * o.itemsize if o.scratch != NULL else o.strides[o.ndim - 2]


cdef int _take_matrices(Operand *o, obj, str name, str shape, list keep) except -1:
    """o, of shape (..., T, D)."""
    _take(o, obj, name, False, keep)
    if o.ndim < 2:
        raise ValueError(f"{name} has shape {_shape(o)}, it must be {shape}")
    for i in range(2):
        if <size_t>o.shape[o.ndim - 1 - i] > LL_MAX_ROW:
            raise ValueError(f"{name} has shape {_shape(o)}, at most {LL_MAX_ROW} (2**24) positions and values are "
                             "specified")
    return 0


cdef Py_ssize_t _size(Operand *o) noexcept:
    cdef Py_ssize_t i, count = 1
    for i in range(o.ndim):
        count *= o.shape[i]
    return count


cdef object _attend(Operand *q, object q_object, Operand *k, Operand *v, float **blocks, size_t kv_heads, size_t Tk,
                    Mask *m, out, list keep):
    """The call itself. Keys and values are k and v, or, where those are NULL, the blocks of a cache of kv_heads."""
    cdef Operand oout
    cdef ll_attention_args a
    cdef ll_attention_head *heads = NULL
    cdef ll_kv *kv = NULL
    cdef Py_ssize_t size = _size(q), k_step = 0, v_step = 0
    cdef size_t i, chunk, group, Tq = q.shape[q.ndim - 2]
    cdef int failed = 0
    _clear(&oout)
    try:
        a.D = q.shape[q.ndim - 1]
        a.dtype = q.dtype
        a.scale, a.default_scale = m.scale, m.default_scale
        a.softcap, a.causal, a.window = m.softcap, m.causal, m.window
        if out is None:
            out = _new(q, q_object)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            _check_like(&oout, "out", q.dtype, _shape(q), "q")
            _check_places(&oout, "out")
            _check_apart(&oout, "out", q, "q", True)
            if k != NULL:
                _check_apart(&oout, "out", k, "k", False)
                _check_apart(&oout, "out", v, "v", False)
        if size:
            a.count = <size_t>size // (Tq * a.D)
            a.kv_count = kv_heads if k == NULL else <size_t>_size(k) // (Tk * a.D)
            group = a.count // a.kv_count
            heads = <ll_attention_head *>PyMem_Malloc(a.count * sizeof(ll_attention_head) + a.kv_count * sizeof(ll_kv))
            if heads == NULL:
                raise MemoryError(f"no memory for a table of {a.count} heads")
            kv = <ll_kv *>(heads + a.count)
            a.heads = heads
            a.kv = kv
            _contiguous_last(q, size, True)
            _contiguous_last(&oout, size, False)
            if k != NULL:
                _contiguous_last(k, _size(k), True)
                _contiguous_last(v, _size(v), True)
                k_step, v_step = _row_step(k), _row_step(v)
            chunk = ll_chunk_floats(a.D)
            for i in range(a.kv_count):
                kv[i].Tk = Tk
                kv[i].blocks = blocks
                kv[i].offset = i * chunk
                kv[i].k = kv[i].v = NULL
                kv[i].k_stride, kv[i].v_stride = k_step, v_step
                if k != NULL:
                    kv[i].k = _head(k, i)
                    kv[i].v = _head(v, i)
            for i in range(a.count):
                heads[i].q = _head(q, i)
                heads[i].y = _head(&oout, i)
                heads[i].q_stride, heads[i].y_stride = _row_step(q), _row_step(&oout)
                heads[i].Tq = Tq
                heads[i].kv = i // group
            if <size_t>size * Tk < RELEASE_FROM * 4:
                failed = ll_attention(&a)
            else:
                with nogil:
                    failed = ll_attention(&a)
            if failed:
                raise MemoryError(f"no memory to work in: {a.count} heads, {Tq} queries of {Tk} positions, {a.D} values")
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        PyMem_Free(heads)
        _drop(&oout)
    return out


def attention(q, k, v, *, scale=None, causal=True, window=None, softcap=None, out=None):
    """Attention, ``softmax(q @ k.T * scale) @ v`` over the positions that a query sees, every bit specified.

    Parameters
    ----------
    q : array (..., H, Tq, D) of float32, float16 or bfloat16
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory. Any strides; only where the last axis
        isn't contiguous a copy is made.
    k, v : arrays (..., H_kv, Tk, D) of q's type
        Keys and values of positions 0 .. Tk - 1; query i is at position Tk - Tq + i. H is a multiple of H_kv (grouped
        queries): head h reads keys and values h // (H / H_kv).
    scale : float, optional
        Finite; rounded once to float32. Without it float32(1 / sqrt(D)).
    causal : bool
        A query sees the positions up to its own, and Tk >= Tq; False (encoders): every position.
    window : int, optional
        At least 1, and causal: a query sees the last `window` positions up to its own, itself included.
    softcap : float, optional
        Positive and finite; rounded once to float32. Scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).
    out : array like q, optional
        Receives the result: q itself, or memory that q, k and v don't share.

    Returns
    -------
    out, or a new array of the type and shape of q. 16-bit values widen exactly, results are rounded once.

    Raises
    ------
    TypeError
        An argument of another element type than q; float64 is never narrowed silently. causal that isn't a bool, window
        that isn't an int, scale or softcap that isn't a number.
    ValueError
        A shape that doesn't fit (H must be a multiple of k's and v's heads), Tk < Tq where causal, no position at all
        where not, more than 2**24 positions or values, a scale that is NaN or infinite, a window below 1 or without
        causal, a softcap that isn't positive and finite, an out that overlaps in part or is read-only.

    Notes
    -----
    Sums run by absolute position, also with a window (`llorch.reference.attention` defines the bits), so that a query's
    bits are the same whether it comes alone or with others, in one prefill or in many, with a `KVCache` or arrays. The
    NaN or infinity of a position that a query doesn't see never reaches its row; a row that sees a score of NaN or
    +infinity is NaN. Scores take 4 bytes for each position seen by each of a few dozen queries in hand, never Tq * Tk;
    time grows with the window, not with Tk. Vaswani et al., arXiv:1706.03762; grouped queries: Ainslie et al.,
    arXiv:2305.13245; windows: Beltagy et al., arXiv:2004.05150; softcap: Gemma 2, arXiv:2408.00118.
    """
    cdef Operand oq, ok, ov
    cdef Mask m
    cdef list keep = []
    cdef Py_ssize_t Tq, Tk
    _clear(&oq); _clear(&ok); _clear(&ov)
    try:
        _mask(&m, scale, causal, window, softcap)
        _take_matrices(&oq, q, "q", "(..., H, Tq, D)", keep)
        _take_matrices(&ok, k, "k", "(..., H_kv, Tk, D)", keep)
        _take(&ov, v, "v", False, keep)
        shape, kshape = _shape(&oq), _shape(&ok)
        if ok.dtype != oq.dtype:
            raise TypeError(f"k is {_dtype_name(ok.dtype)}, it must have the type of q, {_dtype_name(oq.dtype)}")
        if shape[:-2] != kshape[:-2]:
            if len(shape) != len(kshape) or shape[:-3] != kshape[:-3]:
                raise ValueError(f"k has shape {kshape}, its leading axes must be those of q, {shape[:-2]} (but for the "
                                 "number of heads, which may be a part of q's)")
            if not kshape[-3] or shape[-3] % kshape[-3]:
                raise ValueError(f"k has {kshape[-3]} heads, q has {shape[-3]}: they must be as many, or q's a multiple of "
                                 "k's, which are then shared")
        if shape[-1] != kshape[-1]:
            raise ValueError(f"k has {kshape[-1]} values in a head, q has {shape[-1]}: the last axes must be equal")
        _check_like(&ov, "v", oq.dtype, kshape, "q")
        Tq, Tk = shape[-2], kshape[-2]
        if m.causal and Tk < Tq:
            raise ValueError(f"k has {Tk} positions, fewer than the {Tq} queries: query i is at position Tk - Tq + i")
        if Tq and not Tk:
            raise ValueError(f"k has no positions for the {Tq} queries to see")
        return _attend(&oq, q, &ok, &ov, NULL, 0, Tk, &m, out, keep)
    finally:
        _drop(&oq); _drop(&ok); _drop(&ov)


cdef class KVCache:
    """Keys and values of one layer and one sequence, kept as attention reads them.

    Parameters
    ----------
    heads, head_dim : int, at least 1
    capacity : int
        The most positions it will hold, at most 2**24.
    dtype : "float32"
        How they are kept. 16-bit keys and values that come in are widened, exactly.

    Attributes
    ----------
    heads, head_dim, capacity : int
    dtype : str
    keys, values : array (heads, len, head_dim) of float32
        Read-only copies.
    nbytes : int
        Memory of the blocks it holds, those it shares with forks included.

    Raises
    ------
    TypeError, ValueError
        A size that isn't an int, or out of range; an unknown dtype.

    Notes
    -----
    Memory is taken in blocks of 128 positions as they arrive. Forks share blocks; who writes into a shared block copies
    it first, so no cache ever changes another's bits. One thread at a time may append or truncate: a second one gets a
    RuntimeError. Attention and forks in other threads see the positions that were there when they began.
    """
    cdef float **_blocks
    cdef size_t _length, _count
    cdef bint _changing
    cdef readonly size_t heads, head_dim, capacity

    def __cinit__(self, heads, head_dim, capacity, *, dtype="float32"):
        cdef size_t most
        if dtype != "float32":
            raise ValueError(f"dtype must be 'float32', got {dtype!r}")
        self.heads = _natural(heads, "heads", 1)
        self.head_dim = _natural(head_dim, "head_dim", 1)
        self.capacity = _natural(capacity, "capacity", 0)
        most = (self.capacity + LL_BLOCK - 1) // LL_BLOCK
        self._blocks = <float **>PyMem_Malloc((most + 1) * sizeof(float *))
        if self._blocks == NULL:
            raise MemoryError(f"no memory for a table of {most} blocks")

    def __init__(self, heads, head_dim, capacity, *, dtype="float32"):
        pass

    def __dealloc__(self):
        cdef size_t i
        if self._blocks != NULL:
            for i in range(self._count):
                ll_block_release(self._blocks[i])
            PyMem_Free(self._blocks)

    def __len__(self):
        return self._length

    def __repr__(self):
        return f"KVCache({self.heads}, {self.head_dim}, {self.capacity}), {self._length} positions"

    def __reduce__(self):
        raise TypeError("a KVCache can't be pickled or copied: use fork()")

    @property
    def dtype(self):
        return "float32"

    @property
    def nbytes(self):
        return self._count * self.heads * ll_chunk_floats(self.head_dim) * sizeof(float)

    def append(self, k, v):
        """Add positions: k and v (heads, T, head_dim), float32, float16 or bfloat16, at any strides.

        ValueError for a shape that doesn't fit or more positions than the capacity has left, TypeError for another
        element type, RuntimeError while another thread appends, MemoryError: then nothing has changed.
        """
        cdef Operand ok, ov
        cdef ll_cache_rows rows
        cdef list keep = []
        cdef Py_ssize_t T
        cdef size_t blocks
        _clear(&ok); _clear(&ov)
        try:
            _take(&ok, k, "k", False, keep)
            if ok.ndim != 3 or <size_t>ok.shape[0] != self.heads or <size_t>ok.shape[2] != self.head_dim:
                raise ValueError(f"k has shape {_shape(&ok)}, it must be ({self.heads}, T, {self.head_dim})")
            _take(&ov, v, "v", False, keep)
            T = ok.shape[1]
            if ov.ndim != 3 or ov.shape[0] != ok.shape[0] or ov.shape[1] != T or ov.shape[2] != ok.shape[2]:
                raise ValueError(f"v has shape {_shape(&ov)}, it must have the shape of k, {_shape(&ok)}")
            _contiguous_last(&ok, _size(&ok), True)
            _contiguous_last(&ov, _size(&ov), True)
            rows.k = _head(&ok, 0)
            rows.v = _head(&ov, 0)
            rows.k_stride = _row_step(&ok)
            rows.v_stride = _row_step(&ov)
            rows.k_head = T * rows.k_stride if ok.scratch != NULL else ok.strides[0]
            rows.v_head = T * rows.v_stride if ov.scratch != NULL else ov.strides[0]
            rows.k_dtype = ok.dtype
            rows.v_dtype = ov.dtype
            rows.heads = self.heads
            rows.D = self.head_dim
            rows.T = T
            with cython.critical_section(self):
                self._check_alone()
                rows.first = self._length
                if rows.T > self.capacity - self._length:
                    raise ValueError(f"the cache is full: it holds {self._length} of at most {self.capacity} positions, "
                                     f"{T} more don't fit")
                self._make_room(rows.T)
                if T * ok.shape[0] * ok.shape[2] < RELEASE_FROM:
                    ll_cache_append(&rows, self._blocks)
                else:
                    self._changing = True
                    with nogil:
                        ll_cache_append(&rows, self._blocks)
                    self._changing = False
                self._length += rows.T
        finally:
            _drop(&ok); _drop(&ov)

    cdef int _check_alone(self) except -1:
        """Without the GIL, or where an append has released it, another thread may be writing into the blocks."""
        if self._changing:
            raise RuntimeError("another thread is appending to this cache")
        return 0

    cdef int _make_room(self, size_t T) except -1:
        """Blocks for T more positions; the one that is begun becomes our own."""
        cdef size_t bytes = self.heads * ll_chunk_floats(self.head_dim) * sizeof(float)
        cdef size_t last = self._length // LL_BLOCK
        cdef float *own
        if T and self._length % LL_BLOCK and ll_block_shared(self._blocks[last]):
            own = ll_block_new(self.heads, self.head_dim)
            if own == NULL:
                raise MemoryError(f"no memory for a block of {bytes} bytes")
            memcpy(own, self._blocks[last], bytes)
            ll_block_release(self._blocks[last])
            self._blocks[last] = own
        while self._count * LL_BLOCK < self._length + T:
            own = ll_block_new(self.heads, self.head_dim)
            if own == NULL:
                self._drop_blocks()
                raise MemoryError(f"no memory for a block of {bytes} bytes")
            self._blocks[self._count] = own
            self._count += 1
        return 0

    cdef void _drop_blocks(self) noexcept:
        """Lets go of the blocks past the length."""
        while self._count * LL_BLOCK >= self._length + LL_BLOCK:
            self._count -= 1
            ll_block_release(self._blocks[self._count])

    def truncate(self, length):
        """Forget the positions from `length` on.

        ValueError unless 0 <= length <= len(self), RuntimeError while another thread appends.
        """
        cdef size_t wanted = _natural(length, "length", 0)
        with cython.critical_section(self):
            self._check_alone()
            if wanted > self._length:
                raise ValueError(f"length is {wanted}, the cache holds {self._length} positions")
            self._length = wanted
            self._drop_blocks()

    def fork(self):
        """A cache with the same positions that goes its own way: shares the memory of what both have."""
        cdef KVCache other = KVCache(self.heads, self.head_dim, self.capacity)
        with cython.critical_section(self):
            self._share(other)
        return other

    cdef void _share(self, KVCache other) noexcept:
        """The blocks of its positions: not one that another thread's append has just begun."""
        cdef size_t i
        other._count = (self._length + LL_BLOCK - 1) // LL_BLOCK
        for i in range(other._count):
            other._blocks[i] = ll_block_share(self._blocks[i])
        other._length = self._length

    def attention(self, q, *, scale=None, causal=True, window=None, softcap=None, out=None):
        """Attention of q (H, Tq, head_dim), the last Tq of the cache's positions, H a multiple of heads.

        Arguments, errors and bits are those of `attention` on the arrays that were appended; q and the result may be of
        another type than those were.
        """
        cdef Operand oq
        cdef Mask m
        cdef KVCache held
        cdef list keep = []
        _clear(&oq)
        try:
            _mask(&m, scale, causal, window, softcap)
            _take_matrices(&oq, q, "q", f"({self.heads}, Tq, {self.head_dim})", keep)
            if (oq.ndim != 3 or not oq.shape[0] or <size_t>oq.shape[0] % self.heads
                    or <size_t>oq.shape[2] != self.head_dim):
                raise ValueError(f"q has shape {_shape(&oq)}, it must be ({self.heads}, Tq, {self.head_dim}), or have a "
                                 f"multiple of {self.heads} heads")
            held = self.fork()  # the blocks stay, and are no one's to write, while this runs
            if <size_t>oq.shape[1] > held._length:
                raise ValueError(f"the cache holds {held._length} positions, fewer than the {oq.shape[1]} queries: they are "
                                 "the last positions of the cache, append their keys and values first")
            return _attend(&oq, q, NULL, NULL, held._blocks, held.heads, held._length, &m, out, keep)
        finally:
            _drop(&oq)

    @property
    def keys(self):
        return self._read(0)

    @property
    def values(self):
        return self._read(1)

    cdef object _read(self, int values):
        cdef KVCache held = self.fork()
        a = _empty((held.heads, held._length, held.head_dim), _float32)
        ll_cache_read(held._blocks, held.heads, held.head_dim, held._length, values, <float *><uintptr_t>a.ctypes.data)
        a.flags.writeable = False
        return a


cdef size_t _natural(value, str name, size_t least) except? 0:
    import operator

    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None
    if not least <= number <= LL_MAX_ROW:
        raise ValueError(f"{name} must be at least {least} and at most {LL_MAX_ROW} (2**24), got {number}")
    return number
