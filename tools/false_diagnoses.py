"""Whether `llorch compare` names what wasn't done: pairs of faults at once, and engines that are right but noisy.

    python tools/false_diagnoses.py [--pairs 200] [--engines 200] [--seed 0]

A wrong name is one that isn't among the faults that were made, and whose tensors they don't give as well. The exit
status is 1 if there was one. Models are the small ones of every family that the self-test has; docs/validator.md has
the figures of a run.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from llorch.models import registry
from llorch.validate.ladder import faults, selftest, specimens
from llorch.validate.ladder.compare import Comparison, compare_dumps
from llorch.validate.ladder.diagnose import Diagnosis
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.faults import Fault
from llorch.validate.ladder.network import Kernels, Network

Array = Any


@dataclass(frozen=True)
class Case:
    """made : what was done, by keys; nothing by an engine that is right. outcome : "named" by one of them, "wrong" by
    another name, "no name", "right" where nothing diverged."""

    family: str
    made: tuple[str, ...]
    outcome: str
    first: str
    said: str


# ---- pairs of faults ---------------------------------------------------------------------------------------------


def pairs(count: int, seed: int) -> Iterator[Case]:
    """Two random faults in a random family, each in one block or in all."""
    random = np.random.default_rng([seed, 1])
    families = registry.families()
    for _ in range(count):
        family = families[random.integers(len(families))]
        network, ours = _model(family.name)
        jobs = [(fault, layers) for fault, layers in selftest.jobs(network) if fault and not fault.decoding]
        chosen = [jobs[i] for i in random.choice(len(jobs), 2, replace=False)]
        faulty = network
        for fault, layers in chosen:
            faulty = fault.inject(faulty, *layers)
        theirs = Dump(faulty.run(ours.ids, Kernels()), {}, "theirs")
        made = [fault for fault, _ in chosen]
        yield judged(family.name, made, compare_dumps(theirs, ours, network))


@cache
def _model(name: str) -> tuple[Network, Dump]:
    network = specimens.specimen(next(family for family in registry.families() if family.name == name))
    return network, selftest.right_dump(network, specimens.IDS)


def judged(family: str, made: Sequence[Fault], found: Comparison) -> Case:
    keys = tuple(fault.key for fault in made)
    if found.first is None:
        return Case(family, keys, "right", "", "")
    if found.diagnosis is None:
        return Case(family, keys, "no name", found.first.tensor.name, "")
    said = list(names(found.diagnosis))
    outcome = (
        ("named", "both named")[len(said) == 2]
        if all(any(_is(one, made) for one in group) for group in said)
        else "wrong"
    )
    text = "; then ".join(group[0].says for group in said)
    return Case(family, keys, outcome, found.first.tensor.name, text)


def names(diagnosis: Diagnosis) -> Iterator[list[Fault]]:
    """The fault that was named, with those that the data doesn't tell from it; and the same of a second one."""
    yield [one for one in (diagnosis.fault, *diagnosis.alike) if one is not None]
    if diagnosis.then is not None:
        yield from names(diagnosis.then)


def _is(fault: Fault, made: Sequence[Fault]) -> bool:
    """Whether it is one of these, or what one of these is in one of several norms; an offset before a factor is as much
    as another one behind it."""
    if fault.key.endswith("-offset") and fault.value is not None:
        factors = [one.value for one in made if one.key == fault.key.removesuffix("offset") + "factor" and one.value]
        if any(replace(fault, value=fault.value / factor).same(one) for factor in factors for one in made):
            return True
    return any(fault.same(one) or fault.says == one.says or fault.key.endswith(f"-{one.key}") for one in made)


# ---- noise -------------------------------------------------------------------------------------------------------


class Noisy(Kernels):
    """An engine that is right, with matrix products and other steps in fewer bits: each kind of step has its own
    rounding, of what goes in, of what comes out, or of both."""

    def __init__(self, random: np.random.Generator) -> None:
        kinds = ("float16", "bfloat16", "tf32", "sums of another order")
        self.kind = kinds[random.integers(len(kinds))]
        self.random = random
        steps = ("linear", "norm", "activation", "rope", "scores", "attend")
        self.steps = {step for step in steps if random.random() < 0.6} | {steps[random.integers(len(steps))]}
        self.out = bool(random.integers(2))

    def __str__(self) -> str:
        return f"{self.kind} in {', '.join(sorted(self.steps))}{', and of what they make' if self.out else ''}"

    def less(self, x: Array, step: str) -> Array:
        """x in fewer bits, if this kind of step has them."""
        if step not in self.steps:
            return x
        if self.kind == "sums of another order":  # as far off as a sum in blocks of float16 products
            return (x * (1 + self.random.uniform(-(2.0**-12), 2.0**-12, x.shape))).astype(np.float32)
        return ROUNDINGS[self.kind](x)

    def made(self, y: Array, step: str) -> Array:
        return self.less(y, step) if self.out else y

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> Array:
        return self.made(super().layer_norm(self.less(x, "norm"), weight, bias, eps), "norm")

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array:
        return self.made(super().rms_norm(self.less(x, "norm"), weight, eps), "norm")

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return self.made(super().linear(self.less(x, "linear"), self.less(weight, "linear"), bias), "linear")

    def activation(self, x: Array, function: str) -> Array:
        return self.made(super().activation(self.less(x, "activation"), function), "activation")

    def rope(self, x: Array, rope: Any, positions: Array) -> Array:
        return self.made(super().rope(self.less(x, "rope"), rope, positions), "rope")

    def scores(self, q: Array, k: Array, scale: float) -> Array:
        return self.made(super().scores(self.less(q, "scores"), self.less(k, "scores"), scale), "scores")

    def attend(self, scores: Array, v: Array) -> Array:
        return self.made(super().attend(scores, self.less(v, "attend")), "attend")


def _tf32(x: Array) -> Array:
    """The nearest float32 with 10 bits of a significand, to even."""
    bits = x.astype(np.float32).view(np.uint32)
    near = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), near.view(np.float32), x)


ROUNDINGS = {"float16": faults.float16, "bfloat16": faults.bfloat16, "tf32": _tf32}


def engines(count: int, seed: int) -> Iterator[tuple[str, Case]]:
    """What is said of engines that are right but noisy. A name is wrong if it isn't of fewer bits."""
    random = np.random.default_rng([seed, 2])
    families = registry.families()
    for _ in range(count):
        family = families[random.integers(len(families))]
        network, ours = _model(family.name)
        noisy = Noisy(random)
        theirs = Dump(network.run(ours.ids, noisy), {}, "theirs")
        found = compare_dumps(theirs, ours, network)
        case = judged(family.name, (), found)
        if found.diagnosis is not None and all(_of_bits(one, noisy.kind) for one in names(found.diagnosis)):
            case = Case(case.family, (), "named", case.first, case.said)
        yield str(noisy), case


def _of_bits(named: Sequence[Fault], kind: str) -> bool:
    """Whether one of these is a rounding of this kind; TF32 has as many bits as float16."""
    return any(fault.key.endswith("bfloat16" if kind == "bfloat16" else "-float16") for fault in named)


# ---- the command -------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("pairs", "engines"):
        parser.add_argument(f"--{name}", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wrong = 0
    for title, cases in (
        ("pairs of faults", (("", case) for case in pairs(arguments.pairs, arguments.seed))),
        ("right but noisy engines", engines(arguments.engines, arguments.seed)),
    ):
        counted: Counter[str] = Counter()
        for about, case in cases:
            counted[case.outcome] += 1
            if case.outcome == "wrong":
                print(f"WRONG {case.family}: {', '.join(case.made) or about}: at {case.first}: {case.said}", flush=True)
        wrong += counted["wrong"]
        print(f"{title}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(counted.items()))}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
