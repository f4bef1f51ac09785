"""KVCache, on the caches of csrc/ops/cache.c."""

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
    cdef ll_cache _cache
    cdef bint _changing, _made

    def __cinit__(self):
        if ll_cache_init(&self._cache, 1, 1, 0):
            raise MemoryError("no memory for a cache")

    def __init__(self, heads, head_dim, capacity, *, dtype="float32"):
        cdef size_t h, d, most
        cdef ll_cache cache
        if dtype != "float32":
            raise ValueError(f"dtype must be 'float32', got {dtype!r}")
        h = _natural(heads, "heads", 1)
        d = _natural(head_dim, "head_dim", 1)
        most = _natural(capacity, "capacity", 0)
        with cython.critical_section(self):
            if self._made:  # attention in another thread may be reading it
                raise TypeError("a KVCache is made once: make another one")
            if ll_cache_init(&cache, h, d, most):
                raise MemoryError(f"no memory for a table of {most // LL_BLOCK + 1} blocks")
            ll_cache_free(&self._cache)
            self._cache, self._made = cache, True

    def __dealloc__(self):
        ll_cache_free(&self._cache)

    def __len__(self):
        return self._cache.length

    def __repr__(self):
        return f"KVCache({self._cache.heads}, {self._cache.D}, {self._cache.capacity}), {self._cache.length} positions"

    def __reduce__(self):
        raise TypeError("a KVCache can't be pickled or copied: use fork()")

    @property
    def heads(self):
        return self._cache.heads

    @property
    def head_dim(self):
        return self._cache.D

    @property
    def capacity(self):
        return self._cache.capacity

    @property
    def dtype(self):
        return "float32"

    @property
    def nbytes(self):
        return self._cache.count * ll_cache_block_bytes(&self._cache)

    def append(self, k, v):
        """Add positions: k and v (heads, T, head_dim), float32, float16 or bfloat16, at any strides.

        ValueError for a shape that doesn't fit or more positions than the capacity has left, TypeError for another
        element type, RuntimeError while another thread appends, MemoryError, KeyboardInterrupt: then nothing has changed.
        """
        cdef Operand ok, ov
        cdef ll_cache_rows rows
        cdef ll_cache *cache = &self._cache
        cdef list keep = []
        cdef Py_ssize_t T
        _clear(&ok); _clear(&ov)
        try:
            _take(&ok, k, "k", False, keep)
            if ok.ndim != 3 or <size_t>ok.shape[0] != cache.heads or <size_t>ok.shape[2] != cache.D:
                raise ValueError(f"k has shape {_shape(&ok)}, it must be ({cache.heads}, T, {cache.D})")
            _take(&ov, v, "v", False, keep)
            T = ok.shape[1]
            if ov.ndim != 3 or ov.shape[0] != ok.shape[0] or ov.shape[1] != T or ov.shape[2] != ok.shape[2]:
                raise ValueError(f"v has shape {_shape(&ov)}, it must have the shape of k, {_shape(&ok)}")
            _contiguous_last(&ok, _count(&ok), True)
            _contiguous_last(&ov, _count(&ov), True)
            rows.k = _head(&ok, 0)
            rows.v = _head(&ov, 0)
            rows.k_stride = _row_step(&ok)
            rows.v_stride = _row_step(&ov)
            rows.k_head = T * rows.k_stride if ok.scratch != NULL else ok.strides[0]
            rows.v_head = T * rows.v_stride if ov.scratch != NULL else ov.strides[0]
            rows.k_dtype = ok.dtype
            rows.v_dtype = ov.dtype
            rows.T = T
            with cython.critical_section(self):
                self._check_alone()
                rows.first = cache.length
                if rows.T > cache.capacity - cache.length:
                    raise ValueError(f"the cache is full: it holds {cache.length} of at most {cache.capacity} positions, "
                                     f"{T} more don't fit")
                if ll_cache_reserve(cache, rows.T):
                    raise MemoryError(f"no memory for a block of {ll_cache_block_bytes(cache)} bytes")
                if T * ok.shape[0] * ok.shape[2] < RELEASE_FROM:
                    ll_cache_write(cache, &rows)
                else:
                    self._changing = True
                    with nogil:
                        ll_interrupts_on()
                        ll_cache_write(cache, &rows)
                    self._changing = False
                    try:
                        _check_interrupted()
                    except BaseException:
                        ll_cache_truncate(cache, cache.length)  # what is half written was never there
                        raise
                cache.length += rows.T
        finally:
            _drop(&ok); _drop(&ov)

    cdef int _check_alone(self) except -1:
        """Without the GIL, or where an append has released it, another thread may be writing into the blocks."""
        if self._changing:
            raise RuntimeError("another thread is appending to this cache")
        return 0

    def truncate(self, length):
        """Forget the positions from `length` on.

        ValueError unless 0 <= length <= len(self), RuntimeError while another thread appends.
        """
        cdef size_t wanted = _natural(length, "length", 0)
        with cython.critical_section(self):
            self._check_alone()
            if wanted > self._cache.length:
                raise ValueError(f"length is {wanted}, the cache holds {self._cache.length} positions")
            ll_cache_truncate(&self._cache, wanted)

    def fork(self):
        """A cache with the same positions that goes its own way: shares the memory of what both have."""
        cdef KVCache other = KVCache.__new__(KVCache, 1, 1, 0)
        cdef int failed = 0
        ll_cache_free(&other._cache)
        with cython.critical_section(self):
            failed = ll_cache_fork(&self._cache, &other._cache)
        if failed:
            raise MemoryError("no memory for a table of blocks")
        other._made = True
        return other

    def attention(self, q, *, scale=None, causal=True, window=None, softcap=None, position_bias=None, out=None):
        """Attention of q (H, Tq, head_dim), the last Tq of the cache's positions, H a multiple of heads.

        Arguments, errors and bits are those of `attention` on the arrays that were appended; q and the result may be of
        another type than those were.
        """
        cdef Operand oq, obias
        cdef Mask m
        cdef KVCache held
        cdef list keep = []
        _clear(&oq); _clear(&obias)
        try:
            _mask(&m, scale, causal, window, softcap)
            _take_matrices(&oq, q, "q", f"({self._cache.heads}, Tq, {self._cache.D})", keep)
            if (oq.ndim != 3 or not oq.shape[0] or <size_t>oq.shape[0] % self._cache.heads
                    or <size_t>oq.shape[2] != self._cache.D):
                raise ValueError(f"q has shape {_shape(&oq)}, it must be ({self._cache.heads}, Tq, {self._cache.D}), or have a "
                                 f"multiple of {self._cache.heads} heads")
            _take_bias(&m, &obias, position_bias, oq.shape[0], keep)
            held = self.fork()  # the blocks stay, and are no one's to write, while this runs
            if <size_t>oq.shape[1] > held._cache.length:
                raise ValueError(f"the cache holds {held._cache.length} positions, fewer than the {oq.shape[1]} queries: they are "
                                 "the last positions of the cache, append their keys and values first")
            return _attend(&oq, q, NULL, NULL, &held._cache, &m, &obias, out, keep)
        finally:
            _drop(&oq); _drop(&obias)

    @property
    def keys(self):
        return self._read(0)

    @property
    def values(self):
        return self._read(1)

    cdef object _read(self, int values):
        cdef KVCache held = self.fork()
        a = _empty((held._cache.heads, held._cache.length, held._cache.D), _float32)
        ll_cache_read(&held._cache, values, <float *>_address(a))
        a.flags.writeable = False
        return a
