"""Threads: they change no bit, survive fork, cost nothing when idle, and can be limited from outside."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import threadpoolctl
from helpers import assert_same_bits, in_threads, normal, num_threads

import llorch

LARGE = (3000, 1024)


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def child_of_fork(queue):
    llorch.set_num_threads(2)
    queue.put(llorch.layer_norm(normal(*LARGE)).tobytes())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_fork_after_use():
    with num_threads(2):
        wanted = llorch.layer_norm(normal(*LARGE)).tobytes()
        context = multiprocessing.get_context("fork")
        for _ in range(3):
            queue = context.Queue()
            child = context.Process(target=child_of_fork, args=(queue,))
            child.start()
            assert queue.get(timeout=30) == wanted
            child.join(30)
            assert child.exitcode == 0
        assert llorch.layer_norm(normal(*LARGE)).tobytes() == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_while_another_thread_computes():
    x = normal(*LARGE)
    stop = threading.Event()
    with num_threads(2):
        busy = threading.Thread(target=lambda: [llorch.layer_norm(x) for _ in iter(stop.is_set, True)])
        busy.start()
        try:
            for _ in range(20):
                child = os.fork()
                if not child:
                    llorch.layer_norm(x)
                    os._exit(0)
                deadline = time.monotonic() + 30
                while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
                    time.sleep(0.001)
                if done == (0, 0):
                    os.kill(child, 9)
                    os.waitpid(child, 0)
                assert done[0] == child and done[1] == 0, "the child hangs in its first call"
        finally:
            stop.set()
            busy.join()


def test_python_threads_at_once():
    inputs = [normal(800 + i, 1024, seed=i) for i in range(4)]
    wanted = [llorch.layer_norm(x) for x in inputs]
    results: dict[tuple[int, int], object] = {}

    def work(i):
        for k in range(30):
            results[i, k] = llorch.layer_norm(inputs[i])

    with num_threads(3):
        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    assert len(results) == 120
    for (i, _), y in results.items():
        assert_same_bits(y, wanted[i])


def test_threads_sharing_their_input_and_weights():
    x, w, b = normal(5, 768), normal(768, seed=1), normal(768, seed=2)
    wanted = llorch.layer_norm(x, w, b)
    wrong = []

    def work():
        wrong.extend(1 for _ in range(2000) if llorch.layer_norm(x, w, b).tobytes() != wanted.tobytes())

    in_threads(work)
    assert not wrong


def test_their_number_changes_while_others_compute():
    """What a call plans for so many threads it also does for so many."""
    k, q = normal(2, 400, 16), normal(300, 6 * 16, seed=1).reshape(300, 6, 16).transpose(1, 0, 2)
    x, packed = normal(400, 300), llorch.PackedLinear(normal(300, 600, seed=1), dtype="bfloat16")
    cache = llorch.KVCache(2, 16, 400)
    cache.append(k, k)
    wanted, stop = (cache.attention(q), packed(x)), threading.Event()

    def change():
        while not stop.is_set():
            for threads in (1, 8, 3):
                llorch.set_num_threads(threads)

    with num_threads(2):
        changing = threading.Thread(target=change)
        changing.start()
        try:
            for _ in range(150):
                assert_same_bits(cache.attention(q), wanted[0])
                assert_same_bits(packed(x), wanted[1])
        finally:
            stop.set()
            changing.join()


SHOW = "import llorch; print(llorch.get_num_threads())"


def test_environment_variable():
    assert run(SHOW, LLORCH_NUM_THREADS="3").stdout.strip() == "3"
    assert run(SHOW, LLORCH_NUM_THREADS="").returncode == 0
    for value in ("0", "two", "-1", "1.5"):
        failed = run(SHOW, LLORCH_NUM_THREADS=value)
        assert (
            failed.returncode and f"LLORCH_NUM_THREADS must be an integer of at least 1, got {value!r}" in failed.stderr
        )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_respected():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); " + SHOW
    assert run(code, LLORCH_NUM_THREADS="").stdout.strip() == "1"


def test_threadpoolctl_sees_and_limits():
    def ours():
        return [pool for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "llorch"]

    with num_threads(2):
        assert [pool["num_threads"] for pool in ours()] == [2]
        with threadpoolctl.threadpool_limits(1):
            assert llorch.get_num_threads() == 1
        assert llorch.get_num_threads() == 2


COUNT = "len(__import__('os').listdir('/proc/self/task'))"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc to count threads")
def test_no_thread_before_it_is_needed_and_none_busy_when_idle():
    code = f"""
import time, numpy as np, llorch
before = {COUNT}
llorch.set_num_threads(2)
llorch.layer_norm(np.ones((4, 768), np.float32))
assert {COUNT} == before, "small work made a thread"
x = np.ones((4000, 1024), np.float32)
llorch.set_num_threads(1)
llorch.layer_norm(x)
assert {COUNT} == before, "one thread was allowed, another was made"
llorch.set_num_threads(2)
llorch.layer_norm(x)
assert {COUNT} == before + 1, "two threads were allowed, none was made"
used = time.process_time()
time.sleep(0.5)
used = time.process_time() - used
assert used < 0.05, f"{{used}} s of processor time in 0.5 s of rest"
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


# ---- interrupts -----------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np, llorch
from llorch import _core
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background may ignore it
llorch.set_num_threads({threads})
r = np.random.default_rng(0)
x, w = (r.standard_normal((3000, 3000)).astype(np.float32) for _ in range(2))
q = r.standard_normal((24, 3000, 64)).astype(np.float32)
packed = llorch.PackedLinear(w)
cache = llorch.KVCache(24, 64, 3000)
cache.append(q, q)
calls = dict(
    linear=lambda x: llorch.linear(x, w),
    packed=lambda x: packed(x),
    attention=lambda q: llorch.attention(q, q, q, causal=False),
    cache=lambda q: cache.attention(q, causal=False),
)
smalls = dict(linear=x[:50], packed=x[:50], attention=q[:2, :50], cache=q[:, -50:])
parts = dict(linear=lambda n: x[:n], packed=lambda n: x[:n], attention=lambda n: q[:n], cache=lambda n: q[:, -n:])

def lasting(name):
    # all of its input, or what takes two seconds where a sanitizer would take a minute
    few, most = (1, 24) if name == "attention" else (50, 3000)
    start = time.process_time()
    calls[name](parts[name](few))
    each = (time.process_time() - start) / few
    return parts[name](min(most, max(few, int(2 / each))))

def press():
    time.sleep(0.04)
    os.kill(os.getpid(), signal.SIGINT)

for name in {names}:
    call, small = calls[name], smalls[name]
    wanted = call(small).tobytes()
    large = lasting(name)
    {before}
    def whole():
        start = time.process_time()  # whatever else the machine does
        call(large)
        return time.process_time() - start
    first = whole()

    presser = threading.Thread(target=press)
    start = time.process_time()
    presser.start()
    word = "interrupted"
    try:
        call(large)
        word = "ran on"
    except KeyboardInterrupt:
        pass
    took = time.process_time() - start
    presser.join()
    print(name, word, min(first, whole()), took)  # the shorter: a neighbour may have slowed one of them
    assert call(small).tobytes() == wanted, "other bits after an interrupt"
    assert call(small).tobytes() == wanted
"""
LONG_CALLS = ("linear", "packed", "attention", "cache")


def interrupted(names, threads, before=""):
    """Of each call by name: whether it was interrupted, how long it takes, and how long it took then."""
    done = run(INTERRUPTED.format(names=names, threads=threads, before=before))
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
    assert [what.split()[0] for what, *_ in lines] == list(names)
    return [(what.split(maxsplit=1)[1], float(whole), float(took)) for what, whole, took in lines]


@pytest.mark.parametrize("threads", (1, 2))  # .ci/sanitize names the first
def test_ctrl_c_ends_a_long_call(threads):
    """Well before its end, on one thread too; the same process computes right bits afterwards."""
    for name, (word, whole, took) in zip(LONG_CALLS, interrupted(LONG_CALLS, threads), strict=True):
        assert word == "interrupted", name
        assert took < 0.8 * whole, f"{name}: {took} s of {whole}"


def test_the_interrupt_check_can_fail():
    """Negative control: without a hook a call goes on to its end; Python raises only then."""
    ((word, whole, took),) = interrupted(("linear",), 1, "_core._without_interrupts()")
    assert word == "interrupted" and took > 0.8 * whole, f"{took} s of {whole}"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_a_handler_that_returns_stops_nothing_and_one_that_raises_is_heard():
    x, w = normal(2000, 2000), normal(2000, 2000, seed=1)
    start = time.process_time()
    llorch.linear(x[:50], w)
    x = x[: max(50, int(50 / (time.process_time() - start)))]  # under a sanitizer those of a second
    wanted = llorch.linear(x, w)
    seen = []

    class Stop(Exception):
        pass

    def handler(*_):
        seen.append(1)
        if raises:
            raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with num_threads(1):
            raises = False
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            assert_same_bits(llorch.linear(x, w), wanted, "a handler that returns")
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert seen
            raises = True
            with pytest.raises(Stop):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                for _ in range(100):
                    llorch.linear(x, w)
            assert_same_bits(llorch.linear(x, w), wanted, "after it")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_other_threads_are_not_interrupted():
    """Python gives signals to the main thread; what a worker thread of the host computes goes on."""
    code = """
import os, signal, threading, time
import numpy as np, llorch
signal.signal(signal.SIGINT, signal.default_int_handler)
llorch.set_num_threads(1)
w = np.random.default_rng(0).standard_normal((1500, 1500)).astype(np.float32)
start = time.process_time()
llorch.linear(w[:50], w)
x = w[: max(50, int(50 / (time.process_time() - start)))]  # under a sanitizer those of a second
wanted, results = llorch.linear(x, w).tobytes(), []
worker = threading.Thread(target=lambda: results.extend(llorch.linear(x, w).tobytes() for _ in range(5)))
worker.start()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
worker.join()
assert results == [wanted] * 5
"""
    done = run(code)
    assert done.returncode == 0 and done.stdout.strip() == "interrupted", done.stderr


def test_an_interrupted_append_leaves_the_cache_as_it_was():
    """The check is asked in the middle of a write of many heads; a cache that is half written keeps its length."""
    code = """
import os, signal, threading, time
import numpy as np, llorch
signal.signal(signal.SIGINT, signal.default_int_handler)
llorch.set_num_threads(1)
r = np.random.default_rng(0)
k = np.resize(r.standard_normal(1000003).astype(np.float16), (400, 2600, 64))  # drawn whole it would take seconds
cache = llorch.KVCache(400, 64, 3000)
cache.append(k[:, :100], k[:, :100])
keys, used = cache.keys.tobytes(), cache.nbytes
def press():
    time.sleep(0.06)
    os.kill(os.getpid(), signal.SIGINT)
presser = threading.Thread(target=press)
try:
    presser.start()
    cache.append(k[:, 100:], k[:, 100:])
except KeyboardInterrupt:
    pass
presser.join()
if len(cache) == 100:
    print("interrupted")
    assert cache.nbytes == used
assert cache.keys[:, :100].tobytes() == keys
cache.truncate(100)
cache.append(k[:, 100:300], k[:, 100:300])
assert cache.keys.tobytes() == k[:, :300].astype(np.float32).tobytes()
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc to count threads")
def test_many_threads_allowed_make_no_more_than_there_is_work():
    code = f"""
import numpy as np, llorch
wanted = llorch.layer_norm(np.ones((40, 1024), np.float32)).tobytes()
before = {COUNT}
llorch.set_num_threads(256)
llorch.layer_norm(np.ones((40, 1024), np.float32))
assert {COUNT} - before < 10, f"{{{COUNT} - before}} threads for 40 rows"
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc to tell memory")
def test_threads_take_no_memory_but_their_stacks():
    """Else the C library reserves 64 MB for each, and ends a process that has no room for them."""
    code = f"""
import time
import numpy as np, llorch
from llorch import _core
def size():
    return int(open("/proc/self/statm").read().split()[0]) * 4096
x = np.ones((16000, 1024), np.float32)
llorch.set_num_threads(1)
y = llorch.layer_norm(x)
threads, before = {COUNT}, size()
llorch.set_num_threads(16)
llorch.layer_norm(x, out=y)
time.sleep(0.2)
assert {COUNT} - threads == 15
assert size() - before < 15 * (1 << 20), f"{{(size() - before) >> 20}} MB for 15 threads"

model, made = llorch.CausalLM.from_pretrained("shakespeare-1m", compute="int16", dtype="q8_0"), _core._parts_made()[0]
chunks = [[1] * 3] * 600
for threads in (1, 8):
    llorch.set_num_threads(threads)
    before = size()
    model.step(chunks, [model.new_cache(4) for _ in chunks])
assert _core._parts_made()[0] == made + 1
assert size() - before < 64 * (1 << 20), f"{{(size() - before) >> 20}} MB for parts by 8 threads"
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of address space")
def test_256_threads_and_little_memory():
    """Where threads can't be made, those that are there do the work; small calls go on."""
    code = """
import resource
import numpy as np, llorch
x, w = (np.random.default_rng(i).standard_normal((600, 1500)).astype(np.float32) for i in range(2))
q = x.reshape(12, 750, 100)
llorch.set_num_threads(1)
wanted = llorch.linear(x, w.T).tobytes(), llorch.attention(q, q, q).tobytes()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
llorch.set_num_threads(256)
for _ in range(3):
    assert llorch.linear(x, w.T).tobytes() == wanted[0]
    assert llorch.attention(q, q, q).tobytes() == wanted[1]
    llorch.layer_norm(x[:3])
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
