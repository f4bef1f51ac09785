"""Bad input is named and refused before anything is computed; nothing is lost and nothing crashes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import normal

import llorch

X = normal(3, 8)
W = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: llorch.layer_norm(X.astype(np.float64)), TypeError, r"x is float64.*x\.astype\(np\.float32\)"),
        (lambda: llorch.layer_norm(X, W.astype(np.float64)), TypeError, r"weight is float64.*weight\.astype"),
        (lambda: llorch.layer_norm(X, W, W.astype(np.int32)), TypeError, r"bias has elements of type int32"),
        (lambda: llorch.layer_norm(X.astype(">f4")),
         TypeError, "x has elements of type float32 of the other byte order"),
        (lambda: llorch.layer_norm(X.astype(np.complex64)), TypeError, "x has elements of type complex64"),
        (lambda: llorch.layer_norm(np.array(["a"])), TypeError, "x has elements of type str"),
        (lambda: llorch.layer_norm(np.array(["2020"], "M8[s]")), TypeError, "x has elements of type datetime64"),
        (lambda: llorch.layer_norm(np.zeros(3, "f4,f4")), TypeError, "x has elements of type"),
        (lambda: llorch.layer_norm(np.array([None])), TypeError, "x has elements of type object"),
        (lambda: llorch.layer_norm([1.0, 2.0]), TypeError, "x must be an array.*got list"),
        (lambda: llorch.layer_norm(None), TypeError, "x must be an array.*got NoneType"),
        (lambda: llorch.layer_norm(b"abcd"), TypeError, "x has elements of type"),
        (lambda: llorch.layer_norm(np.float32(1)), ValueError, r"x has no axis.*\(\)"),
        (lambda: llorch.layer_norm(X, W[:7]), ValueError, r"weight has shape \(7,\), it must be \(8,\)"),
        (lambda: llorch.layer_norm(X, X), ValueError, r"weight has shape \(3, 8\), it must be \(8,\)"),
        (lambda: llorch.layer_norm(X, W, np.ones(9, np.float32)), ValueError, r"bias has shape \(9,\)"),
        (lambda: llorch.rms_norm(X, W[:1]), ValueError, r"weight has shape \(1,\)"),
        (lambda: llorch.layer_norm(X, eps=-1e-9), ValueError, "eps must be finite.*-1e-09"),
        (lambda: llorch.layer_norm(X, eps=float("nan")), ValueError, "eps must be finite.*nan"),
        (lambda: llorch.layer_norm(X, eps=float("inf")), ValueError, "eps must be finite.*inf"),
        (lambda: llorch.layer_norm(X, eps=1e39), ValueError, r"eps must be finite.*1e\+39"),
        (lambda: llorch.layer_norm(X, eps="1e-5"), TypeError, "eps must be a number, got str"),
        (lambda: llorch.layer_norm(X, eps=10**400), ValueError, "eps must be finite in float32, got int too large"),
        (lambda: llorch.layer_norm(X, eps=np.complex64(1 + 1j)), TypeError, "eps must be a number, got complex64"),
        (lambda: llorch.layer_norm(X, eps=None), TypeError, "eps must be a number, got NoneType"),
        (lambda: llorch.layer_norm(X, out=np.empty((3, 7), np.float32)),
         ValueError, r"out has shape \(3, 7\).*\(3, 8\)"),
        (lambda: llorch.layer_norm(X, out=np.empty((24,), np.float32)), ValueError, r"out has shape \(24,\)"),
        (lambda: llorch.layer_norm(X, out=np.empty((3, 8), np.float16)), TypeError, "out is float16.*float32"),
        (lambda: llorch.layer_norm(X, out=np.broadcast_to(np.float32(0), (3, 8))), ValueError, "out is read-only"),
        (lambda: llorch.add_layer_norm(X, X[:2]), ValueError, r"residual has shape \(2, 8\).*\(3, 8\)"),
        (lambda: llorch.add_layer_norm(X, X.astype(np.float16)), TypeError, "residual is float16.*float32"),
        (lambda: llorch.add_layer_norm(X, X, sum_out=np.empty(3, np.float32)), ValueError, r"sum_out has shape \(3,\)"),
        (lambda: llorch.layer_norm(np.broadcast_to(np.float32(1), (1, 2**24 + 1))), ValueError, r"2\*\*24"),
        (lambda: llorch.set_num_threads(0), ValueError, "at least 1, got 0"),
        (lambda: llorch.set_num_threads(-3), ValueError, "at least 1, got -3"),
        (lambda: llorch.set_num_threads("2"), TypeError, "n must be an int, got str"),
        (lambda: llorch.set_num_threads(1.5), TypeError, "n must be an int, got float"),
    ],
)  # fmt: skip
def test_message(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_overlaps_are_refused_and_nothing_is_written():
    base = normal(100)
    before = base.copy()
    x = base[:24].reshape(3, 8)
    window = np.lib.stride_tricks.as_strided
    for out, message in (
        (base[8:32].reshape(3, 8), "out overlaps x in part"),
        (base[1:25].reshape(3, 8), "out overlaps x in part"),
        (base[:24].reshape(3, 8)[::-1], "out overlaps x in part"),
        (window(base, (3, 8), (16, 4)), "out overlaps itself"),
        (window(base[50:], (3, 8), (0, 4)), "out overlaps itself"),
    ):
        with pytest.raises(ValueError, match=message):
            llorch.layer_norm(x, out=out)
    with pytest.raises(ValueError, match="out overlaps weight"):
        llorch.layer_norm(x, base[40:48], out=base[40:64].reshape(3, 8))
    with pytest.raises(ValueError, match="out overlaps bias"):
        llorch.layer_norm(x, None, base[40:48], out=base[33:57].reshape(3, 8))
    with pytest.raises(ValueError, match="out overlaps sum_out"):
        llorch.add_layer_norm(x, x, out=base[40:64].reshape(3, 8), sum_out=base[40:64].reshape(3, 8))
    with pytest.raises(ValueError, match="sum_out overlaps residual"):
        llorch.add_layer_norm(x, base[40:64].reshape(3, 8), sum_out=base[41:65].reshape(3, 8))
    assert (base == before).all()


def run(code="import llorch; print(llorch.isa(), llorch.get_num_threads())", **environment):
    return subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_forced_instruction_set():
    for name in llorch.available_isas():
        assert run(LLORCH_ISA=name).stdout.split()[0] == name
    failed = run(LLORCH_ISA="avx9")
    assert failed.returncode and "LLORCH_ISA: instruction set 'avx9' is unknown" in failed.stderr
    assert run(LLORCH_ISA="").returncode == 0
    with pytest.raises(ValueError, match="'sse' is unknown"), llorch.testing.use_isa("sse"):
        pass


def test_detection_is_what_the_system_says():
    try:
        with open("/proc/cpuinfo") as f:
            flags = next(
                (set(line.split(":")[1].split()) for line in f if line.startswith(("flags", "Features"))), set()
            )
    except OSError:
        pytest.skip("no /proc/cpuinfo on this system")
    available = llorch.available_isas()
    assert ("avx2" in available) == ({"avx2", "fma", "f16c"} <= flags)
    assert ("avx512" in available) == ({"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags)
    assert available[-1] == "generic" and llorch.isa() == available[0]


def huge(*shape):
    """Zeros of this shape over a row of memory that only the last axis has, and that is never touched."""
    return np.broadcast_to(np.zeros(shape[-1], np.float32), shape)


def test_no_memory_is_an_error_and_changes_nothing():
    """More than an address space holds: a MemoryError that says for what, and the next call works."""
    cache = llorch.KVCache(2**24, 2**24, 8)
    k = huge(2**24, 1, 2**24)
    for call, message in (
        (lambda: cache.append(k, k), "a block of [0-9]+ bytes"),
        (lambda: llorch.PackedLinear(huge(2**24, 2**24)), "a packed weight of 1125899906842624 bytes"),
        (lambda: llorch.linear(huge(2**26, 2**24), np.zeros((2**24, 1), np.float32)), "[0-9]+ bytes of working space"),
        (lambda: llorch.softmax(np.broadcast_to(np.float32(0), (2**24, 2**24))), None),
    ):
        with pytest.raises(MemoryError, match=message):
            call()
    assert (len(cache), cache.nbytes, cache.keys.shape) == (0, 0, (2**24, 0, 2**24))
    assert llorch.linear(X, np.ones((8, 2), np.float32)).shape == (3, 2)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's limit of the address space")
def test_no_memory_to_attend():
    code = """
import resource, numpy as np, llorch
q = np.zeros((2, 1, 1 << 22), np.float32)
out = np.full_like(q, 7)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    llorch.attention(q, q, q, out=out)  # a chunk of 128 keys and values takes 4 GB
except MemoryError as error:
    assert "no memory to work in: 2 heads, 1 queries of 1 positions" in str(error), error
else:
    raise SystemExit("attention found more memory than there is")
assert (out == 7).all()
x = np.ones((2, 3, 4), np.float32)
assert (llorch.attention(x, x, x) == 1).all()
"""
    found = {"PYTHONPATH": os.path.dirname(os.path.dirname(llorch.__file__)), "LLORCH_NUM_THREADS": "1"}
    done = run(code, **found)
    assert done.returncode == 0, done.stderr


def test_results_survive_errors():
    """An error in the last argument leaves no lock and no buffer behind."""
    x = bytearray(64)
    view = memoryview(x).cast("f")
    with pytest.raises(ValueError, match="out has shape"):
        llorch.layer_norm(view, out=np.empty(3, np.float32))
    del view
    x.extend(b"more")  # BufferError if the view were still held
