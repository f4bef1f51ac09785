"""The proof that `compare` can fail: every fault, injected, must be found at its rung, in its layer, by its name."""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

import llorch
from llorch.models import registry
from llorch.models.registry import Family
from llorch.validate.ladder import dumps, faults, rungs, specimens
from llorch.validate.ladder.compare import compare_dumps
from llorch.validate.ladder.diagnose import Diagnosis
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.network import Float64, Kernels, Network, Progress, Trace, greedy, silent
from llorch.validate.ladder.sources import Model

PROMPT = "Hello. My lord, what news?"
DECODING = "Hello. Where is my", "Speak. Who comes here? The"
CONTROL = "no fault"


@dataclass(frozen=True)
class Injection:
    """One injection and what came of it.

    wanted, found : the tensor that must diverge first, and the one that does. diagnosis : the fault that was named, by
    its key. caught : it is the right tensor and the right name; what may be lost in the tolerances may be first seen
    behind its own tensor, or nowhere. visible : the dump differs from a right one by more than the tolerances at all; a
    fault that changes nothing can't be found. family : whose model it was.
    """

    key: str
    says: str
    layers: tuple[int, ...]
    wanted: str
    found: str
    diagnosis: str
    caught: bool
    visible: bool
    also: tuple[str, ...] = ()
    family: str = ""


def full_precision(network: Network) -> Network:
    """Where all weights are bfloat16's, rounding them to 16 bits would change nothing: a copy with up to 2^-9 of each
    weight added, in float32, by a fixed generator."""
    if any((faults.bfloat16(w) != w).any() for block in network.blocks for w in block.weights.values()):
        return network
    random = np.random.default_rng(20261125)
    copy = network.copy()

    def stir(weights: Trace) -> None:
        for name in sorted(set(weights) - spared):
            noise = random.uniform(-(2.0**-9), 2.0**-9, weights[name].shape)
            weights[name] = (weights[name] * (1 + noise)).astype(np.float32)

    stand_ins = {p.name: p.optional for p in network.graph.parameters if p.optional}
    spared = set(stand_ins)
    stir(copy.weights)
    for name, other in stand_ins.items():
        if network.weights[name] is network.weights[other]:
            copy.weights[name] = copy.weights[other]
    for block in copy.blocks:
        stir(block.weights)
    return copy


def right_dump(network: Network, ids: Sequence[int]) -> Dump:
    """Of a network that isn't on disk, in specified bits; the greedy tokens by float64."""
    trace = network.run(ids, Kernels())
    if network.graph.decodes:
        trace["generated"] = greedy(network, ids, Float64())["generated"]
    about = {
        "config": json.dumps(dataclasses.asdict(network.config)),  # type: ignore[call-overload]
        "model_type": dumps.family_named(network.family).model_types[0],
        "llorch": llorch.__version__,
    }
    if network.ending is not None:
        about["embedding"] = network.ending.written()
    return Dump(trace, about, "ours")


def run(model: Model, prompt: str = PROMPT, *, progress: Progress = silent) -> Iterator[Injection]:
    """The control without a fault, then every fault: those of blocks in all of them, from block 0 on, and alone in a
    deeper one. Dumps are by llorch's kernels in float32, trials are in float64: two implementations."""
    network = full_precision(model.network)
    others = [model.ids(text) for text in DECODING] if network.graph.decodes else []
    yield from _run(network, model.ids(prompt), others, progress)


def of_family(family: Family, *, progress: Progress = silent) -> Iterator[Injection]:
    """The same with a small model of random weights."""
    network = specimens.specimen(family)
    others = [[(7 * i + start) % 61 for i in range(5 + start % 4)] for start in range(12)]
    yield from _run(network, list(specimens.IDS), others, progress)


def of_families(workers: int = 1, *, progress: Progress = silent) -> Iterator[Injection]:
    """`of_family` of every one, in so many processes. progress: of families."""
    known = [importlib.import_module(module).FAMILY for module in registry.MODULES]
    own = [family for family in registry.families() if family not in known]  # which another process doesn't know
    size = len(known) + len(own)
    for done, family in enumerate(own, 1):
        yield from of_family(family)
        progress(done, size)
    if workers == 1:
        for done, family in enumerate(known, len(own) + 1):
            yield from of_family(family)
            progress(done, size)
        return
    with multiprocessing.get_context("spawn").Pool(workers, _begin) as pool:
        for done, cases in enumerate(pool.imap(_of_module, registry.MODULES), len(own) + 1):
            yield from cases
            progress(done, size)


def _begin() -> None:
    """Of a process that is one of several: it has one thread, and Ctrl-C is for the one that began it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    llorch.set_num_threads(1)


def _of_module(module: str) -> list[Injection]:
    return list(of_family(importlib.import_module(module).FAMILY))


def _run(
    network: Network, ids: Sequence[int], others: Sequence[Sequence[int]], progress: Progress
) -> Iterator[Injection]:
    ours = right_dump(network, ids)
    listed = jobs(network)
    for done, (injected, layers) in enumerate(listed, 1):
        case = inject(network, ours, injected, layers)
        if injected is not None and injected.decoding:  # it changes ten tokens of some prompts only
            for other in others:
                if not case.visible:
                    case = inject(network, right_dump(network, other), injected, layers)
        yield dataclasses.replace(case, family=network.family)
        progress(done, len(listed))


def jobs(network: Network) -> list[tuple[faults.Fault | None, tuple[int, ...]]]:
    """What is injected and in which blocks; None: nothing."""
    n = len(network.blocks)
    deeper = min(n - 1, max(1, n // 2))
    found: list[tuple[faults.Fault | None, tuple[int, ...]]] = [(None, ())]
    for fault in faults.injected(network):
        if fault.in_block:
            inside = fault.within(range(n))
            alone = [layer for layer in inside if layer >= deeper] or [layer for layer in inside if layer][-1:]
            found.append((fault, inside[:1] if fault.key == "blocks-exchanged" else inside))
            found += [(fault, (layer,)) for layer in alone[:1]] if len(inside) > 1 else []
        else:
            found.append((fault, ()))
    return found


def dump_of(network: Network, ours: Dump, layers: tuple[int, ...], *, decoding: bool = False) -> Trace:
    """What a network with a fault from block layers[0] on dumps; what comes before it is ours."""
    trace: Trace = {}
    start, x = -1, None
    if layers and layers[0]:
        start, x = layers[0], ours.arrays[rungs.block_name(layers[0] - 1)]
        before = [t.name for t in ours.tensors]
        trace = {name: ours.arrays[name] for name in before[: before.index(rungs.block_name(start - 1)) + 1]}
    for part in network.parts(ours.ids, Kernels(), start, x):
        trace |= part
    if decoding:
        trace["generated"] = greedy(network, ours.ids, Float64())["generated"]
    return trace


def inject(network: Network, ours: Dump, fault: faults.Fault | None, layers: tuple[int, ...]) -> Injection:
    if fault is None:
        comparison = compare_dumps(Dump(dict(ours.arrays), {}, "theirs"), ours, network)
        found = comparison.first.tensor.name if comparison.first else "all agree"
        return Injection(CONTROL, CONTROL, (), "all agree", found, "", comparison.holds, True)
    faulty = fault.inject(network, *layers)
    theirs = Dump(dump_of(faulty, ours, layers, decoding=fault.decoding), {}, "theirs")
    comparison = compare_dumps(theirs, ours, network, further=False)
    wanted = fault.shows if not layers else rungs.block_name(layers[0], fault.shows)
    if comparison.first is None:
        return Injection(fault.key, fault.says, layers, wanted, "all agree", "", fault.faint, False)
    names = [row.tensor.name for row in comparison.rows]
    behind = names[names.index(wanted) :]
    found, diagnosis = comparison.first.tensor.name, comparison.diagnosis
    named = diagnosis is not None and (
        fault.key in diagnosis.also_keys or (_same(fault, diagnosis) and _where(fault, layers, diagnosis))
    )
    return Injection(
        fault.key,
        fault.says,
        layers,
        wanted,
        found,
        diagnosis.key if diagnosis else "",
        named and (found == wanted or (fault.faint and found in behind)),
        True,
        diagnosis.also_keys if diagnosis else (),
    )


def _same(fault: faults.Fault, diagnosis: Diagnosis) -> bool:
    return fault.says == diagnosis.says or (diagnosis.fault is not None and fault.same(diagnosis.fault))


def _where(fault: faults.Fault, layers: tuple[int, ...], diagnosis: Diagnosis) -> bool:
    """Whether it was found in its blocks; one that may be lost in the tolerances at least in the first of them."""
    return layers == diagnosis.layers or (fault.faint and layers[:1] == diagnosis.layers[:1])
