"""What was done to the first tensor that diverges.

A diagnosis is never a guess from the look of the numbers: each fault of `faults` is tried in the oracle, in float64,
from the last point where the two dumps agree, and is named only where it gives their tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llorch.validate.ladder import faults, rungs
from llorch.validate.ladder.distance import Aligned, Array, comparable, relative
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.network import (
    Arithmetic,
    Float64,
    Network,
    Progress,
    Rough,
    Trace,
    greedy,
    merge_heads,
    silent,
)
from llorch.validate.ladder.rows import Row, measure

EXPLAINED = 0.1  # a fault must bring their tensor this much nearer to the oracle
NEAR = 1e-2  # and be no further from it than this, relative
HALF = 0.5  # what it must explain of the next block, to be all that is wrong there
NOISE = 1e-5  # relative: what float32 may do in some blocks
TELLING = 2e-6  # relative: distances further apart than this are so by more than float32's noise
ROUGH = 2e-5  # relative: what matrix products in float32 may add to a distance
STATISTICAL = 0.2  # for the one fault whose values nobody can know: a head that was never loaded


@dataclass(frozen=True)
class Diagnosis:
    """A fault that gives their tensor.

    key, says : the fault. layers : blocks it was tried in. where : "in block 0 and every one after it". distance,
    healthy : of their tensor from the faulty and from the right oracle, relative L2. also : other faults that give it
    as well, which a longer prompt or a fuller dump might tell apart.
    """

    key: str
    says: str
    layers: tuple[int, ...]
    where: str
    distance: float
    healthy: float
    also: tuple[str, ...] = ()
    also_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Trial:
    fault: faults.Fault
    layers: tuple[int, ...]
    distance: float  # of the first tensor that diverges
    whole: float  # the largest, of the tensors of its part of the model, in units of their distance from the right ones


class _Bench:
    """Tries faults on what their dump has, from where it still agrees with ours."""

    def __init__(
        self, network: Network, ours: Dump, reads: Mapping[str, Aligned], rows: Sequence[Row], first: Row
    ) -> None:
        self.network, self.ours, self.reads, self.first = network, ours.arrays, reads, first.tensor
        self.ids = ours.ids
        self.tensors = {row.tensor.name: row.tensor for row in rows}
        self.healthy = {name: self.distance(name, self.ours[name]) for name in reads}
        self.enough = min(NEAR, EXPLAINED * self.healthy[first.tensor.name])
        n = len(network.blocks)
        at = [row.tensor.name for row in rows].index(first.tensor.name)
        good = [row.tensor for row in rows[:at] if row.status == "ok" and row.tensor.name != "ids"]
        self.good = {tensor.name for tensor in good}
        self.right = {row.tensor.name for row in rows if row.status == "ok" and not row.tensor.whole} - self.good
        self.start = -1  # the first block that may be at fault; -1: the embeddings may be
        if good:
            last = good[-1]
            if last.layer is not None:
                self.start = last.layer + (last.kind == "")
            else:
                self.start = 0 if last.part == "before" else n
        self.end = n - 1 if self.first.layer is None else self.first.layer
        if self.first.part == "before":
            self.end = -1
        self.after = self.first.part == "after"
        self.before = {row.tensor.name for row in rows if row.tensor.part == "before"}

    def distance(self, name: str, values: Array) -> float:
        """Of their tensor from these values, relative L2."""
        theirs, mine, _ = comparable(self.reads[name], self.tensors[name], values)
        return relative(theirs, mine)

    def candidates(self) -> list[tuple[faults.Fault, tuple[int, ...], bool]]:
        """Faults, the blocks to try each in, and whether it is the last of its stage: first what isn't in a block, or
        is in all that may be at fault, as most mistakes are; then one block after the other."""
        span = tuple(range(max(self.start, 0), self.end + 1))
        first: list[tuple[faults.Fault, tuple[int, ...]]] = []
        inside = []
        for fault in faults.of(self.network):
            if fault.decoding:
                if self.first.name == "generated":
                    first.append((fault, ()))
            elif fault.in_block:
                if span:
                    inside.append(fault)
                    first.append((fault, span))
            elif self.start < 0 if fault.shows in self.before else self.after:
                first.append((fault, ()))
        second = [(fault, (layer,)) for layer in span for fault in inside] if len(span) > 1 else []
        return [
            (fault, layers, i == len(stage) - 1) for stage in (first, second) for i, (fault, layers) in enumerate(stage)
        ]

    def begin(self, layer: int) -> tuple[int, Array | None]:
        """Where a pass begins whose first fault is in this block, and with what."""
        if layer < 0:
            return -1, None
        if layer == 0:
            return 0, self.ours[self.network.graph.before[-1].name]
        return layer, self.ours[rungs.block_name(layer - 1)]

    def attempt(self, fault: faults.Fault, layers: tuple[int, ...]) -> _Trial:
        """Runs the model with the fault, up to the block that has the first divergence, or the head."""
        if fault.decoding or self.first.name == "generated":
            found = greedy(fault.inject(self.network, *layers), self.ids, Float64())["generated"]
            distance = self.distance("generated", found)
            return _Trial(fault, layers, distance, distance)
        name = self.first.name
        if len(layers) == 1 and layers[0] < self.end:  # through many blocks: a look in float32 first
            rough = self.distance(name, self.part(fault, layers, Rough())[name])
            if not rough <= 2 * self.enough + ROUGH:
                return _Trial(fault, layers, rough, math.inf)
        parts = self.parts(fault, layers, Float64())
        window = next(part for part in parts if name in part)
        distance = self.distance(name, window[name])
        if not distance <= self.enough:
            return _Trial(fault, layers, distance, math.inf)
        behind = window | next(parts) if self.first.part == "before" else window
        shares = [self._share(name, window[name]) for name in window if self._counts(name)]
        if any(self._shows(name, window[name]) for name in self.good & {*window}):
            distance = math.inf  # it would have shown before
        if any(self._shows(x, behind[x]) and self._share(x, behind[x]) > 1 / EXPLAINED for x in self.right & {*behind}):
            distance = math.inf  # it would have shown behind it, where theirs is right and much nearer to ours
        return _Trial(fault, layers, distance, max(shares, default=0.0))

    def part(self, fault: faults.Fault, layers: tuple[int, ...], a: Arithmetic) -> Trace:
        """The block that has the first divergence, or the head, of a model with the fault."""
        return next(part for part in self.parts(fault, layers, a) if self.first.name in part)

    def parts(self, fault: faults.Fault, layers: tuple[int, ...], a: Arithmetic) -> Iterator[Trace]:
        """The tensors of a model with the fault, from the first block that has it on."""
        faulty = fault.inject(self.network, *layers)
        start, x = self.begin(layers[0] if layers else -1 if fault.shows in self.before else len(self.network.blocks))
        for part in faulty.parts(self.ids, a, start, x):
            yield {name: self._in_heads(name, values) for name, values in part.items()}

    def follows(
        self, fault: faults.Fault, alone: tuple[int, ...], every: tuple[int, ...]
    ) -> tuple[float, float] | None:
        """What the fault in one block, and in every one, leaves unexplained of the first tensors behind the divergence
        that tell the two apart: the median share, since rounding faults amplify noise. None if they have none."""
        for one, all in zip(self.parts(fault, alone, Float64()), self.parts(fault, every, Float64()), strict=True):
            if self.first.name in one:
                continue
            names = [name for name in one if self._counts(name)]
            pairs = [
                (self._share(name, one[name]), self._share(name, all[name]))
                for name in names
                if abs(self.distance(name, one[name]) - self.distance(name, all[name])) > TELLING
            ]
            if pairs:
                left = np.median(pairs, axis=0)
                return float(left[0]), float(left[1])
        return None

    def _shows(self, name: str, values: Array) -> bool:
        """Whether their tensor, which agrees with ours, disagrees with these."""
        tensor = self.tensors[name]
        tolerance = tensor.tolerance or tensor.loose
        return values.shape != tensor.shape or measure(tensor, self.reads[name], values, tolerance).status != "ok"

    def _counts(self, name: str) -> bool:
        """Whether a distance from it says something: it is there, and no whole numbers."""
        return name in self.reads and not self.tensors[name].whole

    def _in_heads(self, name: str, values: Array) -> Array:
        """q, k, v and the cache of another number of heads in the shape of the model's own."""
        if self.tensors[name].axes not in ("HTD", "GTD") or values.shape == self.tensors[name].shape:
            return values
        H, T, D = self.tensors[name].shape
        return merge_heads(values).reshape(T, H, D).transpose(1, 0, 2)

    def _share(self, name: str, values: Array) -> float:
        """The distance from these values in units of that from the right ones, or of NOISE, if that is more."""
        distance = self.distance(name, values)
        healthy = max(self.healthy[name], NOISE)
        return distance / healthy if math.isfinite(healthy) else (0.0 if distance < NEAR else math.inf)


def diagnose(
    network: Network,
    ours: Dump,
    reads: Mapping[str, Aligned],
    rows: Sequence[Row],
    first: Row,
    progress: Progress = silent,
) -> tuple[Diagnosis | None, int]:
    """The fault that gives their first diverging tensor, None if no known one does; and how many were tried."""
    bench = _Bench(network, ours, reads, rows, first)
    name, trials = first.tensor.name, []
    candidates = bench.candidates()
    healthy = bench.healthy[name]
    tried = 0
    for fault, layers, last in candidates:
        trial = _unloaded_head(bench, fault) if fault.key == faults.FRESH else bench.attempt(fault, layers)
        enough = STATISTICAL if fault.key == faults.FRESH else bench.enough
        if trial is not None and trial.distance <= enough:
            trials.append(trial)
        tried += 1
        progress(tried, len(candidates))
        if last and trials:  # one in every block: no need to look for it in each of them
            break
    progress(len(candidates), len(candidates))
    if not trials:
        return None, tried
    # One that gives the rest of that part of the model too comes before one that gives the first tensor alone.
    trials.sort(key=lambda trial: (trial.whole > EXPLAINED, max(trial.whole, trial.distance)))
    best = trials[0]
    alike = [
        trial
        for trial in trials[1:]
        if trial.whole <= max(3 * best.whole, 1e-3) and trial.distance <= max(3 * best.distance, 1e-5)
    ]
    best, where = _scope(bench, best)
    other = {trial.fault.says: trial.fault.key for trial in alike if trial.fault.says != best.fault.says}
    return (
        Diagnosis(
            best.fault.key,
            best.fault.says,
            best.layers,
            where,
            best.distance,
            healthy,
            tuple(other),
            tuple(other.values()),
        ),
        tried,
    )


def _scope(bench: _Bench, best: _Trial) -> tuple[_Trial, str]:
    """Whether the fault is in one block or in every one from there on: which of the two gives their later tensors."""
    if not best.fault.in_block:
        return best, ""
    first, n = best.layers[0], len(bench.network.blocks)
    if len(best.layers) > 1:
        return best, f"in every block, {first} to {best.layers[-1]}"
    if bench.first.layer is None or first == n - 1:
        return best, f"in block {first}"
    every = tuple(range(first, n))
    left = bench.follows(best.fault, (first,), every)
    if left is None:
        return best, f"in block {first}"
    single, whole = left
    if min(whole, single) > HALF:
        return best, f"in block {first}; another fault follows it"
    if whole < single:
        return replace(best, layers=every), f"in block {first} and every one after it"
    return best, f"in block {first} alone"


def _unloaded_head(bench: _Bench, fault: faults.Fault) -> _Trial | None:
    """A head of independent random values: nobody can know them, but logits L = X W' then have L L' / V = s^2 X X'
    nearly, X being ln_f and s the spread of W, and are not correlated with the right ones."""
    name = bench.first.name
    if name != "logits" or bench.reads[name].last or not bench.reads[name].fits:
        return None
    L, X, right = (a.astype(np.float64) for a in (bench.reads[name].values, bench.ours["ln_f"], bench.ours[name]))
    if len(L) < 2 or not np.isfinite(L).all() or not L.any():  # of one row every Gram matrix is the same
        return None
    G, K = L @ L.T / L.shape[1], X @ X.T
    G, K = G / np.trace(G), K / np.trace(K)
    away = float(np.linalg.norm(G - K) / np.linalg.norm(G))
    alike = abs(float(np.corrcoef(L.reshape(-1), right.reshape(-1))[0, 1]))
    return _Trial(fault, (), max(away, alike), max(away, alike))
