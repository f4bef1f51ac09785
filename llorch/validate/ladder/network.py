"""A model's graph as a network of settings and taps, and the arithmetics that it runs in.

It walks the steps of the family's graph one by one, so that each tensor can be seen and each step be broken on
purpose (llorch.validate.ladder.faults). It runs in two arithmetics: the specified one, whose bits are those of the
family's own text in `llorch.reference`, and plain float64, which is fast, and so exact beside float32 that the distance
from it is an engine's error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

import llorch
from llorch import reference
from llorch.models.compile import factor_of
from llorch.models.config import ModelConfig
from llorch.models.graph import Graph, Rope, Step
from llorch.reference._gate import ACTIVATIONS as SPECIFIED_ACTIVATIONS
from llorch.validate.ladder import rungs
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.endings import Ending
from llorch.validate.ladder.rungs import block_name

Trace = dict[str, Array]
Progress = Callable[[int, int], object]  # done, of how many


def silent(done: int, of: int) -> None:
    pass


# ---- arithmetic ----------------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """A weight as a file has it, for a layer that is computed by 16-bit integers.

    data, format : its rows of blocks, uint8 (bytes,). values : the network's float32 array of the same weight.
    """

    data: Array
    format: str
    values: Array


class Arithmetic(Protocol):
    """What a forward pass is made of. Arrays come and go in `dtype`; weights are float32, matrices (in, out)."""

    dtype: Any

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> Array: ...
    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array: ...
    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array: ...
    def linear_int16(self, x: Array, weight: Array, blocks: Blocks, bias: Array | None) -> Array: ...
    def activation(self, x: Array, function: str) -> Array: ...
    def rope(self, x: Array, rope: Rope, positions: Array) -> Array: ...
    def softcap(self, x: Array, cap: float) -> Array: ...
    def scores(self, q: Array, k: Array, scale: float) -> Array: ...
    def attend(self, scores: Array, v: Array) -> Array: ...
    def softmax(self, x: Array) -> Array: ...
    def mean(self, x: Array) -> Array: ...
    def normalize(self, x: Array) -> Array: ...


class Specified:
    """llorch.reference: float32, every bit specified."""

    dtype = np.float32

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> Array:
        return reference.layer_norm(x, weight, bias, eps=eps)

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array:
        return reference.rms_norm(x, weight, eps=eps)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return reference.linear(x, weight, bias)

    def linear_int16(self, x: Array, weight: Array, blocks: Blocks, bias: Array | None) -> Array:
        return reference.linear_int16(x, blocks.data, blocks.format, weight.shape[1], bias)

    def activation(self, x: Array, function: str) -> Array:
        return SPECIFIED_ACTIVATIONS[function](x)

    def rope(self, x: Array, rope: Rope, positions: Array) -> Array:
        return reference.rope(x, *rotations(reference.rope_table, rope, positions))

    def softcap(self, x: Array, cap: float) -> Array:
        c = np.float32(cap)
        return self.activation(x / c, "tanh") * c

    def scores(self, q: Array, k: Array, scale: float) -> Array:
        """(H, T, D), (H, S, D) to (H, T, S), without a mask."""
        factor = np.float32(scale)
        return np.stack([self.product(a, b.T) * factor for a, b in zip(q, k, strict=True)])

    def attend(self, scores: Array, v: Array) -> Array:
        """Masked scores (H, T, S), v (H, S, D) to (H, T, D).

        A masked position has weight +0, which adds nothing to a sum that began at +0: the bits are
        `reference.attention`'s.
        """
        e = weigh(scores, self.exp)
        with np.errstate(all="ignore"):
            o = np.stack([self.product(a, b) for a, b in zip(e, v, strict=True)])
            Z = reference.sum64(e.reshape(-1, e.shape[-1])).reshape(*e.shape[:-1], 1)
            y: Array = o / Z
        return y

    def product(self, a: Array, b: Array) -> Array:
        return reference.linear(a, b)

    def exp(self, x: Array) -> Array:
        return reference.exp(x)

    def softmax(self, x: Array) -> Array:
        return reference.softmax(x)

    def mean(self, x: Array) -> Array:
        """Of all rows: (T, E) to (E,)."""
        y: Array = reference.mean_pool(x, [len(x)])[0]
        return y

    def normalize(self, x: Array) -> Array:
        return reference.normalize(x)


class Kernels(Specified):
    """The same bits by llorch's kernels, for where an oracle's time is too long."""

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> Array:
        return llorch.layer_norm(x, weight, bias, eps=eps)

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array:
        return llorch.rms_norm(x, weight, eps=eps)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return llorch.linear(x, np.ascontiguousarray(weight), bias)

    def linear_int16(self, x: Array, weight: Array, blocks: Blocks, bias: Array | None) -> Array:
        K, N = weight.shape
        packed = llorch.PackedLinear.from_blocks(blocks.data, blocks.format, K, N, bias, compute="int16")
        y: Array = packed(x)
        return y

    def activation(self, x: Array, function: str) -> Array:
        match function:
            case "gelu_tanh":
                return llorch.gelu(x, approximate="tanh")
            case "gelu":
                return llorch.gelu(x)
            case "silu":
                return llorch.silu(x)
            case "tanh":
                return llorch.tanh(x)
        return super().activation(x, function)

    def rope(self, x: Array, rope: Rope, positions: Array) -> Array:
        return llorch.rope(x, *rotations(llorch.rope_table, rope, positions))

    def product(self, a: Array, b: Array) -> Array:
        return llorch.linear(np.ascontiguousarray(a), np.ascontiguousarray(b))

    def exp(self, x: Array) -> Array:
        return llorch.exp(x)

    def softmax(self, x: Array) -> Array:
        return llorch.softmax(x)

    def mean(self, x: Array) -> Array:
        y: Array = llorch.mean_pool(np.ascontiguousarray(x), [len(x)])[0]
        return y

    def normalize(self, x: Array) -> Array:
        return llorch.normalize(x)


class Float64:
    """Plain NumPy in float64. The formulas are written out once more on purpose: a second opinion. Only the table of
    rotations is the specified one, each value rounded once to float32."""

    dtype = np.float64

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> Array:
        d = x - x.mean(axis=-1, keepdims=True)
        y: Array = d / np.sqrt((d * d).mean(axis=-1, keepdims=True) + float(np.float32(eps)))
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array:
        y: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + float(np.float32(eps)))
        return y if weight is None else y * weight

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y: Array = x @ weight.astype(np.float64)
        return y if bias is None else y + bias

    def linear_int16(self, x: Array, weight: Array, blocks: Blocks, bias: Array | None) -> Array:
        return self.linear(x, weight, bias)

    def activation(self, x: Array, function: str) -> Array:
        y: Array
        with np.errstate(over="ignore"):
            match function:
                case "gelu_tanh":
                    y = x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
                case "gelu":
                    y = x * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))
                case "silu":
                    y = x / (1 + np.exp(-x))
                case "sigmoid":
                    y = 1 / (1 + np.exp(-x))
                case "tanh":
                    y = np.tanh(x)
                case "relu":
                    y = np.where(x <= 0, 0.0, x)
                case _:
                    raise ValueError(f"there is no function {function}")
        return y

    def rope(self, x: Array, rope: Rope, positions: Array) -> Array:
        cos, sin = (a.astype(np.float64) for a in rotations(llorch.rope_table, rope, positions))
        half = rope.width // 2
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)

    def softcap(self, x: Array, cap: float) -> Array:
        y: Array = np.tanh(x / cap) * cap
        return y

    def scores(self, q: Array, k: Array, scale: float) -> Array:
        y: Array = q @ k.swapaxes(-1, -2) * scale
        return y

    def attend(self, scores: Array, v: Array) -> Array:
        e = weigh(scores, np.exp)
        y: Array = e @ v / e.sum(axis=-1, keepdims=True)
        return y

    def softmax(self, x: Array) -> Array:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        y: Array = e / e.sum(axis=-1, keepdims=True)
        return y

    def mean(self, x: Array) -> Array:
        y: Array = x.mean(axis=0)
        return y

    def normalize(self, x: Array) -> Array:
        y: Array = x / np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), 1e-12)
        return y


class Rough(Float64):
    """Float64 but for its matrix products, which are NumPy's in float32: ten times as fast on a large model, whose
    weights needn't be widened."""

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y: Array = (x.astype(np.float32) @ weight).astype(np.float64)
        return y if bias is None else y + bias


def rotations(make: Callable[..., tuple[Array, Array]], rope: Rope, positions: Array) -> tuple[Array, Array]:
    """cos and sin of positions by `make`, the oracle's rope_table or llorch's; every block asks for the same."""
    scaling = None if rope.scaling is None else dict(rope.scaling)
    key = make.__module__, rope.width, rope.base, repr(scaling), positions.tobytes()
    if key not in _tables:
        if len(_tables) >= KEPT_TABLES:
            _tables.clear()
        _tables[key] = make(rope.width, positions, base=rope.base, scaling=scaling)
    return _tables[key]


KEPT_TABLES = 16
_tables: dict[tuple[Any, ...], tuple[Array, Array]] = {}


def weigh(scores: Array, exp: Callable[[Array], Array]) -> Array:
    """exp(score - largest), +0 where masked; a row that sees nothing weighs all alike, as a finite mask would."""
    blind = ~(scores > -np.inf).any(axis=-1, keepdims=True) & ~np.isnan(scores).any(axis=-1, keepdims=True)
    s = np.where(blind, scores.dtype.type(0), scores)
    with np.errstate(all="ignore"):
        return exp(s - s.max(axis=-1, keepdims=True))


# ---- the network: a graph whose steps can be changed -----------------------------------------------------------


@dataclass
class State:
    """What a tap may look at: the tensors of this part of the graph so far, by the names of its steps ("x" is what came
    in), the settings of the part, the arithmetic, and how many of the positions are padding's."""

    tensors: Trace
    block: Block
    network: Network
    arithmetic: Arithmetic
    padding: int = 0


NOTHING: Mapping[str, Array] = MappingProxyType({})
Tap = Callable[[Array, State], Array]
Split = Callable[[Array, int], tuple[Array, ...]]


@dataclass
class Block:
    """The steps of one part of the graph, a block or what comes before or after all of them, and what is changed.

    weights : float32 arrays by their names within the block, "ln_1.weight", as Hugging Face's files have them. blocks :
    by the same names, those that 16-bit integers are multiplied with.
    changed : options of a step, by its name, that aren't the graph's. taps : what is made of a tensor as it appears, by
    its name; "*" for every one of the ladder. visible : for T positions, bool (T, T), whether query t sees position s;
    None for what the scores' options say. split : of the output (T, W) of a fused projection, into the tensors that its
    "heads" steps make; None for the columns that they name. heads : how many heads there are, None for as many as the
    graph has. groups : of H heads and G of keys and values, which of the latter each head has; None for the graph's
    order. padded : whether positions of padding count, of a network that has them. entering : what is made of what goes
    into a linear layer, None for nothing. formats : the names of weights' formats in the file, where they are known.
    beside : the same as entering by a weight (in, out) and its format: what
    goes into the layer, and what is added to its output, None for nothing.
    """

    steps: tuple[Step, ...]
    weights: Trace
    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    taps: dict[str, Tap] = field(default_factory=dict)
    visible: Callable[[int], Array] | None = None
    split: Split | None = None
    heads: int | None = None
    groups: Callable[[int, int], Array] | None = None
    padded: bool = False
    entering: Callable[[Array], Array] | None = None
    formats: Mapping[str, str] = field(default_factory=dict)
    beside: Callable[[Array, Array, str], tuple[Array, Array | None]] | None = None

    def copy(self) -> Block:
        changed = {name: dict(options) for name, options in self.changed.items()}
        return replace(self, weights=dict(self.weights), changed=changed, taps=dict(self.taps))

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def options(self, step: Step) -> Mapping[str, Any]:
        return {**step.options, **self.changed.get(step.name, {})}

    def change(self, name: str, **options: Any) -> None:
        """Other options for a step."""
        self.changed.setdefault(name, {}).update(options)

    def shared(self, x: Array, heads: int) -> Array:
        """Keys or values (G, T, D) as (H, T, D)."""
        return shared_heads(x, heads) if self.groups is None else x[self.groups(heads, len(x))]

    def linear(self, x: Array, step: Step, conv1d: bool, a: Arithmetic) -> Array:
        """x through a linear layer; conv1d: its weight is (in, out)."""
        weight, bias = (self.weights.get(f"{step.weight}.{part}") for part in ("weight", "bias"))
        assert weight is not None
        x = x if self.entering is None else self.entering(x)
        blocks = self.blocks.get(f"{step.weight}.weight")
        wide = weight if conv1d else weight.T
        if self.beside is not None:
            x, more = self.beside(x, wide, self.formats.get(f"{step.weight}.weight", ""))
            y = a.linear(x, wide, bias)
            return y if more is None else y + more
        if blocks is not None and blocks.values is weight:  # a weight that was changed is of values alone
            return a.linear_int16(x, wide, blocks, bias)
        return a.linear(x, wide, bias)

    def norm(self, x: Array, name: str, a: Arithmetic) -> Array:
        """x through the norm of this name."""
        step = self.step(name)
        options = self.options(step)
        weight, bias = (self.weights.get(f"{step.weight}.{part}") for part in ("weight", "bias"))
        if step.op == "rms_norm":
            return a.rms_norm(x, weight, options["eps"])
        return a.layer_norm(x, weight, bias, options["eps"])


@dataclass
class Network:
    """A model as settings. before, after : what isn't in a block; they share weights and taps.

    family : its name. later : what is added to the positions of tokens behind the prompt, 0 in a right model. padding :
    how many tokens of padding stand behind the prompt, which change nothing in a right model, as an encoder's tensors
    are those of the prompt. pad : their id. ending : what stands behind the
    family's graph, for a dump's metadata. listed : what was derived from it, which must not be changed then.
    """

    family: str
    config: ModelConfig
    graph: Graph
    before: Block
    blocks: list[Block]
    after: Block
    later: int = 0
    padding: int = 0
    pad: int = 0
    ending: Ending | None = None
    listed: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        family: str,
        config: ModelConfig,
        graph: Graph,
        tensors: Mapping[str, Array],
        kept: Mapping[str, str] | None = None,
        stored: Mapping[str, Blocks] | None = None,
        formats: Mapping[str, str] | None = None,
    ) -> Network:
        """tensors: float32, by the names of the graph's parameters. kept: the types they were in, where not float32.
        stored: the blocks of those that 16-bit integers are multiplied with. formats: the names of all formats."""
        stored, formats = stored or {}, formats or {}
        outer = {parameter.name: tensors[parameter.name] for parameter in graph.parameters if parameter.name in tensors}
        around = {name: stored[name] for name in outer if name in stored}
        for parameter in graph.parameters:
            if parameter.optional and parameter.name not in outer:
                outer[parameter.name] = outer[parameter.optional]
                around |= {parameter.name: around[parameter.optional]} if parameter.optional in around else {}
                if parameter.optional in formats:
                    formats = {**formats, parameter.name: formats[parameter.optional]}
        blocks = []
        for layer, steps in enumerate(graph.blocks):
            names = {p.name: graph.prefix(layer) + p.name for p in graph.block_parameters}
            weights = {name: tensors[full] for name, full in names.items() if full in tensors}
            of_ints = {name: stored[full] for name, full in names.items() if full in stored}
            own = {name: formats[full] for name, full in names.items() if full in formats}
            blocks.append(Block(steps, weights, of_ints, formats=own))
        before = Block(graph.before, outer, around)
        for step in graph.before:
            if step.op == "embedding":
                before.change(step.name, factor=factor_of(step, (kept or {}).get(f"{step.weight}.weight", "float32")))
        return cls(
            family, config, graph, before, blocks, Block(graph.after, outer, around, taps=before.taps, formats=formats)
        )

    @property
    def weights(self) -> Trace:
        """Outside the blocks, before and after them."""
        return self.before.weights

    @property
    def taps(self) -> dict[str, Tap]:
        """Outside the blocks, before and after them."""
        return self.before.taps

    @property
    def padding_id(self) -> int:
        """The token of padding: that whose position is the row before that of position 0, where there is one."""
        first = next((step.options["first"] for step in self.before.steps if step.options.get("first")), 0)
        return first - 1 if first else self.pad

    def copy(self) -> Network:
        """A network whose settings can be changed without changing this one's; arrays are shared."""
        before, after = self.before.copy(), self.after.copy()
        after.weights, after.taps = before.weights, before.taps
        return replace(self, before=before, blocks=[block.copy() for block in self.blocks], after=after)

    def embed(
        self,
        ids: Array,
        a: Arithmetic,
        prompt: int | None = None,
        until: str | None = None,
        known: Mapping[str, Array] = NOTHING,
        padding: int = 0,
    ) -> Trace:
        """ids and what comes before the blocks; `prompt` of the tokens are the prompt's (None: all). padding :
        how many of the last ones are padding. The others: as `block` has them."""
        positions = np.arange(len(ids))
        if prompt is not None:
            positions[prompt:] += self.later
        if padding and any(step.options.get("first") for step in self.before.steps):
            positions[-padding:] = -1  # the row before that of position 0 is padding's
        given = {"ids": ids, "positions": positions, "token_types": np.zeros(len(ids), np.int64)}
        return self._walk(self.before, given, a, until, known, padding)

    def block(
        self,
        layer: int,
        x: Array,
        a: Arithmetic,
        positions: Array | None = None,
        until: str | None = None,
        known: Mapping[str, Array] = NOTHING,
        padding: int = 0,
    ) -> Trace:
        """The tensors of block `layer` on x (T, E), by the names of its steps; its output is "", x itself "x". until:
        the last one that is wanted, None for all. known: tensors that are taken as they are, not computed."""
        return self._walk(self.blocks[layer], self._given(x, positions), a, until, known, padding)

    def head(
        self,
        x: Array,
        a: Arithmetic,
        until: str | None = None,
        known: Mapping[str, Array] = NOTHING,
        padding: int = 0,
    ) -> Trace:
        """What comes after the blocks, of the last one's output x (T, E); then what is made of logits, if any. The
        others: as `block` has them."""
        t = self._walk(self.after, self._given(x, None), a, until, known, padding)
        if not self.graph.decodes or until is not None:
            return t
        state = State(t, self.after, self, a)
        with np.errstate(all="ignore"):
            self._put(state, "last_logits", t["logits"][-1], self.after.taps, True)
            self._put(state, "argmax", np.array(np.argmax(t["last_logits"]), np.int64), self.after.taps, True)
            self._put(state, "probs", a.softmax(t["last_logits"]), self.after.taps, True)
        return t

    def _given(self, x: Array, positions: Array | None) -> Trace:
        return {"x": x, "positions": np.arange(len(x)) if positions is None else positions}

    def _walk(
        self,
        part: Block,
        given: Trace,
        a: Arithmetic,
        until: str | None,
        known: Mapping[str, Array],
        padding: int,
    ) -> Trace:
        """The tensors of a part of the graph, by the names of its steps, and what was given."""
        state = State(dict(given), part, self, a, padding)
        with np.errstate(all="ignore"):
            for step in part.steps:
                if step.name in known:
                    state.tensors[step.name] = known[step.name]
                    continue
                value = self._compute(part, step, state)
                self._put(state, step.name, value, part.taps, bool(step.rung))
                if step.name == until:
                    break
        return state.tensors

    def _compute(self, part: Block, step: Step, state: State) -> Array:
        """One step; the table of operations is in llorch.models.graph."""
        a, t, options = state.arithmetic, state.tensors, part.options(step)
        x = t[step.inputs[0]]
        match step.op:
            case "embedding":
                rows: Array = part.weights[f"{step.weight}.weight"][x + options.get("first", 0)].astype(a.dtype)
                factor = options.get("factor", 1.0)
                return rows if factor == 1.0 else rows * np.float32(factor).astype(a.dtype)
            case "layer_norm" | "rms_norm":
                return part.norm(x, step.name, a)
            case "linear":
                conv1d = self._conv1d(f"{step.weight}.weight", part)
                return part.linear(x, step, conv1d, a) if x.ndim > 1 else part.linear(x[None], step, conv1d, a)[0]
            case "heads":
                return self._heads(part, step, x, options)
            case "columns":
                return x[:, options["first"] : options["first"] + options["count"]]
            case "row":
                first: Array = x[0]
                return first
            case "rope" if options["table"] is None:
                return x
            case "rope":
                return a.rope(x, self.graph.ropes[options["table"]], t["positions"])
            case "cache":
                return x
            case "scores":
                return self._scores(part, x, t[step.inputs[1]], options, a, state.padding)
            case "attend":
                v = t[step.inputs[1]]
                return merge_heads(a.attend(x, part.shared(v, len(x))))
            case "activation":
                return a.activation(x, options["function"])
            case "add":
                return x + t[step.inputs[1]]
            case "multiply":
                return x * t[step.inputs[1]]
            case "scale" | "divide":
                (number,) = (a.dtype(np.float32(one)) for one in options.values())
                y: Array = x * number if step.op == "scale" else x / number
                return y
            case "softcap":
                return a.softcap(x, options["cap"])
            case "pool":
                return pooled(x if part.padded else x[: len(x) - state.padding], options["by"], a)
            case "normalize":
                return a.normalize(x)
        raise ValueError(f"step {step.name} has the operation {step.op}, which the validator doesn't know")

    def _conv1d(self, name: str, part: Block) -> bool:
        inside = part is not self.before and part is not self.after
        parameters = self.graph.block_parameters if inside else self.graph.parameters
        return next(parameter.conv1d for parameter in parameters if parameter.name == name)

    def _heads(self, part: Block, step: Step, x: Array, options: Mapping[str, Any]) -> Array:
        """(T, width) to the (heads, T, D) of this step."""
        first, count, D = options["first"], options["count"], self.graph.sizes["D"]
        heads = count if part.heads is None else part.heads
        if part.split is not None:
            fellows = [one.name for one in part.steps if one.op == "heads" and one.inputs == step.inputs]
            return part.split(x, heads)[fellows.index(step.name)]
        columns = x[:, first * D : (first + count) * D]
        return columns.reshape(len(x), heads, columns.shape[1] // heads).transpose(1, 0, 2)

    def _scores(
        self, part: Block, q: Array, k: Array, options: Mapping[str, Any], a: Arithmetic, padding: int
    ) -> Array:
        """(H, T, D), (G, S, D) to (H, T, S); -inf where query t may not see position s."""
        scale, T = options["scale"], q.shape[1]
        s = a.scores(q, part.shared(k, len(q)), 1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if options["softcap"] is not None:
            s = a.softcap(s, options["softcap"])
        if options.get("position_bias") is not None:
            s = s + position_bias(self.weights, options, T).astype(a.dtype)
        seen = visible(T, options["causal"], options["window"]) if part.visible is None else part.visible(T)
        if padding and not part.padded:
            seen = seen & (np.arange(T) < T - padding)
        return np.where(seen, s, a.dtype(-np.inf))

    def parts(
        self,
        ids: Sequence[int] | Array,
        a: Arithmetic,
        start: int = -1,
        x: Array | None = None,
        prompt: int | None = None,
    ) -> Iterator[Trace]:
        """The ladder's tensors by their names: embeddings, each block, the head; each when it is asked for.

        start: the first block to compute, with its input x; -1 begins at the embeddings.
        """
        if self.padding:
            yield from self._parts_of_padded(ids, a, start)
            return
        tokens = np.asarray(ids, np.int64)
        positions = np.arange(len(tokens))
        if start < 0 or x is None:
            t = self.embed(tokens, a, prompt)
            positions = t["positions"]
            yield {"ids": tokens} | {s.name: t[s.name] for s in self.before.steps if s.rung}
            start, x = 0, t[self.before.steps[-1].name]
        x = x.astype(a.dtype)
        for layer in range(start, len(self.blocks)):
            t = self.block(layer, x, a, positions)
            yield {block_name(layer, s.name): t[s.name] for s in self.blocks[layer].steps if s.rung}
            x = t[self.blocks[layer].steps[-1].name]
        t = self.head(x, a)
        named = [s.name for s in self.after.steps if s.rung]
        named += ["last_logits", "argmax", "probs"] if self.graph.decodes else []
        yield {name: t[name] for name in named}

    def with_padding(self, ids: Sequence[int] | Array, a: Arithmetic) -> Iterator[tuple[tuple[Step, ...], Trace]]:
        """The steps of each part and their tensors, those of padding too."""
        tokens = np.concatenate([np.asarray(ids, np.int64), np.full(self.padding, self.padding_id, np.int64)])
        t = self.embed(tokens, a, padding=self.padding)
        positions = t["positions"]
        yield self.before.steps, t
        x = t[self.before.steps[-1].name]
        for layer, block in enumerate(self.blocks):
            t = self.block(layer, x, a, positions, padding=self.padding)
            yield block.steps, t
            x = t[block.steps[-1].name]
        yield self.after.steps, self.head(x, a, padding=self.padding)

    def _parts_of_padded(self, ids: Sequence[int] | Array, a: Arithmetic, start: int) -> Iterator[Trace]:
        """`parts`, cut to the prompt. What padding has in a block comes from the embeddings on."""
        T, last = len(ids), len(self.blocks)
        for place, (steps, t) in enumerate(self.with_padding(ids, a), -1):
            if place < start:
                continue
            named = (lambda name, place=place: block_name(place, name)) if 0 <= place < last else str
            cut = {named(s.name): _of_prompt(t[s.name], s.axes, T) for s in steps if s.rung}
            yield cut if place >= 0 else {"ids": np.asarray(ids, np.int64)} | cut

    def run(
        self, ids: Sequence[int] | Array, a: Arithmetic, progress: Progress = silent, prompt: int | None = None
    ) -> Trace:
        """All tensors but `generated`."""
        trace: Trace = {}
        for done, part in enumerate(self.parts(ids, a, prompt=prompt), 1):
            trace |= part
            progress(done, len(self.blocks) + 2)
        return trace

    def _put(self, state: State, name: str, value: Array, taps: Mapping[str, Tap], on_ladder: bool) -> None:
        for key in (name, "*") if on_ladder else (name,):
            if key in taps and not (key == "*" and value.dtype.kind != "f"):
                value = taps[key](value, state)
        state.tensors[name] = value


def _of_prompt(values: Array, axes: str, T: int) -> Array:
    """The first T positions along all axes that are such."""
    return values[tuple(slice(T) if axis in "TS" else slice(None) for axis in axes)]


def pooled(x: Array, by: str, a: Arithmetic) -> Array:
    """(T, E) to (E,): "mean", "cls", "last" as a graph has it; "max" and "sum", and "inner" for the mean without the
    first and the last position."""
    y: Array
    match by:
        case "mean":
            return a.mean(x)
        case "cls":
            y = x[0]
        case "last":
            y = x[-1]
        case "max":
            y = x.max(axis=0)
        case "sum":
            y = x.sum(axis=0)
        case "inner":
            return a.mean(x[1:-1])
        case _:
            raise ValueError(f"pooling by {by} isn't known")
    return y


def merge_heads(x: Array) -> Array:
    """(H, T, D) as (T, H D), the heads side by side."""
    H, T, D = x.shape
    return x.transpose(1, 0, 2).reshape(T, H * D)


def shared_heads(x: Array, heads: int) -> Array:
    """(G, T, D) as (H, T, D): head h has keys and values of group h div (H / G)."""
    return x if len(x) == heads else np.repeat(x, heads // len(x), axis=0)


def position_bias(weights: Mapping[str, Array], options: Mapping[str, Any], T: int) -> Array:
    """(H, T, T): what scores with these options get by the distance of position s from query t."""
    reach = len(options["buckets"]) // 2
    distance = np.clip(np.arange(T)[None, :] - np.arange(T)[:, None], -reach, reach)
    table = weights[f"{options['position_bias']}.weight"]
    biases: Array = table[np.asarray(options["buckets"])[reach + distance]].transpose(2, 0, 1)
    return biases


def visible(T: int, causal: bool, window: int | None) -> Array:
    """bool (T, T): whether query t sees position s."""
    if causal:
        seen = np.tri(T, dtype=bool)
        return seen if window is None else seen & ~np.tri(T, k=-window, dtype=bool)
    near = T if window is None else window
    around: Array = np.tri(T, k=near, dtype=bool) & ~np.tri(T, k=-near - 1, dtype=bool)
    return around


# ---- greedy tokens ---------------------------------------------------------------------------------------------


def greedy(
    network: Network,
    ids: Sequence[int],
    a: Arithmetic,
    expected: Array | None = None,
    progress: Progress = silent,
) -> Trace:
    """`Network.run` and the greedy tokens behind it, of a network that gives them."""
    if not network.graph.decodes:
        return network.run(ids, a, progress)
    T, count = len(ids), rungs.new_tokens(network.config, len(ids))
    guesses = [] if expected is None else [int(id) for id in expected][:count]
    fed = [*ids, *guesses][: T + max(count - 1, 0)]
    whole = network.run(fed, a, progress, T)
    square = {block_name(i, s.name) for i, steps in enumerate(network.graph.blocks) for s in steps if s.op == "scores"}
    trace = {n: values[..., :T, :T] if n in square else _rows(n, values, T) for n, values in whole.items()}
    trace["last_logits"] = whole["logits"][T - 1]
    trace["argmax"] = np.array(np.argmax(trace["last_logits"]), np.int64)
    trace["probs"] = a.softmax(trace["last_logits"])
    found = [int(np.argmax(row)) for row in whole["logits"][T - 1 :]][:count]
    good = next((i for i, (x, y) in enumerate(zip(found, guesses, strict=False)) if x != y), len(found) - 1)
    found = found[: good + 1]  # what follows a wrong guess was fed something else
    while len(found) < count:
        found.append(int(network.run([*ids, *found], a, prompt=T)["argmax"]))
    trace["generated"] = np.array(found, np.int64)
    return trace


def _rows(name: str, values: Array, T: int) -> Array:
    """The first T positions of a tensor: axis -2, or the only one of ids."""
    if name == "ids":
        return values[:T]
    return values[..., :T, :] if values.ndim >= 2 else values
