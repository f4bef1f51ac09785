"""From a model's files to packed weights: names and shapes are checked, then one tensor after the other is read in
slices and packed, so that no second copy of the model is ever there; nor of a large tensor, but for those of GPT-NeoX's
queries, keys and values, and those of GPT-2 that are quantised here, which are read whole."""

import contextlib
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llorch import _core
from llorch._core import PackedLinear
from llorch._progress import progress
from llorch._text import printable, shown
from llorch.files import Source
from llorch.files.tensor import BLOCKS, FORMATS, Entry, Reader
from llorch.models.compile import PANEL, Part, Weights, groups
from llorch.models.graph import Graph, Parameter
from llorch.models.registry import Family

Array = NDArray[Any]
FLOATS = ("float32", "bfloat16", "float16")
READABLE_BLOCKS = [name for name, format in BLOCKS.items() if format.read]
INTEGERS = tuple(name.lower() for name in READABLE_BLOCKS if name != "MXFP4")  # blocks of integers
DTYPES = (*FLOATS, *INTEGERS)
COMPUTES = ("float32", "int16")
SLICE = 1 << 19  # bytes of a matrix that are read at a time
READERS = 8  # threads that read and pack, at most: tensors that can't be read in slices would add up
PLAIN = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Found:
    """The tensors of a file by the graph's names.

    entries : of every parameter that is there. buffers, heads : names that were recognised as none of the model's, the
    latter of other tasks.
    """

    entries: dict[str, Entry]
    buffers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


def find(source: Source, family: Family, graph: Graph) -> Found:
    """The file's tensors by the graph's names, checked: nothing is missing or unknown, all have the configuration's
    shapes, and types that can be read. ValueError or TypeError names the tensor."""
    where = printable(str(source.path))
    parameters = {name: parameter for name, _, parameter in graph.all_parameters()}
    names = {gguf if source.kind == "gguf" else name: name for name, gguf, _ in graph.all_parameters()}
    entries: dict[str, Entry] = {}
    sorts: dict[str, list[str]] = {"buffer": [], "head": [], "": []}
    for given, entry in source.tensors.items():
        plain = family.plain(given) if source.kind == "hf" else given
        name = names.get(plain)
        if name is None:
            sorts[family.sort_of(plain) if source.kind == "hf" else GGUF_OTHERS.get(plain, "")].append(given)
        elif name in entries:
            both = " and as ".join(printable(one) for one in (entries[name].name, given))
            raise ValueError(f"{where}: tensor {printable(plain)} is there twice, as {both}")
        else:
            entries[name] = entry
    missing = [name for name, p in parameters.items() if p.optional is None and name not in entries]
    if missing:
        theirs = names_of(source, graph)
        said = source.config.get("architectures") if source.kind == "hf" else None  # such as a model without its head
        of = f" (by config.json, the files are of {shown(said[0])})" if isinstance(said, list) and said else ""
        raise ValueError(f"{where}: tensors are missing: {some([theirs[name] for name in missing])}{of}")
    if sorts[""]:
        raise ValueError(
            f"{where}: tensors that a {family.name} of this {_config(source)} doesn't have: {some(sorts[''])}"
        )
    for name, entry in entries.items():
        shape = wanted_shape(source, graph, parameters[name])
        if source.kind == "gguf" and entry.shape == tuple(axis for axis in shape if axis != 1):
            entry = entries[name] = entry._replace(shape=shape)  # converters drop an axis of one
        if entry.shape != shape:
            raise ValueError(f"{entry.place} has shape {entry.shape}, {_config(source)} makes it {shape}")
        if entry.format not in PLAIN and entry.format not in BLOCKS:
            raise TypeError(f"{entry.place} is {printable(entry.format)}, it must be F32, F16 or BF16")
        if not FORMATS[entry.format].read:
            raise TypeError(f"{entry.place} is {entry.format}, which isn't supported: {', '.join(READABLE_BLOCKS)} are")
    return Found(entries, tuple(sorts["buffer"]), tuple(sorts["head"]))


GGUF_OTHERS = {f"rope_{name}.weight": "buffer" for name in ("freqs", "factors_long", "factors_short")} | {
    f"cls{name}": "head"
    for name in (".weight", ".bias", ".output.weight", ".output.bias", ".norm.weight", ".norm.bias")
}


def _config(source: Source) -> str:
    return "metadata" if source.kind == "gguf" else "config.json"


def names_of(source: Source, graph: Graph) -> dict[str, str]:
    """The file's name of each parameter."""
    return {name: gguf if source.kind == "gguf" else name for name, gguf, _ in graph.all_parameters()}


def wanted_shape(source: Source, graph: Graph, parameter: Parameter) -> tuple[int, ...]:
    """In the file, in NumPy's order: GGUF has all matrices as (out, in)."""
    shape = graph.shape(parameter.axes)
    return shape[::-1] if source.kind == "gguf" and parameter.conv1d else shape


def some(names: Iterable[str]) -> str:
    """The first of them, and how many more."""
    shown = [printable(name) for name in names]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def arranged(values: Array, parameter: Parameter, graph: Graph, kind: str) -> Array:
    """A tensor's rows (or its rows of blocks), or those of some of its heads, in the order of the graph's steps; kind:
    the source's, "hf" or "gguf"."""
    if kind == "gguf" and parameter.interleaved:  # pairs side by side, head by head: to the halves of each
        width = graph.shape(parameter.axes)[0] // graph.sizes[parameter.interleaved]
        rows = values.reshape(values.shape[0] // width, width // 2, 2, -1).swapaxes(1, 2)
    elif kind == "hf" and parameter.by_head:
        rows = values.reshape(graph.sizes["H"], 3, graph.sizes["D"], -1).swapaxes(0, 1)
    else:
        return values
    return np.ascontiguousarray(rows).reshape(values.shape)


def whole(vector: Array, parameter: Parameter, kind: str) -> Array:
    """A float32 vector as the graph's steps take it: 1 + w, where the file has w alone."""
    return np.float32(1) + vector if parameter.unit and kind == "hf" else vector


class Job(NamedTuple):
    """A slice of a matrix that is to be packed. nbytes : in the file. run : packs it, with the reader of its thread."""

    nbytes: int
    run: Callable[[Reader], None]


class Loader:
    """Reads and packs the tensors of one file.

    jobs : what is still to be done, in any order, and by several threads.
    """

    def __init__(self, source: Source, graph: Graph, found: Found, dtype: str | None, compute: str) -> None:
        check_choices(dtype, compute)
        self.source, self.graph, self.entries = source, graph, found.entries
        self.dtype, self.compute = dtype, compute
        self.parameters = {name: parameter for name, _, parameter in graph.all_parameters()}
        self.reader = Reader()
        self.jobs: list[Job] = []

    def kept(self, name: str) -> str:
        """The type in which a matrix is kept. One of blocks is never made blocks of another format, and rows that
        aren't whole blocks stay what they are."""
        entry = self.entries[name]
        own = PLAIN.get(entry.format, entry.format.lower())
        if self.dtype is None:
            return own
        if self.dtype in FLOATS:
            return self.dtype
        whole_blocks = self._inputs(name) % BLOCKS[self.dtype.upper()].values == 0
        return self.dtype if entry.format in PLAIN and whole_blocks else own

    def reserve(self, K: int, N: int, kept: str) -> PackedLinear:
        """A packed weight to be filled, of the arithmetic that was asked for where its type has it."""
        return _core._packed_reserve(K, N, kept, self.compute if kept in INTEGERS else "float32")

    def there(self, name: str) -> str:
        """The parameter, or what stands for it where the file leaves it out; "" for nothing."""
        return name if name in self.entries else self.parameters[name].optional or ""

    def read(self, name: str) -> Array:
        """A tensor's values, until the next call."""
        entry = self.entries[name]
        if entry.format in BLOCKS:
            values = _core.dequantize(self.reader.read(entry), entry.format, entry.shape)
        else:
            values = self.reader.array(entry)
        return arranged(values, self.parameters[name], self.graph, self.source.kind)

    def slices(self, name: str) -> Iterator[tuple[int, int]]:
        """Of a matrix's rows: the first of a slice, and how many. All begin at whole panels; of a transposed one, whose
        rows are no columns, at pairs."""
        entry, parameter = self.entries[name], self.parameters[name]
        count, together, nbytes = entry.shape[0], PANEL, SLICE
        if self.source.kind == "gguf" and parameter.interleaved:  # whole heads, and a copy of them
            together, nbytes = math.lcm(PANEL, count // self.graph.sizes[parameter.interleaved]), SLICE // 4
        elif self.source.kind == "hf" and parameter.by_head:
            together = count
        step = max(1, nbytes * count // (entry.nbytes * together)) * together
        for first in range(0, count, step):
            yield first, min(step, count - first)

    def rows(self, name: str, first: int, count: int, reader: Reader) -> Array:
        """A slice of a matrix's rows, or of its rows of blocks as bytes; until the reader's next call."""
        rows = reader.rows(self.entries[name], first, count)
        return arranged(rows, self.parameters[name], self.graph, self.source.kind)

    def vector(self, name: str) -> Array:
        """A vector as float32, rounded to the type that was asked for, as the graph's steps take it."""
        return whole(self.rounded(self.read(name).reshape(-1)), self.parameters[name], self.source.kind)

    def rounded(self, values: Array) -> Array:
        """A float32 copy, rounded once to the type that was asked for."""
        narrow = _core.cast(values, self.dtype) if self.dtype in FLOATS else values
        return np.array(_core.cast(narrow, "float32"))

    def group(self, names: tuple[str, ...]) -> list[Part]:
        """Linear layers side by side: neighbours that are kept alike are packed together."""
        column, parts = 0, []
        for _, several in itertools.groupby(names, lambda name: self.kept(self.there(f"{name}.weight"))):
            together = list(several)
            parts.append(self.part(together, column))
            column += parts[-1].weight.out_features
        return parts

    def part(self, names: list[str], column: int) -> Part:
        """Layers in one packed weight, whose results begin at a column of the group's."""
        weights = [self.there(f"{name}.weight") for name in names]
        widths = [self._outputs(name) for name in weights]
        packed = self.reserve(self._inputs(weights[0]), sum(widths), self.kept(weights[0]))
        firsts = [0, *itertools.accumulate(widths[:-1])]
        for weight, first in zip(weights, firsts, strict=True):
            self.fill(packed, first, weight)
        biases = [f"{name}.bias" for name in names]
        if any(name in self.entries for name in biases):
            each = [
                self.vector(name) if name in self.entries else np.zeros(width, np.float32)
                for name, width in zip(biases, widths, strict=True)
            ]
            _core._packed_bias(packed, np.concatenate(each))
        return Part(packed, {name: column + first for name, first in zip(names, firsts, strict=True)})

    def fill(self, packed: PackedLinear, column: int, name: str) -> None:
        """Has a matrix packed into the columns from `column` on, by `jobs`."""
        entry = self.entries[name]
        transposed = self.parameters[name].conv1d and self.source.kind == "hf"
        if transposed and packed.dtype not in FLOATS:  # whose blocks go along what are columns here
            self.jobs.append(Job(entry.nbytes, partial(self._fill_quantised_transposed, packed, column, name)))
            return
        fill = self._fill_transposed if transposed else self._fill_rows
        for first, count in self.slices(name):
            nbytes = entry.nbytes // entry.shape[0] * count
            self.jobs.append(Job(nbytes, partial(fill, packed, column, name, first, count)))

    def _fill_quantised_transposed(self, packed: PackedLinear, column: int, name: str, reader: Reader) -> None:
        self._fill_quantised(packed, column, reader.array(self.entries[name]).T, name)

    def _fill_transposed(
        self, packed: PackedLinear, column: int, name: str, first: int, count: int, reader: Reader
    ) -> None:
        _core._packed_fill(packed, column, self.rows(name, first, count, reader), False, first)

    def _fill_rows(self, packed: PackedLinear, column: int, name: str, first: int, count: int, reader: Reader) -> None:
        rows, format = self.rows(name, first, count, reader), self.entries[name].format
        if format in BLOCKS:
            _core._packed_fill_blocks(packed, column + first, rows, format)
        elif packed.dtype in FLOATS:
            _core._packed_fill(packed, column + first, rows, True)
        else:
            self._fill_quantised(packed, column + first, rows, name)

    def _fill_quantised(self, packed: PackedLinear, column: int, rows: Array, name: str) -> None:
        format = packed.dtype.upper()
        try:
            blocks = _core.quantize(rows, format)
        except ValueError as error:
            raise ValueError(f"{self.entries[name].place} can't be quantised: {error}") from None
        _core._packed_fill_blocks(packed, column, blocks, format)

    def _inputs(self, name: str) -> int:
        parameter = self.parameters[name]
        return self.graph.shape(parameter.axes)[0 if parameter.conv1d else 1]

    def _outputs(self, name: str) -> int:
        parameter = self.parameters[name]
        return self.graph.shape(parameter.axes)[1 if parameter.conv1d else 0]

    def load(self) -> Weights:
        """Everything that the graph's steps take; the matrices are filled in by `jobs`."""
        weights = Weights()
        embeddings = [step for step in self.graph.before if step.op == "embedding"]
        for step in embeddings:
            name = f"{step.weight}.weight"
            if step.inputs[0] != "ids":
                weights.tables[name] = self.vector(name).reshape(self.entries[name].shape)
            else:
                weights.tables[name] = self.table(name)
        options = [step.options.get("position_bias") for steps in self.graph.blocks for step in steps]
        for weight in {one for one in options if one is not None}:
            name = f"{weight}.weight"
            weights.tables[name] = self.vector(name).reshape(self.entries[name].shape)
        for group in groups(self.graph):
            first, *others = group.names
            tied = None if others else self._tied(first, weights)
            weights.packed[first] = self.group(group.names) if tied is None else [Part(tied, {first: 0})]
        for name, parameter in self.parameters.items():
            if len(parameter.axes) == 1 and name in self.entries and not self._of_a_matrix(name):
                weights.vectors[name] = self.vector(name)
        return weights

    def _tied(self, name: str, weights: Weights) -> PackedLinear | None:
        """The embedding, for a head that is tied to it or was saved beside it with the same bytes."""
        stands = self.there(f"{name}.weight")
        if f"{name}.bias" in self.entries:
            return None
        for table, packed in weights.tables.items():
            if isinstance(packed, PackedLinear) and self._same(table, stands):
                return packed
        return None

    def _of_a_matrix(self, name: str) -> bool:
        """Whether it is the bias of a linear layer."""
        weight = name.removesuffix(".bias") + ".weight"
        return name.endswith(".bias") and len(self.parameters[weight].axes) == 2

    def table(self, name: str) -> PackedLinear:
        """An embedding: a column a token."""
        packed = self.reserve(self.entries[name].shape[1], self.entries[name].shape[0], self.kept(name))
        self.fill(packed, 0, name)
        return packed

    def _same(self, a: str, b: str) -> bool:
        """Whether two tensors have the same bytes."""
        if a not in self.entries or b not in self.entries or a == b:
            return a == b
        one, other = self.entries[a], self.entries[b]
        if (one.format, one.shape) != (other.format, other.shape):
            return False
        step = 1 << 24
        for first in range(0, one.nbytes, step):
            count = min(step, one.nbytes - first)
            if bytes(self.reader.read(one, first, count)) != bytes(self.reader.read(other, first, count)):
                return False
        return True


def check_choices(dtype: str | None, compute: str) -> None:
    """ValueError for a type or an arithmetic that there isn't."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be None, {_choices(DTYPES)}, got {dtype!r}")
    if compute not in COMPUTES:
        raise ValueError(f"compute must be {_choices(COMPUTES)}, got {compute!r}")


def _choices(names: Iterable[str]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}"


def load(source: Source, graph: Graph, found: Found, dtype: str | None = None, compute: str = "float32") -> Weights:
    """The packed weights of a file.

    dtype None keeps each tensor in the type that the file has it in. A type of floats rounds every parameter once, to
    nearest even: the same bits as loading a file of that type. One of blocks quantises the matrices that aren't blocks
    already: the same bits as loading a file that was quantised so. compute : of the layers whose weights are blocks of
    integers.
    """
    loader = Loader(source, graph, found, dtype, compute)
    weights = loader.load()
    _core._packed_end()
    total = sum(job.nbytes for job in loader.jobs)
    with progress(f"loading {printable(source.path.name)}", size=True) as show:
        run(loader.jobs, min(_core.get_num_threads(), READERS), lambda done: show(done, total))
    return weights


def run(jobs: Iterable[Job], threads: int, advance: Callable[[int], None]) -> None:
    """Does all jobs, while one is read another is packed. advance : called with the bytes that are done, here.

    A thread takes neighbours together, fewer towards the end: two threads that touch a new page of memory at once would
    both have one cleared (measured: jobs one by one take up to a quarter longer). What a job raises ends the others and
    is raised.
    """
    waiting, lock, done = deque(jobs), threading.Lock(), 0
    left = sum(job.nbytes for job in waiting)
    errors: list[BaseException] = []

    def take() -> list[Job]:
        nonlocal left
        taken: list[Job] = []
        with lock:
            until = left - left / (2 * threads)
            while waiting and not errors and (not taken or left > until):
                taken.append(waiting.popleft())
                left -= taken[-1].nbytes
        return taken

    def work(advance: Callable[[int], None] = lambda done: None) -> None:
        nonlocal done
        try:
            with Reader(SLICE) as reader:
                while taken := take():
                    for job in taken:
                        if errors:
                            return
                        job.run(reader)
                        with lock:
                            done += job.nbytes
                        advance(done)
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
    try:
        with contextlib.suppress(RuntimeError):  # no more threads here: those that there are do it
            for thread in others:
                thread.start()
        work(advance)
        for thread in others:
            if thread.ident is not None:
                thread.join()
    except BaseException as error:  # Ctrl-C, between the jobs
        errors.append(error)
    if errors:
        raise errors[0]
