"""The validator. The ladder on a model, and the kernels by themselves.

ladder, trace, climb    the tensors of the ladder; where they come from; all of them compared
dumps, compare          files of any engine, lined up; the first that diverges, and the fault that gives it
faults, selftest        known faults, each a change to the traced oracle; all of them injected and found
show, page              what is printed, and the page of HTML

The kernels (`llorch validate --kernels`): one module a checkpoint, each a list of steps that yield checks.

checkpoint_01   LayerNorm: oracle, exact result, published values, and the three below
checkpoint_02   Q, K and V; blocks: attention and the feed-forward layer
peers           the same input through PyTorch, ONNX Runtime, Candle and Mistral.rs
determinism     one hash over runs, processes, instruction sets, threads, alignments and batches
mutations       wrong kernels that the comparison has to catch
report          the table, the Markdown report and the JSON
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Status = Literal["pass", "fail", "skip", "info"]  # info: shown, no promise hangs on it
Array = NDArray[Any]


@dataclass(frozen=True)
class Check:
    """One row of the table: what was measured, and the bound that decided its status."""

    group: str
    name: str
    status: Status
    what: str  # one sentence, for the report
    measured: str
    bound: str = ""
    detail: str = ""
    data: dict[str, Any] = field(default_factory=dict)  # JSON values: numbers, hashes, versions


@dataclass(frozen=True)
class Step:
    """A part of a checkpoint that runs on its own; one that raises becomes a failed check."""

    group: str
    title: str
    checks: Callable[[], Iterable[Check]]


def run(steps: Sequence[Step], started: Callable[[Step], None] = lambda step: None) -> Iterator[Check]:
    """Runs the steps in order and yields their checks; `started` is called before each step."""
    for step in steps:
        started(step)
        try:
            yield from step.checks()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            what = "The step itself raised an exception."
            yield Check(step.group, step.title, "fail", what, f"could not run: {message}")


def status(holds: object) -> Status:
    return "pass" if holds else "fail"


def at_most(bound: float) -> str:
    return f"<= {bound:.0e}".replace("e-0", "e-")


def sha256(values: Array) -> str:
    """SHA-256 of the values as little-endian float32 in C order."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""
