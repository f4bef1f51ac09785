"""Faults of encoders that work on texts in batches: padding that counts, and the embedding of a text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from llorch.models.graph import Step
from llorch.validate.ladder.distance import Array, relative
from llorch.validate.ladder.faults.change import Change, Evidence, Fault, Part, Solved, earlier, options, tap
from llorch.validate.ladder.network import Float64, Network, State, Tap, merge_heads, pooled

MOST_PADDING = 512  # tokens behind the prompt that are tried
POOLINGS = {
    "mean": "the mean of all positions is taken",
    "cls": "the first position is taken, that of [CLS]",
    "last": "the last position is taken",
    "max": "the largest value of all positions is taken",
    "inner": "the mean leaves out the first and the last position, those of special tokens",
}
RIGHT = {"mean": "the mean of all positions", "cls": "the first position", "last": "the last position"}


def of(part: Part) -> Iterator[Fault]:
    for step in part.of_op("pool"):
        own = step.options["by"]
        for by, words in POOLINGS.items():
            if by != own:
                says = f"{words}, not {RIGHT[own]}"
                yield from part.fault(f"pool-{by}", says, step.name, options(part, step.name, by=by))
        says = "positions are divided by their lengths before they are pooled"
        yield from part.fault("pool-of-normalised", says, step.name, tap(part, step.name, _of_normalised(step)))
    for step in part.of_op("normalize"):
        says = f"{step.name} is not normalised: {step.inputs[0]} is not divided by its length"
        yield from part.fault(
            f"{step.name}-not-normalised", says, step.name, tap(part, step.name, earlier(step.inputs[0]))
        )


def _of_normalised(step: Step) -> Tap:
    def change(y: Array, state: State) -> Array:
        x = state.tensors[step.inputs[0]]
        return pooled(state.arithmetic.normalize(x), step.options["by"], state.arithmetic)

    return change


# ---- how much padding ----------------------------------------------------------------------------------------------


def solvable(part: Part) -> Iterator[Solved]:
    if part.network.graph.decodes:
        return
    attended = part.of_op("attend")
    if part.where == "block" and len(attended) == 1:

        def says(value: float) -> str:
            return f"padding is attended to: {_tokens(value)} behind the prompt"

        def solve(evidence: Evidence) -> Iterable[int]:
            return _attended(evidence, attended[0])

        yield from part.solved(
            "padding-attended", attended[0].name, says, lambda value: padded(part, value), solve, (3,), padding=True
        )
    for step in part.of_op("pool"):
        if step.options["by"] == "cls":
            continue

        def counts(value: float, step: Step = step) -> str:
            of = "mean" if step.options["by"] == "mean" else "pooling"
            return f"the {of} is over padding too: {_tokens(value)} behind the prompt"

        def solve_pool(evidence: Evidence, step: Step = step) -> Iterable[int]:
            return _pooled(evidence, step)

        yield from part.solved(
            "pool-padding", step.name, counts, lambda value: padded(part, value), solve_pool, (3,), padding=True
        )

        def divided(value: float, step: Step = step) -> Change:
            return tap(part, step.name, _divided(step, value))

        def solve_divisor(evidence: Evidence, step: Step = step) -> Iterable[int]:
            return _divisor(evidence, step)

        if step.options["by"] == "mean":
            yield from part.solved(
                "pool-divisor", step.name,
                lambda value: f"the sum is divided by the length with padding, {_tokens(value)} too many",
                divided, solve_divisor, (5,),
            )  # fmt: skip


def _tokens(value: float) -> str:
    return f"{int(value)} token{'s' if value != 1 else ''}"


def padded(part: Part, value: float) -> Change:
    """So many tokens of padding, which count in this part."""

    def put(network: Network, layer: int) -> None:
        network.padding = int(value)
        part.at(network, layer).padded = True

    return put


def _divided(step: Step, value: float) -> Tap:
    def change(y: Array, state: State) -> Array:
        T = len(state.tensors[step.inputs[0]])
        found: Array = (y * (T / (T + value))).astype(y.dtype)
        return found

    return change


def _divisor(evidence: Evidence, step: Step) -> Iterator[int]:
    """Theirs are ours times T / (T + n)."""
    T = len(evidence.tensors[step.inputs[0]])
    ours = float(evidence.right @ evidence.right)
    share = float(evidence.theirs @ evidence.right) / ours if ours else 0.0
    if 0 < share < 1 and (more := round(T / share - T)) >= 1:
        yield more


def _with_padding(evidence: Evidence) -> Network | None:
    """A right network with as much padding as there may be."""
    room = min(MOST_PADDING, evidence.network.config.context - len(evidence.ids))
    if room < 1:
        return None
    network = evidence.network.copy()
    network.padding = room
    return network


def _attended(evidence: Evidence, step: Step) -> Iterator[int]:
    """The context of the prompt's queries with one token of padding after the other, until it is theirs."""
    network = _with_padding(evidence)
    if network is None or evidence.layer is None:
        return
    T = len(evidence.ids)
    network.blocks[evidence.layer].padded = True
    parts = network.with_padding(evidence.ids, Float64())
    _, t = next(itertools.islice(parts, evidence.layer + 1, None))
    block = network.blocks[evidence.layer]
    scores = t[step.inputs[0]][:, :T]
    v = block.shared(t[step.inputs[1]], len(scores))
    with np.errstate(all="ignore"):
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    made, total = e[..., :T] @ v[:, :T], e[..., :T].sum(axis=-1, keepdims=True)

    def contexts() -> Iterator[Array]:
        nonlocal made, total
        for key in range(T, T + network.padding):
            made, total = made + e[..., key : key + 1] * v[:, key : key + 1], total + e[..., key : key + 1]
            yield merge_heads(made / total)

    yield from _nearest(evidence, contexts())


def _pooled(evidence: Evidence, step: Step) -> Iterator[int]:
    """What is pooled of the prompt and of one token of padding after the other."""
    network = _with_padding(evidence)
    if network is None:
        return
    T = len(evidence.ids)
    *_, (_, t) = network.with_padding(evidence.ids, Float64())
    x = t[step.inputs[0]]
    if step.options["by"] == "mean":
        yield from _nearest(evidence, iter((np.cumsum(x, axis=0) / np.arange(1, len(x) + 1)[:, None])[T:]))
    else:
        yield from _nearest(evidence, iter(x[T:]))


def _nearest(evidence: Evidence, found: Iterator[Array]) -> Iterator[int]:
    """How many tokens give what is nearest to theirs."""
    theirs = evidence.theirs
    apart = [relative(theirs, one[-len(theirs) :]) for one in found]
    if apart:
        yield int(np.argmin(apart)) + 1
