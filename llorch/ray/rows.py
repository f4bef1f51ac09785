"""What a row is, whatever the blocks and batches that it comes in: the bytes of its values, its seed, and one hash over
all rows of a job.

Bytes of a value : a letter for what it is, its length as 8 bytes, and then
    n  nothing (null)
    b  1 or 0 (a bool)
    i  an integer in decimal digits, whatever its width
    f  a float's bits, 2, 4 or 8 bytes; every NaN is the same one
    s  a text in UTF-8
    y  bytes
    t  a point in time (UTC where it has a zone), a date or a duration: its NumPy type, a space, and its count of units
       as 8 bytes. A time of day is the duration since midnight. Python's own count microseconds, its dates days.
    a  numbers, of a list or an array of one axis: the letter of their kind and their width, a space, how many they are
       in decimal digits, a space, and the numbers. All are integers, or all bools, or all floats of one width. Integers
       are 8 bytes each ("i8", or "u8" where one doesn't fit), bools are 1.
    l  any other list, an empty one too: the bytes of its values. An array of several axes is the list of its parts.
    d  a mapping: the bytes of its names and values, sorted by name
Numbers are in little-endian order.
"""

from __future__ import annotations

import datetime
import hashlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch._text import shown

Batch = Mapping[str, Any]

SEED = b"llorch seed of a row 1\n"
DIGEST = b"llorch digest of rows 1\n"


# ---- the bytes of a value -------------------------------------------------------------------------------


def encoded(value: Any) -> bytes:
    """The bytes of a value. TypeError for one that has none here."""
    if value is None:
        return _framed(b"n")
    if isinstance(value, bool | np.bool_):
        return _framed(b"b", b"1" if value else b"0")
    if _integer(value):
        return _framed(b"i", str(int(value)).encode())
    if isinstance(value, float | np.floating):
        return _framed(b"f", _bits(np.asarray(value)))
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        value = _time(value)
    if isinstance(value, str):
        return _framed(b"s", value.encode())
    if isinstance(value, bytes | bytearray | memoryview):
        return _framed(b"y", bytes(value))
    if isinstance(value, np.datetime64 | np.timedelta64):
        return _framed(b"t", value.dtype.newbyteorder("<").str.encode() + b" " + value.astype("<i8").tobytes())
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, list | tuple):
        return _list(value)
    if isinstance(value, Mapping):
        if other := [name for name in value if not isinstance(name, str)]:
            raise TypeError(f"a mapping's names must be texts, got {_shown(other[0])}")
        parts = [encoded(name) + encoded(value[name]) for name in sorted(value)]
        return _framed(b"d", b"".join(parts))
    raise TypeError(f"a {type(value).__name__} has no bytes that llorch.ray knows")


def _framed(letter: bytes, payload: bytes = b"") -> bytes:
    return letter + len(payload).to_bytes(8, "little") + payload


def _integer(value: Any) -> bool:
    """Whether it is one; to NumPy a duration is one, and to Python a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def _time(value: Any) -> Any:
    """Python's or pandas' own as NumPy's."""
    if hasattr(value, "asm8"):  # pandas': in its own units, and in UTC
        return value.asm8
    if isinstance(value, datetime.datetime):
        return np.datetime64(value.astimezone(datetime.UTC).replace(tzinfo=None) if value.tzinfo else value, "us")
    if isinstance(value, datetime.time):
        if value.tzinfo is not None:
            raise TypeError("a time of day with a zone has no bytes that llorch.ray knows")
        value = datetime.datetime.combine(datetime.date.min, value) - datetime.datetime.min
    return np.datetime64(value, "D") if isinstance(value, datetime.date) else np.timedelta64(value, "us")


def _bits(values: NDArray[Any]) -> bytes:
    """Of floats, in little-endian order."""
    if values.dtype.itemsize > 8:
        raise TypeError(f"a {values.dtype} has no bytes that llorch.ray knows")
    if np.isnan(values).any():
        values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _array(values: NDArray[Any]) -> bytes:
    kind = values.dtype.kind
    if values.ndim == 0:
        return encoded(values[()])
    if kind not in "biuf" or values.ndim > 1 or not values.size:  # an empty list's type gets lost on the way
        return _framed(b"l", b"".join(map(encoded, values)))
    if kind == "f":
        letter, elements = f"f{values.dtype.itemsize}", _bits(values)
    elif kind == "b":
        letter, elements = "b1", values.tobytes()
    else:
        letter = "u8" if kind == "u" and int(values.max()) >= 2**63 else "i8"
        elements = values.astype("<" + letter).tobytes()
    return _framed(b"a", f"{letter} {len(values)} ".encode() + elements)


def _list(values: Sequence[Any]) -> bytes:
    kinds = {_number(one) for one in values}
    if kinds == {np.dtype(np.int64)}:
        whole = list(map(int, values))
        for kind in (np.int64, np.uint64):
            if np.iinfo(kind).min <= min(whole) and max(whole) <= np.iinfo(kind).max:
                return _array(np.array(whole, kind))
    elif len(kinds) == 1 and None not in kinds:
        return _array(np.array(values, kinds.pop()))
    return _framed(b"l", b"".join(map(encoded, values)))


def _number(value: Any) -> np.dtype[Any] | None:
    """The type of an array of such numbers, one for integers of any width; None for no number."""
    if _integer(value):
        return np.dtype(np.int64)
    return np.asarray(value).dtype if isinstance(value, bool | np.bool_ | float | np.floating) else None


# ---- the values of a batch --------------------------------------------------------------------------------


def names_of(batch: Any) -> list[str]:
    """The names of its columns. TypeError for what is no batch."""
    if hasattr(batch, "column_names"):
        return list(batch.column_names)
    if isinstance(batch, Mapping):
        return list(batch)
    # In pandas' columns of integers a null makes all of them floats.
    raise TypeError(f"a batch must be an Arrow table or a mapping of columns, got a {type(batch).__name__}")


def values_of(batch: Any, name: str) -> Sequence[Any]:
    """A column of an Arrow table or of a mapping, value by value, each with its own type."""
    column = batch[name]
    if not hasattr(column, "to_pylist"):
        return list(column)
    import pyarrow

    chunks = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
    try:
        return [value for chunk in chunks for value in _of_arrow(chunk)]
    except TypeError as error:
        raise TypeError(f"column {shown(repr(name))}: {error}") from None


def _of_arrow(chunk: Any) -> list[Any]:
    """A chunk's values. Through Python's own a float32 would become a float64, whatever it is in."""
    import pyarrow
    import pyarrow.types as kinds

    kind = chunk.type
    if kinds.is_dictionary(kind):
        return _of_arrow(chunk.dictionary_decode())
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _of_extension(chunk)
    if kinds.is_time(kind):
        count = chunk.view(pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()).cast(pyarrow.int64())
        return _of_arrow(count.view(pyarrow.duration(kind.unit)))
    if kinds.is_floating(kind) or (kinds.is_temporal(kind) and not kinds.is_interval(kind)):
        return _with_nulls(chunk, iter(chunk.drop_null().to_numpy(zero_copy_only=False)))
    if kinds.is_map(kind):
        pairs = (
            zip(_of_arrow(one.values.field(0)), _of_arrow(one.values.field(1)), strict=True) for one in _there(chunk)
        )
        return _with_nulls(chunk, map(list, pairs))
    if any(is_one(kind) for is_one in _lists()):
        return _with_nulls(chunk, (_items(one.values) for one in _there(chunk)))
    if kinds.is_struct(kind):
        fields = [_of_arrow(chunk.field(i)) for i in range(kind.num_fields)]
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if len(set(names)) < len(names):
            raise TypeError(f"{shown(str(kind))} has two fields of one name")
        rows = (dict(zip(names, (field[i] for field in fields), strict=True)) for i in range(len(chunk)))
        return [row if valid else None for row, valid in zip(rows, chunk.is_valid().to_pylist(), strict=True)]
    if kinds.is_nested(kind) or kinds.is_run_end_encoded(kind) or kinds.is_interval(kind):
        raise TypeError(f"values of Arrow's type {shown(str(kind))} have no bytes that llorch.ray knows")
    found: list[Any] = chunk.to_pylist()
    return found


def _of_extension(chunk: Any) -> list[Any]:
    """Arrays in a column, Ray's and Arrow's own; Python's objects; else what is stored."""
    from ray.data.extensions import ArrowPythonObjectType

    if isinstance(chunk.type, ArrowPythonObjectType):
        found: list[Any] = chunk.to_pylist()
        return found
    if not hasattr(chunk, "to_numpy_ndarray") and "tensor" not in chunk.type.extension_name:
        return _of_arrow(chunk.storage)
    there = chunk.drop_null()
    many = there.to_numpy_ndarray() if hasattr(there, "to_numpy_ndarray") else there.to_numpy(zero_copy_only=False)
    return _with_nulls(chunk, iter(many))


def _lists() -> tuple[Any, ...]:
    import pyarrow.types as kinds

    return (
        kinds.is_list,
        kinds.is_large_list,
        kinds.is_fixed_size_list,
        kinds.is_list_view,
        kinds.is_large_list_view,
    )


def _items(values: Any) -> Any:
    import pyarrow.types as kinds

    if not values.null_count and (kinds.is_integer(values.type) or kinds.is_floating(values.type)):
        return values.to_numpy(zero_copy_only=False)
    return _of_arrow(values)


def _there(chunk: Any) -> Iterator[Any]:
    """Those that aren't null."""
    return (one for one in chunk if one.is_valid)


def _with_nulls(chunk: Any, there: Iterator[Any]) -> list[Any]:
    return [next(there) if valid else None for valid in chunk.is_valid().to_pylist()]


# ---- keys, seeds, hashes ----------------------------------------------------------------------------------


def is_key(value: Any) -> bool:
    return _integer(value) or isinstance(value, str | bytes)


def key_bytes(key: Any) -> bytes:
    """TypeError for what is no key: it must be an integer, a text or bytes."""
    if not is_key(key):
        raise TypeError(f"a row's key must be an integer, a text or bytes, got {_shown(key)}")
    return encoded(key)


def seed_of(seed: int, key: Any) -> int:
    """The seed of a row, by that of the job and the row's key: in any block and batch, on any worker, the same.

    The first 8 bytes, as a little-endian integer, of the SHA-256 of b"llorch seed of a row 1\\n" and the bytes of both
    numbers, or of the number and the text, as `llorch.ray.rows` has them. TypeError for what is no key.

    >>> import llorch.ray
    >>> llorch.ray.seed_of(0, "k17")
    3410101206075033765
    """
    made = hashlib.sha256(SEED + encoded(int(seed)) + key_bytes(key))
    return int.from_bytes(made.digest()[:8], "little")


def hashes(batch: Any, key: str, columns: Sequence[str] | None) -> tuple[list[bytes], list[bytes]]:
    """The bytes of each row's key, and the SHA-256 of the names and values of its columns, sorted by name."""
    names = names_of(batch)
    for name in (key, *(columns or ())):
        if name not in names:
            raise ValueError(f"the rows have no column {shown(repr(name))}, they have {', '.join(map(repr, names))}")
    chosen = sorted({name for name in names if name != key} if columns is None else set(columns))
    keys = [key_bytes(value) for value in values_of(batch, key)]
    made = [hashlib.sha256() for _ in keys]
    for name in chosen:
        head = encoded(name)
        values = values_of(batch, name)
        if len(values) != len(keys):
            raise ValueError(f"column {name!r} has {len(values)} values for {len(keys)} keys")
        for row, one, value in zip(made, keys, values, strict=True):
            try:
                row.update(head + encoded(value))
            except TypeError as error:
                raise TypeError(f"row {_key_shown(one)}, column {shown(repr(name))}: {error}") from None
    return keys, [row.digest() for row in made]


def digest(rows: Any, *, key: str, columns: Sequence[str] | None = None) -> str:
    """One hash over rows by their keys: the same in any order, blocks, batches and on any number of nodes.

    Parameters
    ----------
    rows : ray.data.Dataset, or iterable of batches
        A batch is a mapping of columns' names to their values, or an Arrow table, and nothing else: a column of pandas'
        or of Ray's NumPy batches has floats where integers stand beside a null. A dataset that isn't materialized is
        computed for this, as for every other use: digest what was written, or `dataset.materialize()`. Rows are hashed
        where they are; 32 bytes a row and its key come here, and are sorted on disk.
    key : str
        A column of integers, texts or bytes, no two the same.
    columns : sequence of str, optional
        What is hashed of a row; their order doesn't matter. None: all but the key. ["receipt"]: the receipts, and with
        them the model, the prompts, the parameters and the bits of all logits.

    Returns
    -------
    64 hexadecimal digits: SHA-256 of b"llorch digest of rows 1\\n" and then, in the order of the bytes of their keys,
    these and the SHA-256 of each row, as `llorch.ray.rows` has them.

    Raises
    ------
    ValueError
        Two rows with the same key (it is named); a column that isn't there.
    TypeError
        A key of another type, such as null; a value whose type isn't known here: its column is named, and its row where
        that is known; a batch of another type.
    """
    if isinstance(columns, str):
        raise TypeError(f"columns must be several names, got the text {columns!r}")
    with tempfile.TemporaryDirectory(prefix="llorch-digest-") as folder:
        base = sqlite3.connect(Path(folder, "rows"), isolation_level=None)
        try:
            for statement in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA temp_store=FILE"):
                base.execute(statement)
            base.execute("CREATE TABLE rows (key BLOB, hash BLOB)")
            base.execute("BEGIN")
            for keys, hashed in _hashed(rows, key, None if columns is None else list(columns)):
                base.executemany("INSERT INTO rows VALUES (?, ?)", zip(keys, hashed, strict=True))
            made, before = hashlib.sha256(DIGEST), None
            for one, row in base.execute("SELECT key, hash FROM rows ORDER BY key"):
                if one == before:
                    raise ValueError(f"two rows have the key {_key_shown(one)}: a digest needs keys that differ")
                made.update(one + row)
                before = one
        finally:
            base.close()
    return made.hexdigest()


def _hashed(rows: Any, key: str, columns: list[str] | None) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Batch by batch the bytes of keys, and hashes."""
    if not hasattr(rows, "iter_batches"):
        if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
            raise TypeError(f"rows must be a dataset, or batches of rows, got {type(rows).__name__}")
        for batch in rows:
            yield hashes(batch, key, columns)
        return
    import ray.data

    # No CPU is asked for: where actors have them all, a task that needs one would wait for ever.
    several = ray.data.TaskPoolStrategy(size=max(1, int(ray.cluster_resources().get("CPU", 1))))
    options = {"key": key, "columns": columns}
    made = rows.map_batches(_table, fn_kwargs=options, batch_format="pyarrow", compute=several, num_cpus=0)
    for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield batch["key"].to_pylist(), batch["hash"].to_pylist()


def _table(batch: Any, key: str, columns: list[str] | None) -> Any:
    """Hashes as a batch of Arrow: NumPy's own bytes end at their last that isn't 0."""
    import pyarrow

    binary = pyarrow.binary()
    return pyarrow.table([pyarrow.array(each, binary) for each in hashes(batch, key, columns)], ["key", "hash"])


def _key_shown(key: bytes) -> str:
    """A key from its bytes."""
    payload = key[9:]
    return _shown(int(payload) if key[:1] == b"i" else payload.decode() if key[:1] == b"s" else payload)


def _shown(value: Any) -> str:
    return shown(repr(value.item() if isinstance(value, np.generic) else value))
