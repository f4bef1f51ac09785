"""GGUF files, versions 2 and 3, little-endian: metadata and the places of the tensors; the parts of a split file.

Not read by the package gguf: its GGUFReader makes an array of NumPy for every length and every string, which takes 1
to 3 seconds for a vocabulary of 49,152 tokens (here: 5 to 10 ms), flattens nested arrays, looks at no bounds, so that a
file that is cut off gives short strings instead of an error, and maps the file: one that shrinks meanwhile kills the
process. The tests compare with it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What a file announces is compared with the bytes
that it has left before anything is made of it. Python's objects take several times a header's bytes (a string of two
letters 60), so the limits below are on what the header really holds: the worst one found takes 560 MB, a text that
is ASCII but for one character (4 bytes for each in Python).
"""

import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from llorch import _core
from llorch._text import LONGEST, printable, shown
from llorch.files.tensor import Entry
from llorch.files.tensor import size as size_of

MAGIC = b"GGUF"
VERSIONS = 2, 3
ALIGNMENT = 32  # bytes, where the file doesn't say
MOST_ALIGNMENT = 1 << 21  # a large page: who writes a file pads with as many
FIRST_READ = 1 << 21  # bytes of a header; what is read next is half as much as there is
LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it
MOST_KEYS, MOST_TENSORS, MOST_VALUES = 1 << 16, 1 << 17, 1 << 22  # of a file; the largest vocabularies have 2^19 merges
MOST_AXES = 4  # GGML's own limit
DEEPEST = 4  # arrays of arrays
WEIGHT_OF_ARRAY = 1024  # values, as which an array in an array counts: no real file has any

# The numbers of GGML's formats; those it has given up are missing.
FORMATS = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16"},
    **{31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0"},
    **{36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}

NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
SCALARS = {kind: struct.Struct(f"<{code}") for kind, code in zip(NUMBERS, "BbHhIifQqd", strict=True)}
BOOL, STRING, ARRAY = 7, 8, 9
SMALLEST = {kind: scalar.size for kind, scalar in SCALARS.items()} | {BOOL: 1, STRING: 8, ARRAY: 12}  # bytes

PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)

_u32, _u64 = struct.Struct("<I").unpack_from, struct.Struct("<Q").unpack_from


class Strings(Sequence[str]):
    """The strings of an array, decoded when they are asked for: a vocabulary has more than 100,000, which only text
    needs.

    A byte that isn't UTF-8 is kept as half a surrogate pair, which `errors="surrogateescape"` of `str.encode` turns
    back: a token may be any bytes.
    """

    def __init__(self, raw: bytes, count: int) -> None:
        self._raw, self._count = raw, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self._some(0, self._count))

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return list(self)[place]
        first = range(self._count)[place]
        return self._some(_core._strings_end(self._raw, 0, first), 1)[0]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return self._raw == other._raw and self._count == other._count
        return list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def _some(self, at: int, count: int) -> list[str]:
        """So many, from a byte on."""
        raw, texts = self._raw, []
        for _ in range(count):
            begin = at + 8
            at = begin + _u64(raw, at)[0]
            texts.append(raw[begin:at].decode("utf-8", "surrogateescape"))
        return texts


class _Cursor:
    """Walks over a header. `data` is what has been read of the file, from its beginning; `size` the whole file's
    length."""

    def __init__(self, place: str, file: BinaryIO) -> None:
        self.place, self.file = place, file
        self.data, self.size = b"", os.fstat(file.fileno()).st_size
        self.at, self.values = 0, 0  # where it stands; values of arrays so far
        self._read(FIRST_READ)

    def need(self, count: int, what: str) -> int:
        """The place of the next `count` bytes, which it passes."""
        begin, end = self.at, self.at + count
        if end > len(self.data):
            self._read_to(end, what)
        self.at = end
        return begin

    def _read_to(self, end: int, what: str) -> None:
        """Reads until byte `end` is there, and more."""
        if end <= min(self.size, LONGEST_HEADER):
            self._read(max(end, len(self.data) * 3 // 2))
        if end > self.size:
            raise ValueError(f"{self.place} is cut off: {what} ends at byte {end}, the file at {self.size}")
        if end > LONGEST_HEADER:
            raise ValueError(f"{self.place} has a header of more than {LONGEST_HEADER} bytes")

    def _read(self, end: int) -> None:
        """Reads to byte `end`, or as far as there may be a header."""
        end = min(end, self.size, LONGEST_HEADER)
        self.data += self.file.read(end - len(self.data))
        if len(self.data) < end:  # it has become shorter, or isn't as long as it says
            self.size = len(self.data)

    def u32(self, what: str) -> int:
        begin = self.need(4, what)  # before `data` is taken, which it may exchange
        value: int = _u32(self.data, begin)[0]
        return value

    def u64(self, what: str) -> int:
        begin = self.need(8, what)
        value: int = _u64(self.data, begin)[0]
        return value

    def count(self, what: str, smallest: int, most: int) -> int:
        """A number of things, of which each takes at least `smallest` bytes."""
        count, left = self.u64(what), self.size - self.at
        if count * smallest > left:
            raise ValueError(
                f"{self.place} announces {what} of {count}, which takes {count * smallest} bytes, {left} are left: "
                "it is cut off, or damaged"
            )
        if count > most:
            raise ValueError(f"{self.place} announces {what} of {count}, at most {most} are allowed")
        return count

    def name(self, what: str) -> str:
        """A key or a tensor's name, UTF-8."""
        length = self.count(f"a length of {what}", 1, LONGEST_HEADER)
        begin = self.need(length, what)
        try:
            return self.data[begin : self.at].decode()
        except UnicodeDecodeError:
            text = self.data[begin : min(self.at, begin + 4 * LONGEST)].decode(errors="backslashreplace")
            raise ValueError(f"{self.place}: {what} is not UTF-8: {shown(text)}") from None

    def strings(self, count: int, what: str) -> Strings:
        begin = self.at
        while (end := _core._strings_end(self.data, begin, count)) < 0:
            if len(self.data) == self.size:
                self._cut_off(count, what)
            self._read_to(len(self.data) + 1, what)
        self.at = end
        return Strings(self.data[begin:end], count)

    def _cut_off(self, count: int, what: str) -> None:
        """Raises for the first of so many strings that goes on behind the file's end."""
        for _ in range(count):
            begin = self.need(8, what)
            self.need(_u64(self.data, begin)[0], what)

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in SCALARS:
            begin = self.need(SMALLEST[kind], what)
            return SCALARS[kind].unpack_from(self.data, begin)[0]
        if kind == STRING:
            begin = self.need(self.u64(what), what)
            return str(memoryview(self.data)[begin : self.at], "utf-8", "surrogateescape")
        if kind == BOOL:
            return self.bools(1, what)[0]
        if kind != ARRAY:
            raise ValueError(f"{self.place}: {what} has values of type {kind}, GGUF has 0 to 12")
        if depth == DEEPEST:
            raise ValueError(f"{self.place}: {what} has arrays in arrays, more than {DEEPEST} deep")
        kind = self.u32(what)
        if kind not in SMALLEST:
            raise ValueError(f"{self.place}: {what} has values of type {kind}, GGUF has 0 to 12")
        weight = WEIGHT_OF_ARRAY if kind == ARRAY else 1
        count = self.count(f"an array, {what},", SMALLEST[kind], (MOST_VALUES - self.values) // weight)
        self.values += weight * count
        if kind in NUMBERS:
            begin = self.need(count * SMALLEST[kind], what)
            return np.frombuffer(self.data, NUMBERS[kind], count, begin).tolist()
        if kind == STRING:
            return self.strings(count, what)
        if kind == BOOL:
            return self.bools(count, what)
        return [self.value(ARRAY, what, depth + 1) for _ in range(count)]

    def bools(self, count: int, what: str) -> list[bool]:
        begin = self.need(count, what)
        values = np.frombuffer(self.data, np.uint8, count, begin)
        if (values > 1).any():
            raise ValueError(f"{self.place}: {what} is a truth value of {values.max()}, it must be 0 or 1")
        return values.astype(bool).tolist()  # type: ignore[no-any-return]


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The metadata and the tensors of one GGUF file, which may be a part of a split one; only the header is read.

    Metadata are Python's own values: int, float (a 32-bit one has its exact value), bool, str, lists of these, and
    `Strings`.
    Shapes are in NumPy's order, the reverse of the file's.

    ValueError names the file, the key or the tensor, and what is wrong: a file that is cut off, a version or byte order
    that isn't read, a name that is there twice, counts and lengths that the file can't hold, tensors outside the file,
    on top of each other, not aligned, or not made of whole blocks.
    """
    metadata, entries, _ = _read(path)
    return metadata, entries


def read_types(path: Path) -> dict[str, tuple[int, int]]:
    """The number of GGUF's type of each metadata key's value, and of its elements where that is ARRAY; else -1."""
    return _read(path)[2]


_Header = tuple[dict[str, Any], dict[str, Entry], dict[str, tuple[int, int]]]


def _read(path: Path) -> _Header:
    with path.open("rb") as file:
        return _header(path, _Cursor(printable(str(path)), file))


def _header(path: Path, at: _Cursor) -> _Header:
    place = at.place
    if at.data[:4] != MAGIC:
        raise ValueError(f"{place} is not a GGUF file: it begins with {at.data[:4]!r}, not {MAGIC!r}")
    at.need(4, "the magic number")
    version = at.u32("the version")
    if version not in VERSIONS:
        if version and not version & 0xFFFF:
            raise ValueError(f"{place} is a big-endian GGUF file, llorch reads little-endian ones")
        raise ValueError(f"{place} is GGUF version {version}, llorch reads 2 and 3")
    tensors = at.count("a number of tensors", 24, MOST_TENSORS)
    keys = at.count("a number of metadata keys", 13, MOST_KEYS)

    metadata: dict[str, Any] = {}
    types: dict[str, tuple[int, int]] = {}
    for _ in range(keys):
        key = at.name("a metadata key")
        if key in metadata:
            raise ValueError(f"{place}: metadata key {shown(key)} is there twice")
        what = f"metadata key {shown(key)}"
        kind, begin = at.u32(what), at.at
        metadata[key] = at.value(kind, what)
        types[key] = kind, _u32(at.data, begin)[0] if kind == ARRAY else -1

    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(
            f"{place}: general.alignment is {shown(alignment)}, it must be a power of two, {MOST_ALIGNMENT} at most"
        )

    found: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for _ in range(tensors):
        name = at.name("a tensor's name")
        what = f"tensor {shown(name)}"
        if name in found:
            raise ValueError(f"{place}: {what} is there twice")
        axes = at.u32(what)
        if axes > MOST_AXES:
            raise ValueError(f"{place}: {what} has {axes} axes, at most {MOST_AXES} are allowed")
        shape = tuple(at.u64(what) for _ in range(axes))[::-1]
        kind, offset = at.u32(what), at.u64(what)
        if kind not in FORMATS:
            raise ValueError(f"{place}: {what} is of GGML's type {kind}, which llorch doesn't know")
        found[name] = FORMATS[kind], shape, offset

    first = -(-at.at // alignment) * alignment
    entries = {}
    for name, (format, shape, offset) in found.items():
        what = f"{place}: tensor {shown(name)}"
        try:
            nbytes = size_of(shape, format)
        except ValueError as error:
            raise ValueError(f"{what} {error}") from None
        if offset % alignment:
            raise ValueError(f"{what} has offset {offset}, it must be a multiple of general.alignment, {alignment}")
        begin, end = first + offset, first + offset + nbytes
        if end > max(at.size, first):
            raise ValueError(f"{what} ends at byte {end}, the file at {at.size}: it is cut off")
        entries[name] = Entry(name, path, begin, end, format, shape)
    where = first
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.nbytes and entry.begin < where:
            raise ValueError(f"{entry.place} begins at byte {entry.begin}: it overlaps the tensor before it")
        where = max(where, entry.end)
    return metadata, entries, types


def read_gguf_model(path: Path) -> tuple[dict[str, Any], dict[str, Entry], list[Path]]:
    """The metadata, tensors and files of a whole model: of one file, or of all parts of a split one, whichever part is
    given. The parts lie in one folder, under names as gguf-split gives them; the first one's metadata are the model's.

    FileNotFoundError names parts that are missing; ValueError as `read_gguf`, and for parts that don't belong together.
    """
    metadata, entries = read_gguf(path)
    count = metadata.get("split.count", 1)
    if count in (0, 1) and type(count) is int:
        return metadata, entries, [path]
    number = metadata.get("split.no")
    place = printable(str(path))
    if type(count) is not int or type(number) is not int or not 0 <= number < count:
        raise ValueError(f"{place}: split.no is {shown(number)} and split.count {shown(count)}, not a part of a file")
    place += f" is part {number + 1} of {count}"
    match = PART.fullmatch(path.name)
    if not match or int(match["number"]) != number + 1 or int(match["count"]) != count:
        ending = shown(f"-{number + 1:05}-of-{count:05}.gguf")
        raise ValueError(f"{place}, its name must end in {ending}")
    names = (f"{match['stem']}-{i + 1:05}-of-{count:05}.gguf" for i in range(count))
    parts = [path.with_name(name) for name in names]
    if missing := [part.name for part in parts if not part.is_file()]:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise FileNotFoundError(f"{place}; missing beside it: {', '.join(map(printable, missing[:4]))}{more}")
    whole: dict[str, Any] = {}
    tensors: dict[str, Entry] = {}
    for i, part in enumerate(parts):
        metadata, entries = read_gguf(part)
        for key, wanted in (("split.no", i), ("split.count", count)):
            if metadata.get(key) != wanted or type(metadata[key]) is not int:
                raise ValueError(
                    f"{printable(str(part))}: {key} is {shown(metadata.get(key))}, it must be {wanted}: not a part of "
                    f"{printable(path.name)}"
                )
        whole = whole or metadata
        for name, entry in entries.items():
            if name in tensors:
                raise ValueError(f"{entry.place} is there twice, also in {printable(tensors[name].file.name)}")
            tensors[name] = entry
    total = whole.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ValueError(f"{place}; split.tensors.count is {shown(total)}, the parts have {len(tensors)} tensors")
    return whole, tensors, parts
