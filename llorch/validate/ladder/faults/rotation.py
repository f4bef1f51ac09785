"""Faults of rotary positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from llorch._rope import frequencies
from llorch.models.graph import Rope, Step
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.faults.change import (
    ROUNDED,
    Change,
    Evidence,
    Fault,
    Part,
    Solved,
    earlier,
    positions_of,
    several,
    tap,
)
from llorch.validate.ladder.network import State, Tap

Angles = Callable[[Array, Rope], Array]  # of positions (T,) and a table: radians (T, width / 2)


def speeds(rope: Rope) -> Array:
    """Radians a position, of each pair."""
    return frequencies(rope.width, rope.base, rope.scaling).high


def magnitude(rope: Rope) -> float:
    """What cosines and sines are multiplied by."""
    return frequencies(rope.width, rope.base, rope.scaling).factor_high


def straight(positions: Array, rope: Rope) -> Array:
    return positions[:, None] * speeds(rope)


def turned(
    x: Array,
    rope: Rope,
    positions: Array,
    angles: Angles = straight,
    pairs: bool = False,
    factor: float | None = None,
    trigonometry: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """x rotated. pairs: neighbours turn together, not the halves of what is rotated."""
    angle, size = angles(positions.astype(np.float64), rope), magnitude(rope) if factor is None else factor
    cos, sin = trigonometry(np.cos(angle) * size), trigonometry(np.sin(angle) * size)
    width = 2 * angle.shape[-1]
    r, rest = x[..., :width].astype(np.float64), x[..., width:]
    a, b = (r[..., ::2], r[..., 1::2]) if pairs else (r[..., : width // 2], r[..., width // 2 :])
    c, d = a * cos - b * sin, b * cos + a * sin
    y = np.empty_like(r)
    if pairs:
        y[..., ::2], y[..., 1::2] = c, d
    else:
        y[..., : width // 2], y[..., width // 2 :] = c, d
    return np.concatenate([y.astype(x.dtype), rest], axis=-1)


def rotations(part: Part) -> list[Step]:
    return part.of_op("rope")


def has_table(step: Step) -> bool:
    return step.options["table"] is not None


def rope_of(state: State, step: Step) -> Rope:
    return state.network.graph.ropes[state.block.options(state.block.step(step.name))["table"]]


def rotating(step: Step, **how: object) -> Tap:
    """A rotation done in another way."""

    def change(y: Array, state: State) -> Array:
        return turned(state.tensors[step.inputs[0]], rope_of(state, step), positions_of(state), **how)  # type: ignore[arg-type]

    return change


def of(part: Part) -> Iterator[Fault]:
    steps = rotations(part)
    if part.where != "block" or len(steps) != 2:
        return
    tables = part.network.graph.ropes
    first = steps[0].name

    def fault(key: str, says: str, change: Change) -> list[Fault]:
        return part.fault(key, says, first, change, only=has_table)

    def all_of(make: Callable[[Step], Tap]) -> Change:
        return several(*(tap(part, step.name, make(step)) for step in steps))

    says = "neighbouring values are rotated together: this model rotates the halves of a head"
    yield from fault("rope-pairs", says, all_of(lambda step: rotating(step, pairs=True)))
    says = "the rotation goes backwards: the sine has the other sign"
    yield from fault("rope-backwards", says, all_of(lambda step: rotating(step, angles=lambda p, r: -straight(p, r))))
    yield from fault("rope-none", "queries and keys are not rotated", all_of(lambda step: earlier(step.inputs[0])))
    says = "queries are not rotated, keys are"
    yield from fault("rope-no-queries", says, tap(part, first, earlier(steps[0].inputs[0])))
    says = "keys are not rotated, queries are"
    change = tap(part, steps[1].name, earlier(steps[1].inputs[0]))
    yield from part.fault("rope-no-keys", says, steps[1].name, change, only=has_table)
    for name, rounding in ROUNDED.items():
        says = f"the frequencies of the rotation are {name}"
        yield from fault(f"rope-frequencies-{name}", says, all_of(_angles(_rounded_frequencies(rounding))))
        says = f"the angles of the rotation are {name}"
        yield from fault(f"rope-angles-{name}", says, all_of(_angles(_rounded_angles(rounding))))
        says = f"cosines and sines of the rotation are {name}"
        yield from fault(f"rope-table-{name}", says, all_of(_trigonometry(rounding)))
    yield from _widths(part, steps)
    if any(rope.scaling for rope in tables.values()):
        says = "the frequencies are not scaled: the configuration's rule for them is left out"

        def unscaled(step: Step) -> Tap:
            def change(y: Array, state: State) -> Array:
                rope = replace(rope_of(state, step), scaling=None)
                return turned(state.tensors[step.inputs[0]], rope, positions_of(state))

            return change

        def scales(step: Step) -> bool:
            return has_table(step) and tables[step.options["table"]].scaling is not None

        yield from part.fault("rope-no-scaling", says, first, all_of(unscaled), only=scales)
    for name in tables if len(tables) > 1 else ():
        says = f"it has the rotation of other layers, {name}"
        change = all_of(_table(tables[name]))
        other = lambda step, name=name: step.options["table"] not in (None, name)  # noqa: E731
        yield from part.fault(f"rope-table-of-{name}", says, first, change, only=other)
    if any(not has_table(step) for block in part.network.graph.blocks for step in block if step.op == "rope"):
        says = "queries and keys are rotated, on a layer that has no rotation"
        change = all_of(_table(next(iter(tables.values()))))
        yield from part.fault("rope-too", says, first, change, only=lambda step: not has_table(step))
    yield from _beside_norms(part, steps)


def _angles(angles: Angles) -> Callable[[Step], Tap]:
    return lambda step: rotating(step, angles=angles)


def _trigonometry(rounding: Callable[[Array], Array]) -> Callable[[Step], Tap]:
    return lambda step: rotating(step, trigonometry=rounding)


def _rounded_frequencies(rounding: Callable[[Array], Array]) -> Angles:
    return lambda positions, rope: positions[:, None] * rounding(speeds(rope))


def _rounded_angles(rounding: Callable[[Array], Array]) -> Angles:
    return lambda positions, rope: rounding(positions[:, None] * speeds(rope))


def _table(rope: Rope) -> Callable[[Step], Tap]:
    def make(step: Step) -> Tap:
        return lambda y, state: turned(state.tensors[step.inputs[0]], rope, positions_of(state))

    return make


def _widths(part: Part, steps: list[Step]) -> Iterator[Fault]:
    """Another part of a head is rotated."""
    D = part.network.graph.sizes["D"]
    widths = {rope.width for rope in part.network.graph.ropes.values()}
    if any(_has_lists(rope) for rope in part.network.graph.ropes.values()):  # whose numbers are of so many pairs
        return
    for width, what in ((D, "all of a head is"), (D // 2, "half of a head is")):
        if width not in widths and width % 2 == 0 and width >= 2:
            says = f"{what} rotated, {width} values, not {min(widths)}"
            change = several(*(tap(part, step.name, _of_width(step, width)) for step in steps))
            yield from part.fault(f"rope-width-{width}", says, steps[0].name, change, only=has_table)


def _of_width(step: Step, width: int) -> Tap:
    def change(y: Array, state: State) -> Array:
        rope = replace(rope_of(state, step), width=width)
        return turned(state.tensors[step.inputs[0]], rope, positions_of(state))

    return change


def _has_lists(rope: Rope) -> bool:
    return any(np.ndim(value) for value in (rope.scaling or {}).values())


def _beside_norms(part: Part, steps: list[Step]) -> Iterator[Fault]:
    """The rotation before the norms of heads, which stand before it: seen in the norm's name or in the rotation's."""
    norms = [part.named(step.inputs[0]) for step in steps]
    if any(norm.op not in ("rms_norm", "layer_norm") for norm in norms):
        return
    says = "queries and keys are rotated before their norms, not after"

    def swapped(step: Step, norm: Step) -> Tap:
        def change(y: Array, state: State) -> Array:
            raw = state.tensors[norm.inputs[0]]
            y = turned(raw, rope_of(state, step), positions_of(state))
            return state.block.norm(y, norm.name, state.arithmetic)

        return change

    pairs = list(zip(steps, norms, strict=True))
    rotated = several(*(tap(part, step.name, swapped(step, norm)) for step, norm in pairs))
    yield from part.fault("rope-before-norm", says, steps[0].name, rotated, only=has_table)


# ---- numbers -----------------------------------------------------------------------------------------------------


def solvable(part: Part) -> Iterator[Solved]:
    steps = rotations(part)
    if part.where != "block" or len(steps) != 2:
        return
    rope = next(iter(part.network.graph.ropes.values()))
    first = steps[0]

    def all_of(make: Callable[[Step], Tap]) -> Change:
        return several(*(tap(part, step.name, make(step)) for step in steps))

    def base(value: float) -> Change:
        def make(step: Step) -> Tap:
            def change(y: Array, state: State) -> Array:
                other = replace(rope_of(state, step), base=value)
                return turned(state.tensors[step.inputs[0]], other, positions_of(state))

            return change

        return all_of(make)

    def told(what: str) -> Callable[[float], str]:
        return lambda value: what.format(round(value, 3) if abs(value - round(value)) < 1e-3 else value)

    bases = sorted({table.base for table in part.network.graph.ropes.values()})
    right = " or ".join(f"{one:g}" for one in bases)
    listed = {
        "rope-base": (
            lambda value: f"the rotation's base is {value:.5g}, not {right}",
            base,
            lambda e: [b for b in [_base(e, first)] if b],
            (rope.base * 3.7, rope.base / 7),
            rope.base,
        ),
        "rope-factor": (
            lambda value: f"positions are multiplied by {value:.6g} in the rotation",
            lambda value: all_of(_angles(lambda p, r: p[:, None] * value * speeds(r))),
            lambda e: _ratio(e, first),
            (0.25, 3.0),
            None,
        ),
        "rope-offset": (
            lambda value: f"positions of the rotation are {abs(value):.6g} too {'high' if value > 0 else 'low'}",
            lambda value: all_of(_angles(lambda p, r: (p[:, None] + value) * speeds(r))),
            lambda e: _offset(e, first),
            (1.0, -1.0, 4.0),
            None,
        ),
        "rope-magnitude": (
            lambda value: f"cosines and sines are multiplied by {value:.6g}",
            lambda value: all_of(lambda step: rotating(step, factor=value)),
            lambda e: _magnitude(e, first),
            (1.3,),
            None,
        ),
    }
    for key, (says, change, solve, samples, near) in listed.items():
        yield from part.solved(key, first.name, says, change, solve, samples, near=near, only=has_table)

    own, tables = speeds(rope), part.network.graph.ropes
    if len(own) < 2:
        return
    uneven = own * np.where(np.arange(len(own)) % 2, 0.6, 1.3)
    yield from part.solved(
        "rope-frequencies", first.name,
        lambda value: _differing(np.asarray(value), own if len(tables) == 1 else None),
        lambda value: all_of(_angles(lambda p, r: p[:, None] * np.asarray(value))),
        lambda e: _each(e, first), (tuple(float(f) for f in uneven),), only=has_table, last=True,
    )  # fmt: skip


def _differing(theirs: Array, ours: Array | None) -> str:
    """Which frequencies are others, in words. ours : None where blocks have different ones."""
    if ours is None:
        first = ", ".join(f"{one:.4g}" for one in theirs[:4])
        return f"the frequencies of the rotation are others, radians a position: {first}{', ...' * (len(theirs) > 4)}"
    near = np.abs(theirs - ours) <= 1e-3 * np.abs(ours)
    wrong = np.flatnonzero(~near)
    shown = ", ".join(f"{theirs[i]:.4g} for {ours[i]:.4g} (pair {i})" for i in wrong[:3])
    more = ", ..." if len(wrong) > 3 else ""
    return f"{len(wrong)} of {len(ours)} frequencies of the rotation are others, radians a position: {shown}{more}"


def _phases(evidence: Evidence, step: Step) -> tuple[Array, Array, Rope] | None:
    """By position and pair, their rotated values over ours before the rotation, as complex numbers; and how far each
    can be trusted."""
    x = evidence.tensors[step.inputs[0]].astype(np.float64)
    table = evidence.part.options(evidence.part.step(step.name))["table"]
    if table is None or x.shape != evidence.theirs.shape or not np.isfinite(evidence.theirs).all():
        return None
    rope = evidence.network.graph.ropes[table]
    half = rope.width // 2
    before = x[..., :half] + 1j * x[..., half : 2 * half]
    after = evidence.theirs[..., :half] + 1j * evidence.theirs[..., half : 2 * half]
    ratio = (after * before.conj()).sum(axis=0)
    size: Array = (np.abs(before) ** 2).sum(axis=0)
    return ratio, size, rope


def _their_speeds(evidence: Evidence, step: Step) -> tuple[Array, Array, Rope] | None:
    """Radians a position by the differences of neighbouring positions; below pi."""
    found = _phases(evidence, step)
    if found is None or len(found[0]) < 2:
        return None
    ratio, _, rope = found
    turn = (ratio[1:] * ratio[:-1].conj()).sum(axis=0)
    return np.angle(turn), np.abs(turn), rope


def _refined(
    evidence: Evidence, step: Step, angles: Callable[[float, Rope], Array], guess: float, width: float
) -> float:
    """The number near a guess whose angles (T, pairs) give theirs best; each position tells it more exactly than the
    ones before, and less surely."""
    found = _phases(evidence, step)
    assert found is not None
    ratio, _, rope = found

    def apart(value: float) -> float:
        return -float((ratio * np.exp(-1j * angles(value, rope))).real.sum())

    return golden(apart, guess - width, guess + width)


def golden(f: Callable[[float], float], low: float, high: float, steps: int = 60) -> float:
    """Where f, which has one valley, is least."""
    part = (math.sqrt(5) - 1) / 2
    a, b = high - part * (high - low), low + part * (high - low)
    fa, fb = f(a), f(b)
    for _ in range(steps):
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - part * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + part * (high - low)
            fb = f(b)
    return (low + high) / 2


def _places(evidence: Evidence) -> Array:
    found: Array = evidence.tensors["positions"].astype(np.float64)[:, None]
    return found


def _base(evidence: Evidence, step: Step) -> float | None:
    """Of speeds base^(-2 i / width), where there is no rule besides: a line through their logarithms."""
    found = _their_speeds(evidence, step)
    if found is None:
        return None
    f, trust, rope = found
    if rope.width < 4:
        return None
    right, plain = speeds(rope), speeds(replace(rope, scaling=None))
    i = np.arange(len(f))
    good = (f > 1e-6) & (i > 0) & (trust > 1e-6 * trust.max())
    if not good.any():
        return None
    logs = -np.log(f[good] / (right / plain)[good]) * rope.width / 2
    w = trust[good] * f[good] ** 2
    log = float((logs * i[good] * w).sum() / (i[good] ** 2 * w).sum())

    def angles(value: float, rope: Rope) -> Array:
        return _places(evidence) * speeds(replace(rope, base=math.exp(value)))

    if not 1e-3 < log < 40:
        return None
    return math.exp(_refined(evidence, step, angles, log, min(0.02, log / 2)))


def _ratio(evidence: Evidence, step: Step) -> Iterable[float]:
    """Their speeds over ours, where that is one number."""
    found = _their_speeds(evidence, step)
    if found is None:
        return
    f, trust, rope = found
    right = speeds(rope)
    w = trust * right**2
    guess = float((f * right * trust).sum() / w.sum())
    slow = right < 1  # those that can't have gone round
    if slow.any():
        guess = float((f * right * trust)[slow].sum() / w[slow].sum())
    if abs(guess) > 1e-3:
        angles = lambda value, rope: _places(evidence) * value * speeds(rope)  # noqa: E731
        yield _refined(evidence, step, angles, guess, 0.02 * abs(guess))


def _offset(evidence: Evidence, step: Step) -> Iterable[float]:
    """Their angles less ours over ours a position, where that is one number."""
    found = _phases(evidence, step)
    if found is None:
        return
    ratio, _, rope = found
    f = speeds(rope)
    rest = (ratio * np.exp(-1j * _places(evidence) * f)).sum(axis=0)
    angle, trust = np.angle(rest), np.abs(rest)
    slow = f <= max(f.min() * 1.001, 0.4)
    guess = float((angle * f * trust)[slow].sum() / (f**2 * trust)[slow].sum())

    def angles(value: float, rope: Rope) -> Array:
        return (_places(evidence) + value) * speeds(rope)

    for start in dict.fromkeys((guess, float(round(guess)))):
        yield _refined(evidence, step, angles, start, 0.3)


def _each(evidence: Evidence, step: Step) -> Iterator[tuple[float, ...]]:
    """The frequency of each pair: of neighbouring positions, then by the phases of ever more of them, whose slope each
    position tells more exactly. Whole turns can't be told at whole positions: it is the one that is nearest to ours."""
    found, speed = _phases(evidence, step), _their_speeds(evidence, step)
    if found is None or speed is None:
        return
    ratio, _, rope = found
    ours, f, places = speeds(rope), speed[0], _places(evidence)
    if len(ours) != len(f):
        return
    reach = 2
    while True:
        t = places[:reach]
        phase = ratio[:reach] * np.exp(-1j * t * f)
        trust = np.abs(phase) * t**2
        total = trust.sum(axis=0)
        with np.errstate(all="ignore"):
            slope = (np.angle(phase) * np.abs(phase) * t).sum(axis=0) / total
        f = f + np.where(total > 0, slope, 0.0)
        if reach >= len(ratio):
            break
        reach = min(2 * reach, len(ratio))
    turns = np.round((ours - f) / (2 * math.pi))
    yield tuple(float(one) for one in f + 2 * math.pi * turns)


def _magnitude(evidence: Evidence, step: Step) -> Iterable[float]:
    """The size of what they rotated over ours."""
    found = _phases(evidence, step)
    if found is None:
        return
    ratio, size, rope = found
    right = np.exp(1j * _places(evidence) * speeds(rope))
    yield float((ratio * right.conj()).real.sum() / size.sum())
