"""Numbers and orders that any tensor may have wrong: multiplied by a constant, shifted by one, its heads, channels or
positions in another order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from llorch.models.graph import Step
from llorch.validate.ladder.faults.change import Change, Evidence, Part, Solved, tap

MOST_CHANNELS = 4096  # that are matched each with each
SPLIT = ("T", "S")


def solvable(part: Part) -> Iterator[Solved]:
    for step in part.steps:
        if step.rung and step.op not in ("cache", "scores"):
            yield from _line(part, step)
        if step.rung and step.op != "cache":
            yield from _orders(part, step)


def _line(part: Part, step: Step) -> Iterator[Solved]:
    name = step.name or "the block's output"
    key = step.name or "output"

    def multiplied(value: float) -> Change:
        return tap(part, step.name, lambda x, state: x * x.dtype.type(value))

    def shifted(value: float) -> Change:
        return tap(part, step.name, lambda x, state: x + x.dtype.type(value))

    yield from part.solved(
        f"{key}-factor", step.name, lambda value: f"{name} is multiplied by {value:.6g}", multiplied, _factor, (1.02,)
    )
    yield from part.solved(
        f"{key}-offset", step.name, lambda value: f"{value:.6g} is added to {name}", shifted, _constant, (0.01,)
    )


def _factor(evidence: Evidence) -> Iterable[float]:
    good = evidence.finite & np.isfinite(evidence.theirs)
    a, b = evidence.theirs[good], evidence.right[good]
    size = float((b * b).sum())
    if size > 0 and b.size > 1:
        yield float((a * b).sum()) / size


def _constant(evidence: Evidence) -> Iterable[float]:
    good = evidence.finite & np.isfinite(evidence.theirs)
    if good.sum() > 1:
        yield float((evidence.theirs - evidence.right)[good].mean())


# ---- orders ------------------------------------------------------------------------------------------------------


def _orders(part: Part, step: Step) -> Iterator[Solved]:
    sizes = part.network.graph.sizes
    name, key = step.name or "the block's output", step.name or "output"
    for place, axis in enumerate(step.axes):
        last = place == len(step.axes) - 1
        count = 0 if axis in SPLIT else sizes[axis]
        what = {"H": "heads", "G": "heads"}.get(axis, "channels" if last else "")
        if not what or not 1 < count <= MOST_CHANNELS:
            continue

        def says(order: Any, what: str = what) -> str:
            return f"{what} of {name} are in another order: {described(order)}"

        def change(order: Any, place: int = place) -> Change:
            return tap(part, step.name, lambda x, state: np.take(x, np.asarray(order), axis=place))

        def solve(evidence: Evidence, place: int = place) -> Iterable[Any]:
            return matched(evidence, place)

        samples = tuple(tuple(int(i) for i in np.roll(np.arange(count), shift)) for shift in (1,))
        yield from part.solved(f"{key}-order-of-{what}", step.name, says, change, solve, samples)


def matched(evidence: Evidence, place: int) -> Iterator[tuple[int, ...]]:
    """The order of ours along an axis that gives theirs: each of theirs is the one of ours that is nearest to it."""
    theirs, right = evidence.theirs, evidence.right
    if theirs.shape != right.shape or theirs.ndim <= place:
        return
    good = evidence.finite & np.isfinite(theirs)
    a, b = (np.moveaxis(np.where(good, x, 0.0), place, 0).reshape(theirs.shape[place], -1) for x in (theirs, right))
    apart = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * a @ b.T
    order = apart.argmin(axis=1)
    if len(set(order.tolist())) == len(order) and (order != np.arange(len(order))).any():
        yield tuple(int(i) for i in order)


def described(order: Sequence[int]) -> str:
    """An order for people: reversed, rolled, interleaved, or its places."""
    p, n = np.asarray(order), len(order)
    straight = np.arange(n)
    if (p == straight[::-1]).all():
        return "reversed"
    if (p == np.roll(straight, -p[0])).all():
        return f"they begin at {p[0]}"
    for groups in range(2, n // 2 + 1):
        if n % groups == 0 and (p == straight.reshape(groups, -1).T.reshape(-1)).all():
            return f"{groups} parts of {n // groups} one by one, as they would be interleaved"
    moved = np.flatnonzero(p != straight)
    if len(moved) == 2:
        return f"{moved[0]} and {moved[1]} are exchanged"
    shown = ", ".join(map(str, order[:16]))
    return f"{shown}{', ...' if n > 16 else ''} ({len(moved)} of {n} are elsewhere)"
