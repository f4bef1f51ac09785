"""Dumps: files of a ladder's tensors. llorch's own are written here, anybody's are read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch._text import printable as printable
from llorch.models import loading as weights
from llorch.models.gpt2 import GPT2Config

if TYPE_CHECKING:
    from llorch.validate.ladder.network import Trace
    from llorch.validate.ladder.sources import Model

Array = NDArray[Any]
VERSION = "1"  # of the dump's names and shapes
SWELLS = 100, 1 << 28  # an .npz may unpack to so many times its size, or so many bytes: what is all zeros does

# ---- files ---------------------------------------------------------------------------------------------------

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


@dataclass
class Dump:
    """The arrays of a file by name (bfloat16 as float32), and its metadata."""

    arrays: Trace
    metadata: dict[str, str] = field(default_factory=dict)
    name: str = "dump"

    @property
    def config(self) -> GPT2Config:
        """Of a dump of llorch. ValueError if the file doesn't have it."""
        try:
            return GPT2Config.from_dict(json.loads(self.metadata["config"]))
        except (KeyError, ValueError, TypeError, RecursionError):
            raise ValueError(
                f"{self.name} has no configuration in its metadata: it must be a dump that llorch wrote"
            ) from None

    @property
    def ids(self) -> list[int]:
        """The prompt's token ids."""
        if "ids" not in self.arrays or self.arrays["ids"].ndim != 1:
            raise ValueError(f"{self.name} has no tensor ids (T,): it must be a dump that llorch wrote")
        return [int(id) for id in self.arrays["ids"]]


def metadata(model: Model, prompt: str, trace: Trace, source: str = "llorch") -> dict[str, str]:
    """What a dump says about itself."""
    import dataclasses

    text = model.text(trace["generated"])
    return {
        "format": "llorch-ladder",
        "version": VERSION,
        "source": source,
        "llorch": llorch.__version__,
        "prompt": prompt,
        "generated_text": "" if text is None else text,
        "model": model.folder.name,
        "model_sha256": model.sha256,
        "config": json.dumps(dataclasses.asdict(model.config)),
    }


def write(path: str | Path, trace: Trace, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file. OSError if it can't be written."""
    from safetensors.numpy import save_file

    save_file({name: values.copy(order="C") for name, values in trace.items()}, str(path), metadata=dict(metadata))


def read(path: str | Path) -> Dump:
    """A .safetensors or .npz file.

    FileNotFoundError; ValueError names the file and what is wrong with it: neither of the two, cut off, without
    tensors, a type that isn't a number's. Nothing is unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: it must be a .safetensors or .npz file")
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    dump = Dump(*(_read_npz(path), {}) if zipped else _read_safetensors(path), name=path.name)
    if not dump.arrays:
        raise ValueError(f"{path} has no tensors")
    return dump


def _read_npz(path: Path) -> Trace:
    arrays, names, size = {}, [], path.stat().st_size
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(member.file_size for member in file.infolist())
        if unpacked <= max(SWELLS[0] * size, SWELLS[1]):
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                names = found.files
                arrays = {name: found[name] for name in names}
    except Exception as error:  # whatever zipfile, its decompressors and NumPy raise for a file that is broken
        raise ValueError(f"{path} is not an .npz file that can be read: {error or type(error).__name__}") from None
    if unpacked > max(SWELLS[0] * size, SWELLS[1]):
        raise ValueError(f"{path} unpacks to {unpacked:,} bytes from {size:,}: it may be made to fill the memory")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has two arrays of the name {twice[0]}")
    for name, values in arrays.items():
        if not isinstance(values, np.ndarray):
            raise ValueError(f"{path}: {name} is no array, it must be an .npz file as numpy.savez writes it")
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{path}: tensor {name} is {values.dtype}, it must be numbers")
    return arrays


def _read_safetensors(path: Path) -> tuple[Trace, dict[str, str]]:
    entries, reader, arrays = weights.read_header(path), weights.Reader(), {}
    for name, entry in entries.items():
        data = reader.bytes_of(entry, 0, entry.nbytes, name)
        if entry.dtype == "BF16":
            values = (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif entry.dtype in NUMPY:
            values = data.view(NUMPY[entry.dtype]).copy()
        else:
            raise ValueError(f"{path}: tensor {name} is {entry.dtype}, it must be one of BF16, {', '.join(NUMPY)}")
        try:
            arrays[name] = values.reshape(entry.shape)
        except (ValueError, OverflowError):
            raise ValueError(f"{path}: tensor {name} has shape {entry.shape}, NumPy has no such array") from None
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = header.get("__metadata__", {})
    return arrays, {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def names_of(sequence: Sequence[str], most: int = 6) -> str:
    more = f" and {len(sequence) - most} more" if len(sequence) > most else ""
    return ", ".join(map(printable, sequence[:most])) + more
