"""Faults of norms: LayerNorm and RMSNorm, in a block and around the blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from llorch.models.graph import Step
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.faults.change import (
    Change,
    Evidence,
    Fault,
    Part,
    Solved,
    earlier,
    exchanged,
    options,
    rewired,
    several,
    tap,
    weight,
)
from llorch.validate.ladder.network import State, Tap


def norms(part: Part) -> list[Step]:
    return part.of_op("layer_norm", "rms_norm")


def eps_of(step: Step) -> float:
    return float(step.options["eps"])


def of(part: Part) -> Iterator[Fault]:
    found = norms(part)
    for step in found:
        name, key = step.weight, step.name or "output"
        yield from part.fault(f"{key}-skipped", f"{name} is skipped", step.name, tap(part, step.name, _input(step)))
        change = weight(part, f"{name}.weight", np.ones_like)
        yield from part.fault(f"{key}-no-weight", f"{name}.weight is not applied", step.name, change)
        if f"{name}.bias" in part.weights:
            change = weight(part, f"{name}.bias", np.zeros_like)
            yield from part.fault(f"{key}-no-bias", f"{name}.bias is not added", step.name, change)
        if part.where != "block" or len(found) > 1:
            yield from _arithmetic(part, [step], f"{key}-", f" in {name}")
    if part.where == "block" and found:
        yield from _arithmetic(part, found, "", "")
        yield from _places(part)
        yield from _exchanged(part, found)


def _input(step: Step) -> Tap:
    """The norm's input in its place."""
    return lambda y, state: state.tensors[step.inputs[0]]


def _arithmetic(part: Part, steps: list[Step], prefix: str, where: str) -> Iterator[Fault]:
    """Other arithmetic in these norms. prefix: of keys. where: of the words."""
    first = steps[0]
    layer_norms = {step.op for step in steps} == {"layer_norm"}

    def all_of(make: _Normed) -> Change:
        return several(*(tap(part, step.name, make(step)) for step in steps))

    def fault(key: str, says: str, change: Change, faint: bool = False) -> list[Fault]:
        return part.fault(prefix + key, says + where, first.name, change, faint=faint)

    if layer_norms:
        yield from fault("unbiased", "the variance is divided by n - 1, not n", all_of(_normed(spread="n - 1")))
        says = "the mean is not taken off: it is an RMSNorm"
        yield from fault("rms-norm", says, all_of(_normed(centred=False)))
    elif {step.op for step in steps} == {"rms_norm"}:
        says = "the mean is taken off: it is a LayerNorm"
        yield from fault("layer-norm", says, all_of(_normed(centred=True)))
        parameters = [part.parameter(f"{step.weight}.weight") for step in steps]
        one = np.float32(1)
        if all(parameter is not None and parameter.unit for parameter in parameters):
            says = "the weight is taken as the file has it, without 1 +"
            change = several(*(weight(part, f"{s.weight}.weight", lambda w: w - one) for s in steps))
            yield from fault("no-unit", says, change)
        else:
            says = "the weight is 1 + what the file has"
            change = several(*(weight(part, f"{s.weight}.weight", lambda w: w + one) for s in steps))
            yield from fault("unit", says, change)
    if any(eps_of(step) for step in steps):
        change = all_of(_normed(outside=True))
        yield from fault("eps-outside", "eps is added to the root, not under it", change, faint=True)


class _Normed:
    """A norm in float64 with other arithmetic, for a step."""

    def __init__(self, centred: bool | None, spread: str, outside: bool) -> None:
        self.centred, self.spread, self.outside = centred, spread, outside

    def __call__(self, step: Step) -> Tap:
        def change(y: Array, state: State) -> Array:
            block = state.block
            x = state.tensors[step.inputs[0]].astype(np.float64)
            eps = float(block.options(step)["eps"])
            centred = step.op == "layer_norm" if self.centred is None else self.centred
            d = x - x.mean(axis=-1, keepdims=True) if centred else x
            count = x.shape[-1] - (self.spread == "n - 1")
            square = (d * d).sum(axis=-1, keepdims=True) / count
            root = np.sqrt(square) + eps if self.outside else np.sqrt(square + eps)
            z = d / root
            w, b = (block.weights.get(f"{step.weight}.{end}") for end in ("weight", "bias"))
            z = z if w is None else z * w
            found: Array = (z if b is None else z + b).astype(y.dtype)
            return found

        return change


def _normed(centred: bool | None = None, spread: str = "n", outside: bool = False) -> _Normed:
    return _Normed(centred, spread, outside)


# ---- their places ------------------------------------------------------------------------------------------------


def _around(part: Part) -> tuple[list[Step], list[Step]]:
    """Norms of the model's width: those that stand before a layer, and those that stand after one."""
    wide = [step for step in norms(part) if step.axes == "TE"]
    before = [step for step in wide if any(user.op == "linear" for user in part.users(step.name))]
    return [step for step in before if not _of_layer(part, step)], [step for step in wide if _of_layer(part, step)]


def _of_layer(part: Part, step: Step) -> bool:
    """Whether a norm is of what a layer makes, by itself or added to what came in."""
    source = step.inputs[0]
    if source == "x":
        return False
    made = part.named(source)
    later = [user for user in part.users(source) if user is not step]
    return made.op == "linear" or (made.op == "add" and not later)


def _places(part: Part) -> Iterator[Fault]:
    """Norms after the sums for norms before the layers, and the other way round."""
    before, after = _around(part)
    sums = part.of_op("add")
    if len(before) == 2 and not after and len(sums) == 2 and before[1].inputs == (sums[0].name,):
        says = "norms come after the residual sums (post-LN), not before"
        for key, seen in (("post-norm", False), ("post-norm-seen", True)):
            yield from part.fault(key, says, before[0].name, _post_norm(part, before, sums, seen), late=seen)
    if len(after) == 2 and not before:
        says = "norms come before the layers (pre-LN), not after"
        first = next(step for step in part.steps if "x" in step.inputs and step.op == "linear")
        yield from part.fault("pre-norm", says, first.name, rewired(part, lambda steps: _pre_norm(steps, after)))
    if part.of_op("multiply", "activation") and len(before) == 2 and len(sums) == 2:
        second = before[1]
        if second.inputs == (sums[0].name,):
            says = f"the feed-forward layer stands beside attention: {second.weight} is of the block's input"
            beside = lambda y, state: state.block.norm(state.tensors["x"], second.name, state.arithmetic)  # noqa: E731
            yield from part.fault("parallel", says, second.name, tap(part, second.name, beside))


def _post_norm(part: Part, norms: list[Step], sums: list[Step], seen: bool) -> Change:
    """x = norm_1(x + attention(x)), x = norm_2(x + mlp(x)). seen: the dump's first norm is that, else what attention
    got."""
    first, second = norms[0].name, norms[1].name

    def after_attention(x: Array, state: State) -> Array:
        y = state.block.norm(x, first, state.arithmetic)
        if seen:
            state.tensors[first] = y
        return y

    return several(
        tap(part, first, earlier("x")),
        tap(part, sums[0].name, after_attention),
        tap(part, second, earlier(sums[0].name)),
        tap(part, sums[1].name, lambda y, state: state.block.norm(y, second, state.arithmetic)),
    )


def _pre_norm(steps: tuple[Step, ...], after: list[Step]) -> Iterator[Step]:
    """Each layer gets what its norm makes of its input; the norm's own place passes on what comes in."""
    names = [step.name for step in after]
    sums = {step.name for step in steps if step.op == "add"}
    first = after[0]
    middle = (
        first.name
        if first.inputs[0] in sums
        else next(s.name for s in steps if s.op == "add" and first.name in s.inputs)
    )
    inputs = {"x": first, middle: after[1]}
    made: set[str] = set()
    for step in steps:
        source = step.inputs[0]
        if step.name in names:
            yield Step(step.name, "cache", step.inputs, step.axes, step.rung, step.what)
        elif step.op == "linear" and source in inputs:
            norm, name = inputs[source], f"norm of {source}"
            if name not in made:
                made.add(name)
                yield Step(name, norm.op, (source,), norm.axes, weight=norm.weight, options=norm.options)
            yield replace(step, inputs=(name,))
        else:
            yield step


def _exchanged(part: Part, found: list[Step]) -> Iterator[Fault]:
    """The weights of one norm and the next of the same width."""
    for axes in dict.fromkeys(step.axes.replace("H", "G") for step in found):
        alike = [step for step in found if step.axes.replace("H", "G") == axes]
        if part.network.graph.sizes["H"] != part.network.graph.sizes["G"] and axes == "TR":
            continue
        for a, b in itertools.pairwise(alike):
            key = "norms-exchanged" if len(found) == 2 else f"{a.name}-{b.name or 'output'}-exchanged"
            change = exchanged(part, a.weight, b.weight)
            yield from part.fault(key, f"{a.weight} and {b.weight} are exchanged", a.name, change)


# ---- eps ---------------------------------------------------------------------------------------------------------


def solvable(part: Part) -> Iterator[Solved]:
    found = norms(part)
    if part.where == "block" and found:
        yield from _eps(part, found, "eps", "")
    for step in found if part.where != "block" or len(found) > 1 else ():
        yield from _eps(part, [step], f"{step.name or 'output'}-eps", f" in {step.weight}")


def _eps(part: Part, steps: list[Step], key: str, where: str) -> list[Solved]:
    right = eps_of(steps[0])

    def says(value: float) -> str:
        named = "next to nothing" if value < 1e-9 else f"{value:.3g}"
        return f"eps is {named}, not {right:g}{where}"

    def change(value: float) -> Change:
        return several(*(options(part, step.name, eps=value) for step in steps))

    def solve(evidence: Evidence) -> Iterable[float]:
        return solve_eps(evidence, steps[0])

    return part.solved(
        key, steps[0].name, says, change, solve, (right / 30, right * 30), near=right or 1e-6, faint=True
    )


def solve_eps(evidence: Evidence, step: Step) -> Iterator[float]:
    """Each row is d w / root + b: the root by least squares, and eps = root^2 - the mean square of d. Rows whose mean
    square is small say it best."""
    x = evidence.tensors[step.inputs[0]].astype(np.float64)
    d = x - x.mean(axis=-1, keepdims=True) if step.op == "layer_norm" else x
    w, b = (evidence.part.weights.get(f"{step.weight}.{end}") for end in ("weight", "bias"))
    base = d if w is None else d * w
    y = evidence.theirs if b is None else evidence.theirs - b
    if y.shape != base.shape or not np.isfinite(y).all():
        return
    square = (d * d).mean(axis=-1)
    with np.errstate(all="ignore"):
        slope = (y * base).sum(axis=-1) / (base * base).sum(axis=-1)
        eps = 1 / slope**2 - square
        trust = np.where(np.isfinite(eps) & (slope > 0), 1 / (square**2 + 1e-30), 0.0)
    if trust.sum() > 0:
        found = float((np.where(trust > 0, eps, 0.0) * trust).sum() / trust.sum())
        yield max(found, 1e-12)
