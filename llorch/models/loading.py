"""From a model's files to packed weights: names and shapes are checked, then one tensor after the other is packed, so
that no second copy of the model is ever there."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llorch._core import PackedLinear
from llorch.files.folder import find_folder as find_folder
from llorch.files.folder import find_tensors as files_tensors
from llorch.files.safetensors import read_header as read_header
from llorch.files.tensor import Entry
from llorch.files.tensor import Reader as Reader
from llorch.models.gpt2 import GPT2Config

DTYPES = ("float32", "bfloat16", "float16")
NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
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


def find_tensors(folder: Path) -> dict[str, Entry]:
    """All tensors of a folder, without "transformer." before their names."""
    tensors: dict[str, Entry] = {}
    for name, entry in files_tensors(folder).items():
        plain = name.removeprefix("transformer.")
        if plain in tensors:
            raise ValueError(f"{folder}: tensor {plain} is there twice, with and without transformer. before its name")
        tensors[plain] = entry
    return tensors


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
