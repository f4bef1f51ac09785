"""What was done to the first tensor that diverges.

A diagnosis is never a guess from the look of the numbers: each fault of `faults` is tried in the oracle, in float64,
from the last point where the two dumps agree, and is named only where it gives their tensor. Numbers and orders are
solved for first, and tried like the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llorch.validate.ladder import faults, rungs
from llorch.validate.ladder.distance import Aligned, Array, comparable, relative
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.faults import Evidence, Fault, Solved
from llorch.validate.ladder.faults.rotation import golden
from llorch.validate.ladder.network import (
    Arithmetic,
    Block,
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
from llorch.validate.ladder.rungs import Tensor

EXPLAINED = 0.1  # a fault must bring their tensor this much nearer to the oracle
NEAR = 1e-2  # and be no further from it than this, relative
HALF = 0.5  # what it must explain of the next block, to be all that is wrong there
NOISE = 1e-5  # relative: what float32 may do in some blocks
TELLING = 2e-6  # relative: distances further apart than this are so by more than float32's noise
ROUGH = 2e-5  # relative: what matrix products in float32 may add to a distance
LARGE = 200_000  # parameters of a block from which a look in float32 comes first
STATISTICAL = 0.2  # for the one fault whose values nobody can know: a head that was never loaded
PROMISING = 0.9  # what the best of a few numbers must leave of the distance for others between them to be looked at
PADDED = 8, 16, 32, 64, 128, 256, 512  # lengths that texts are padded to
SEARCH = 100.0  # how far a number is searched on both sides of the right one, in its multiples


def small(network: Network) -> bool:
    return sum(weight.size for weight in network.blocks[0].weights.values()) <= LARGE


@dataclass(frozen=True)
class Diagnosis:
    """A fault that gives their tensor.

    key, says : the fault. layers : blocks it was tried in. where : "in block 0 and every one after it". distance,
    healthy : of their tensor from the faulty and from the right oracle, relative L2. also : other faults that give it
    as well, which a longer prompt or a fuller dump might tell apart. value : of a number that was solved for. fault,
    alike : the fault itself, and the others. left : what it leaves of the distance of the tensor left_of, the last that
    there is. then : another fault that gives the next tensor that diverges, in a model that has this one.
    """

    key: str
    says: str
    layers: tuple[int, ...]
    where: str
    distance: float
    healthy: float
    also: tuple[str, ...] = ()
    also_keys: tuple[str, ...] = ()
    value: float | None = None
    fault: Fault | None = None
    alike: tuple[Fault, ...] = ()
    left: float = 0.0
    left_of: str = ""
    then: Diagnosis | None = None

    @property
    def rest(self) -> str:
        """How much of what is wrong it explains, in words; "" where it explains all."""
        if not self.left_of:
            return ""
        share = max(0.0, 1 - self.left)
        another = "" if self.then is not None else ": something else is wrong too, and no known fault gives it"
        return f"It explains {share:.0%} of the distance of {self.left_of}{another}"


@dataclass(frozen=True)
class _Trial:
    fault: Fault
    layers: tuple[int, ...]
    distance: float  # of the first tensor that diverges
    # The largest of the tensors of its part of the model, in units of their distance from the right ones; infinite
    # where it isn't the cause.
    whole: float


@dataclass(frozen=True)
class _Stage:
    """Faults that are tried together, each in its blocks, those that show first in the very tensor before others."""

    faults: list[tuple[Fault, tuple[int, ...]]]
    solved: list[tuple[Solved, tuple[int, ...]]]


class _Bench:
    """Tries faults on what their dump has, from where it still agrees with ours."""

    def __init__(
        self, network: Network, ours: Dump, reads: Mapping[str, Aligned], rows: Sequence[Row], first: Row
    ) -> None:
        self.network, self.ours, self.reads, self.first = network, ours.arrays, reads, first.tensor
        self.ids = ours.ids
        self.tensors = {row.tensor.name: row.tensor for row in rows}
        self.places = {name: place for place, name in enumerate(self.tensors)}
        self.healthy = {name: self.distance(name, self.ours[name]) for name in reads if name in self.tensors}
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
                self.start = 0 if last.part == "before" and last.name == network.graph.before[-1].name else -1
                if last.part == "after":
                    self.start = n
        self.end = n - 1 if self.first.layer is None else self.first.layer
        if self.first.part == "before":
            self.end = -1
        self.after = self.first.part == "after"
        self.before = {row.tensor.name for row in rows if row.tensor.part == "before"}
        self.large = not small(network)
        self._right: Trace | None = None
        self.known = self.own()
        self.alone = self.healthy[first.tensor.name]  # their tensor's distance from a right one of their own inputs
        if self.known and self.reads[first.tensor.name].fits and first.tensor.name != "generated":
            self.alone = self.distance(first.tensor.name, self.right_of_theirs()[self.kind])

    def distance(self, name: str, values: Array) -> float:
        """Of their tensor from these values, relative L2."""
        theirs, mine, _ = comparable(self.reads[name], self.tensors[name], values)
        return relative(theirs, mine)

    def stages(self) -> Iterator[_Stage]:
        """Faults, and the blocks to try each in: first what isn't in a block, or is in all that may be at fault, as
        most mistakes are; then one block after the other. Of each those first whose own tensor is the one that
        diverges; none that would show only behind it."""
        span = tuple(range(max(self.start, 0), self.end + 1))
        listed: list[Fault | Solved] = [*faults.of(self.network), *faults.solvable(self.network)]
        together: list[tuple[Fault | Solved, tuple[int, ...]]] = []
        apart: list[tuple[Fault | Solved, tuple[int, ...]]] = []
        for one in listed:
            if isinstance(one, Fault) and one.decoding:
                if self.first.name == "generated":
                    together.append((one, ()))
            elif not one.in_block:
                if (self.start < 0 if one.shows in self.before else self.after) and self._may(one.shows):
                    together.append((one, ()))
            else:
                inside = tuple(layer for layer in one.within(span) if self._may(rungs.block_name(layer, one.shows)))
                if inside:
                    together.append((one, inside))
                    # On the way through several blocks one rounding of many is lost, and a search takes too long.
                    if len(span) > 1 and isinstance(one, Fault) and one.grid is None:
                        apart += [(one, (layer,)) for layer in inside]
                    elif len(span) > 1 and isinstance(one, Solved):
                        apart += [(one, (layer,)) for layer in inside if self.exact(one, (layer,))]
        healthy = self.healthy[self.first.name]
        own_step_is_right = math.isfinite(healthy) and self.alone <= EXPLAINED * healthy
        for stage in (together, apart):
            for exact in (False,) if own_step_is_right else (True, False):
                chosen = [(one, layers) for one, layers in stage if self.exact(one, layers) == exact]
                plain = [(one, layers) for one, layers in chosen if isinstance(one, Fault)]
                solved = [(one, layers) for one, layers in chosen if isinstance(one, Solved)]
                if plain or solved:
                    yield _Stage(plain, solved)

    def _may(self, shows: str) -> bool:
        """Whether a fault that first shows there may be the cause."""
        return self.places.get(shows, -1) <= self.places[self.first.name]

    def exact(self, one: Fault | Solved, layers: tuple[int, ...]) -> bool:
        """Whether its own tensor is the one that diverges."""
        shows = rungs.block_name(layers[0], one.shows) if layers else one.shows
        return shows == self.first.name or (isinstance(one, Fault) and one.decoding)

    def evidence(self) -> Evidence:
        """For solving a number whose own tensor is the one that diverges."""
        read = self.reads[self.first.name]
        full = self.right_of_theirs()
        theirs, mine, finite = comparable(read, self.first, full[self.kind])
        tensors = full
        if read.last:
            tensors = {key: values[..., -1:, :] if values.ndim >= 2 else values[-1:] for key, values in full.items()}
        return Evidence(
            theirs,
            mine,
            finite,
            self.first.name,
            tensors,
            self.part_of_first(self.network),
            self.network,
            self.first.layer,
            self.ids,
        )

    def right_of_theirs(self) -> Trace:
        """What a right model makes of their own tensors, up to the first that diverges."""
        if self._right is None:
            self._right = self.local(self.network, Float64(), self.known)
        return self._right

    @property
    def kind(self) -> str:
        """The first tensor's name within its part."""
        return self.first.name if self.first.layer is None else self.first.kind

    def part_of_first(self, network: Network) -> Block:
        if self.first.part == "before":
            return network.before
        return network.after if self.first.layer is None else network.blocks[self.first.layer]

    def own(self) -> Trace:
        """Their tensors of the part of the model that has the first divergence, as far as they are right and whole,
        by their names there; "x" for what goes into it."""
        found = {}
        layer, part = self.first.layer, self.first.part
        for name in self.good:
            tensor, read = self.tensors[name], self.reads[name]
            if read.fits and not read.last and not tensor.whole:
                values = self.ours[name] if read.partial else read.values  # those agree, as far as theirs are known
                if (tensor.layer, tensor.part) == (layer, part):
                    found[tensor.kind if layer is not None else name] = values.astype(np.float64)
                elif name == self.into_first():
                    found["x"] = values.astype(np.float64)
        return found

    def into_first(self) -> str:
        """The tensor that goes into the part of the model that has the first divergence."""
        n = len(self.network.blocks) if self.first.layer is None else self.first.layer
        return rungs.block_name(n - 1) if n else self.network.graph.before[-1].name

    def local(self, network: Network, a: Arithmetic, known: Mapping[str, Array]) -> Trace:
        """The part of a model that has the first divergence, up to it."""
        known = {name: values.astype(a.dtype) for name, values in known.items() if name != self.kind}
        if self.first.part == "before":
            return network.embed(np.asarray(self.ids), a, until=self.kind, known=known)
        x = known.pop("x", None)
        if x is None:
            x = self.ours[self.into_first()].astype(a.dtype)
        if self.first.layer is None:
            inside = any(step.name == self.kind for step in network.after.steps)
            return network.head(x, a, until=self.kind if inside else None, known=known)
        return network.block(self.first.layer, x, a, until=self.kind, known=known)

    def values(self, one: Solved, layers: tuple[int, ...]) -> Iterable[object]:
        """What a number may be: solved from its own tensor, or searched by what it makes of another."""
        if self.exact(one, layers):
            if self.reads[self.first.name].fits:
                yield from one.solve(self.evidence())
        elif one.padding:
            yield from self.paddings()
        elif one.near is not None and math.isfinite(self.healthy[self.first.name]):
            near = math.log(one.near)
            reach = math.log(SEARCH)
            grid = np.linspace(near - reach, near + reach, 11)
            apart = [self.quick(one.of(math.exp(log)), layers) for log in grid]
            best = int(np.nanargmin(apart))
            if apart[best] < PROMISING * self.healthy[self.first.name]:
                step = grid[1] - grid[0]
                yield math.exp(
                    golden(
                        lambda log: self.quick(one.of(math.exp(log)), layers), grid[best] - step, grid[best] + step, 24
                    )
                )

    def paddings(self) -> Iterable[int]:
        """How many tokens of padding there may be: as many as they dumped, or what fills a usual length."""
        if (told := max(read.padded for read in self.reads.values())) > 0:
            return [told]
        T, context = len(self.ids), self.network.config.context
        return sorted({-T % length for length in PADDED if -T % length and T + -T % length <= context})

    def quick(self, fault: Fault, layers: tuple[int, ...]) -> float:
        """The distance of the first tensor alone: of a fault that shows first in it made of their own tensors before
        it, so that it is as near as can be."""
        a = Rough() if self.large else Float64()
        shows = rungs.block_name(min(layers), fault.shows) if layers else fault.shows
        if shows == self.first.name and not fault.late:
            faulty = fault.inject(self.network, *layers)
            found = in_heads(self.local(faulty, a, self.known)[self.kind], self.first)
        else:
            found = self.part(fault, layers, a)[self.first.name]
        distance = self.distance(self.first.name, found)
        return distance if math.isfinite(distance) else 1e300

    def _beside(self) -> list[str]:
        """Their other tensors of the block that has the first divergence, but for copies of those."""
        names = [name for name, tensor in self.tensors.items() if tensor.layer == self.first.layer]
        return [n for n in names if n != self.first.name and n in self.reads and not self.tensors[n].checked_against]

    def rounded_later(self, fault: Fault, layers: Sequence[int]) -> bool | None:
        """Of a rounding whether the same tensors of these blocks have it too, None for other faults and where nothing
        tells it."""
        names = [rungs.block_name(layer, fault.shows) for layer in layers]
        names = [name for name in names if name in self.reads]
        return None if fault.grid is None or not names else all(self._on(fault.grid, name) for name in names)

    def _on(self, rounding: Callable[[Array], Array], name: str) -> bool:
        """Whether all values of their tensor are as this rounding leaves them."""
        if self.reads[name].partial:  # to four decimals
            return False
        values = self.reads[name].values.astype(np.float64)
        values = values[np.isfinite(values)]
        return bool((rounding(values) == values).all())

    def begin(self, layer: int) -> tuple[int, Array | None]:
        """Where a pass begins whose first fault is in this block, and with what."""
        if layer < 0:
            return -1, None
        if layer == 0:
            return 0, self.ours[self.network.graph.before[-1].name]
        return layer, self.ours[rungs.block_name(layer - 1)]

    def attempt(self, fault: Fault, layers: tuple[int, ...]) -> _Trial:
        """Runs the model with the fault, up to the block that has the first divergence, or the head."""
        if fault.key == faults.FRESH:
            return _unloaded_head(self, fault)
        if fault.decoding or self.first.name == "generated":
            found = greedy(fault.inject(self.network, *layers), self.ids, Float64())["generated"]
            distance = self.distance("generated", found)
            return _Trial(fault, layers, distance, distance if distance <= self.enough else math.inf)
        name = self.first.name
        exact = self.exact(fault, layers)
        explained, enough = EXPLAINED, self.enough
        if fault.grid is not None and exact:
            beside = [self._on(fault.grid, other) for other in self._beside()] if fault.in_block else []
            others = all(beside) if fault.every else not (len(beside) > 1 and all(beside))
            if not self._on(fault.grid, name) or not others:
                return _Trial(fault, layers, math.inf, math.inf)
            # Noise of float32 takes a few values to the other side: enough that all are such values.
            explained, enough = HALF, min(NEAR, HALF * self.healthy[name])
        look = self.quick(fault, layers)
        if self.known and exact and look > explained * self.alone:
            return _Trial(fault, layers, look, math.inf)
        if not look <= (2 * enough + ROUGH if self.large else enough):
            return _Trial(fault, layers, look, math.inf)
        parts = self.parts(fault, layers, Float64())
        window = next(part for part in parts if name in part)
        distance = min(self.distance(name, window[name]), math.inf if self.large else look)
        if not distance <= enough:
            return _Trial(fault, layers, distance, math.inf)
        behind = window | next(parts) if self.first.part == "before" else window
        shares = [self._share(name, window[name]) for name in window if self._counts(name)]
        if any(self._shows(name, window[name]) for name in self.good & {*window}):
            return _Trial(fault, layers, distance, math.inf)  # it would have shown before
        if any(self._shows(x, behind[x]) and self._share(x, behind[x]) > 1 / EXPLAINED for x in self.right & {*behind}):
            return _Trial(fault, layers, distance, math.inf)  # it would have shown behind it, where theirs is right
        return _Trial(fault, layers, distance, max(shares, default=0.0))

    def part(self, fault: Fault, layers: tuple[int, ...], a: Arithmetic) -> Trace:
        """The block that has the first divergence, or the head, of a model with the fault."""
        return next(part for part in self.parts(fault, layers, a) if self.first.name in part)

    def parts(self, fault: Fault, layers: tuple[int, ...], a: Arithmetic) -> Iterator[Trace]:
        """The tensors of a model with the fault, from the first block that has it on."""
        faulty = fault.inject(self.network, *layers)
        start, x = self.begin(layers[0] if layers else -1 if fault.shows in self.before else len(self.network.blocks))
        for part in faulty.parts(self.ids, a, start, x):
            yield {name: in_heads(values, self.tensors[name]) for name, values in part.items()}

    def follows(self, fault: Fault, alone: tuple[int, ...], every: tuple[int, ...]) -> tuple[float, float] | None:
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

    def _share(self, name: str, values: Array) -> float:
        """The distance from these values in units of that from the right ones, or of NOISE, if that is more."""
        distance = self.distance(name, values)
        healthy = max(self.healthy[name], NOISE)
        return distance / healthy if math.isfinite(healthy) else (0.0 if distance < NEAR else math.inf)


def in_heads(values: Array, tensor: Tensor) -> Array:
    """q, k, v and the cache of another number of heads in the shape of the model's own."""
    if tensor.axes not in ("HTD", "GTD") or values.shape == tensor.shape:
        return values
    H, T, D = tensor.shape
    return merge_heads(values).reshape(T, H, D).transpose(1, 0, 2)


def diagnose(
    network: Network,
    ours: Dump,
    reads: Mapping[str, Aligned],
    rows: Sequence[Row],
    first: Row,
    progress: Progress = silent,
) -> tuple[Diagnosis | None, int, list[tuple[Fault, tuple[int, ...]]]]:
    """The fault that gives their first diverging tensor, None if no known one does; how many were tried; and where none
    gives it, those that bring it nearer, the nearest first."""
    bench = _Bench(network, ours, reads, rows, first)
    name, trials = first.tensor.name, []
    stages = list(bench.stages())
    size = sum(len(stage.faults) + len(stage.solved) for stage in stages)
    healthy, tried, done = bench.healthy[name], 0, 0

    nearer: list[_Trial] = []

    def attempt(fault: Fault, layers: tuple[int, ...]) -> None:
        nonlocal tried
        trial = bench.attempt(fault, layers)
        tried += 1
        if trial.distance < PROMISING * healthy and bench.exact(fault, layers) and fault.grid is None:
            nearer.append(trial)
        if trial.whole < math.inf and trial.distance < math.inf:
            trials.append(trial)

    for stage in stages:
        for fault, layers in stage.faults:
            if fault.key != faults.FRESH:
                attempt(fault, layers)
            done += 1
            progress(done, size)
        # A number is told only where nothing without one gives their tensor, many only where one doesn't; another
        # tensor of the file also where what gives it doesn't give the rest.
        sure = _surely(trials)
        for solved, layers in sorted(stage.solved, key=lambda one: one[0].last):
            known = [*trials]
            wanted = not sure or (solved.spares is not None and all(trial.whole > EXPLAINED for trial in trials))
            if wanted and not (solved.last and _surely(known)):
                for value in bench.values(solved, layers):
                    attempt(solved.of(value), layers)
            if solved.last and known:
                nearest = min(trial.distance for trial in known)
                trials[:] = [*known, *(one for one in trials[len(known) :] if one.distance < EXPLAINED * nearest)]
            done += 1
            progress(done, size)
        if _surely(trials):  # one in every block: no need to look for it in each of them
            break
    if not trials:  # the one of which nothing but statistics tells comes last
        for fault, layers in [one for stage in stages for one in stage.faults if one[0].key == faults.FRESH]:
            attempt(fault, layers)
    progress(size, size)
    if not trials:
        nearer.sort(key=lambda trial: trial.distance)
        return None, tried, [(trial.fault, trial.layers) for trial in nearer]
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
            best.fault.value,
            best.fault,
            tuple(trial.fault for trial in alike),
        ),
        tried,
        [],
    )


def _surely(trials: Sequence[_Trial]) -> bool:
    """Whether one gives their tensor but for float32's noise."""
    return any(trial.distance <= NOISE for trial in trials)


def _scope(bench: _Bench, best: _Trial) -> tuple[_Trial, str]:
    """Whether the fault is in one block or in every one from there on: which of the two gives their later tensors."""
    if not best.fault.in_block:
        return best, ""
    first, n = best.layers[0], len(bench.network.blocks)
    every = best.fault.within(range(first, n))
    whole = f"every one{' that can have it' if len(every) < n - first else ''}"
    if len(best.layers) > 1:
        return best, f"in {whole.replace('one', 'block', 1)}, {first} to {best.layers[-1]}"
    if bench.first.layer is None or len(every) == 1:
        return best, f"in block {first}"
    if (later := bench.rounded_later(best.fault, every[1:])) is not None:
        if later:
            return replace(best, layers=every), f"in block {first} and {whole} after it"
        return best, f"in block {first} alone"
    left = bench.follows(best.fault, (first,), every)
    if left is None:
        return best, f"in block {first}"
    single, all_of_them = left
    if min(all_of_them, single) > HALF:
        return best, f"in block {first}; another fault follows it"
    if all_of_them < single:
        return replace(best, layers=every), f"in block {first} and {whole} after it"
    return best, f"in block {first} alone"


def _unloaded_head(bench: _Bench, fault: Fault) -> _Trial:
    """A head of independent random values: nobody can know them, but logits L = X W' then have L L' / V = s^2 X X'
    nearly, X being the head's input and s the spread of W, and are not correlated with the right ones."""
    name = bench.first.name
    head = next(step for step in bench.network.graph.after if step.name == fault.shows)
    none = _Trial(fault, (), math.inf, math.inf)
    if name != head.name or bench.reads[name].last or not bench.reads[name].fits:
        return none
    arrays = (bench.reads[name].values, bench.ours[head.inputs[0]], bench.ours[name])
    L, X, right = (a.astype(np.float64) for a in arrays)
    if len(L) < 2 or not np.isfinite(L).all() or not L.any():  # of one row every Gram matrix is the same
        return none
    G, K = L @ L.T / L.shape[1], X @ X.T
    G, K = G / np.trace(G), K / np.trace(K)
    away = float(np.linalg.norm(G - K) / np.linalg.norm(G))
    alike = abs(float(np.corrcoef(L.reshape(-1), right.reshape(-1))[0, 1]))
    found = max(away, alike)
    return _Trial(fault, (), found, found if found <= STATISTICAL else math.inf)
