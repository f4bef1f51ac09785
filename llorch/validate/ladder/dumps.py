"""Dumps: files of a ladder's tensors. llorch's own are written here, anybody's are read.

Only headers are read at first: a tensor's values come when they are asked for, which is after its shape was looked at.
So a dump costs the memory of what is compared, whatever else it holds or announces.
"""

from __future__ import annotations

import ast
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import llorch
from llorch._text import printable, shown
from llorch.files.output import replacing
from llorch.files.safetensors import read_safetensors
from llorch.files.tensor import Entry, Reader
from llorch.models.config import ModelConfig
from llorch.models.graph import Graph
from llorch.models.registry import Family, families
from llorch.validate.ladder import eval_callback, rungs
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.endings import Ending
from llorch.validate.ladder.eval_callback import Shown
from llorch.validate.ladder.names import Names
from llorch.validate.ladder.rungs import Tensor

if TYPE_CHECKING:
    from llorch.validate.ladder.network import Trace
    from llorch.validate.ladder.sources import Model

VERSION = "1"  # of the dump's names and shapes
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}

SWELLS = 100, 1 << 28  # an .npz may announce so many times its size, or so many bytes: what is all zeros does
PACKED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED  # numpy.savez's two; others unpack without a bound
LONGEST_NPY_HEADER = 10_000  # bytes, as NumPy has it
MOST_AXES = 64

# ---- files ---------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """An array of a file: its shape, and how to get its values."""

    shape: tuple[int, ...]
    read: Callable[[], Array]


class StoredArrays(Mapping[str, Array]):
    """The arrays of a file by name; each is read anew when it is asked for. ValueError if that can't be done."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Array:
        return self._stored[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """As its header has it."""
        return self._stored[name].shape


@dataclass
class Dump:
    """The arrays of a file by name (bfloat16 as float32), and its metadata. name: for people, printable.

    shown : of a text, what it has of each array: some of its values, the others are NaN, and their sum. ladder : the
    tensors of one that has more than llorch writes, None for others.
    """

    arrays: Mapping[str, Array]
    metadata: dict[str, str] = field(default_factory=dict)
    name: str = "dump"
    shown: Mapping[str, Shown] = field(default_factory=dict)
    ladder: list[Tensor] | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, which isn't read for it."""
        return self.arrays.shape(name) if isinstance(self.arrays, StoredArrays) else self.arrays[name].shape

    @cached_property
    def config(self) -> ModelConfig:
        """Of a dump of llorch. ValueError if the file doesn't have it."""
        return self._family_and_config[1]

    @cached_property
    def graph(self) -> Graph:
        """As config."""
        family, config = self._family_and_config
        graph = family.graph(config)
        said = self.metadata.get("embedding")
        if said is None:
            return graph
        try:
            return Ending.read(said).behind(graph)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(
                f"{self.name} has an entry embedding in its metadata that isn't llorch's: {shown(said)}"
            ) from None

    @cached_property
    def names(self) -> Names:
        """What engines may call its tensors. The errors are config's."""
        return Names.of(self.graph)

    @cached_property
    def _family_and_config(self) -> tuple[Family, ModelConfig]:
        kind = self.metadata.get("model_type", "gpt2")  # dumps of before there were others don't say it
        try:
            family = next(family for family in families() if kind in family.model_types)
            return family, family.config(json.loads(self.metadata["config"]))
        except (StopIteration, KeyError, ValueError, TypeError, RecursionError):
            raise ValueError(
                f"{self.name} has no configuration in its metadata: it must be a dump that llorch wrote"
            ) from None

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The ladder of a dump of llorch. The errors are config's and ids'."""
        return rungs.tensors(self, len(self.ids)) if self.ladder is None else self.ladder

    @property
    def ids(self) -> list[int]:
        """The prompt's token ids."""
        ids = self.arrays["ids"] if "ids" in self.arrays and len(self.shape("ids")) == 1 else None
        if ids is None or ids.dtype.kind not in "iu":
            raise ValueError(f"{self.name} has no tensor ids (T,): it must be a dump that llorch wrote")
        return [int(id) for id in ids]


def family_named(name: str) -> Family:
    """ValueError for one that isn't known."""
    for family in families():
        if family.name == name:
            return family
    raise ValueError(f"there is no family {name}")


def metadata(model: Model, prompt: str, trace: Trace, source: str = "llorch") -> dict[str, str]:
    """What a dump says about itself."""
    import dataclasses

    text = model.text(trace["generated"]) if "generated" in trace else None
    ending = {} if model.ending is None else {"embedding": model.ending.written()}
    return ending | {
        "format": "llorch-ladder",
        "version": VERSION,
        "source": source,
        "llorch": llorch.__version__,
        "prompt": prompt,
        "generated_text": "" if text is None else text,
        "model": model.path.name,
        "model_type": model.family.model_types[0],
        "model_sha256": model.sha256,
        "compute": model.compute if source != "transformers" else "float32",
        "config": json.dumps(dataclasses.asdict(model.config)),  # type: ignore[call-overload]
    }


def write(path: str | Path, trace: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, also over one that is there. OSError if it can't be written,
    ValueError where there is something else than a file."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with replacing(Path(path)) as part:
        try:
            arrays = {name: values.copy(order="C") for name, values in trace.items()}
            save_file(arrays, part, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read(path: str | Path) -> Dump:
    """A .safetensors or .npz file, or the text of llama-eval-callback. Headers are read, and checked; a text is read.

    FileNotFoundError; ValueError names the file and what is wrong with it: neither of the two, cut off, without
    tensors, a type that isn't a number's. Nothing is unpickled.
    """
    path = Path(path)
    place = printable(str(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {place}")
    if not path.stat().st_size:
        raise ValueError(f"{place} is empty: it must be a .safetensors or .npz file")
    with path.open("rb") as file:
        beginning = file.read(64)
    zipped = beginning[:2] == b"PK"
    if not zipped and eval_callback.looks_like(beginning) and (shown := eval_callback.read(path)):
        parts = {name: Stored(part.shape, part.array) for name, part in shown.items()}
        return Dump(StoredArrays(parts), {}, printable(path.name), shown)
    metadata, stored = ({}, _npz(path, place)) if zipped else _safetensors(path)
    if not stored:
        raise ValueError(f"{place} has no tensors")
    return Dump(StoredArrays(stored), metadata, printable(path.name))


def _safetensors(path: Path) -> tuple[dict[str, str], dict[str, Stored]]:
    metadata, entries = read_safetensors(path)
    for entry in entries.values():
        if entry.format != "BF16" and entry.format not in NUMPY:
            raise ValueError(f"{entry.place} is {shown(entry.format)}, it must be one of BF16, {', '.join(NUMPY)}")
    return metadata, {name: Stored(entry.shape, partial(_of_entry, entry)) for name, entry in entries.items()}


def _of_entry(entry: Entry) -> Array:
    data = Reader().read(entry)
    if entry.format == "BF16":
        wide: Array = (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide.reshape(entry.shape)
    return data.view(NUMPY[entry.format]).reshape(entry.shape)


def _npz(path: Path, place: str) -> dict[str, Stored]:
    size, arrays, twice, error = path.stat().st_size, {}, "", ""
    try:
        archive = zipfile.ZipFile(path)
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > max(SWELLS[0] * size, SWELLS[1]):
            error = f"{place} unpacks to {unpacked:,} bytes from {size:,}: it may be made to fill the memory"
        for member in () if error else archive.infolist():
            name = member.filename.removesuffix(".npy")
            twice = twice or (name if name in arrays else "")
            found = _npy_header(archive, member)
            if found is None:
                error = f"{place}: {shown(name)} is no array, it must be an .npz file as numpy.savez writes it"
            elif found.dtype.kind not in "fiub":
                error = f"{place}: tensor {shown(name)} is {shown(str(found.dtype))}, it must be numbers"
            else:
                arrays[name] = Stored(found.shape, partial(_of_member, archive, member, found, place))
            if error:
                break
    except Exception as problem:  # whatever zipfile and its decompressors raise for a file that is broken
        error = _unreadable(place, problem)
    if error or twice:
        raise ValueError(error or f"{place} has two arrays of the name {shown(twice)}")
    return arrays


def _unreadable(place: str, problem: Exception) -> str:
    return f"{place} is not an .npz file that can be read: {shown(str(problem) or type(problem).__name__)}"


class NpyHeader(NamedTuple):
    """What a .npy member says about itself. begin: of its values, in bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _npy_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NpyHeader | None:
    """None for a member that is no array. ValueError for one that is broken, unpacks without a bound, or holds objects.

    NumPy's own reader takes as long a header as the file announces, and makes the array that it says.
    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    if member.compress_type not in PACKED:
        raise ValueError(f"{member.filename} is packed by method {member.compress_type}, numpy.savez has 0 and 8")
    with archive.open(member) as stream:
        if stream.read(6) != b"\x93NUMPY":
            return None
        major = stream.read(2)[0]
        width = 2 if major == 1 else 4
        length = int.from_bytes(stream.read(width), "little")
        if length > LONGEST_NPY_HEADER:
            raise ValueError(f"{member.filename} announces a header of {length:,} bytes")
        text = stream.read(length).decode("utf-8" if major == 3 else "latin-1")
    try:
        entries = ast.literal_eval(text)
        shape, fortran_order = entries["shape"], entries["fortran_order"]
        dtype = np.lib.format.descr_to_dtype(entries["descr"])
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise ValueError(f"the header of {member.filename} is not NumPy's") from None
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise ValueError(f"{member.filename} has the shape {shown(shape)}")
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects, which would have to be unpickled")
    header = NpyHeader(dtype, shape, bool(fortran_order), 8 + width + length)
    if len(shape) > MOST_AXES or header.begin + header.nbytes > member.file_size:
        raise ValueError(f"{member.filename} has the shape {shown(shape)}, and {member.file_size:,} bytes")
    return header


def _of_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: NpyHeader, place: str) -> Array:
    values = np.empty(math.prod(header.shape), header.dtype)
    into = memoryview(values.data).cast("B") if values.size else memoryview(b"")
    try:
        with archive.open(member) as opened:
            stream: Any = opened
            stream.read(header.begin)
            while len(into):
                read = stream.readinto(into[: 1 << 20])
                if not read:
                    raise ValueError(f"{member.filename} is cut off")
                into = into[read:]
    except Exception as problem:  # as above
        raise ValueError(_unreadable(place, problem)) from None
    return values.reshape(header.shape, order="F" if header.fortran_order else "C")


def names_of(sequence: Sequence[str], most: int = 6) -> str:
    """For people: "a, b, c and 4 more"."""
    more = f" and {len(sequence) - most} more" if len(sequence) > most else ""
    return ", ".join(map(shown, sequence[:most])) + more
