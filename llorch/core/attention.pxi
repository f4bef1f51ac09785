"""attention."""

cdef extern from "llorch.h" nogil:
    enum:
        LL_BLOCK
    ctypedef struct ll_kv:
        const void *k
        const void *v
        Py_ssize_t k_stride, v_stride
        float **blocks
        size_t offset, Tk, fresh
    ctypedef struct ll_attention_head:
        const void *q
        void *y
        Py_ssize_t q_stride, y_stride
        size_t Tq, kv, behind
        const float *bias
    ctypedef struct ll_attention_args:
        const ll_attention_head *heads
        const ll_kv *kv
        size_t count, kv_count, D
        double scale, softcap
        int default_scale, dtype, causal
        size_t window, reach
    int ll_attention(const ll_attention_args *)
    ctypedef struct ll_cache:
        size_t heads, D, capacity, length, count
        float **blocks
    ctypedef struct ll_cache_rows:
        const void *k
        const void *v
        Py_ssize_t k_head, k_stride, v_head, v_stride
        int k_dtype, v_dtype
        size_t first, T
    size_t ll_cache_block_bytes(const ll_cache *)
    ll_kv ll_cache_kv(const ll_cache *, size_t head, size_t Tk)
    int ll_cache_init(ll_cache *, size_t heads, size_t D, size_t capacity)
    void ll_cache_free(ll_cache *)
    int ll_cache_reserve(ll_cache *, size_t T)
    void ll_cache_write(ll_cache *, const ll_cache_rows *)
    void ll_cache_truncate(ll_cache *, size_t length)
    int ll_cache_fork(ll_cache *, ll_cache *to)
    void ll_cache_read(const ll_cache *, int values, float *)
    size_t ll_chunk_floats(size_t)


cdef struct Mask:
    # what attention takes besides its arrays; bias: [heads][2 * reach + 1] or NULL
    double scale, softcap
    int default_scale, causal
    size_t window, reach
    const float *bias


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
    m.window = m.reach = 0
    m.bias = NULL
    if window is not None:
        m.window = _natural(window, "window", 1)
    if softcap is not None:
        m.softcap = _number(softcap, "softcap")
        if not FLOAT32_TINY <= m.softcap < FLOAT32_END:
            raise ValueError(f"softcap must be positive and finite in float32, got {softcap!r}")
    return 0


cdef int _take_bias(Mask *m, Operand *o, obj, heads, list keep) except -1:
    """The bias of `heads` heads by distance, or None."""
    if obj is None:
        return 0
    _take(o, obj, "position_bias", False, keep)
    if o.ndim != 2 or o.shape[0] != heads or o.shape[1] % 2 == 0:
        raise ValueError(f"position_bias has shape {_shape(o)}, it must be ({heads}, 2 R + 1): a row for each head of q, with "
                         "the distances -R .. R of a key from the query")
    if <size_t>o.shape[1] > LL_MAX_ROW:
        raise ValueError(f"position_bias has shape {_shape(o)}, at most {LL_MAX_ROW} (2**24) distances are specified")
    m.bias = _wide(o, _count(o), "position_bias")
    m.reach = <size_t>o.shape[1] // 2
    return 0


# The least float64 that doesn't round to zero in float32.
cdef double FLOAT32_TINY = 7.006492321624087e-46


cdef int _contiguous_last(Operand *o, Py_ssize_t count, bint copy_in) except -1:
    """Makes the last axis of o contiguous: by its own memory, or a copy of all of it."""
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


cdef object _attend(Operand *q, object q_object, Operand *k, Operand *v, ll_cache *cache, Mask *m, Operand *bias, out,
                    list keep):
    """The call itself. Keys and values are k and v, or, where those are NULL, the cache's. bias: whose memory m's is."""
    cdef Operand oout
    cdef ll_attention_args a
    cdef ll_attention_head *heads = NULL
    cdef ll_kv *kv = NULL
    cdef Py_ssize_t size = _count(q), k_step = 0, v_step = 0
    cdef size_t i, group, H = q.shape[q.ndim - 3] if q.ndim > 2 else 1
    cdef size_t Tq = q.shape[q.ndim - 2], Tk = cache.length if k == NULL else <size_t>k.shape[k.ndim - 2]
    cdef int failed = 0
    _clear(&oout)
    try:
        a.D = q.shape[q.ndim - 1]
        a.dtype = q.dtype
        a.scale, a.default_scale = m.scale, m.default_scale
        a.softcap, a.causal, a.window, a.reach = m.softcap, m.causal, m.window, m.reach
        if out is None:
            out = _new(q, q_object)
            _take(&oout, out, "out", True, keep)
        else:
            _take(&oout, out, "out", True, keep)
            _check_like(&oout, "out", q.dtype, _shape(q), "q")
            _check_places(&oout, "out")
            _check_apart(&oout, "out", q, "q", True)
            _check_apart(&oout, "out", bias, "position_bias", False)
            if k != NULL:
                _check_apart(&oout, "out", k, "k", False)
                _check_apart(&oout, "out", v, "v", False)
        if size:
            a.count = <size_t>size // (Tq * a.D)
            a.kv_count = cache.heads if k == NULL else <size_t>_count(k) // (Tk * a.D)
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
                _contiguous_last(k, _count(k), True)
                _contiguous_last(v, _count(v), True)
                k_step, v_step = _row_step(k), _row_step(v)
            for i in range(a.kv_count):
                if k == NULL:
                    kv[i] = ll_cache_kv(cache, i, Tk)
                else:
                    kv[i].k, kv[i].v = _head(k, i), _head(v, i)
                    kv[i].k_stride, kv[i].v_stride = k_step, v_step
                    kv[i].blocks = NULL
                    kv[i].offset = kv[i].fresh = 0
                    kv[i].Tk = Tk
            for i in range(a.count):
                heads[i].q = _head(q, i)
                heads[i].y = _head(&oout, i)
                heads[i].q_stride, heads[i].y_stride = _row_step(q), _row_step(&oout)
                heads[i].Tq = Tq
                heads[i].kv = i // group
                heads[i].behind = 0
                heads[i].bias = NULL if m.bias == NULL else m.bias + i % H * (2 * m.reach + 1) + m.reach
            if <size_t>size * Tk < RELEASE_FROM * 4:
                failed = ll_attention(&a)
            else:
                with nogil:
                    ll_interrupts_on()
                    failed = ll_attention(&a)
                _check_interrupted()
            if failed:
                raise MemoryError(f"no memory to work in: {a.count} heads, {Tq} queries of {Tk} positions, {a.D} values")
            if oout.scratch != NULL:
                _copy_strided(&oout, <char *>oout.scratch, False)
    finally:
        PyMem_Free(heads)
        _drop(&oout)
    return out


def attention(q, k, v, *, scale=None, causal=True, window=None, softcap=None, position_bias=None, out=None):
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
        A query sees the positions up to its own; False (encoders): every position. Tk >= Tq where causal, with a window
        and with a position_bias.
    window : int, optional
        At least 1. Causal: a query sees the last `window` positions up to its own, itself included. Else those that are
        at most `window` before or behind its own, ``2 * window + 1`` of them (ModernBERT).
    softcap : float, optional
        Positive and finite; rounded once to float32. Scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).
    position_bias : array (H, 2 R + 1) of float32, float16 or bfloat16, optional
        A bias by relative position (MPNet): the score of the key at t for head h's query at p becomes
        ``score + position_bias[h, R + clip(t - p, -R, R)]``, after scale and softcap, one float32 addition.
    out : array like q, optional
        Receives the result: q itself, or memory that no other argument shares.

    Returns
    -------
    out, or a new array of the type and shape of q. 16-bit values widen exactly, results are rounded once.

    Raises
    ------
    TypeError
        An argument of another element type than q; float64 is never narrowed silently. causal that isn't a bool, window
        that isn't an int, scale or softcap that isn't a number.
    ValueError
        A shape that doesn't fit (H must be a multiple of k's and v's heads), Tk < Tq where queries need a position of
        their own, no position at all where not, more than 2**24 positions or values, a scale that is NaN or infinite, a
        window below 1, a softcap that isn't positive and finite, an out that overlaps in part or is read-only.

    Notes
    -----
    Sums run by absolute position, also with a window (`llorch.reference.attention` defines the bits), so that a query's
    bits are the same whether it comes alone or with others, in one prefill or in many, with a `KVCache` or arrays. The
    NaN or infinity of a position that a query doesn't see never reaches its row; a row that sees a score of NaN or
    +infinity is NaN. Scores take 4 bytes for each position seen by each of a few dozen queries in hand, never Tq * Tk;
    time grows with the window, not with Tk. Ctrl-C ends a long call, and then out is half written. Vaswani et al.,
    arXiv:1706.03762; grouped queries: Ainslie et al., arXiv:2305.13245; windows: Beltagy et al., arXiv:2004.05150;
    softcap: Gemma 2, arXiv:2408.00118; relative positions: Raffel et al., arXiv:1910.10683.
    """
    cdef Operand oq, ok, ov, obias
    cdef Mask m
    cdef list keep = []
    cdef Py_ssize_t Tq, Tk
    _clear(&oq); _clear(&ok); _clear(&ov); _clear(&obias)
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
        _take_bias(&m, &obias, position_bias, shape[-3] if len(shape) > 2 else 1, keep)
        Tq, Tk = shape[-2], kshape[-2]
        if Tk < Tq and (m.causal or m.window or m.bias != NULL):
            raise ValueError(f"k has {Tk} positions, fewer than the {Tq} queries: query i is at position Tk - Tq + i")
        if Tq and not Tk:
            raise ValueError(f"k has no positions for the {Tq} queries to see")
        return _attend(&oq, q, &ok, &ov, NULL, &m, &obias, out, keep)
    finally:
        _drop(&oq); _drop(&ok); _drop(&ov); _drop(&obias)


cdef size_t _natural(value, str name, size_t least) except? 0:
    number = _integer(value, name)
    if not least <= number <= LL_MAX_ROW:
        raise ValueError(f"{name} must be at least {least} and at most {LL_MAX_ROW} (2**24), got {number}")
    return number
