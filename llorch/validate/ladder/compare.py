"""Finds the first wrong tensor in an engine's dump, and what was done wrong to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from llorch._text import shown
from llorch._threadpoolctl import one_blas_thread
from llorch.validate.ladder import dumps, faults, layouts, rungs
from llorch.validate.ladder.diagnose import Diagnosis, diagnose, in_heads, small
from llorch.validate.ladder.distance import Aligned, Array, comparable, relative
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.faults import Fault
from llorch.validate.ladder.names import WEIGHTS
from llorch.validate.ladder.network import Float64, Kernels, Network, Progress, silent
from llorch.validate.ladder.rows import Row, measure
from llorch.validate.ladder.rungs import Tensor
from llorch.validate.ladder.sources import Model


@dataclass(frozen=True)
class Comparison:
    """The ladder of two dumps.

    rows : one a tensor, in the ladder's order. first : the first that diverges. diagnosis : what was done to it, if a
    known fault gives it. unknown : their tensors that are none of the ladder's. notes : what the reader should know.
    """

    theirs: str
    ours: str
    rows: list[Row]
    first: Row | None
    diagnosis: Diagnosis | None
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tried: int = 0

    @property
    def holds(self) -> bool:
        return self.first is None

    @property
    def compared(self) -> int:
        return sum(row.status != "absent" for row in self.rows)


def compare(
    theirs: str | Path | Dump,
    ours: str | Path | Dump,
    *,
    model: str | Path | Model | None = None,
    names: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Their dump against llorch's.

    Parameters
    ----------
    theirs : path or Dump
        A .safetensors or .npz file of any engine, with as many of the ladder's tensors as it has, or the text of
        llama-eval-callback. Names of Hugging Face's modules, llama.cpp and llm.c are understood; axes may be
        transposed, q, k and v fused, a batch axis there or not (docs/validator.md).
    ours : path or Dump
        What `llorch dump` wrote for the same model and prompt.
    model : path, hub id or Model, optional
        Where faults are tried. Without it: no diagnosis.
    names : mapping, optional
        Their names to the ladder's, where they can't be known.

    Raises
    ------
    FileNotFoundError, ValueError
        A file that isn't there, or isn't a dump; none of whose tensors is known; a model that isn't the dump's.
    """
    theirs = theirs if isinstance(theirs, Dump) else dumps.read(theirs)
    ours = ours if isinstance(ours, Dump) else dumps.read(ours)
    if model is None:
        return compare_dumps(theirs, ours, None, names, progress)
    at_hand = model if isinstance(model, Model) else Model(model)
    sha256 = ours.metadata.get("model_sha256")
    if sha256 and at_hand.sha256 != sha256:
        place = shown(str(at_hand.path))
        raise ValueError(f"{ours.name} is of another model: {shown(sha256)}, not {at_hand.sha256}, which is {place}")
    return compare_dumps(theirs, ours, at_hand.network, names, progress)


@np.errstate(all="ignore")  # a wrong engine's numbers may be any
def compare_dumps(
    theirs: Dump,
    ours: Dump,
    network: Network | None = None,
    names: Mapping[str, str] | None = None,
    progress: Progress = silent,
    *,
    further: bool = True,
) -> Comparison:
    """`compare` for what is in memory; faults are tried in `network`, if there is one. further: also a second one."""
    _ = ours.graph  # whose errors come first: what isn't llorch's has neither
    ours = layouts.with_weights(theirs, ours)
    wanted = ours.tensors
    _check_ours(ours, wanted)
    reads, unknown = layouts.align(theirs, ours, names)
    if not reads:
        raise ValueError(
            f"{theirs.name} has no tensor whose name is known: it has {dumps.names_of(unknown)}; known are names such "
            "as h.0.ln_1, h.0.attn.c_attn, h.0, logits, and others can be given by a map (theirs=ours)"
        )
    ladder = {tensor.name: tensor for tensor in wanted}
    rows = [_row(tensor, reads, ours.arrays, ladder) for tensor in wanted]
    first = next((row for row in rows if row.status == "diverges"), None)
    notes = []
    of = theirs.metadata.get("model_sha256"), ours.metadata.get("model_sha256")
    if all(of) and of[0] != of[1]:
        notes.append(f"the dumps say that they are of different weights: {dumps.names_of([str(sha) for sha in of])}")
    computed = theirs.metadata.get("compute"), ours.metadata.get("compute")
    if all(computed) and computed[0] != computed[1]:
        notes.append(
            f"the dumps say that they were computed in other arithmetics: {' and '.join(map(shown, computed))}"
        )
    if passed := [name for read in reads.values() for name in read.passed]:
        again = dumps.names_of([*dict.fromkeys(passed)], 12)
        notes.append(f"not compared, another tensor is read for the same and has other values: {again}")
    if unread := [name for name, read in reads.items() if read.unread is not None]:
        notes.append(f"refused by the header, more values than the ladder's shape allows: {dumps.names_of(unread, 12)}")
    if parts := {name: read for name, read in reads.items() if read.partial and read.fits}:
        known = sum(row.size for row in rows if row.tensor.name in parts)
        count = sum(math.prod(ladder[name].shape) for name in parts)
        notes.append(
            f"the text shows {known:,} of {count:,} values, to four decimals: these are compared, and the sums of all; "
            "what lies between isn't known"
        )
        if unsummed := [name for name, read in parts.items() if read.total is None]:
            notes.append(
                f"their sums can't be compared, they are of more or of other values: {dumps.names_of(unsummed, 4)}"
            )
    diagnosis, tried = None, 0
    shown_first = first
    if first is not None and first.tensor.name.endswith(WEIGHTS) and network is not None:  # of which no fault is told
        made = _computed(network)
        first = next((row for row in rows if row.status == "diverges" and row.tensor.name in made), None)
        if first is None:
            notes.append("nothing behind the attention weights diverges: no fault was tried")
    if first is not None and first.tensor.name == "ids":
        notes.append("the prompts differ: nothing after them can agree")
    elif first is not None and reads[first.tensor.name].unread is not None:
        pass  # no fault gives such a shape
    elif first is not None and network is None:
        notes.append("no model was given (--model), so no fault was tried")
    elif first is not None and network is not None:
        with one_blas_thread() if small(network) else nullcontext():
            diagnosis, tried, nearer = diagnose(network, ours, reads, rows, first, progress)
            if further and first.tensor.name in _computed(network):
                if diagnosis is not None:
                    diagnosis, more = _then(network, ours, reads, rows, first, diagnosis)
                else:
                    diagnosis, more = _both(network, ours, reads, rows, first, nearer)
                tried += more
    return Comparison(theirs.name, ours.name, rows, shown_first, diagnosis, unknown, notes, tried)


def _check_ours(ours: Dump, wanted: Sequence[Tensor]) -> None:
    for tensor in wanted:
        if tensor.name not in ours.arrays:
            raise ValueError(f"{ours.name} has no tensor {tensor.name}: it must be a dump that llorch wrote")
        if (shape := ours.shape(tensor.name)) != tensor.shape:
            raise ValueError(f"{ours.name}: {tensor.name} has shape {shown(shape)}, it must be {tensor.shape}")


# ---- two faults --------------------------------------------------------------------------------------------------

PAIRED = 4  # faults that bring a tensor nearer, to each of which another is tried
EXACT = 1e-5  # relative: two faults together must give their tensor but for float32's noise


def _computed(network: Network) -> set[str]:
    """The tensors of the graph: not what is made of its logits."""
    graph = network.graph
    inside = {rungs.block_name(i, step.name) for i, steps in enumerate(graph.blocks) for step in steps}
    return inside | {step.name for step in (*graph.before, *graph.after)}


@dataclass(frozen=True)
class _Faulty:
    """A model with a fault, what it dumps, and the rows of theirs beside that."""

    network: Network
    dump: Dump
    rows: list[Row]

    @classmethod
    def of(
        cls,
        network: Network,
        ours: Dump,
        reads: Mapping[str, Aligned],
        right: Sequence[Row],
        fault: Fault,
        layers: tuple[int, ...],
    ) -> _Faulty:
        """right: the rows beside a model without the fault."""
        faulty = fault.inject(network, *layers)
        ladder = {row.tensor.name: row.tensor for row in right}
        made = {name: in_heads(values, ladder[name]) for name, values in faulty.run(ours.ids, Kernels()).items()}
        trace = dict(ours.arrays) | made
        computed = _computed(network) | {"ids"}  # nothing is said of what is made of the logits
        computed -= {name for name, values in made.items() if values.shape != ladder[name].shape}
        rows = [
            _row(one, reads, trace, ladder) if one.name in computed else Row(one, "absent") for one in ladder.values()
        ]
        return cls(faulty, Dump(trace, ours.metadata, ours.name), rows)

    def keeps(self, right: Sequence[Row]) -> bool:
        """Whether what agrees with a model without the faults agrees with this one."""
        pairs = zip(right, self.rows, strict=True)
        return not any(before.status == "ok" and after.status == "diverges" for before, after in pairs)

    def next_after(self, name: str) -> Row | None:
        """The first that diverges from this one on."""
        places = [row.tensor.name for row in self.rows]
        return next((row for row in self.rows[places.index(name) :] if row.status == "diverges"), None)


def _then(
    network: Network,
    ours: Dump,
    reads: Mapping[str, Aligned],
    rows: Sequence[Row],
    first: Row,
    found: Diagnosis,
) -> tuple[Diagnosis, int]:
    """The diagnosis with what it leaves, and another fault that is in theirs besides, if one gives the rest."""
    if found.fault is None or found.key == faults.FRESH:
        return found, 0
    faulty = _Faulty.of(network, ours, reads, rows, found.fault, found.layers)
    second = faulty.next_after(first.tensor.name)
    if second is None or second.tensor.name == first.tensor.name or not reads[second.tensor.name].fits:
        return found, 0
    last = [row for row in faulty.rows if row.status != "absent" and not row.tensor.whole][-1].tensor
    left = _distance(reads, last, faulty.dump) / max(_distance(reads, last, ours), 1e-300)
    then, tried, _ = diagnose(faulty.network, faulty.dump, reads, faulty.rows, second)
    if then is None and found.fault.rounds:  # whose noise is as large as what it does
        return found, tried
    if then is not None and (then.distance > EXACT or then.key in (found.key, faults.FRESH) or then.fault is None):
        then = None
    elif then is not None and then.fault is not None:
        both = _Faulty.of(faulty.network, faulty.dump, reads, rows, then.fault, then.layers)
        then = then if both.keeps(rows) else None
    return replace(found, left=left, left_of=last.name, then=then), tried


def _both(
    network: Network,
    ours: Dump,
    reads: Mapping[str, Aligned],
    rows: Sequence[Row],
    first: Row,
    nearer: Sequence[tuple[Fault, tuple[int, ...]]],
) -> tuple[Diagnosis | None, int]:
    """Two faults of one tensor that give it together, the one that explains more of it first; None if none do."""
    tried = 0
    for fault, layers in nearer[:PAIRED] if math.isfinite(_distance(reads, first.tensor, ours)) else ():
        faulty = _Faulty.of(network, ours, reads, rows, fault, layers)
        second = faulty.next_after(first.tensor.name)
        if second is None or second.tensor.name != first.tensor.name:
            continue
        then, count, _ = diagnose(faulty.network, faulty.dump, reads, faulty.rows, second)
        tried += count
        if then is None or then.fault is None or then.distance > EXACT or then.key in (fault.key, faults.FRESH):
            continue
        # A second one that gives it alone needs no first, and was refused as what would be wrong with it is right.
        alone = _Faulty.of(network, ours, reads, rows, then.fault, then.layers)
        both = _Faulty.of(faulty.network, faulty.dump, reads, rows, then.fault, then.layers)
        if _distance(reads, first.tensor, alone.dump) > 10 * EXACT and both.keeps(rows):
            healthy, left = (_distance(reads, first.tensor, dump) for dump in (ours, faulty.dump))
            where = f"in block {layers[0]}" if layers else ""
            diagnosis = Diagnosis(fault.key, fault.says, layers, where, left, healthy, value=fault.value, fault=fault)
            return replace(diagnosis, left=left / healthy, left_of=first.tensor.name, then=then), tried
    return None, tried


def _distance(reads: Mapping[str, Aligned], tensor: Tensor, dump: Dump) -> float:
    theirs, mine, _ = comparable(reads[tensor.name], tensor, dump.arrays[tensor.name])
    return relative(theirs, mine)


# ---- rows ----------------------------------------------------------------------------------------------------


def _row(tensor: Tensor, reads: Mapping[str, Aligned], ours: Mapping[str, Array], ladder: Mapping[str, Tensor]) -> Row:
    read = reads.get(tensor.name)
    if read is None:
        return Row(tensor, "absent")
    if not read.fits:
        note = f"it has shape {shown(read.shape)}, it must be {tensor.shape} ({', '.join(tensor.axes)})"
        return Row(tensor, "diverges", read.source, note, absolute=math.inf, relative=math.inf, ulp=math.inf)
    want, against, tolerance = _wanted(tensor, reads, ours, ladder)
    return measure(tensor, read, want, tolerance, against)


def _wanted(
    tensor: Tensor, reads: Mapping[str, Aligned], ours: Mapping[str, Array], ladder: Mapping[str, Tensor]
) -> tuple[Array, str, float]:
    """What a tensor is compared with. A rung checks its own step: the cache is compared with their own keys and values,
    the last logits and the probabilities with their own logits, if they are there; else with ours, within the tolerance
    of what they come from."""
    derived = _derived(tensor, reads, ladder)
    if derived is None:
        return ours[tensor.name], "", tensor.loose
    values, against = derived
    if tensor.check != "softmax":
        return values, against, tensor.tolerance
    if not np.isfinite(values).all():
        return ours[tensor.name], "", tensor.loose
    if np.array_equal(values, ours[tensor.checked_against]):  # ours, which is rounded to float32 as theirs is
        return ours[tensor.name], "", tensor.tolerance
    return Float64().softmax(values.astype(np.float64)), "the softmax of their logits", tensor.tolerance


def _derived(tensor: Tensor, reads: Mapping[str, Aligned], ladder: Mapping[str, Tensor]) -> tuple[Array, str] | None:
    """What a tensor must be by their own values of what it is checked against, and that in words; None if theirs isn't
    there. The softmax is left to the caller."""
    if not tensor.checked_against:
        return None
    source = ladder[tensor.checked_against]
    read = reads.get(source.name)
    if read is not None and read.fits and not read.last:
        values, words = read.values, f"their {source.name}"
    else:
        found = _derived(source, reads, ladder)
        if found is None:
            return None
        values, words = found
    return (values[-1], "their logits' last row") if tensor.check == "last row" else (values, words)
