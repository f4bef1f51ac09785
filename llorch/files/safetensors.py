"""Safetensors files: the header is read and checked here.

The safetensors package makes a new copy of every tensor for NumPy, has no bfloat16 there, and names no tensor where a
file is cut off; the format is a JSON header and one block of bytes, so it is read here. (Mapping the file instead costs
a page fault every few pages, out of order: a cold file took 1.5 times as long. And a file that shrinks while it is
mapped kills the process.)
"""

import json
import re
from pathlib import Path
from typing import Any, TypeGuard

from llorch._text import printable, shown
from llorch.files.tensor import PLAIN, Entry, size

LONGEST_HEADER = 100_000_000  # bytes: the format's own limit
# Python's lists and objects take 20 times the bytes that an empty one has in the text. A tensor's entry has three, and
# 50 bytes at least. Numbers with a point are nowhere.
BYTES_OF_A_LIST = 10
SOME_LISTS = 1000
TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{shown(name)} is there twice")
        entries[name] = value
    return entries


def _no_float(text: str) -> float:
    raise ValueError(f"it has the number {shown(text)}, which isn't an integer")


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file: `read_safetensors` without the metadata."""
    return read_safetensors(path)[1]


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata and the tensors of a safetensors file; nothing but the header is read.

    ValueError names the file, the tensor, and what is wrong: a truncated file, a header that isn't one, entries that
    overlap, leave holes, or don't fit their shape. https://huggingface.co/docs/safetensors: 8 bytes of length, JSON,
    data without holes.
    """
    file_size, place = path.stat().st_size, printable(str(path))
    if file_size < 8:
        raise ValueError(f"{place} has {file_size} bytes: it is cut off, or not a safetensors file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(file_size - 8, LONGEST_HEADER):
            raise ValueError(
                f"{place} announces a header of {length} bytes, {file_size - 8} are there (and at most "
                f"{LONGEST_HEADER} are allowed): it is cut off, or not a safetensors file"
            )
        text = file.read(length)
    most = SOME_LISTS + length // BYTES_OF_A_LIST
    lists = text.count(b"[") + text.count(b"{")
    if lists > most:  # counted again without those in texts
        lists -= sum(each.count(b"[") + each.count(b"{") for each in TEXT.findall(text))
    if lists > most:
        raise ValueError(
            f"{place} has a header of {lists} lists and objects in {length} bytes, more than tensors' entries"
        )
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_duplicates, parse_float=_no_float)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} has a header that is not JSON as safetensors wants it: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{place} has a header that is a {type(header).__name__}, it must be an object")
    extra = header.pop("__metadata__", {})
    metadata = {key: str(value) for key, value in extra.items()} if isinstance(extra, dict) else {}

    first = 8 + length
    entries = {}
    for name, entry in header.items():
        tensor = f"{place}: tensor {shown(name)}"
        if not isinstance(entry, dict):
            raise ValueError(
                f"{place}: the entry of tensor {shown(name)} is a {type(entry).__name__}, it must be an object"
            )
        dtype, shape, data = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(dtype, str) or not _naturals(shape):
            raise ValueError(f"{tensor} has dtype {shown(repr(dtype))} and shape {shown(shape)}")
        if not _naturals(data) or len(data) != 2 or data[0] > data[1]:
            raise ValueError(f"{tensor} has data_offsets {shown(data)}, they must be [begin, end]")
        begin, end = first + data[0], first + data[1]
        if end > file_size:
            raise ValueError(f"{tensor} ends at byte {shown(end)}, the file at {file_size}: it is cut off")
        if dtype in PLAIN:
            try:
                wanted = size(tuple(shape), dtype)
            except ValueError as error:
                raise ValueError(f"{tensor} {error}") from None
            if wanted != end - begin:
                raise ValueError(f"{tensor} is {dtype} {shown(tuple(shape))} but has {end - begin} bytes")
        entries[name] = Entry(name, path, begin, end, dtype, tuple(shape))

    where = first
    for name, found in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if found.begin != where:
            what = "overlaps the tensor before it" if found.begin < where else "leaves a hole before it"
            raise ValueError(
                f"{place}: tensor {shown(name)} begins at byte {found.begin}, it must be {where}: it {what}"
            )
        where = found.end
    if where != file_size:
        raise ValueError(f"{place} has {file_size - where} bytes behind its last tensor")
    return metadata, entries
