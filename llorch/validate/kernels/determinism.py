"""One hash for a kernel's output, however, wherever and beside whatever it is computed.

A Subject carries the kernel to test, so that the negative control can send an ordinary kernel, whose order of
summation depends on the batch, through the same comparison.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

import llorch
import llorch.testing
from llorch.validate.kernels.common import Array, Check, first_line, normal, sha256, status

GROUP = "Determinism: one SHA-256 of the output"


@dataclass(frozen=True)
class Subject:
    """What is run in every way: call(*members, *shared, out=out) -> y, float32, an entry of y for each member."""

    call: Callable[..., Array]
    members: tuple[Array, ...]  # [entries, ...] each: what a batch consists of
    shared: tuple[Array, ...]  # weights: the same for all entries
    entry: str = "row"

    def on(self, members: Sequence[Array]) -> Array:
        return self.call(*members, *self.shared)

    def run(self) -> Array:
        return self.on(self.members)


@dataclass(frozen=True)
class Plan:
    """How much is run of everything."""

    runs: int = 100
    processes: int = 8
    alignments: int = 16
    threaded: int = 4096  # entries shared between 2 threads
    batches: tuple[int, ...] = (2, 3, 7, 64, 513)


def child_environment() -> dict[str, str]:
    """The environment in which a fresh `python -P -c` imports the same modules as this process."""
    paths = [os.path.abspath(path) for path in sys.path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def process_hashes(code: str, count: int) -> list[str]:
    """What `code` prints, in each of `count` fresh processes, two at a time."""

    def fresh(_: int) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip() if done.returncode == 0 else f"exit status {done.returncode}"

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(fresh, range(count)))


def run_hashes(subject: Subject, runs: int) -> list[str]:
    return [sha256(subject.run()) for _ in range(runs)]


def isa_hashes(subject: Subject) -> dict[str, str]:
    hashes = {}
    for name in llorch.available_isas():
        with llorch.testing.use_isa(name):
            hashes[name] = sha256(subject.run())
    return hashes


def thread_hashes(subject: Subject, entries: int) -> list[str]:
    """The members repeated up to `entries`, so that there is enough work to share, on 1 and on 2 threads."""
    repeats = entries // len(subject.members[0])
    many = [np.concatenate([member] * repeats) for member in subject.members]
    before = llorch.get_num_threads()
    hashes = []
    try:
        for threads in (1, 2):
            llorch.set_num_threads(threads)
            hashes += [sha256(copy) for copy in np.split(subject.on(many), repeats)]
    finally:
        llorch.set_num_threads(before)
    return hashes


def shifted(values: Array, offset: int) -> Array:
    """A copy of float32 values that starts `offset` bytes past a multiple of 64."""
    buffer = np.empty(values.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    copy = np.ndarray(values.shape, np.float32, buffer.data, start)
    copy[...] = values
    return copy


def alignment_hashes(subject: Subject, alignments: int) -> list[str]:
    """Every input and the output at so many addresses, 4 bytes apart, each at another than its neighbours."""
    hashes = []
    values = (*subject.members, *subject.shared, subject.run())
    for k in range(alignments):
        *arrays, out = [shifted(array, 4 * ((k + 5 * turn) % alignments)) for turn, array in enumerate(values)]
        hashes.append(sha256(subject.call(*arrays, out=out)))
    return hashes


def batch_hashes(subject: Subject, batches: Sequence[int]) -> list[str]:
    """Each entry alone, then among random ones: in every batch first, in the middle and last."""
    random = np.random.default_rng(1)
    members, entries = subject.members, range(len(subject.members[0]))
    hashes = [sha256(np.concatenate([subject.on([member[i : i + 1] for member in members]) for i in entries]))]
    for size in batches:
        others = [normal(random, size, *member.shape[1:]) for member in members]
        for place in sorted({0, size // 2, size - 1}):
            alone = []
            for i in entries:
                for other, member in zip(others, members, strict=True):
                    other[place] = member[i]
                alone.append(subject.on(others)[place])
            hashes.append(sha256(np.stack(alone)))
    return hashes


def hash_check(group: str, name: str, what: str, want: str, hashes: Callable[[], list[str]]) -> Check:
    """A row that passes if every hash is the wanted one; one that can't be computed fails this row only."""
    try:
        found = hashes()
    except Exception as error:
        return Check(group, name, "fail", what, f"could not run: {first_line(str(error))}", "1 hash")
    distinct = sorted(set(found))
    return Check(
        group,
        name,
        status(distinct == [want]),
        what,
        f"{len(distinct)} hash{'es' if len(distinct) > 1 else ''} in {len(found):,}",
        "1 hash, the same",
        "" if distinct == [want] else f"wanted {want}, got {', '.join(distinct[:4])}",
        data={"hashes": distinct, "computed": len(found)},
    )


def control_check(group: str, hashes: Sequence[str], library: str = "") -> Check:
    """The negative control's row: `hashes` come from an ordinary kernel, and must not all be the same.

    With `library`, they come from a real one, whose order of summation is its own affair: the row is for information.
    """
    distinct = sorted(set(hashes))
    shows = "hashes, the difference shows" if len(distinct) > 1 else "hash, no difference shows"
    return Check(
        group,
        f"control: {library or 'an ordinary kernel'}",
        "info" if library else status(len(distinct) > 1),
        "A kernel whose order of summation depends on the batch, through the same comparison: it must show."
        if not library
        else f"{library}, on this machine, through the same comparison.",
        f"{len(distinct)} {shows}",
        "none: its own rule" if library else "more than 1",
        data={"hashes": distinct},
    )


def every_way(subject: Subject, plan: Plan, fresh: str, group: str = GROUP) -> Iterator[Check]:
    """All of the above. fresh: Python code that prints the hash of the subject's output in a process of its own."""
    want = sha256(subject.run())
    entry, isas = subject.entry, llorch.available_isas()
    rows: tuple[tuple[str, str, Callable[[], list[str]]], ...] = (
        (f"{plan.runs} runs", "The same call, repeated.", lambda: run_hashes(subject, plan.runs)),
        (
            f"{plan.processes} fresh processes",
            "A new Python process each.",
            lambda: process_hashes(fresh, plan.processes),
        ),
        (
            f"every ISA: {', '.join(isas)}",
            "Every instruction-set path that this CPU can run.",
            lambda: list(isa_hashes(subject).values()),
        ),
        (
            "1 and 2 threads",
            f"The {entry}s repeated up to {plan.threaded}, every copy hashed.",
            lambda: thread_hashes(subject, plan.threaded),
        ),
        (
            f"{plan.alignments} alignments",
            "Every input and the output at addresses 4 bytes apart.",
            lambda: alignment_hashes(subject, plan.alignments),
        ),
        (
            f"alone, batches of {', '.join(map(str, plan.batches))}",
            f"Each {entry} alone and first, in the middle and last among random {entry}s.",
            lambda: batch_hashes(subject, plan.batches),
        ),
    )
    for name, what, hashes in rows:
        yield hash_check(group, name, what, want, hashes)
