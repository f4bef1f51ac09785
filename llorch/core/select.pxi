"""embedding, argmax."""

cdef extern from "llorch.h" nogil:
    ctypedef struct ll_embedding_args:
        ll_weight table
        const int64_t *ids
        float *y
        size_t rows
    ctypedef struct ll_argmax_args:
        const void *x
        Py_ssize_t x_stride
        size_t rows, n
        int dtype
        int64_t *y
    size_t ll_embedding(const ll_embedding_args *)
    void ll_argmax(const ll_argmax_args *)


cdef object _int64 = np.dtype(np.int64)


cdef tuple _place(size_t flat, tuple shape):
    """The index of an element of an array of this shape, by its place in C order."""
    index = []
    for length in reversed(shape):
        index.append(flat % length)
        flat //= length
    return tuple(index[::-1])


cdef str _at(size_t flat, tuple shape):
    if not shape:
        return ""
    place = _place(flat, shape)
    return f"[{', '.join([str(i) for i in place])}]"


cdef frozenset _bools = frozenset({bool, np.bool_})


def _bool_at(ids, tuple place=()):
    """The place of the first bool in lists of numbers, which NumPy would make an integer of; None if there is none."""
    if isinstance(ids, (list, tuple)):
        for i, one in enumerate(ids):
            if type(one) in _bools:
                return (*place, i)
            if isinstance(one, (list, tuple)):
                found = _bool_at(one, (*place, i))
                if found is not None:
                    return found
    return None


def embedding(table, ids):
    """Rows of a table by number, widened to float32: ``table[ids]``.

    Parameters
    ----------
    table : array (V, E) of float32, float16 or bfloat16, or a PackedLinear
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory, at any strides. Of a PackedLinear of
        shape (E, V), as an LM head is, packed from (V, E) with transposed=True, the columns are taken.
    ids : int, or integers of any shape (an array, a list, a nested list)
        Each in [0, V).

    Returns
    -------
    A new float32 array of shape (\\*ids.shape, E): exactly the rows of the table.

    Raises
    ------
    TypeError
        ids that aren't integers; a table of another element type.
    ValueError
        A table that isn't (V, E).
    IndexError
        An id that is negative or not less than V: names the first one, and where it is.
    """
    cdef Operand otable
    cdef ll_embedding_args a
    cdef size_t first
    cdef list keep = []
    _clear(&otable)
    try:
        if isinstance(table, PackedLinear):
            a.table = (<PackedLinear>table)._weight
        else:
            _take(&otable, table, "table", False, keep)
            if otable.ndim != 2:
                raise ValueError(f"table has shape {_shape(&otable)}, it must be (V, E)")
            a.table.data = otable.data
            a.table.format = otable.dtype
            a.table.packed = 0
            a.table.k_stride = otable.strides[1] if otable.shape[1] > 1 else otable.itemsize
            a.table.n_stride = otable.strides[0]
            a.table.K = otable.shape[1]
            a.table.N = otable.shape[0]
        given = np.asarray(ids)
        if given.size == 0 and given.dtype == np.float64 and not isinstance(ids, _ndarray):
            given = given.astype(_int64)  # an empty list
        if given.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, got {given.dtype.name}")
        place = _bool_at(ids)
        if place is not None:
            raise TypeError(f"ids[{', '.join([str(i) for i in place])}] is a bool, ids must be integers")
        # A copy: what is checked is what is used, whatever other threads write. Ids of 2**63 and more become negative.
        places = np.array(given, _int64, order="C")
        shape = given.shape
        y = _empty((*shape, <Py_ssize_t>a.table.K), _float32)
        a.rows = places.size
        a.ids = <const int64_t *>_address(places)
        a.y = <float *>_address(y)
        if a.rows * a.table.K < RELEASE_FROM:
            first = ll_embedding(&a)
        else:
            with nogil:
                ll_interrupts_on()
                first = ll_embedding(&a)
            _check_interrupted()
        if first < a.rows:
            raise IndexError(f"ids{_at(first, shape)} is {given.reshape(-1)[first]}, the table has {a.table.N} rows: "
                             f"ids must be in [0, {a.table.N})")
    finally:
        _drop(&otable)
    return y


def argmax(logits):
    """The place of the largest value along the last axis; the lowest of equals (+0 and -0 are equal).

    Parameters
    ----------
    logits : array (..., n) of float32, float16 or bfloat16, n >= 1
        Anything with the buffer protocol or ``__dlpack__`` in the CPU's memory, at any strides.

    Returns
    -------
    int for one axis, else an int64 array of the shape without the last axis.

    Raises
    ------
    TypeError
        Another element type.
    ValueError
        No axis, empty rows, or a NaN: names the first one's place. Infinities are values like others.
    """
    cdef Operand o
    cdef ll_argmax_args a
    cdef Py_ssize_t count
    cdef int64_t one = 0
    cdef size_t row
    cdef list keep = []
    _clear(&o)
    try:
        _take(&o, logits, "logits", False, keep)
        if o.ndim == 0:
            raise ValueError("logits has no axis: its shape is (), it must be (..., n)")
        count = _count(&o)
        shape = _shape(&o)
        a.n = o.shape[o.ndim - 1]
        if a.n == 0:
            raise ValueError(f"logits has shape {shape}: an empty row has no largest value")
        if a.n > LL_MAX_ROW:
            raise ValueError(f"logits has rows of {a.n} values, at most {LL_MAX_ROW} (2**24) are specified")
        a.rows = <size_t>count // a.n
        a.dtype = o.dtype
        a.y = &one
        y = None
        if o.ndim > 1:
            y = _empty(shape[:-1], _int64)
            a.y = <int64_t *>_address(y)
        if count:
            a.x = _rows(&o, count, True)
            a.x_stride = o.row_stride
            if count < RELEASE_FROM:
                ll_argmax(&a)
            else:
                with nogil:
                    ll_interrupts_on()
                    ll_argmax(&a)
                _check_interrupted()
            for row in range(a.rows):
                if a.y[row] < 0:
                    raise ValueError(f"logits{_at(row * a.n + <size_t>(-1 - a.y[row]), shape)} is NaN: there is no "
                                     "largest value")
    finally:
        _drop(&o)
    return one if y is None else y
