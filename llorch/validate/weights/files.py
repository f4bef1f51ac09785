"""A model's tensors by the names of a graph's parameters, whatever the file calls them, and their values in the layout
of the graph's steps: matrices (out, in), rotated pairs in halves, queries before keys before values.

Unlike the loader, this takes files that are wrong: tensors that are missing, unknown, or of another shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from llorch import _core
from llorch._text import printable, shown
from llorch.files import Reader, Source
from llorch.files.tensor import BLOCKS, FORMATS, Entry
from llorch.models import loading, registry
from llorch.models.config import ModelConfig
from llorch.models.graph import Graph, Parameter, Step
from llorch.models.registry import Family
from llorch.validate.ladder import dumps
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.names import PREFIX, Names, canonical, squashed
from llorch.validate.weights.values import Values, joined

# What engines call the two parameters of a layer or a norm, after its name.
ENDINGS = {
    "weight": "weight kernel w gamma scale g embedding embeddings embed matrix",
    "bias": "bias b beta",
}
_ENDINGS = {name: ending for ending, names in ENDINGS.items() for name in names.split()}
GATE_UP = {"mlpgateupproj", "gateupproj", "ffngateup", "gateup", "mlpgateup", "feedforwardw13", "w13"}
BLOCK = re.compile(r"(.*?)(?:h|layers|blocks)\.([0-9]{1,5})\.", re.ASCII)


class Unreadable(ValueError):
    """A tensor whose values can't be had."""


# ---- parts of a fused layer ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Rows of a linear layer that make one tensor. name : of that, "attn.q". heads : 0 for none. rotated : the first
    values of each head that are rotated, 0 for none."""

    name: str
    first: int
    count: int
    heads: int = 0
    rotated: int = 0


def parts_of(graph: Graph, steps: Sequence[Step], weight: str) -> list[Part]:
    """What the rows of a linear layer, or the values of a norm of heads, become."""
    found = []
    D = graph.sizes.get("D", 0)
    for step in steps:
        if step.weight != weight:
            continue
        if step.op in ("layer_norm", "rms_norm") and step.axes in ("HTD", "GTD"):
            found.append(Part(step.name, 0, D, 1, _rotated(graph, steps, step.name)))
        for one in steps:
            if one.inputs != (step.name,):
                continue
            if one.op == "heads":
                first, count = one.options["first"], one.options["count"]
                found.append(Part(one.name, first * D, count * D, count, _rotated(graph, steps, one.name)))
            elif one.op == "columns":
                found.append(Part(one.name, one.options["first"], one.options["count"]))
            elif one.op in ("layer_norm", "rms_norm") and step.op == "linear":  # a norm of all heads, then these
                found += parts_of(graph, steps, one.weight)
    return found


def _rotated(graph: Graph, steps: Sequence[Step], name: str) -> int:
    """How many values of a head are rotated, straight or behind a norm of each head."""
    for step in steps:
        if step.inputs == (name,):
            if step.op == "rope":
                table = step.options["table"]
                return graph.ropes[table].width if table is not None else next(iter(graph.ropes.values())).width
            if step.op in ("layer_norm", "rms_norm") and "D" in step.axes:
                return _rotated(graph, steps, step.name)
    return 0


@dataclass(frozen=True)
class Fused:
    """A layer that files may have whole or in parts: the names of the whole and of these, as the graph's parameters or
    as they would be; `parts` where the rows of each are."""

    whole: str
    names: tuple[str, ...]
    parts: tuple[Part, ...]


def fused_layers(graph: Graph) -> Iterator[Fused]:
    """Queries, keys and values of each block, and gate and up: their weights and their biases."""
    for layer, steps in enumerate(graph.blocks):
        prefix = graph.prefix(layer)
        for step in steps:
            inside = [part for part in parts_of(graph, steps, step.weight)] if step.op == "linear" else []
            if len(inside) > 1:
                for ending in ("weight", "bias"):
                    names = tuple(f"{prefix}{part.name}.{ending}" for part in inside)
                    yield Fused(f"{prefix}{step.weight}.{ending}", names, tuple(inside))
        for whole, kinds in (("attn.qkv", ("attn.q", "attn.k", "attn.v")), ("mlp.gate_up", ("mlp.gate", "mlp.up"))):
            weights = [_weight_of(steps, kind) for kind in kinds]
            if all(weights) and len({*weights}) == len(kinds):
                first, inside = 0, []
                for weight, kind in zip(weights, kinds, strict=True):
                    whole_part = next(iter(parts_of(graph, steps, weight)), None)
                    count = graph.shape(next(s.axes for s in steps if s.weight == weight)[-1:])[0]
                    own = whole_part or Part(kind, 0, count)
                    inside.append(Part(kind, first, own.count, own.heads, own.rotated))
                    first += own.count
                for ending in ("weight", "bias"):
                    yield Fused(
                        f"{prefix}{whole}.{ending}",
                        tuple(f"{prefix}{weight}.{ending}" for weight in weights),
                        tuple(inside),
                    )


def _weight_of(steps: Sequence[Step], kind: str) -> str:
    """The layer whose output is this tensor, or the heads of it; "" for none of its own."""
    for step in steps:
        if step.name == kind:
            if step.weight and step.op == "linear":
                return step.weight
            if step.op == "heads":
                return _flat_weight(steps, step.inputs[0])
    return ""


def _flat_weight(steps: Sequence[Step], name: str) -> str:
    step = next(step for step in steps if step.name == name)
    return step.weight if step.op == "linear" else _flat_weight(steps, step.inputs[0])


# ---- files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A tensor of a file. name : there. parameter : how it lies there; None where nobody says."""

    name: str
    shape: tuple[int, ...]
    format: str
    parameter: Parameter | None = None


@dataclass
class Side:
    """One of the two. kind : "hf", "gguf", or "free", of another engine, whose layout is its own business. pieces : by
    the names of the reference graph. buffers, unknown : names of tensors that aren't parameters, or not known."""

    name: str
    kind: str
    source: Source | Dump
    family: Family | None = None
    config: ModelConfig | None = None
    graph: Graph | None = None
    pieces: dict[str, Piece] = field(default_factory=dict)
    buffers: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @cached_property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and format of each."""
        if isinstance(self.source, Dump):
            return {name: (self.source.shape(name), "") for name in self.source.arrays}
        return {name: (entry.shape, entry.format) for name, entry in self.source.tensors.items()}

    @property
    def weighed(self) -> bool:
        """Whether its file says that it was quantised with an importance matrix."""
        config = self.source.config if isinstance(self.source, Source) else {}
        return self.kind == "gguf" and any(key.startswith("quantize.imatrix") for key in config)

    def read(self, key: str) -> Values:
        """Unreadable says why not."""
        piece = self.pieces[key]
        if isinstance(self.source, Dump):
            return _of_array(np.array(self.source.arrays[piece.name]))
        entry = self.source.tensors[piece.name]
        if entry.format not in FORMATS or not FORMATS[entry.format].read:
            raise Unreadable(f"it is {printable(entry.format)}, which llorch doesn't read")
        if entry.format not in BLOCKS and entry.format not in loading.PLAIN:
            raise Unreadable(f"it is {printable(entry.format)}, which no weight of llorch's families is")
        return _of_entry(entry, piece.parameter, self.kind, self.graph)


def _of_array(array: np.ndarray) -> Values:
    if array.dtype.kind not in "fiu":
        raise Unreadable(f"it is {array.dtype}, no numbers of a weight")
    format = {"float16": "F16", "float32": "F32"}.get(array.dtype.name, "F64" if array.dtype.name == "float64" else "")
    lean = array.reshape([n for n in array.shape if n != 1] or [1])
    return Values(np.ascontiguousarray(lean).astype(np.float32), format or array.dtype.name)


def _of_entry(entry: Entry, parameter: Parameter | None, kind: str, graph: Graph | None) -> Values:
    reader = Reader()
    shape = entry.shape
    if parameter is not None and graph is not None:
        wanted = graph.shape(parameter.axes)
        wanted = wanted[::-1] if kind == "gguf" and parameter.conv1d else wanted
        if shape == tuple(n for n in wanted if n != 1):
            shape = wanted  # converters drop an axis of one
        fits = shape == wanted
    else:
        fits = False
    blocks = None
    if entry.format in BLOCKS:
        blocks = reader.read(entry).reshape(shape[0] if len(shape) > 1 else 1, -1)
        if fits and parameter is not None and graph is not None and len(shape) > 1:
            blocks = loading.arranged(blocks, parameter, graph, kind)
        blocks = blocks.copy()
        x = _core.dequantize(blocks, entry.format, shape)
    else:
        values = reader.array(entry).reshape(shape)
        if fits and parameter is not None and graph is not None:
            values = loading.arranged(values, parameter, graph, kind)
        x = np.array(values).astype(np.float32)
    if fits and parameter is not None:
        x = loading.whole(x, parameter, kind)
        if parameter.conv1d and kind == "hf":
            x = np.ascontiguousarray(x.T)
    return Values(np.ascontiguousarray(x), entry.format, blocks)


def open_side(path: str | Path) -> Side:
    """A model, or a file of arrays alone. The errors are `open_model`'s and `dumps.read`'s."""
    file = Path(path)
    if file.is_file() and file.suffix in (".npz", ".safetensors"):
        dump = dumps.read(file)
        return Side(dump.name, "free", dump)
    source = registry.open_known(path)
    side = Side(printable(source.path.name), source.kind, source)
    side.family = registry.family_of(source)
    side.config = registry.config_of(source, side.family)
    side.graph = side.family.graph(side.config)
    return side


def find(side: Side, reference: Side) -> None:
    """Fills in a side's pieces, by the names of the reference's graph."""
    graph, family = reference.graph, reference.family
    assert graph is not None and family is not None
    by_gguf = {gguf: (name, parameter) for name, gguf, parameter in graph.all_parameters() if gguf}
    by_name = {name: parameter for name, _, parameter in graph.all_parameters()}
    own = {name: (gguf, p) for name, gguf, p in side.graph.all_parameters()} if side.graph is not None else {}
    own_gguf = {gguf: p for gguf, p in own.values() if gguf}
    names = Known.of(graph)
    for given, (shape, format) in side.tensors.items():
        key, parameter = None, None
        plain = side.family.plain(given) if side.family is not None and side.kind == "hf" else given
        if side.kind == "gguf":
            parameter = own_gguf.get(given)
            key = by_gguf[given][0] if given in by_gguf else None
            sort = loading.GGUF_OTHERS.get(given, "")
        elif side.kind == "hf" and side.family is not None:
            gguf, parameter = own.get(plain, ("", None))
            key = plain if plain in by_name else by_gguf[gguf][0] if gguf in by_gguf else None
            sort = side.family.sort_of(plain)
        else:
            short = family.plain(given)
            key = short if short in by_name else by_gguf[given][0] if given in by_gguf else None
            sort = family.sort_of(short)
        key = key or names.parameter(plain, family)
        if key is None or key in side.pieces:
            (side.buffers if sort else side.unknown).append(given)
        else:
            side.pieces[key] = Piece(given, shape, format, parameter)


@dataclass(frozen=True)
class Known:
    """What engines may call parameters. kinds : the layer or norm of a block, by the ladder's name of what it makes;
    outside : the same of what isn't in a block. fused : names of wholes and parts; all : of all parameters."""

    names: Names
    graph: Graph
    kinds: Mapping[str, str]
    outside: Mapping[str, str]
    fused: frozenset[str]
    all: frozenset[str]

    @classmethod
    def of(cls, graph: Graph) -> Known:
        around = _weights((*graph.before, *graph.after), outside=True)
        every = frozenset(name for name, _, _ in graph.all_parameters())
        fused = frozenset(name for one in fused_layers(graph) for name in (one.whole, *one.names))
        return cls(Names.of(graph), graph, _weights(graph.fullest), around, fused, every)

    def parameter(self, name: str, family: Family) -> str | None:
        """The graph's full name for an engine's, or what a part or the whole of a fused layer would be called. family:
        whose prefixes may stand before it."""
        if len(name) > 200:
            return None
        plain = name.removesuffix(":0").replace("/", ".")
        stem, dot, last = plain.rpartition(".")
        ending = _ENDINGS.get(last.lower()) if dot else None
        if ending is None:
            stem, under, last = plain.rpartition("_")
            ending = _ENDINGS.get(last.lower()) if under else None
        if ending is None:
            stem, ending = plain, "weight"
        if (own := family.plain(f"{stem}.{ending}")) in self.all:
            return own
        while match := PREFIX.match(stem):
            stem = stem[match.end() :]
        if match := BLOCK.match(stem + "."):
            layer = int(match[2])
            if squashed(stem[match.end() :]) in GATE_UP and layer < len(self.graph.blocks):
                return self._in_block(layer, "mlp.gate_up", ending)
        found = canonical(stem, self.names)
        if found is None or found.startswith("*."):
            return None
        if match := re.fullmatch(r"h\.([0-9]+)(?:\.(.*))?", found):
            return self._in_block(int(match[1]), match[2] or "", ending)
        weight = self.outside.get(found)
        return None if weight is None else f"{weight}.{ending}"

    def _in_block(self, layer: int, kind: str, ending: str) -> str | None:
        prefix = self.graph.prefix(layer)
        if kind in self.kinds:
            return f"{prefix}{self.kinds[kind]}.{ending}"
        name = f"{prefix}{kind}.{ending}"
        return name if name in self.fused else None


def _weights(steps: Sequence[Step], *, outside: bool = False) -> dict[str, str]:
    """The layer or norm that makes each tensor of the ladder, alone."""
    found = {}
    for step in steps:
        if not step.weight:
            continue
        heads = [one.name for one in steps if one.op == "heads" and one.inputs == (step.name,)]
        if step.op == "linear" and len(heads) == 1:
            found[heads[0]] = step.weight
        if len(heads) > 1:
            found["attn.qkv"] = step.weight
        found.setdefault(step.name, step.weight)
        if outside and step.name == "head":
            found["logits"] = step.weight
        if step.op == "linear" and any(one.op == "columns" and one.inputs == (step.name,) for one in steps):
            found["mlp.gate_up"] = step.weight
    for kind in ("attn.q", "attn.k", "attn.v"):
        weight = _weight_of(steps, kind)
        cut = [step.name for step in steps if step.op == "heads" and _weight_of(steps, step.name) == weight]
        if weight and cut == [kind]:
            found.setdefault(kind, weight)
    if outside:
        found.setdefault("embed", next((step.weight for step in steps if step.op == "embedding"), ""))
    return found


def read_joined(side: Side, keys: Sequence[str]) -> Values:
    """Several pieces, one below the other."""
    return joined([side.read(key) for key in keys])


def source_names(side: Side, keys: Sequence[str]) -> str:
    return " + ".join(shown(side.pieces[key].name) for key in keys)
