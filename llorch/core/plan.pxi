"""Plan: a model's kernel calls, run without Python between them; SequenceCache: the keys and values of all its layers."""

cdef extern from "llorch.h" nogil:
    ctypedef struct ll_view:
        int buffer
        size_t column
    ctypedef struct ll_call:
        int op, function
        ll_view x, x2, k, v, y
        size_t n
        ll_weight weight
        const float *scale
        const float *bias
        double number
        size_t heads, kv_heads, D, R
        int layer, table
        double softcap
        int default_scale, causal, rows, types, gated
        size_t window, reach
    ctypedef struct ll_plan:
        const ll_call *calls
        size_t count
        const size_t *widths
        size_t output, heads, kv_heads
    ctypedef struct ll_sequence:
        size_t T, start
        ll_cache *caches
    ctypedef struct ll_run:
        const ll_plan *plan
        size_t rows
        const int64_t *ids
        const int64_t *positions
        const int64_t *types
        const ll_sequence *sequences
        size_t sequence_count, skip
        float **buffers
        size_t output_rows, first, first_output
        const float **cos
        const float **sin
        ll_attention_head *heads
        ll_kv *kv
        int64_t *starts
    int ll_plan_run(ll_run *run, size_t begin, size_t end)
    size_t ll_parts_made(size_t *helped)
    enum:
        LL_PANEL
    int LL_CALL_EMBEDDING, LL_CALL_PLACES, LL_CALL_LAYER_NORM, LL_CALL_RMS_NORM, LL_CALL_LINEAR, LL_CALL_ROPE
    int LL_CALL_ATTENTION, LL_CALL_ROWS, LL_CALL_FUNCTION, LL_CALL_GATE, LL_CALL_ADD, LL_CALL_MULTIPLY, LL_CALL_SCALE
    int LL_CALL_DIVIDE, LL_CALL_SOFTCAP, LL_CALL_MEAN
    int LL_ALL_ROWS, LL_LAST_ROW, LL_FIRST_ROW


cdef dict _calls = {
    "embedding": LL_CALL_EMBEDDING, "places": LL_CALL_PLACES, "layer_norm": LL_CALL_LAYER_NORM,
    "rms_norm": LL_CALL_RMS_NORM, "linear": LL_CALL_LINEAR, "rope": LL_CALL_ROPE, "attention": LL_CALL_ATTENTION,
    "rows": LL_CALL_ROWS, "function": LL_CALL_FUNCTION, "gate": LL_CALL_GATE, "add": LL_CALL_ADD,
    "multiply": LL_CALL_MULTIPLY, "scale": LL_CALL_SCALE, "divide": LL_CALL_DIVIDE, "softcap": LL_CALL_SOFTCAP,
    "mean": LL_CALL_MEAN,
}
cdef dict _rows_of = {"all": LL_ALL_ROWS, "last": LL_LAST_ROW, "first": LL_FIRST_ROW}


# ---- the cache of a sequence ------------------------------------------------------------------------------


cdef class SequenceCache:
    """Keys and values of one sequence in every layer of a model. Made by a model's `new_cache`.

    Attributes
    ----------
    length, capacity : int
        Positions it holds, and the most it can hold.
    nbytes : int
        Memory it has taken so far, that shared with forks included.

    Notes
    -----
    Memory is taken in blocks of 128 positions as they arrive. Forks share blocks; who writes into a shared block copies it
    first, so no cache ever changes another's bits. One thread at a time may use a cache: a second one gets a RuntimeError.
    """
    cdef ll_cache *_layers
    cdef size_t _count
    cdef bint _busy
    cdef readonly size_t capacity
    cdef readonly object model

    def __cinit__(self, model, layers, heads, head_dim, capacity):
        cdef size_t count = _natural(layers, "layers", 1), i
        cdef size_t H = _natural(heads, "heads", 1), D = _natural(head_dim, "head_dim", 1)
        self.capacity = _natural(capacity, "capacity", 0)
        self.model = model
        self._layers = <ll_cache *>PyMem_Malloc(count * sizeof(ll_cache))
        if self._layers == NULL:
            raise MemoryError(f"no memory for {count} caches")
        for i in range(count):
            if ll_cache_init(&self._layers[i], H, D, self.capacity):
                raise MemoryError(f"no memory for a table of blocks of {self.capacity} positions")
            self._count += 1

    def __dealloc__(self):
        cdef size_t i
        if self._layers != NULL:
            for i in range(self._count):
                ll_cache_free(&self._layers[i])
            PyMem_Free(self._layers)

    def __len__(self):
        return self._layers[0].length

    def __repr__(self):
        return f"Cache: {self.length} of {self.capacity} positions"

    def __reduce__(self):
        raise TypeError("a cache can't be pickled or copied: use fork()")

    @property
    def length(self):
        return self._layers[0].length

    @property
    def nbytes(self):
        cdef size_t i, blocks = 0
        for i in range(self._count):
            blocks += self._layers[i].count
        return blocks * self._layers[0].heads * ll_chunk_floats(self._layers[0].D) * sizeof(float)

    cdef int _check_alone(self) except -1:
        if self._busy:
            raise RuntimeError("another thread is using this cache")
        return 0

    def truncate(self, length):
        """Forget the positions from `length` on. ValueError unless 0 <= length <= self.length. RuntimeError while another
        thread uses the cache."""
        cdef size_t wanted = _natural(length, "length", 0), i
        with cython.critical_section(self):
            self._check_alone()
            if wanted > self._layers[0].length:
                raise ValueError(f"length is {wanted}, the cache holds {self._layers[0].length} positions")
            for i in range(self._count):
                ll_cache_truncate(&self._layers[i], wanted)

    def fork(self):
        """A cache with the same positions that goes its own way; the memory of what both have is shared. RuntimeError while
        another thread uses this one."""
        cdef SequenceCache other = SequenceCache(self.model, self._count, self._layers[0].heads, self._layers[0].D,
                                                 self.capacity)
        cdef size_t i
        with cython.critical_section(self):
            self._check_alone()
            for i in range(self._count):
                ll_cache_free(&other._layers[i])  # the fork has a table of its own
                if ll_cache_fork(&self._layers[i], &other._layers[i]):
                    raise MemoryError(f"no memory for a table of blocks of {self.capacity} positions")
        return other

    def keys(self, layer):
        """The keys of a layer, a new float32 array (heads, length, head_dim), read-only. IndexError for another layer than the
        cache has, RuntimeError while another thread uses it."""
        return self._read(layer, 0)

    def values(self, layer):
        """The values of a layer, as `keys` gives its keys."""
        return self._read(layer, 1)

    cdef object _read(self, layer, int values):
        cdef size_t index = _index(layer, "layer", self._count, "the cache has", "layers")
        cdef ll_cache *c = &self._layers[index]
        a = _empty((c.heads, c.length, c.D), _float32)
        with cython.critical_section(self):
            self._check_alone()
            if <size_t>a.shape[1] != c.length:  # making an array can run anything, such as what a finalizer does
                raise RuntimeError("the cache's length has changed while it was read")
            ll_cache_read(c, values, <float *>_address(a))
        a.flags.writeable = False
        return a


# ---- token ids ----------------------------------------------------------------------------------------------


cdef Py_ssize_t _read_ids(ids, size_t vocabulary, int64_t *to, size_t room) except -2:
    """How many ids there are in an array of one axis of int64 or int32, copied to `to` if that isn't NULL. -1: it is something
    else, or has none, more than there is room for, or one that isn't in the vocabulary: Python tells them apart."""
    cdef Py_buffer view
    cdef Py_ssize_t i, count = -1
    cdef int64_t id
    cdef int32_t half
    cdef char *at
    cdef const char *kind
    if type(ids) is not _ndarray:
        return -1
    try:
        PyObject_GetBuffer(ids, &view, PyBUF_FORMAT | PyBUF_STRIDES)
    except (ValueError, BufferError):  # of elements that the protocol doesn't know
        return -1
    kind = view.format + (view.format[0] == b"=")  # as NumPy says that numbers begin at any byte
    if view.ndim == 1 and 0 < view.shape[0] and <size_t>view.shape[0] <= room and (
            view.itemsize == 8 and kind[0] in b"lq" or view.itemsize == 4 and kind[0] in b"il"):
        at = <char *>view.buf
        for i in range(view.shape[0]):
            if view.itemsize == 8:
                memcpy(&id, at, 8)
            else:
                memcpy(&half, at, 4)
                id = half
            if id < 0 or <uint64_t>id >= vocabulary:
                break
            if to != NULL:
                to[i] = id
            at += view.strides[0]
        else:
            count = view.shape[0]
    PyBuffer_Release(&view)
    return count


def _ids_fit(ids, size_t vocabulary):
    """Whether these are ids of the vocabulary, one at least, in an array of one axis of int64 or int32. False says nothing."""
    return _read_ids(ids, vocabulary, NULL, <size_t>-1) > 0


def _parts_made():
    """How many runs were divided into parts so far, and how many chunks of their calls other threads took then."""
    cdef size_t helped = 0
    made = ll_parts_made(&helped)
    return made, helped


# ---- the plan -----------------------------------------------------------------------------------------------


cdef class Plan:
    """An array of kernel calls on rows of all sequences, and the memory they work in.

    calls : dicts, whose entries are those of ll_call in llorch.h: op by name; views (buffer, column) x, x2, k, v, y;
    function by name; weight a PackedLinear or a float32 array (rows, n); scale, bias and position_bias (attention's)
    float32 arrays; the rest numbers.
    widths : of the buffers. output : the buffer that is the result. layers : of the caches.
    tables : (cos, sin) arrays by number, which may be replaced by longer ones between runs.
    """
    cdef ll_call *_calls
    cdef ll_plan _plan
    cdef size_t *_widths
    cdef size_t _buffers, _output, _layers, _heads, _kv_heads, _row_floats
    cdef size_t _cache_heads, _cache_D  # of the keys that attention reads
    cdef size_t _positions      # that have an embedding; the largest size_t where none is needed
    cdef size_t _types          # of tokens that have one; 0 where none is needed
    cdef list _keep
    cdef void *_workspace       # of the last run, kept for the next
    cdef size_t _workspace_bytes
    cdef public tuple tables
    cdef readonly tuple calls

    def __cinit__(self, calls, widths, output, layers, tables=()):
        cdef size_t i, count = len(calls)
        cdef ll_call *c
        self._keep = []
        self.calls = tuple(calls)
        self.tables = tables
        self._layers, self._output, self._buffers = layers, output, len(widths)
        self._calls = <ll_call *>PyMem_Malloc((count + 1) * sizeof(ll_call))
        self._widths = <size_t *>PyMem_Malloc((self._buffers + 1) * sizeof(size_t))
        if self._calls == NULL or self._widths == NULL:
            raise MemoryError(f"no memory for a plan of {count} calls")
        for i in range(self._buffers):
            self._widths[i] = widths[i]
            if i != self._output:
                self._row_floats += self._widths[i]
        self._heads = self._kv_heads = 1
        self._positions = <size_t>-1
        for i, call in enumerate(calls):
            c = &self._calls[i]
            self._fill(c, dict(call))
            if c.op == LL_CALL_ATTENTION:
                self._heads = max(self._heads, c.heads)
                self._kv_heads = max(self._kv_heads, c.kv_heads)
                if self._cache_D and (self._cache_heads != c.kv_heads or self._cache_D != c.D):
                    raise ValueError(f"call {i} has {c.kv_heads} heads of keys of {c.D} values, those before it have "
                                     f"{self._cache_heads} of {self._cache_D}: the caches have one size")
                self._cache_heads, self._cache_D = c.kv_heads, c.D
            elif c.op == LL_CALL_PLACES and c.types:
                self._types = c.weight.N
            elif c.op == LL_CALL_PLACES:
                self._positions = min(self._positions, c.weight.N)
        self._plan.calls = self._calls
        self._plan.count = count
        self._plan.widths = self._widths
        self._plan.output = self._output
        self._plan.heads, self._plan.kv_heads = self._heads, self._kv_heads

    def __init__(self, calls, widths, output, layers, tables=()):
        pass

    @property
    def row_floats(self):
        """Floats of working memory for each row of a run, at least 1."""
        return max(self._row_floats, 1)

    def __dealloc__(self):
        PyMem_Free(self._calls)
        PyMem_Free(self._widths)
        ll_memory_free(self._workspace)

    cdef ll_view _view(self, dict call, str name) except *:
        cdef ll_view v
        found = call.pop(name, None)
        v.buffer, v.column = (-1, 0) if found is None else found
        if v.buffer >= <int>self._buffers or (found is not None and v.buffer < 0):
            raise ValueError(f"{name} is in buffer {v.buffer}, the plan has {self._buffers}")
        return v

    cdef const float *_floats(self, dict call, str name, size_t n) except? NULL:
        array = call.pop(name, None)
        if array is None:
            return NULL
        if array.dtype != _float32 or not array.flags.c_contiguous or <size_t>array.size < n:
            raise ValueError(f"{name} must be {n} contiguous float32, it is {array.dtype} of shape {array.shape}")
        self._keep.append(array)
        return <const float *>_address(array)

    cdef int _fill(self, ll_call *c, dict call) except -1:
        cdef PackedLinear packed
        c.op = _calls[call.pop("op")]
        c.function = _activation(call.pop("function", None))
        c.x, c.x2 = self._view(call, "x"), self._view(call, "x2")
        c.k, c.v, c.y = self._view(call, "k"), self._view(call, "v"), self._view(call, "y")
        c.n = call.pop("n", 0)
        c.number = call.pop("number", 1.0)
        c.heads, c.kv_heads = call.pop("heads", 1), call.pop("kv_heads", 1)
        c.D, c.R = call.pop("D", 0), call.pop("R", 0)
        c.layer, c.table = call.pop("layer", 0), call.pop("table", 0)
        c.softcap = call.pop("softcap", None) or 0.0
        scale = call.pop("attention_scale", None)
        c.default_scale = scale is None
        if c.op == LL_CALL_ATTENTION:
            c.number = scale or 0.0
        c.causal, c.rows = call.pop("causal", True), _rows_of[call.pop("rows", "all")]
        c.types, c.gated = call.pop("types", False), call.pop("gated", False)
        c.window = call.pop("window", None) or 0
        c.scale = self._floats(call, "scale", c.n)
        c.bias = self._floats(call, "bias", c.n)
        biases, c.reach = call.pop("position_bias", None), 0
        if biases is not None:
            if biases.ndim != 2 or <size_t>len(biases) != c.heads or biases.shape[1] % 2 == 0:
                raise ValueError(f"position_bias has shape {biases.shape}, it must be ({c.heads}, 2 R + 1)")
            c.reach = biases.shape[1] // 2
            c.bias = self._floats({"position_bias": biases}, "position_bias", biases.size)
        weight = call.pop("weight", None)
        if isinstance(weight, PackedLinear):
            packed = weight
            c.weight = packed._weight
            if c.op == LL_CALL_LINEAR and packed.bias is not None:
                c.bias = <const float *>_address(packed.bias)
            self._keep.append(packed)
        elif weight is not None:
            c.weight.data = self._floats({"weight": weight}, "weight", weight.size)
            c.weight.format = LL_F32
            c.weight.packed = 0
            c.weight.K, c.weight.N = weight.shape[1], weight.shape[0]
            c.weight.k_stride, c.weight.n_stride = sizeof(float), weight.shape[1] * sizeof(float)
        if c.gated and (not c.weight.packed or c.weight.N != 2 * c.n or c.n % LL_PANEL or c.x2.buffer >= 0):
            raise ValueError(f"a gated layer of {c.n} values has whole panels of {LL_PANEL}, a packed weight of twice as many "
                             f"columns (it has {c.weight.N}), and no residual")
        if call:
            raise TypeError(f"a call has entries that a plan doesn't know: {', '.join(sorted(call))}")
        return 0

    def run(self, list chunks, caches, bint all_rows, size_t vocabulary, check, grow=None, trace=None, list types=None,
            size_t skip=0):
        """The output of every row of the chunks, or (all_rows false) as many rows as there are chunks: float32.

        chunks : token ids of each sequence, in lists or arrays. caches : a SequenceCache each, whose positions they
        follow and to which they are appended, or None. check : function of (ids, place) that returns an int64 array or
        raises for ids that aren't. types : of the tokens, int64 arrays that have been checked; None for all of type 0. grow :
        function of the number of positions that makes the tables long enough. trace : function of (number of the call,
        function of (buffer, column, n) that gives an array) after every call; the array's memory is used again by later
        calls. skip : rows at the beginning of each sequence that stay out of its mean, where the plan takes one.

        Whatever is raised, the caches are as they were.
        """
        cdef size_t count = len(chunks), rows = 0, i, j, row = 0, most = 0, bytes
        cdef ll_run run
        cdef ll_sequence *sequences = NULL
        cdef int64_t *ids = NULL
        cdef int64_t *positions
        cdef float **buffers
        cdef const float **tables
        cdef SequenceCache cache
        cdef list held = []
        cdef void *workspace = NULL
        cdef char *at
        cdef int failed = 0
        cdef size_t table_count
        cdef object held_memory = None

        for i in range(count):
            rows += <size_t>len(chunks[i])
        ids = <int64_t *>PyMem_Malloc(((3 if self._types else 2) * rows + 1) * sizeof(int64_t))
        sequences = <ll_sequence *>PyMem_Malloc((count + 1) * sizeof(ll_sequence))
        try:
            if ids == NULL or sequences == NULL:
                raise MemoryError(f"no memory for {rows} token ids")
            positions = ids + rows
            for i in range(count):
                sequences[i].T = len(chunks[i])
                sequences[i].start = 0
                sequences[i].caches = NULL
                if skip and sequences[i].T <= skip:
                    raise ValueError(f"chunk {i} has {sequences[i].T} positions, of which {skip} stay out of the mean: "
                                     "none is left")
                row = self._ids(chunks[i], i, ids, row, rows, vocabulary, check)
                if row > rows or sequences[i].T != <size_t>len(chunks[i]):
                    raise RuntimeError("token ids changed while they were read")
            if row != rows:
                raise RuntimeError("token ids changed while they were read")
            run.types = NULL
            if self._types:
                run.types = positions + rows
                self._take_types(types, chunks, positions + rows)
            if caches is not None:
                for i in range(count):
                    cache = caches[i]
                    with cython.critical_section(cache):
                        cache._check_alone()
                        cache._busy = True
                    held.append(cache)
                    # Who asked before asked without holding it: another thread may have filled it since.
                    if sequences[i].T > cache.capacity - cache._layers[0].length:
                        raise ValueError(f"caches[{i}] holds {cache._layers[0].length} of at most {cache.capacity} "
                                         f"positions, {sequences[i].T} more don't fit")
                    if (cache._count != self._layers or self._cache_D and (
                            cache._layers[0].heads != self._cache_heads or cache._layers[0].D != self._cache_D)):
                        raise ValueError(f"caches[{i}] wasn't made by the model's new_cache: its sizes are others")
                    sequences[i].start = cache._layers[0].length
                    sequences[i].caches = cache._layers
                    for j in range(cache._count):
                        if ll_cache_reserve(&cache._layers[j], sequences[i].T):
                            raise MemoryError(f"no memory for {sequences[i].T} more positions in a cache")
            row = 0
            for i in range(count):
                for j in range(sequences[i].T):
                    positions[row] = sequences[i].start + j
                    row += 1
                most = max(most, sequences[i].start + sequences[i].T)
            if most > self._positions:
                raise ValueError(f"there are {most} positions, the model has {self._positions}")
            if grow is not None:
                grow(most)
            held_tables = self.tables  # stay while this runs, whoever replaces them
            table_count = len(held_tables)
            for table in held_tables:
                if <size_t>len(table[0]) < most or <size_t>len(table[1]) < most:
                    raise RuntimeError(f"a table of rotations has {len(table[0])} rows, {most} are needed")

            out = _empty((rows if all_rows else count, self._widths[self._output]), _float32)
            bytes = (rows * self._row_floats + 16 * self._buffers) * sizeof(float)
            bytes += self._buffers * sizeof(float *) + 2 * table_count * sizeof(float *)
            bytes += count * (self._heads * sizeof(ll_attention_head) + self._kv_heads * sizeof(ll_kv))
            bytes += (2 * count + 1) * sizeof(int64_t) + 256
            if trace is None:
                workspace = self._take(bytes)
            else:  # of Python's, so that an array which a trace keeps stays good
                held_memory = np.empty(bytes + 64, np.uint8)
                workspace = <void *>_address(held_memory)
            at = <char *>workspace
            buffers = <float **>at
            at += self._buffers * sizeof(float *)
            tables = <const float **>at
            at += 2 * table_count * sizeof(float *)
            run.heads = <ll_attention_head *>at
            at += count * self._heads * sizeof(ll_attention_head)
            run.kv = <ll_kv *>at
            at += count * self._kv_heads * sizeof(ll_kv)
            run.starts = <int64_t *>at
            at += (2 * count + 1) * sizeof(int64_t)
            for i in range(self._buffers):
                if i == self._output:
                    buffers[i] = <float *>_address(out)
                    continue
                at = <char *>((<uintptr_t>at + 63) // 64 * 64)
                buffers[i] = <float *>at
                at += rows * self._widths[i] * sizeof(float)
            for i in range(table_count):
                tables[i] = <const float *>_address(held_tables[i][0])
                tables[table_count + i] = <const float *>_address(held_tables[i][1])
            run.cos = tables
            run.sin = tables + table_count
            run.plan = &self._plan
            run.rows = rows
            run.ids = ids
            run.positions = positions
            run.sequences = sequences
            run.sequence_count = count
            run.output_rows = rows if all_rows else count
            run.first = run.first_output = 0
            run.skip = skip
            run.buffers = buffers
            if trace is None:
                with nogil:
                    ll_interrupts_on()
                    failed = ll_plan_run(&run, 0, self._plan.count)
                _check_interrupted()
                if failed:
                    raise MemoryError(f"no memory to work in, with {rows} rows")
            else:
                seen = _Seen(held_memory, [<size_t>(<char *>buffers[i] - <char *>workspace) for i in range(self._buffers)],
                             [self._widths[i] for i in range(self._buffers)], out, self._output)
                for i in range(self._plan.count):
                    with nogil:
                        ll_interrupts_on()
                        failed = ll_plan_run(&run, i, i + 1)
                    _check_interrupted()
                    if failed:
                        raise MemoryError(f"no memory to work in, with {rows} rows")
                    seen.rows = run.rows
                    trace(i, seen)
            for i in range(count):
                if sequences[i].caches != NULL:
                    for j in range(self._layers):
                        sequences[i].caches[j].length += sequences[i].T
        finally:
            for cache in held:
                for j in range(cache._count):
                    ll_cache_truncate(&cache._layers[j], cache._layers[j].length)  # lets go of room that wasn't used
                cache._busy = False
            if held_memory is None:
                self._give(workspace)
            PyMem_Free(ids)
            PyMem_Free(sequences)
        return out

    cdef size_t _ids(self, chunk, size_t place, int64_t *ids, size_t row, size_t rows, size_t vocabulary, check) except? 0:
        """Checked ids of a chunk, from `row` on; where the next begin."""
        cdef int64_t id
        cdef list items
        cdef size_t i
        cdef Py_ssize_t count = _read_ids(chunk, vocabulary, ids + row, rows - row)
        if count > 0:
            return row + <size_t>count
        if type(chunk) is list:
            items = <list>chunk
            for i in range(<size_t>len(items)):
                item = items[i]
                if type(item) is not int or row + i >= rows:
                    break
                try:
                    id = item
                except OverflowError:
                    break
                if id < 0 or <uint64_t>id >= vocabulary:
                    break
                ids[row + i] = id
            else:
                if items:
                    return row + <size_t>len(items)
        array = check(chunk, place)
        if row + <size_t>array.size > rows:
            raise RuntimeError("token ids changed while they were read")
        for value in array.tolist():
            ids[row] = value
            row += 1
        return row

    cdef int _take_types(self, list types, list chunks, int64_t *to) except -1:
        """Types of all tokens, one chunk after the other."""
        cdef size_t i
        cdef int64_t type
        for i in range(<size_t>len(chunks)):
            given = [0] * len(chunks[i]) if types is None else types[i].tolist()
            if <size_t>len(given) != <size_t>len(chunks[i]):
                raise RuntimeError("token ids or types changed while they were read")
            for type in given:
                if not 0 <= type < <int64_t>self._types:
                    raise ValueError(f"a token's type is {type}, the model has {self._types}")
                to[0] = type
                to += 1
        return 0

    cdef void *_take(self, size_t bytes) except NULL:
        """Workspace: what the run before left, if it is large enough and no other thread has it."""
        cdef void *memory = NULL
        cdef size_t have = 0
        with cython.critical_section(self):
            memory, have = self._workspace, self._workspace_bytes
            self._workspace, self._workspace_bytes = NULL, 0
        if have < bytes + 64:
            ll_memory_free(memory)
            have = bytes + 64
            memory = ll_memory_new(have)
            if memory == NULL:
                raise MemoryError(f"no memory for {bytes} bytes of working space")
        (<size_t *>memory)[0] = have
        return <char *>memory + 64

    cdef void _give(self, void *workspace) noexcept:
        cdef void *memory
        cdef size_t have
        if workspace == NULL:
            return
        memory = <char *>workspace - 64
        have = (<size_t *>memory)[0]
        with cython.critical_section(self):
            if have <= KEEP_WORKSPACE and have > self._workspace_bytes:
                memory, self._workspace = self._workspace, memory
                self._workspace_bytes = have
        ll_memory_free(memory)


class _Seen:
    """Arrays of a plan's buffers while it runs: called with (buffer, column, n), (rows, n) float32."""

    def __init__(self, memory, offsets, widths, out, output):
        self.memory, self.offsets, self.widths, self.out, self.output, self.rows = memory, offsets, widths, out, output, 0

    def __call__(self, buffer, column, n):
        width, first = self.widths[buffer], self.offsets[buffer]
        if buffer == self.output:
            return self.out[: self.rows, column : column + n]
        array = self.memory[first : first + 4 * self.rows * width].view(np.float32)
        return array.reshape(self.rows, width)[:, column : column + n]


cdef enum:
    KEEP_WORKSPACE = 64 << 20   # bytes; a larger one goes back to the system
