"""One hash for the checkpoint's output, however, wherever and beside whatever it is computed.

Every function takes the kernel to test, so that the negative control can send an ordinary kernel, whose order of
summation depends on the batch, through the same comparison.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import llorch
import llorch.testing

from . import Array, Check, Kernel, first_line, mutations, sha256, status

GROUP = "Determinism: one SHA-256 of the output"
RUNS, PROCESSES, ALIGNMENTS, THREADED_ROWS = 100, 8, 16, 4096
BATCHES = (2, 3, 7, 64, 513)


def child_environment() -> dict[str, str]:
    """The environment in which a fresh `python -P -c` imports the same modules as this process."""
    paths = [os.path.abspath(path) for path in sys.path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def process_hashes(count: int = PROCESSES) -> list[str]:
    """The hash from each of `count` fresh processes, two at a time."""
    code = "from llorch.validation import checkpoint_01; print(checkpoint_01.output_hash())"

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


def run_hashes(kernel: Kernel, x: Array, weight: Array, bias: Array, eps: float) -> list[str]:
    return [sha256(kernel(x, weight, bias, eps=eps)) for _ in range(RUNS)]


def isa_hashes(kernel: Kernel, x: Array, weight: Array, bias: Array, eps: float) -> dict[str, str]:
    hashes = {}
    for name in llorch.available_isas():
        with llorch.testing.use_isa(name):
            hashes[name] = sha256(kernel(x, weight, bias, eps=eps))
    return hashes


def thread_hashes(kernel: Kernel, x: Array, weight: Array, bias: Array, eps: float) -> list[str]:
    """The rows repeated up to 4096, so that there is enough work to share, on 1 and on 2 threads."""
    repeats = THREADED_ROWS // len(x)
    many = np.tile(x, (repeats, 1))
    before = llorch.get_num_threads()
    hashes = []
    try:
        for threads in (1, 2):
            llorch.set_num_threads(threads)
            y = kernel(many, weight, bias, eps=eps).reshape(repeats, *x.shape)
            hashes += [sha256(copy) for copy in y]
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


def alignment_hashes(kernel: Kernel, x: Array, weight: Array, bias: Array, eps: float) -> list[str]:
    """x, weight, bias and the output at 16 addresses, 4 bytes apart, each at another than its neighbours."""
    hashes = []
    for k in range(ALIGNMENTS):
        at = [4 * ((k + turn) % ALIGNMENTS) for turn in (0, 5, 10, 15)]
        arrays = [shifted(array, offset) for array, offset in zip((x, weight, bias, x), at, strict=True)]
        out = arrays.pop()
        hashes.append(sha256(kernel(*arrays, eps=eps, out=out)))
    return hashes


def batch_hashes(kernel: Kernel, x: Array, weight: Array, bias: Array, eps: float) -> list[str]:
    """Each row alone, then among random rows: in every batch first, in the middle and last."""
    random = np.random.default_rng(1)
    hashes = [sha256(np.concatenate([kernel(row[None], weight, bias, eps=eps) for row in x]))]
    for size in BATCHES:
        others = random.standard_normal((size, x.shape[1])).astype(np.float32)
        for place in sorted({0, size // 2, size - 1}):
            alone = []
            for row in x:
                others[place] = row
                alone.append(kernel(others, weight, bias, eps=eps)[place])
            hashes.append(sha256(np.stack(alone)))
    return hashes


def ordinary_kernel(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    """The negative control: the same formula, with a plan that depends on the batch, as ordinary libraries have.

    A row alone is summed in 8 lanes, rows in a batch from left to right.
    """
    return mutations.layer_norm(x, weight, bias, eps=eps, lanes=8 if len(x) == 1 else 1)


def checks(x: Array, weight: Array, bias: Array, eps: float) -> Iterator[Check]:
    """x float32 [2, 1024], weight and bias float32 [1024]: the checkpoint's."""
    inputs = (x, weight, bias, eps)

    kernel = llorch.layer_norm
    want = sha256(kernel(x, weight, bias, eps=eps))

    def one_hash(name: str, what: str, hashes: Callable[[], list[str]]) -> Check:
        try:
            found = hashes()
        except Exception as error:
            return Check(GROUP, name, "fail", what, f"could not run: {first_line(str(error))}", "1 hash")
        distinct = sorted(set(found))
        return Check(
            GROUP,
            name,
            status(distinct == [want]),
            what,
            f"{len(distinct)} hash{'es' if len(distinct) > 1 else ''} in {len(found):,}",
            "1 hash, the same",
            "" if distinct == [want] else f"wanted {want}, got {', '.join(distinct[:4])}",
            data={"hashes": distinct, "computed": len(found)},
        )

    isas = llorch.available_isas()
    yield one_hash(f"{RUNS} runs", "The same call, repeated.", lambda: run_hashes(kernel, *inputs))
    yield one_hash(f"{PROCESSES} fresh processes", "A new Python process each.", process_hashes)
    yield one_hash(
        f"every ISA: {', '.join(isas)}",
        "Every instruction-set path that this CPU can run.",
        lambda: list(isa_hashes(kernel, *inputs).values()),
    )
    yield one_hash(
        "1 and 2 threads",
        f"The two rows repeated up to {THREADED_ROWS}, every copy hashed.",
        lambda: thread_hashes(kernel, *inputs),
    )
    yield one_hash(
        f"{ALIGNMENTS} alignments",
        "x, weight, bias and the output at addresses 4 bytes apart.",
        lambda: alignment_hashes(kernel, *inputs),
    )
    yield one_hash(
        f"alone, batches of {', '.join(map(str, BATCHES))}",
        "Each row alone and first, in the middle and last among random rows.",
        lambda: batch_hashes(kernel, *inputs),
    )

    control = sorted(set(batch_hashes(ordinary_kernel, *inputs)))
    yield Check(
        GROUP,
        "control: an ordinary kernel",
        status(len(control) > 1),
        "A kernel whose order of summation depends on the batch, through the same comparison: it must show.",
        f"{len(control)} hashes, the difference shows",
        "more than 1",
        data={"hashes": control},
    )
