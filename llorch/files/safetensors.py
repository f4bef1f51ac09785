"""Safetensors files: the header is read and checked here, then one tensor after the other into the same memory.

The safetensors package makes a new copy of every tensor for NumPy, has no bfloat16 there, and names no tensor where a
file is cut off; the format is a JSON header and one block of bytes, so it is read here. (Mapping the file instead costs
a page fault every few pages, out of order: a cold file took 1.5 times as long. And a file that shrinks while it is
mapped kills the process.)
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

ITEMSIZE = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
LONGEST_HEADER = 100_000_000  # bytes: the format's own limit


class Entry(NamedTuple):
    """A tensor of a file, by what its header says, which has been checked."""

    file: Path
    begin: int  # bytes from the beginning of the file
    end: int
    dtype: str  # as the format writes it: F32
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class Reader:
    """Reads tensors, each into the memory of the one before."""

    _room: NDArray[np.uint8]

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Gives the memory back."""
        self._room = np.empty(0, np.uint8)

    def bytes_of(self, entry: Entry, first: int, count: int, name: str) -> NDArray[Any]:
        """`count` bytes of a tensor, from its byte `first` on; valid until the next call."""
        if count > self._room.nbytes:
            self.forget()  # the old, before the new is there
            self._room = np.empty(count, np.uint8)
        into = memoryview(self._room.data)[:count]
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.begin + first)
            while len(into):
                read = file.readinto(into)
                if not read:
                    raise ValueError(f"{entry.file}: tensor {name} is cut off: the file has become shorter")
                into = into[read:]
        return self._room[:count]

    def expect(self, entries: Iterable[Entry]) -> None:
        """Has the system read these while others are packed."""
        if not hasattr(os, "posix_fadvise"):
            return
        for entry in entries:
            with entry.file.open("rb") as file:
                os.posix_fadvise(file.fileno(), entry.begin, entry.nbytes, os.POSIX_FADV_WILLNEED)

    def array(self, entry: Entry, name: str) -> NDArray[Any]:
        """A tensor, F32, F16 or BF16; valid until the next call."""
        if entry.dtype == "BF16":
            try:
                import ml_dtypes
            except ImportError:
                raise ModuleNotFoundError(
                    f'tensor {name} is bfloat16, which needs the package ml_dtypes: pip install "llorch[gpt2]"'
                ) from None
            dtype = np.dtype(ml_dtypes.bfloat16)
        else:
            dtype = np.dtype(NAMES[entry.dtype])
        values: NDArray[Any] = self.bytes_of(entry, 0, entry.nbytes, name).view(dtype).reshape(entry.shape)
        return values


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{name} is there twice")
        entries[name] = value
    return entries


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file; nothing but the header is read.

    ValueError names the file, the tensor, and what is wrong: a truncated file, a header that isn't one, entries that
    overlap, leave holes, or don't fit their shape. https://huggingface.co/docs/safetensors: 8 bytes of length, JSON,
    data without holes.
    """
    size = path.stat().st_size
    if size < 8:
        raise ValueError(f"{path} has {size} bytes: it is cut off, or not a safetensors file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, LONGEST_HEADER):
            raise ValueError(
                f"{path} announces a header of {length} bytes, {size - 8} are there (and at most {LONGEST_HEADER} are "
                "allowed): it is cut off, or not a safetensors file"
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a header that is not JSON as safetensors wants it: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} has a header that is a {type(header).__name__}, it must be an object")
    header.pop("__metadata__", None)

    first = 8 + length
    entries = {}
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: the entry of tensor {name} is a {type(entry).__name__}, it must be an object")
        dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(dtype, str) or not _naturals(shape):
            raise ValueError(f"{path}: tensor {name} has dtype {dtype!r} and shape {shape!r}")
        if not _naturals(place) or len(place) != 2 or place[0] > place[1]:
            raise ValueError(f"{path}: tensor {name} has data_offsets {place!r}, they must be [begin, end]")
        begin, end = first + place[0], first + place[1]
        if end > size:
            raise ValueError(f"{path}: tensor {name} ends at byte {end}, the file at {size}: it is cut off")
        if dtype in ITEMSIZE and math.prod(shape) * ITEMSIZE[dtype] != end - begin:
            raise ValueError(f"{path}: tensor {name} is {dtype} {tuple(shape)} but has {end - begin} bytes")
        entries[name] = Entry(path, begin, end, dtype, tuple(shape))

    where = first
    for name, found in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if found.begin != where:
            what = "overlaps the tensor before it" if found.begin < where else "leaves a hole before it"
            raise ValueError(f"{path}: tensor {name} begins at byte {found.begin}, it must be {where}: it {what}")
        where = found.end
    if where != size:
        raise ValueError(f"{path} has {size - where} bytes behind its last tensor")
    return entries
