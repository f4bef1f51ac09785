"""Many sequences together: each thread makes all calls for some of them (csrc/ops/plan.c). The bits are those of each
sequence alone on one thread."""

import itertools
import os
import signal
import time

import encoders
import numpy as np
import pytest
from families import CASES, WIDE, entries_of, family_of, write
from helpers import assert_same_bits, in_threads, num_threads, rng, same_bits
from random_models import random_tensors

import llorch
from llorch import _core
from llorch.testing import use_isa

THREADS = 2
# So many that every product of these small models is worth a block for each thread, with every instruction set; and not
# so many rows that a call at a time would do.
MANY = 240


def parts_made():
    return _core._parts_made()[0]


def chunks_of(lengths, vocabulary, seed=0):
    random = rng(seed)
    return [random.integers(0, vocabulary, length).tolist() for length in lengths]


def alone(model, chunks):
    """Caches, and the logits of every position of each sequence by itself, on one thread."""
    caches = [model.new_cache(64) for _ in chunks]
    with num_threads(1):
        return caches, [model.forward_batch([chunk], [cache]) for chunk, cache in zip(chunks, caches, strict=True)]


def by_integers(path, name, more=WIDE):
    """A small model of a family, in blocks."""
    family, entries = family_of(name), entries_of(name) | {"vocab_size": 131} | more
    write(path, name, entries=entries, tensors=random_tensors(family, family.config(entries)))
    return llorch.CausalLM.from_pretrained(path, dtype="q8_0", compute="int16")


@pytest.fixture(scope="module")
def integers(tmp_path_factory):
    return by_integers(tmp_path_factory.mktemp("granite"), "granite")


LENGTHS = [1 + (7 * i) % 3 for i in range(MANY)]
DEPTHS = [1 + (11 * i) % 9 for i in range(MANY)]


def test_each_sequence_has_its_bits_alone(isa, integers):
    model = integers
    first, chunks = chunks_of(DEPTHS, 131), chunks_of(LENGTHS, 131, 1)
    caches = alone(model, first)[0]
    forks = [cache.fork() for cache in caches]
    with num_threads(1):
        wanted = [model.forward_batch([chunk], [cache]) for chunk, cache in zip(chunks, caches, strict=True)]
    with num_threads(THREADS):
        before = parts_made()
        every = model.forward_batch(chunks, [cache.fork() for cache in forks])
        last = model.step(chunks, forks)
        assert parts_made() == before + 2
    assert_same_bits(every, np.concatenate(wanted))
    assert_same_bits(last, np.stack([rows[-1] for rows in wanted]))
    for fork, cache in zip(forks[:: MANY // 5], caches[:: MANY // 5], strict=True):
        assert_same_bits(fork.keys(1), cache.keys(1))
        assert_same_bits(fork.values(1), cache.values(1))
    assert not same_bits(last, np.roll(last, 1, axis=0))  # the control: rows are no one else's


@pytest.mark.parametrize("name", CASES)
def test_every_family(tmp_path, name):
    model = by_integers(tmp_path, name)
    chunks = chunks_of(LENGTHS, 131)
    wanted = alone(model, chunks)[1]
    with num_threads(2):
        before = parts_made()
        last = model.step(chunks, [model.new_cache(8) for _ in chunks])
        assert parts_made() == before + 1
    assert_same_bits(last, np.stack([rows[-1] for rows in wanted]))


@pytest.mark.parametrize("name", encoders.CASES)
def test_every_encoder(tmp_path, name):
    model = encoders.write(tmp_path, name)
    texts = chunks_of([1 + (i % 12 == 5) for i in range(460)], 67)
    types = [rng(i).integers(0, max(model.types, 1), len(text)) for i, text in enumerate(texts)]
    with num_threads(1):
        wanted = [model.forward(*each) for each in zip(texts, types, strict=True)]
        means = [model._vectors([text], [kinds], "mean") for text, kinds in zip(texts, types, strict=True)]
    with num_threads(2):
        before = parts_made()
        every, first = model.forward_batch(texts, types), model.first_batch(texts, types)
        mean = model._vectors(texts, types, "mean")
        assert parts_made() == before + 3
    assert_same_bits(np.concatenate(every), np.concatenate(wanted))
    assert_same_bits(first, np.stack([rows[0] for rows in wanted]))
    assert_same_bits(mean, np.concatenate(means))


def test_what_is_not_divided(integers):
    """One sequence, one thread, too few rows, too many, sequences of which one is most of the work."""
    model = integers

    def made(lengths, threads=2, run=model.step):
        chunks, before = chunks_of(lengths, 131), parts_made()
        with num_threads(threads):
            run(chunks, [model.new_cache(300) for _ in chunks])
        return parts_made() - before

    assert made([1] * MANY)
    assert not made([1] * MANY, threads=1)
    assert not made([300])
    assert not made([1] * 8)
    assert not made([3] * MANY)
    assert made([160, *[1] * 160], run=model.forward_batch)
    assert not made([300, *[1] * 20], run=model.forward_batch)


def test_parts_are_even_by_what_a_sequence_costs(integers):
    """More tokens or deeper caches first or last: as many rows for each thread would be too uneven, or slow."""
    model = integers
    for lengths in ([5] * 40 + [1] * 250, [1] * 250 + [5] * 40, [2, 1] * 140):
        chunks = chunks_of(lengths, 131)
        wanted = np.stack([rows[-1] for rows in alone(model, chunks)[1]])
        for threads in (2, 3):
            with num_threads(threads):
                before = parts_made()
                got = model.step(chunks, [model.new_cache(9) for _ in chunks])
                assert parts_made() == before + 1
            assert_same_bits(got, wanted)


@pytest.mark.parametrize("deep", [slice(0, 60), slice(180, 240), slice(0, 240, 4)])
def test_deep_caches_among_empty_ones(integers, deep):
    model = integers
    chunks, first = chunks_of([1] * 240, 131), chunks_of([200] * 60, 131, 1)
    caches = [model.new_cache(201) for _ in chunks]
    for cache, chunk in zip(caches[deep], first, strict=True):
        model.step([chunk], [cache])
    with num_threads(1):
        wanted = [model.step([chunk], [cache.fork()])[0] for chunk, cache in zip(chunks, caches, strict=True)]
    with num_threads(2):
        before = parts_made()
        assert_same_bits(model.step(chunks, caches), np.stack(wanted))
        assert parts_made() == before + 1


def test_many_threads_and_fewer_again(integers):
    """More than may help at once; then workers whose numbers are past the number of threads."""
    model = integers
    chunks = chunks_of([1] * 1100, 131)
    wanted = np.stack([rows[-1] for rows in alone(model, chunks)[1]])
    for threads in (12, 2, 5):
        with num_threads(threads):
            before, some = parts_made(), chunks[: 256 * threads]
            for _ in range(5):
                assert_same_bits(model.step(some, [model.new_cache(1) for _ in some]), wanted[: len(some)])
            assert parts_made() == before + 5


def test_threads_that_are_done_help(integers):
    """Uneven parts, until another thread took a chunk of a call: the bits are the same."""
    model = integers
    chunks = chunks_of([1] * 200 + [3] * 31, 131)
    wanted = np.stack([rows[-1] for rows in alone(model, chunks)[1]])
    before = _core._parts_made()[1]
    with num_threads(2):
        for _ in itertools.takewhile(lambda _: _core._parts_made()[1] == before, range(2000)):
            assert_same_bits(model.step(chunks, [model.new_cache(8) for _ in chunks]), wanted)
    assert _core._parts_made()[1] > before


def test_several_callers(integers):
    """One at a time has parts, the others ask for the pool at each call."""
    model = integers
    chunks = chunks_of(LENGTHS, 131)
    wanted = np.stack([rows[-1] for rows in alone(model, chunks)[1]])
    same = []

    def work():
        for _ in range(10):
            same.append(same_bits(model.step(chunks, [model.new_cache(8) for _ in chunks]), wanted))

    with num_threads(2):
        before = parts_made()
        in_threads(work)
        assert before < parts_made() <= before + 40
    assert same == [True] * 40


def test_a_child_of_fork_has_parts_of_its_own(integers):
    model = integers
    chunks = chunks_of(LENGTHS, 131)
    with num_threads(2):
        wanted = model.step(chunks, [model.new_cache(8) for _ in chunks])
        child = os.fork()
        if not child:
            before = parts_made()
            got = model.step(chunks, [model.new_cache(8) for _ in chunks])
            os._exit(0 if same_bits(got, wanted) and parts_made() == before + 1 else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_an_interrupt_ends_all_parts(tmp_path):
    """Well before their end, on both threads; the caches are as they were."""
    model = by_integers(tmp_path, "qwen2", {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 5})
    chunks = chunks_of([1, 2] * 140, 131)
    caches = [model.new_cache(8) for _ in chunks]

    class Stop(Exception):
        pass

    def handler(*_):
        raise Stop

    def together():
        start = time.process_time()
        try:
            return model.step(chunks, caches)
        finally:
            spent.append(time.process_time() - start)

    spent = []
    handled = signal.signal(signal.SIGALRM, handler)
    try:
        with use_isa("generic"), num_threads(2):
            before, start = parts_made(), time.perf_counter()
            wanted = together()
            whole = time.perf_counter() - start
            for cache in caches:
                cache.truncate(0)
            signal.setitimer(signal.ITIMER_REAL, 0.2 * whole)
            with pytest.raises(Stop):
                together()
            assert [len(cache) for cache in caches] == [0] * len(caches)
            assert_same_bits(together(), wanted)
            assert parts_made() == before + 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handled)
    assert spent[1] < 0.8 * spent[0], f"{spent[1]} s of {spent[0]}"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_a_handler_that_computes_changes_nothing(tmp_path):
    """It runs in the midst of a part, maybe of a call that others help with."""
    model = by_integers(tmp_path, "qwen2", {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3})
    chunks, few = chunks_of([1, 2] * 100 + [1] * 60, 131), chunks_of([1] * 200, 131, 1)
    x, w = np.ones((300, 200), np.float32), np.ones((200, 300), np.float32)
    handled, seen = None, []

    def together(each):
        return model.step(each, [model.new_cache(3) for _ in each])

    def handler(*_):
        seen.append(same_bits(together(few), wanted[1]) and (llorch.linear(x, w) == 200).all())

    try:
        with use_isa("generic"), num_threads(2):
            start = time.perf_counter()
            wanted = [together(each) for each in (chunks, few)]
            whole = time.perf_counter() - start
            handled = signal.signal(signal.SIGALRM, handler)
            for part in (0.3, 0.5):
                signal.setitimer(signal.ITIMER_REAL, part * whole)
                assert_same_bits(together(chunks), wanted[0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handled)
    assert seen and all(seen)
