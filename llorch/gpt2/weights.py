"""From a folder in Hugging Face's format, or a hub id, to packed weights.

The safetensors file's header is checked; then one tensor after the other is read into the same memory and packed, so
that no second copy of the model is ever there. The safetensors package makes a new copy of every tensor for NumPy, has
no bfloat16 there, and names no tensor where a file is cut off; the format is a JSON header and one block of bytes, so
it is read here. (Mapping the file instead costs a page fault every few pages, out of order: a cold file took 1.5 times
as long. And a file that shrinks while it is mapped kills the process.)
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from llorch._core import PackedLinear
from llorch.gpt2.config import GPT2Config

DTYPES = ("float32", "bfloat16", "float16")
ITEMSIZE = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
LONGEST_HEADER = 100_000_000  # bytes: the format's own limit
EMBEDDED = Path(__file__).resolve().parent.parent / "data"
HUB_FILES = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
IGNORED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which old checkpoints carry along


class Layer(NamedTuple):
    """The weights of a block, in the order in which they are used. Vectors are float32."""

    ln_1_weight: NDArray[Any]
    ln_1_bias: NDArray[Any]
    c_attn: PackedLinear
    attn_c_proj: PackedLinear
    ln_2_weight: NDArray[Any]
    ln_2_bias: NDArray[Any]
    c_fc: PackedLinear
    mlp_c_proj: PackedLinear


class Weights(NamedTuple):
    """A whole model's weights. wte and lm_head are (n_embd, vocab_size), one object where they are tied."""

    dtype: str
    wte: PackedLinear
    wpe: NDArray[Any]  # (n_positions, n_embd) float32
    layers: tuple[Layer, ...]
    ln_f_weight: NDArray[Any]
    ln_f_bias: NDArray[Any]
    lm_head: PackedLinear

    @property
    def nbytes(self) -> int:
        """Memory of all weights."""
        parts = [
            self.wpe,
            self.ln_f_weight,
            self.ln_f_bias,
            self.wte,
            *(part for layer in self.layers for part in layer),
        ]
        if self.lm_head is not self.wte:
            parts.append(self.lm_head)
        biases = [part.bias for part in parts if isinstance(part, PackedLinear) and part.bias is not None]
        return sum(part.nbytes for part in [*parts, *biases])


# ---- a safetensors file --------------------------------------------------------------------------------


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


# ---- a folder ------------------------------------------------------------------------------------------


def find_folder(name: str | Path) -> Path:
    """The folder of a model: a path, the name of the embedded model, or a hub id, which is downloaded if need be."""
    if not str(name):
        raise ValueError("path_or_hub_id is empty, it must be a folder or a hub id")
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{folder} is a file, a model is a folder with config.json and model.safetensors")
    text = str(name)
    if re.fullmatch(r"[\w-]+", text) and (EMBEDDED / text).is_dir():
        return EMBEDDED / text
    if isinstance(name, Path) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", text):
        raise FileNotFoundError(f"there is no folder {text}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModuleNotFoundError(
            f"there is no folder {text}; to look for it on Hugging Face's hub, the package huggingface-hub is needed: "
            'pip install "llorch[gpt2]"'
        ) from None
    try:
        return Path(snapshot_download(text, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub's, the network's and the file system's own, which have no base in common
        lines = str(error).strip().splitlines()
        raise FileNotFoundError(
            f"there is no folder {text}, no embedded model of that name, and the hub didn't give it: "
            f"{lines[0] if lines else type(error).__name__}"
        ) from error


def find_tensors(folder: Path) -> dict[str, Entry]:
    """All tensors of the folder's model.safetensors, or of the files its index names; without "transformer."."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        entries = read_header(whole)
    elif index.is_file():
        entries = _sharded(folder, index)
    else:
        _refuse_pickles(folder)
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")
    tensors: dict[str, Entry] = {}
    for name, entry in entries.items():
        plain = name.removeprefix("transformer.")
        if plain in tensors:
            raise ValueError(f"{folder}: tensor {plain} is there twice, with and without transformer. before its name")
        tensors[plain] = entry
    return tensors


def _sharded(folder: Path, index: Path) -> dict[str, Entry]:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = set(places.values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{index} must be JSON with a "weight_map" of tensors to files') from None
    files = {}
    for name in sorted(names, key=str):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names the file {name!r}, it must be a safetensors file in the same folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing, {index.name} says that tensors are in it")
        files[name] = read_header(folder / name)
    for tensor, name in places.items():
        if tensor not in files[name]:
            raise ValueError(f"{folder / name}: tensor {tensor} is missing, {index.name} says that it is in it")
    return {tensor: files[name][tensor] for tensor, name in places.items()}


def _refuse_pickles(folder: Path) -> None:
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        raise ValueError(
            f"{folder} has its weights as a pickle only ({pickles[0]}). Unpickling runs whatever code the file holds, "
            "so llorch doesn't. Where you trust it, convert it once: transformers.AutoModelForCausalLM"
            f".from_pretrained({str(folder)!r}).save_pretrained(new_folder)"
        )


def shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model and its shape, without the LM head. Weights are (in, out) as GPT-2's Conv1D has them."""
    E, F = config.n_embd, config.inner
    vector = {"ln_1.weight": (E,), "ln_1.bias": (E,), "ln_2.weight": (E,), "ln_2.bias": (E,)}
    matrix = {"attn.c_attn": (E, 3 * E), "attn.c_proj": (E, E), "mlp.c_fc": (E, F), "mlp.c_proj": (F, E)}
    block: dict[str, tuple[int, ...]] = {**vector}
    for name, (inputs, outputs) in matrix.items():
        block |= {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}
    return {
        "wte.weight": (config.vocab_size, E),
        "wpe.weight": (config.n_positions, E),
        **{f"h.{i}.{name}": shape for i in range(config.n_layer) for name, shape in block.items()},
        "ln_f.weight": (E,),
        "ln_f.bias": (E,),
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _check(folder: Path, tensors: dict[str, Entry], config: GPT2Config) -> None:
    """Nothing is missing, nothing unknown, and all have the shapes and types of the configuration."""
    wanted = shapes(config)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ValueError(f"{folder}: tensors are missing: {_some(missing)}")
    if "lm_head.weight" in tensors:
        wanted["lm_head.weight"] = wanted["wte.weight"]
    unknown = [name for name in tensors if name not in wanted]
    if unknown:
        raise ValueError(f"{folder}: tensors that a GPT-2 of this config.json doesn't have: {_some(unknown)}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{tensors[name].file}: tensor {name} has shape {tensors[name].shape}, config.json makes it {shape}"
            )
        if tensors[name].dtype not in NAMES:
            raise TypeError(
                f"{tensors[name].file}: tensor {name} is {tensors[name].dtype}, it must be F32, F16 or BF16"
            )


def load(folder: Path, config: GPT2Config, dtype: str | None = None) -> Weights:
    """The packed weights of a folder's model.

    dtype None keeps the file's type (float32 if it has several). A 16-bit dtype rounds every parameter once, to nearest
    even: the same bits as loading a file of that type. Errors are raised before anything is packed.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be None, 'float32', 'bfloat16' or 'float16', got {dtype!r}")
    tensors = {name: entry for name, entry in find_tensors(folder).items() if not IGNORED.fullmatch(name)}
    _check(folder, tensors, config)
    if dtype is None:
        kinds = {NAMES[entry.dtype] for entry in tensors.values()}
        dtype = kinds.pop() if len(kinds) == 1 else "float32"
    reader = Reader()
    tied = "lm_head.weight" not in tensors or _same(reader, tensors["wte.weight"], tensors["lm_head.weight"])

    with _progress(f"loading {folder.name}", sum(entry.nbytes for entry in tensors.values())) as advance:

        def read(name: str) -> NDArray[Any]:
            advance(tensors[name].nbytes)
            return reader.array(tensors[name], name)

        def vector(name: str) -> NDArray[Any]:
            return PackedLinear(read(name)[None], dtype=dtype).row(0)

        def matrix(name: str) -> PackedLinear:
            bias = vector(f"{name}.bias")
            return PackedLinear(read(f"{name}.weight"), bias, dtype=dtype)

        def table(name: str) -> PackedLinear:
            return PackedLinear(read(name), dtype=dtype, transposed=True)

        def expect(block: int) -> None:
            reader.expect(entry for name, entry in tensors.items() if name.startswith(f"h.{block}."))

        def layer(i: int) -> Layer:
            expect(i + 1)
            block = f"h.{i}"
            return Layer(
                vector(f"{block}.ln_1.weight"),
                vector(f"{block}.ln_1.bias"),
                matrix(f"{block}.attn.c_attn"),
                matrix(f"{block}.attn.c_proj"),
                vector(f"{block}.ln_2.weight"),
                vector(f"{block}.ln_2.bias"),
                matrix(f"{block}.mlp.c_fc"),
                matrix(f"{block}.mlp.c_proj"),
            )

        # The largest first, when there is nothing else in memory beside it.
        expect(0)
        wte = table("wte.weight")
        lm_head = wte if tied else table("lm_head.weight")
        positions = table("wpe.weight")
        wpe = np.stack([positions.column(i) for i in range(config.n_positions)])
        del positions
        reader.forget()
        layers = tuple(layer(i) for i in range(config.n_layer))
        return Weights(dtype, wte, wpe, layers, vector("ln_f.weight"), vector("ln_f.bias"), lm_head)


def _same(reader: Reader, a: Entry, b: Entry) -> bool:
    """True if two tensors have the same bytes: an LM head that was saved beside the embedding it is tied to."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    step = 1 << 24
    for first in range(0, a.nbytes, step):
        count = min(step, a.nbytes - first)
        if bytes(reader.bytes_of(a, first, count, "wte.weight")) != bytes(
            reader.bytes_of(b, first, count, "lm_head.weight")
        ):
            return False
    return True


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr from the second second on, where stderr is a terminal and rich is installed."""
    started, bar, task, done = monotonic(), None, None, 0

    def advance(amount: int) -> None:
        nonlocal bar, task, done
        done += amount
        if bar is None and monotonic() - started > 1:
            bar = _bar()
            if bar is not None:
                bar.start()
                task = bar.add_task(what, total=total)
        if bar is not None:
            bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True)
