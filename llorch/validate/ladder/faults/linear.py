"""Faults of linear layers and of their weights: read the wrong way round, without biases, exchanged, permuted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llorch.models.graph import Step
from llorch.validate.ladder.distance import Array, relative
from llorch.validate.ladder.faults.change import (
    Change,
    Evidence,
    Fault,
    Part,
    Solved,
    exchanged,
    setting,
    several,
    tap,
    weight,
)
from llorch.validate.ladder.network import Float64, Network, Split, State, Tap, merge_heads


def read_transposed(w: Array) -> Array:
    """The file's values, row by row, taken for the other shape."""
    return w.reshape(w.shape[::-1]).T


def of(part: Part) -> Iterator[Fault]:
    for step in part.of_op("linear"):
        yield from _of_weight(part, step)
    if part.where == "block":
        yield from _heads(part)
        yield from _exchanged(part)
        if len(part.network.blocks) > 1:
            first = next(step for step in part.steps if step.weight)
            says = "it has the weights of a neighbouring block"
            yield from part.fault("blocks-exchanged", says, first.name, _exchange_blocks)


def _of_weight(part: Part, step: Step) -> Iterator[Fault]:
    name, key = step.weight, step.name.replace(".", "-").removesuffix("_flat")
    parameter = part.parameter(f"{name}.weight")
    if part.where == "block" and parameter is not None:
        shape = part.weights[f"{name}.weight"].shape
        change = weight(part, f"{name}.weight", read_transposed)
        square = shape[0] == shape[1]
        read = "(out, in)" if parameter.conv1d else "(in, out)"
        why = "a square matrix, so no shape shows it" if square else "GPT-2's Conv1D has (in, out)"
        if square or parameter.conv1d:
            says = f"{name}.weight is read as {read}: {why}"
            yield from part.fault(f"{key}-transposed", says, step.name, change)
    if f"{name}.bias" in part.weights:
        change = weight(part, f"{name}.bias", np.zeros_like)
        yield from part.fault(f"{key}-no-bias", f"{name}.bias is not added", step.name, change)


def _exchange_blocks(network: Network, layer: int) -> None:
    """The weights of block `layer` and the next (of the last: the one before)."""
    other = layer + 1 if layer + 1 < len(network.blocks) else layer - 1
    a, b = network.blocks[layer], network.blocks[other]
    mine, theirs = a.weights, b.weights
    a.weights = {name: theirs.get(name, values) for name, values in mine.items()}
    b.weights = {name: mine.get(name, values) for name, values in theirs.items()}


# ---- heads -------------------------------------------------------------------------------------------------------


def heads_of(part: Part) -> list[Step]:
    """The steps that make queries, keys and values."""
    return part.of_op("heads")


def _heads(part: Part) -> Iterator[Fault]:
    steps = heads_of(part)
    H, G = (part.network.graph.sizes[axis] for axis in "HG")
    D = part.network.graph.sizes["D"]
    if len(steps) != 3:
        return
    q = steps[0]
    fused = len({step.inputs for step in steps}) == 1
    if fused:
        flat = q.inputs[0]
        layer = part.named(flat).weight.rpartition(".")[2]
        widths = H * D, G * D, G * D
        for order in itertools.permutations(range(3)):
            if order != (0, 1, 2):
                found = "".join("qkv"[one] for one in order)
                first = next(place for place in range(3) if order[place] != place)
                says = f"{layer}'s output is split in the wrong order: {', '.join(found)} are taken for q, k, v"
                change = setting(part, split=_split_in(order, widths, D))
                yield from part.fault(f"split-{found}", says, steps[first].name, change)
        if H == G and H > 1:
            if any(p.by_head for p in part.network.graph.block_parameters):
                says = f"{layer}'s output is split in thirds: here the q, k and v of each head stand side by side"
                yield from part.fault("heads-first", says, q.name, setting(part, split=_thirds_of_heads))
            else:
                says = f"{layer}'s output is split by head first, (T, H, 3, D), as GPT-NeoX does"
                yield from part.fault("heads-first", says, q.name, setting(part, split=_heads_first))
    if H > 1:
        says = "heads are interleaved: a head takes every n_head-th value"
        yield from part.fault("heads-interleaved", says, q.name, _each(part, steps, _interleaved))
        says = "(T, n_embd) is taken for (heads, T, head_dim) without transposing"
        yield from part.fault("heads-not-transposed", says, q.name, _each(part, steps, _not_transposed))
    if part.of_op("rope") and D > 2:
        rotated = steps[:2]
        says = "rows of the queries' and keys' weights are as GGUF has them, pairs side by side for halves"
        if D > 4:
            yield from part.fault("rows-paired", says, q.name, _each(part, rotated, _paired))
            says = "rows of the queries' and keys' weights are put from pairs into halves once too often"
        else:
            says = "rows of the queries' and keys' weights are permuted: pairs side by side for halves"
        yield from part.fault("rows-halved", says, q.name, _each(part, rotated, _halved))


def _each(part: Part, steps: list[Step], change: Callable[[Array], Array]) -> Change:
    return several(*(tap(part, step.name, lambda x, state: change(x)) for step in steps))


def _split_in(order: tuple[int, ...], widths: tuple[int, ...], D: int) -> Split:
    """The parts of a fused projection's output taken for q, k, v in another order."""

    def split(x: Array, heads: int) -> tuple[Array, ...]:
        found, begin = {}, 0
        for place in order:  # what lies there is taken for the part of this width
            columns = x[:, begin : begin + widths[place]]
            found[place] = columns.reshape(len(x), -1, D).transpose(1, 0, 2)
            begin += widths[place]
        return tuple(found[place] for place in range(3))

    return split


def _heads_first(x: Array, heads: int) -> tuple[Array, ...]:
    """(T, H, 3, D): q, k and v of each head side by side, as GPT-NeoX has them."""
    T, width = x.shape
    q, k, v = x.reshape(T, heads, 3, width // (3 * heads)).transpose(2, 1, 0, 3)
    return q, k, v


def _thirds_of_heads(x: Array, heads: int) -> tuple[Array, ...]:
    """What has q, k and v of each head side by side, cut into thirds."""
    T, width = x.shape
    lies = x.reshape(T, 3, heads, -1).transpose(0, 2, 1, 3)
    q, k, v = lies.reshape(T, 3, heads, width // (3 * heads)).transpose(1, 2, 0, 3)
    return q, k, v


def _interleaved(x: Array) -> Array:
    """(T, D, H): every H-th value belongs to a head."""
    H, T, D = x.shape
    return merge_heads(x).reshape(T, D, H).transpose(2, 0, 1)


def _not_transposed(x: Array) -> Array:
    """(T, H D) taken for (H, T, D)."""
    return merge_heads(x).reshape(x.shape)


def _paired(x: Array) -> Array:
    """Halves of each head put side by side in pairs."""
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


def _halved(x: Array) -> Array:
    """Pairs that lie side by side put into halves."""
    return x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)


# ---- one for another ---------------------------------------------------------------------------------------------


def _exchanged(part: Part) -> Iterator[Fault]:
    """Layers of one input and one shape, each in the place of the other: keys and values, gate and up."""
    linears = part.of_op("linear")
    shapes = {name: values.shape for name, values in part.weights.items()}
    for a, b in itertools.combinations(linears, 2):
        names = f"{a.weight}.weight", f"{b.weight}.weight"
        if a.inputs == b.inputs and shapes[names[0]] == shapes[names[1]]:
            key = f"{a.name}-{b.name}".replace("_flat", "").replace(".", "-") + "-exchanged"
            says = f"{a.weight} and {b.weight} are exchanged"
            yield from part.fault(key, says, a.name, exchanged(part, a.weight, b.weight))
    cut = part.of_op("columns")
    if len(cut) == 2 and cut[0].inputs == cut[1].inputs:
        a, b = cut
        says = f"the halves of {part.named(a.inputs[0]).weight}'s output are exchanged: up is taken for gate"
        change = several(tap(part, a.name, _columns(b)), tap(part, b.name, _columns(a)))
        yield from part.fault("mlp-gate-mlp-up-exchanged", says, a.name, change)


def _columns(step: Step) -> Tap:
    first, count = step.options["first"], step.options["count"]

    def change(y: Array, state: State) -> Array:
        found: Array = state.tensors[step.inputs[0]][:, first : first + count]
        return found

    return change


# ---- another tensor of the file ------------------------------------------------------------------------------------

Source = tuple[int, str]  # a block, and the name of a weight in it
CHANNELS = 8  # of a matrix, that are computed to see whether it may be theirs
NEAR = 0.1  # what the right tensor leaves of the distance of these


def solvable(part: Part) -> Iterator[Solved]:
    """The weight of a layer or of a norm is another tensor of the model that has its shape."""
    if part.where != "block":
        return
    blocks = part.network.blocks
    for step in part.of_op("linear", "layer_norm", "rms_norm"):
        name = f"{step.weight}.weight"
        if name not in part.weights:
            continue
        shape = part.weights[name].shape
        others = [(i, other) for i in reversed(range(len(blocks))) for other, w in blocks[i].weights.items()
                  if w.shape == shape and other.endswith(".weight")]  # fmt: skip
        samples = [one for one in others if one[1] == name and one[0]] or [one for one in others if one[1] != name]
        if not samples:
            continue

        def says(value: Source, name: str = name) -> str:
            return f"{name} is another tensor of the model: {value[1]} of block {value[0]}"

        def change(value: Source, name: str = name) -> Change:
            return weight(part, name, lambda w: blocks[value[0]].weights[value[1]])

        def solve(evidence: Evidence, step: Step = step, others: Sequence[Source] = tuple(others)) -> Iterator[Source]:
            return _source(evidence, step, others)

        def spares(value: Source, name: str = name) -> int | None:
            return value[0] if value[1] == name else None

        key = f"{step.name or 'output'}-of-another"
        yield from part.solved(key, step.name, says, change, solve, samples[:1], spares=spares)


def _source(evidence: Evidence, step: Step, others: Sequence[Source]) -> Iterator[Source]:
    """The one that gives some channels of theirs, of their own input."""
    step = next((one for one in evidence.part.steps if one.name == step.name), step)  # which may be wired otherwise
    found = _outputs(evidence, step)
    if found is None or evidence.layer is None or step.inputs[0] not in evidence.tensors:
        return
    theirs, right, first, norm = found
    count = theirs.shape[-1] if norm else CHANNELS  # a norm is of all of them
    channels = np.unique(np.linspace(0, theirs.shape[-1] - 1, count).astype(int))
    graph, blocks = evidence.network.graph, evidence.network.blocks
    own = f"{step.weight}.weight"
    mine = evidence.part.weights[own]
    with np.errstate(all="ignore"):
        if step.op == "linear":
            x = evidence.tensors[step.inputs[0]]
            conv1d = {p.name: p.conv1d for p in graph.block_parameters}

            def made(source: Source) -> Array:
                w = blocks[source[0]].weights[source[1]]
                at = first + channels
                y: Array = x @ (w[:, at] if conv1d[source[1]] else w[at].T).astype(np.float64)
                return y

            if norm:
                bias = evidence.part.weights.get(f"{step.weight}.bias", np.zeros(1))
                apart = [relative(theirs, evidence.part.norm(made(one) + bias, norm, Float64())) for one in others]
            else:
                bias = right[..., channels] - made((evidence.layer, own))
                apart = [relative(theirs[..., channels], made(one) + bias) for one in others]
        else:
            bias = evidence.part.weights.get(f"{step.weight}.bias", np.zeros_like(mine)).astype(np.float64)
            z = (right - bias) / mine
            apart = [relative(theirs, z * blocks[i].weights[name] + bias) for i, name in others]
        healthy = relative(theirs, right)
    at = int(np.nanargmin(apart)) if not np.isnan(apart).all() else 0
    if apart[at] < NEAR * healthy and others[at] != (evidence.layer, own):
        yield others[at]


def _outputs(evidence: Evidence, step: Step) -> tuple[Array, Array, int, str] | None:
    """Theirs and the right ones as (T, outputs) of a layer, the first of these, and the norm that they went through, ""
    for none; None where they are something else."""
    kind = evidence.name if evidence.layer is None else evidence.name.removeprefix(f"h.{evidence.layer}").lstrip(".")
    shown = evidence.part.step(kind)
    theirs, right = evidence.theirs, evidence.right
    if theirs.shape != right.shape or not np.isfinite(theirs).all():
        return None
    if shown is step or shown.name == step.name:
        return theirs, right, 0, ""
    if shown.inputs == (step.name,) and shown.op in ("rms_norm", "layer_norm"):
        return theirs, right, 0, shown.name
    if shown.inputs != (step.name,) or shown.op not in ("heads", "columns"):
        return None
    first = shown.options["first"] * (evidence.network.graph.sizes["D"] if shown.op == "heads" else 1)
    if shown.op == "heads":
        theirs, right = merge_heads(theirs), merge_heads(right)
    return theirs, right, first, ""
