"""Models whose weights are of several types: each is kept as it is, and the bits are those of its values. The threads
that read and pack."""

import itertools
import threading
import time
from functools import partial

import numpy as np
import pytest
from families import GRAPHS, ids_of, made, write
from gpt2_models import NUMPY
from helpers import assert_same_bits, same_bits

from llorch.models import loading

TYPES = ("bfloat16", "float32", "bfloat16", "float16", "float16")


def of_several_types(tensors):
    """Matrices in turns in all types, in runs of several lengths; and all in float32. The embedding's type also rounds
    its factor, so it is float32."""
    types = itertools.cycle(TYPES)
    mixed = {
        name: v.astype(NUMPY[next(types)]) if v.ndim > 1 and "embed" not in name else v for name, v in tensors.items()
    }
    return mixed, {name: v.astype(np.float32) for name, v in mixed.items()}


@pytest.mark.parametrize(("name", "switch"), GRAPHS, ids=lambda each: each)
def test_layers_side_by_side_keep_their_own_types(tmp_path, name, switch):
    """Negative control: what a type has rounded is seen."""
    mixed, wide = of_several_types(made(name, switch)[2])
    model, ids = write(tmp_path / "mixed", name, switch, tensors=mixed), ids_of()
    kept = [[part.weight.dtype for part in parts] for parts in model._weights.packed.values()]
    assert {dtype for parts in kept for dtype in parts} == set(TYPES)
    assert all(a != b for parts in kept for a, b in itertools.pairwise(parts))
    plain = write(tmp_path / "wide", name, switch, tensors=wide)
    assert_same_bits(model.forward(ids), plain.forward(ids))
    assert model.nbytes < 0.8 * plain.nbytes
    assert not same_bits(model.forward(ids), write(tmp_path / "raw", name, switch).forward(ids))


def test_a_group_has_a_call_for_each_of_its_runs(tmp_path):
    """Queries and keys together, values apart, with their biases, in one buffer; a trace sees all three."""
    tensors = dict(made("qwen3", "biases")[2])
    for key in tensors:
        if "v_proj.weight" in key:
            tensors[key] = tensors[key].astype(np.float16)
    model, ids, seen = write(tmp_path / "m", "qwen3", "biases", tensors=tensors), ids_of(9), {}
    first, second = model._weights.packed["layers.0.self_attn.q_proj"]
    assert (list(first.columns.values()), list(second.columns.values())) == ([0, 96], [128])
    assert [part.weight.out_features for part in (first, second)] == [128, 32]
    got = model.forward(ids, trace=lambda key, values: seen.__setitem__(key, values.copy()))
    assert_same_bits(got, model.forward(ids))
    for part, name in ((first, "q"), (second, "v")):
        flat = seen[f"h.0.attn.{name}_flat"]
        assert_same_bits(flat, part.weight(seen["h.0.ln_1"])[:, : flat.shape[1]])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_the_jobs(threads):
    """Each is done once, with a reader that only its thread has."""
    seen, shown = [], []

    def note(i, reader):
        seen.append((i, threading.get_ident(), id(reader)))

    loading.run([loading.Job(3, partial(note, i)) for i in range(200)], threads, shown.append)
    assert sorted(i for i, _, _ in seen) == list(range(200)) and all(n % 3 == 0 and n <= 600 for n in shown)
    assert len({(thread, reader) for _, thread, reader in seen}) == len({thread for _, thread, _ in seen}) <= threads
    loading.run([], threads, shown.append)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_ends_the_others(threads, error):
    seen = []

    def work(i, reader):
        seen.append(i)
        time.sleep(0.001)
        if i == 1:  # the second that its thread does
            raise error("of job 1")

    with pytest.raises(error, match="of job 1"):
        loading.run([loading.Job(1, partial(work, i)) for i in range(200)], threads, lambda done: None)
    assert 1 in seen and len(seen) < 20


def test_where_there_are_no_more_threads(monkeypatch):
    def refused(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    seen = []
    loading.run([loading.Job(1, partial(lambda i, reader: seen.append(i), i)) for i in range(9)], 4, lambda done: None)
    assert seen == list(range(9))
