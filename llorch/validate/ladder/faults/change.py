"""What a fault is, and the ways to make one: a change of a network's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from llorch.models.graph import Parameter, Step
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.network import Block, Network, State, Tap, Trace

OUTSIDE = -1  # the layer of a fault that isn't in a block
Where = Literal["before", "block", "after"]
Change = Callable[[Network, int], object]


@dataclass(frozen=True)
class Fault:
    """One mistake.

    key : short name. says : the diagnosis. shows : the kind of tensor in which it first shows. change : makes the
    mistake in a network's settings, in block `layer` (ignored outside the blocks). in_block : whether it is in a block.
    decoding : it shows only where new tokens come one by one. layers : the blocks that can have it, None for all.
    value : of a number that was solved for, None for a fault without one; values : of several. late : more than the
    step itself changes what the dump shows of it. faint : it may be lost in the tolerances. grid : a rounding that
    leaves all values of the tensor as they are. every : it is of all tensors of the block.
    """

    key: str
    says: str
    shows: str
    change: Change
    in_block: bool = True
    decoding: bool = False
    layers: tuple[int, ...] | None = None
    value: float | None = None
    values: tuple[float, ...] | None = None
    late: bool = False
    faint: bool = False
    grid: Callable[[Array], Array] | None = None
    every: bool = False

    @property
    def rounds(self) -> bool:
        """Whether it is of fewer bits."""
        return self.key.endswith(("float16", "q8_0", "int8")) or "float16-" in self.key

    def inject(self, network: Network, *layers: int) -> Network:
        """A network with the fault in these blocks, or outside them; the given one stays as it is."""
        faulty = network.copy()
        for layer in layers if self.in_block else (OUTSIDE,):
            self.change(faulty, layer)
        return faulty

    def within(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Those of these blocks that can have it."""
        return tuple(layer for layer in layers if self.layers is None or layer in self.layers)

    def same(self, other: Fault) -> bool:
        """Whether it is the same mistake; numbers that were solved for may differ by a hundredth."""
        if self.key != other.key:
            return False
        if self.values is not None and other.values is not None and len(self.values) == len(other.values):
            return bool(np.allclose(self.values, other.values, rtol=0.01, atol=1e-4))
        if self.value is None or other.value is None:
            return self.says == other.says
        return abs(self.value - other.value) <= 0.01 * max(abs(self.value), abs(other.value))


@dataclass(frozen=True)
class Evidence:
    """What a number is solved from: theirs, their first wrong tensor in float64, in llorch's shape; right, what a right
    model makes of their own tensors before it; finite, where it counts. name, layer : of the tensor, and its block.
    tensors : all of the right model in that part of it, cut to the last position where theirs is. part : its settings.
    ids : of the prompt."""

    theirs: Array
    right: Array
    finite: Array
    name: str
    tensors: Trace
    part: Block
    network: Network
    layer: int | None
    ids: list[int]


@dataclass(frozen=True)
class Solved:
    """A mistake with a number, whatever it is, or with an order.

    made : the fault of a value. solve : the values that their tensor asks for, where that is the one in which the fault
    first shows; none if it can't be. near : what a search begins with where it is another tensor, None for no search.
    samples : values for the self-test. padding : it is of tokens of padding, so many, of which what is usual is tried
    where nothing tells the number. last : it has many numbers, and is tried only where nothing else gives their tensor.
    spares : of a value, a block that can't have it. The others: as Fault has them.
    """

    key: str
    shows: str
    made: Callable[[Any], Fault]
    solve: Callable[[Evidence], Iterable[Any]]
    samples: tuple[Any, ...]
    near: float | None = None
    in_block: bool = True
    layers: tuple[int, ...] | None = None
    faint: bool = False
    padding: bool = False
    last: bool = False
    spares: Callable[[Any], int | None] | None = None

    def of(self, value: Any) -> Fault:
        fault = self.made(value)
        layers = self.layers
        if self.spares is not None and layers is not None:
            layers = tuple(layer for layer in layers if layer != self.spares(value))
        number = float(value) if np.ndim(value) == 0 else None
        return replace(
            fault,
            key=self.key,
            shows=self.shows,
            in_block=self.in_block,
            layers=layers,
            value=number,
            values=tuple(value) if np.ndim(value) == 1 and np.asarray(value).dtype.kind == "f" else None,
            faint=self.faint,
        )

    def within(self, layers: Iterable[int]) -> tuple[int, ...]:
        return tuple(layer for layer in layers if self.layers is None or layer in self.layers)


# ---- where -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of a network whose faults are listed; of the blocks all at once, by the steps of the fullest."""

    network: Network
    where: Where

    @property
    def steps(self) -> tuple[Step, ...]:
        graph = self.network.graph
        return {"before": graph.before, "block": graph.fullest, "after": graph.after}[self.where]

    @property
    def weights(self) -> Trace:
        """Of all blocks by the same names; those of one stand for the others."""
        if self.where != "block":
            return self.network.weights
        return {name: values for block in reversed(self.network.blocks) for name, values in block.weights.items()}

    def parameter(self, name: str) -> Parameter | None:
        graph = self.network.graph
        listed = graph.block_parameters if self.where == "block" else graph.parameters
        return next((one for one in listed if one.name == name), None)

    def of_op(self, *ops: str) -> list[Step]:
        return [step for step in self.steps if step.op in ops]

    def named(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def users(self, name: str) -> list[Step]:
        return [step for step in self.steps if name in step.inputs]

    def layers(self, has: Callable[[Step], bool]) -> tuple[int, ...]:
        """The blocks that have such a step."""
        return tuple(i for i, steps in enumerate(self.network.graph.blocks) if any(has(step) for step in steps))

    def shown(self, name: str) -> str | None:
        """The first tensor of the ladder, in its order, that a change of step `name` changes; None if there is none."""
        changed = {name}
        for step in self.steps:
            if step.name in changed or not changed.isdisjoint(step.inputs):
                if step.rung:
                    return step.name
                changed.add(step.name)
        return None

    def fault(
        self, key: str, says: str, step: str, change: Change, *, only: Callable[[Step], bool] | None = None, **more: Any
    ) -> list[Fault]:
        """The fault of changing a step, of the blocks that have it (and where `only` holds for it); [] where it is in
        none, or shows nowhere."""
        shows = self.shown(step)
        if shows is None:
            return []
        if self.where != "block":
            return [Fault(key, says, shows, change, in_block=False, **more)]
        layers = self.layers(lambda one: one.name == step and (only is None or only(one)))
        return [Fault(key, says, shows, change, layers=layers, **more)] if layers else []

    def at(self, network: Network, layer: int) -> Block:
        """The settings of the part, of a network."""
        if self.where == "block":
            return network.blocks[layer]
        return network.before if self.where == "before" else network.after

    def solved(
        self,
        key: str,
        step: str,
        says: Callable[[Any], str],
        change: Callable[[Any], Change],
        solve: Callable[[Evidence], Iterable[Any]],
        samples: Sequence[Any],
        *,
        near: float | None = None,
        only: Callable[[Step], bool] | None = None,
        faint: bool = False,
        padding: bool = False,
        last: bool = False,
        spares: Callable[[Any], int | None] | None = None,
    ) -> list[Solved]:
        """As fault, with a number."""
        shows = self.shown(step)
        inside = self.where == "block"
        layers = self.layers(lambda one: one.name == step and (only is None or only(one))) if inside else None
        if shows is None or layers == ():
            return []

        def made(value: Any) -> Fault:
            return Fault(key, says(value), shows, change(value), late=padding)

        return [Solved(key, shows, made, solve, tuple(samples), near, inside, layers, faint, padding, last, spares)]


# ---- how ---------------------------------------------------------------------------------------------------------


def tap(part: Part, kind: str, change: Tap) -> Change:
    """Puts `change` behind a tensor."""

    def put(network: Network, layer: int) -> None:
        taps = part.at(network, layer).taps
        taps[kind] = _after(taps[kind], change) if kind in taps else change

    return put


def _after(first: Tap, then: Tap) -> Tap:
    return lambda x, state: then(first(x, state), state)


def setting(part: Part, **changes: Any) -> Change:
    def put(network: Network, layer: int) -> None:
        for name, value in changes.items():
            setattr(part.at(network, layer), name, value)

    return put


def options(part: Part, step: str, **changes: Any) -> Change:
    """Other options for a step, where the block has it."""

    def put(network: Network, layer: int) -> None:
        block = part.at(network, layer)
        if any(one.name == step for one in block.steps):
            block.change(step, **changes)

    return put


def weight(part: Part, name: str, change: Callable[[Array], Array]) -> Change:
    """Another array for a parameter, where the block has it."""

    def put(network: Network, layer: int) -> None:
        into = part.at(network, layer).weights
        if name in into:
            into[name] = np.ascontiguousarray(change(into[name]))

    return put


def every_weight(part: Part, change: Callable[[Array], Array]) -> Change:
    def put(network: Network, layer: int) -> None:
        into = part.at(network, layer).weights
        for name in into:
            into[name] = change(into[name])

    return put


def exchanged(part: Part, first: str, second: str) -> Change:
    """The weights and biases of two layers, each in the place of the other."""

    def put(network: Network, layer: int) -> None:
        into = part.at(network, layer).weights
        for end in (".weight", ".bias"):
            a, b = first + end, second + end
            if a in into and b in into:
                into[a], into[b] = into[b], into[a]

    return put


def several(*changes: Change) -> Change:
    def put(network: Network, layer: int) -> None:
        for change in changes:
            change(network, layer)

    return put


def rewired(part: Part, change: Callable[[tuple[Step, ...]], Iterable[Step]]) -> Change:
    """Other steps, of which those of the ladder keep their names and their order."""

    def put(network: Network, layer: int) -> None:
        block = part.at(network, layer)
        block.steps = tuple(change(block.steps))

    return put


def earlier(kind: str) -> Tap:
    """An earlier tensor in place of this one."""
    return lambda y, state: state.tensors[kind]


def positions_of(state: State) -> Array:
    return state.tensors["positions"]


# ---- numbers in fewer bits -----------------------------------------------------------------------------------------


def float16(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(x.dtype)


def bfloat16(x: Array) -> Array:
    """float32 or float64 rounded to bfloat16, kept in its own type."""
    with np.errstate(over="ignore"):
        bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x).astype(x.dtype)


def eight_bits(x: Array) -> Array:
    """As llama.cpp has activations beside 8-bit weights: blocks of 32 of a row, each of 8-bit integers times a float16
    scale; the rest of a row is a shorter block."""
    T, width = x.shape
    y = np.zeros((T, -(-width // 32) * 32))
    y[:, :width] = x
    blocks = y.reshape(T, -1, 32)
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(most > 0, np.round(blocks * (127 / most)), 0.0)
    found: Array = (whole * float16(most / 127)).reshape(T, -1)[:, :width].astype(x.dtype)
    return found


def eight_bits_of_256(x: Array) -> Array:
    """As llama.cpp has activations beside K-quants: blocks of 256 of a row, 8-bit integers times a scale by which the
    value that is furthest from 0 is -127. In float32, as there."""
    blocks = x.astype(np.float32).reshape(len(x), -1, 256)
    at = np.abs(blocks).argmax(axis=-1, keepdims=True)
    most = np.take_along_axis(blocks, at, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.float32(-127) / most
        whole = np.where(most != 0, np.minimum(np.round(blocks * factor), 127), 0.0)
        scale = np.where(most != 0, 1 / factor, 0.0)
    found: Array = (whole.astype(np.float64) * scale).reshape(x.shape).astype(x.dtype)
    return found


MINIMA = "Q4_1", "Q5_1"  # whose blocks have a minimum, times which goes the sum of the activations beside them
K_QUANTS = "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"
EIGHT_BITS = "Q8_0", "Q4_0", "Q5_0", "MXFP4", *MINIMA, *K_QUANTS


def as_ggml(x: Array, weight: Array, format: str) -> tuple[Array, Array | None]:
    """What goes into a product as llama.cpp's CPU code has it beside a weight (in, out) of a format: in blocks of 8-bit
    integers, or in its 16-bit type; and what is added to the output.

    Beside weights with a minimum a block has its own sum, rounded to float16, by which the minimum is multiplied: not
    the sum of its rounded values. The minimum is the least of the weights in the block, as their quants begin at 0.
    """
    if format == "F16":
        return float16(x), None
    if format == "BF16":
        return bfloat16(x), None
    if format in K_QUANTS and x.shape[1] % 256 == 0:
        return eight_bits_of_256(x), None
    if format not in EIGHT_BITS or x.shape[1] % 32:
        return x, None
    blocks = x.astype(np.float32).reshape(len(x), -1, 32)  # whose halves are rounded as there
    most = np.abs(blocks).max(axis=-1)
    scale = most / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(most[..., None] > 0, np.round(blocks * (np.float32(127) / most)[..., None]), 0.0)
    exact = float16(scale).astype(np.float64)
    fewer = (whole * exact[..., None]).reshape(x.shape).astype(x.dtype)
    if format not in MINIMA:
        return fewer, None
    sums = whole.sum(axis=-1)
    minima = weight.reshape(-1, 32, weight.shape[1]).min(axis=1).astype(np.float64)
    more: Array = ((float16((sums * scale).astype(np.float32)) - sums * exact) @ minima).astype(x.dtype)
    return fewer, more


def eight_bits_by_row(x: Array) -> Array:
    """8-bit integers times a scale for the row."""
    most = np.abs(x).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        y: Array = np.where(most > 0, np.round(x * (127 / most)) * (most / 127), 0.0).astype(x.dtype)
    return y


ROUNDED = {"float16": float16, "bfloat16": bfloat16}


def rounded(name: str) -> Tap:
    return lambda x, state: ROUNDED[name](x)
