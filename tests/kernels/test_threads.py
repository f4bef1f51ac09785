"""Threads: they change no bit, survive fork, cost nothing when idle, and can be limited from outside."""

import multiprocessing
import os
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
