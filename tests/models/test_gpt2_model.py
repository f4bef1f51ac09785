"""GPT-2: every logit against the oracle, every way to cut the work, transformers, and what is refused."""

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gpt2_models import cast, random_model, random_tensors, save, tensors_of
from helpers import assert_same_bits, num_threads, rng, same_bits
from hypothesis import given
from hypothesis import strategies as st

import llorch
from llorch import reference
from llorch.testing import use_isa

DTYPES = ("float32", "bfloat16", "float16")
SWITCHES = {
    "gelu_new": {},
    "gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "tanh": {"activation_function": "tanh"},
    "unscaled": {"scale_attn_weights": False},
    "inverse": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    "inverse alone": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    "inner": {"n_inner": 37},
    "epsilon": {"layer_norm_epsilon": 0.01},
    "one head": {"n_head": 1, "n_layer": 1},
    "untied": {},
}
# The shapes of gpt2, medium, large and xl, but for layers, vocabulary and context.
SIZES = {"small": (768, 12), "medium": (1024, 16), "large": (1280, 20), "xl": (1600, 25)}


@pytest.fixture(scope="module")
def verse():
    """The trained model that comes with llorch."""
    return llorch.GPT2.from_pretrained("shakespeare-1m")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("tiny") / "model")


def ids_of(model, length, seed=0):
    return rng(7, seed, length).integers(0, model.config.vocab_size, length)


def by_reference(model, ids):
    return reference.GPT2(model.config, tensors_of(model)).forward(ids)


def in_chunks(model, ids, lengths):
    """Logits of all of ids, with the cache, chunk by chunk."""
    cache, parts, first = model.new_cache(), [], 0
    for length in lengths:
        parts.append(model.forward(ids[first : first + length], cache))
        first += length
    assert first == len(ids) == cache.length
    return np.concatenate(parts)


# ---- the oracle ----------------------------------------------------------------------------------------


def test_oracle_on_trained_weights(verse, isa):
    ids = ids_of(verse, 20)
    assert_same_bits(verse.forward(ids), by_reference(verse, ids))


@pytest.mark.parametrize("switch", SWITCHES)
def test_oracle_with_each_switch(tmp_path, switch):
    model = random_model(tmp_path / "model", SWITCHES[switch], untied=switch == "untied")
    ids = ids_of(model, 19)
    assert_same_bits(model.forward(ids), by_reference(model, ids))


def test_each_switch_changes_something(tmp_path, tiny):
    """Negative control: a switch that were ignored would pass by the oracle only if both ignored it."""
    ids = ids_of(tiny, 9)
    plain = tiny.forward(ids)
    for i, switch in enumerate(set(SWITCHES) - {"gelu_new", "inner", "one head", "inverse"}):
        model = random_model(tmp_path / str(i), SWITCHES[switch], untied=switch == "untied")
        assert np.abs(model.forward(ids) - plain).max() > 1e-4, switch


@pytest.mark.parametrize("dtype", DTYPES)
def test_oracle_past_a_block(tmp_path, dtype, isa):
    """More than 128 positions, so that attention has a second block; also with the cache, token by token."""
    model = random_model(tmp_path / "model", dtype=dtype)
    assert model.dtype == dtype
    ids = ids_of(model, 133)
    wanted = by_reference(model, ids)
    assert_same_bits(model.forward(ids), wanted)
    assert_same_bits(in_chunks(model, ids, [1] * 133), wanted)


@functools.lru_cache(1)
def of_size(size):
    """Entries and tensors of a model of one layer; the types of one size come after each other, and share them."""
    E, H = SIZES[size]
    entries = {"vocab_size": 301, "n_positions": 64, "n_embd": E, "n_layer": 1, "n_head": H}
    return entries, random_tensors(entries)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_sizes(tmp_path, size, dtype):
    entries, tensors = of_size(size)
    model = llorch.GPT2.from_pretrained(save(tmp_path / "model", entries, cast(tensors, dtype)))
    ids = ids_of(model, 40)
    at_once = model.forward(ids)
    if dtype == "float32":  # the oracle has no other arithmetic for the other types
        assert_same_bits(at_once[:2], by_reference(model, ids[:2]))
    assert_same_bits(in_chunks(model, ids, [3, 1, 36]), at_once)
    with num_threads(1):
        assert_same_bits(model.forward(ids), at_once)
    assert_same_bits(model.step([ids[:7], ids], [model.new_cache() for _ in range(2)]), at_once[[6, 39]])


def test_logits_are_spread(verse):
    """The models above are worth comparing: their logits are neither all alike nor without end."""
    logits = verse.forward(ids_of(verse, 30))
    assert np.isfinite(logits).all() and 1 < logits.std() < 100


# ---- every way to cut the work -------------------------------------------------------------------------


@given(data=st.data())
def test_chunks(verse, data):
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=6).filter(lambda l: sum(l) <= 150))
    ids = ids_of(verse, sum(lengths), seed=len(lengths))
    at_once = verse.forward(ids)
    assert_same_bits(in_chunks(verse, ids, lengths), at_once)
    cache, end = verse.new_cache(), 0
    for length in lengths:
        got = verse.step([ids[end : end + length]], [cache])
        end += length
        assert_same_bits(got[0], at_once[end - 1])


@given(data=st.data())
def test_batches(verse, data):
    """Sequences of any lengths, each with its own beginning in its cache, some forked: together as alone."""
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=6))
    caches, chunks, wanted = [], [], []
    for i, (before, more) in enumerate(pairs):
        ids = ids_of(verse, before + more, seed=i)
        cache = verse.new_cache()
        if before:
            verse.forward(ids[:before], cache)
        caches.append(cache.fork() if i % 2 else cache)
        chunks.append(ids[before:])
        wanted.append(verse.forward(ids)[-1])
    got = verse.step(chunks, caches)
    assert_same_bits(got, np.stack(wanted))
    assert [cache.length for cache in caches] == [before + more for before, more in pairs]
    nexts = [[int(llorch.argmax(row))] for row in got]  # and once more, now all of one token
    again = verse.step(nexts, caches)
    for i, (before, more) in enumerate(pairs):
        whole = np.concatenate([ids_of(verse, before + more, seed=i), nexts[i]])
        assert_same_bits(again[i], verse.forward(whole)[-1])


class Ordinary(reference.GPT2):
    """The same model with NumPy's matrix product."""

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def test_an_ordinary_product_would_be_seen(tmp_path):
    """Negative control: with NumPy's product, a position's logits depend on how many positions come with it."""
    model = random_model(tmp_path / "model", {"n_embd": 192})
    ids = ids_of(model, 33)
    ordinary = Ordinary(model.config, tensors_of(model))
    at_once = ordinary.forward(ids)
    assert not all(same_bits(ordinary.forward(ids[:n]), at_once[:n]) for n in (1, 2, 3, 5, 8, 17))
    at_once = model.forward(ids)
    assert all(same_bits(model.forward(ids[:n]), at_once[:n]) for n in (1, 2, 3, 5, 8, 17))


def test_threads(verse, tmp_path):
    wide = random_model(tmp_path / "model", {"n_embd": 192, "n_inner": 2048, "vocab_size": 3000})
    for model in (verse, wide):
        ids = ids_of(model, 150)
        bits = []
        for n in (1, 2):
            with num_threads(n):
                bits.append((model.forward(ids), in_chunks(model, ids, [149, 1])))
        for one, two in zip(*bits, strict=True):
            assert_same_bits(one, two)


def test_instruction_sets(verse):
    ids = ids_of(verse, 140)
    wanted = verse.forward(ids)
    for name in llorch.available_isas():
        with use_isa(name):
            assert_same_bits(verse.forward(ids), wanted, name)
            assert_same_bits(in_chunks(verse, ids, [1, 130, 1, 8]), wanted, name)
            assert_same_bits(verse.step([ids, ids[:3]], [verse.new_cache(), verse.new_cache()]), wanted[[-1, 2]], name)


def test_callers_in_several_threads(verse):
    """Workspaces are kept between calls; two callers never get the same one."""
    texts = [ids_of(verse, 12, seed=i) for i in range(16)]
    wanted = [verse.forward(ids) for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, right in zip(pool.map(verse.forward, texts), wanted, strict=True):
                assert_same_bits(got, right)


def test_results_are_the_callers(tiny):
    """A second call of the same lengths uses the same memory inside; the first result stays."""
    first = tiny.forward(ids_of(tiny, 5))
    kept = first.copy()
    tiny.forward(ids_of(tiny, 5, seed=1))
    assert_same_bits(first, kept)


# ---- the cache -----------------------------------------------------------------------------------------


def test_truncate_and_fork(tiny):
    ids, other = ids_of(tiny, 40), ids_of(tiny, 40, seed=1)
    cache = tiny.new_cache()
    tiny.forward(ids[:30], cache)
    branch = cache.fork()
    cache.truncate(10)
    assert (cache.length, branch.length, len(cache)) == (10, 30, 10)
    mixed = np.concatenate([ids[:10], other[10:]])
    assert_same_bits(tiny.forward(mixed[10:], cache), tiny.forward(mixed)[10:])
    assert_same_bits(tiny.forward(ids[30:], branch), tiny.forward(ids)[30:])


def test_capacity(tiny):
    cache = tiny.new_cache()
    assert cache.capacity == tiny.config.n_positions == 160
    ids = ids_of(tiny, 160)
    assert_same_bits(tiny.step([ids], [cache])[0], tiny.forward(ids)[-1])
    small = tiny.new_cache(3)
    tiny.forward(ids[:3], small)
    message = "ids has 1 token, but cache holds 3 of at most 3 positions"
    with pytest.raises(ValueError, match=message):
        tiny.forward(ids[3:4], small)
    with pytest.raises(ValueError, match="capacity is 161, the model has 160 positions"):
        tiny.new_cache(161)
    with pytest.raises(ValueError, match="capacity must be at least 0"):
        tiny.new_cache(-1)


# ---- what is refused, before any work ------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids, error, message",
    (
        ([], ValueError, "ids is empty, at least one token id is needed"),
        ([3, 61], IndexError, r"ids\[1\] is 61, ids must be in \[0, 61\)"),
        ([3, 4, -1], IndexError, r"ids\[2\] is -1, ids must be in \[0, 61\)"),
        ([2**70], TypeError, "ids must be ints, got object"),
        ([2**63], IndexError, r"ids\[0\] is 9223372036854775808"),
        ([1.0], TypeError, "ids must be ints, got float64"),
        ([True], TypeError, "ids must be ints, got bool"),
        ("ROMEO:", TypeError, "ids must be token ids, got a str: encode it by model.tokenizer"),
        ([[1, 2]], ValueError, r"ids has shape \(1, 2\), it must be one sequence"),
        ([[1], [1, 2]], ValueError, "ids must be one sequence of token ids, it holds several"),
        (5, ValueError, r"ids has shape \(\), it must be one sequence"),
        ([1] * 161, ValueError, "ids has 161 tokens, the model has 160 positions"),
    ),
)
def test_bad_ids(tiny, ids, error, message):
    with pytest.raises(error, match=message):
        tiny.forward(ids)
    good, bad = tiny.new_cache(), tiny.new_cache()
    with pytest.raises(error):
        tiny.step([[1, 2], ids], [good, bad])
    assert good.length == bad.length == 0


def test_bad_caches(tiny, verse):
    cache, stranger = tiny.new_cache(), verse.new_cache()
    for call, error, message in (
        (lambda: tiny.forward([1], stranger), ValueError, "cache is a cache of another model"),
        (lambda: tiny.forward([1], {}), TypeError, "cache must be a Cache made by new_cache, got dict"),
        (lambda: tiny.step([[1], [1]], [cache, stranger]), ValueError, r"caches\[1\] is a cache of another model"),
        (lambda: tiny.step([[1], [1]], [cache]), ValueError, "there are 2 chunks and 1 caches"),
        (lambda: tiny.step([[1], [1]], [cache, cache]), ValueError, "caches has the same Cache twice"),
    ):
        with pytest.raises(error, match=message):
            call()
        assert cache.length == stranger.length == 0
    assert tiny.step([], []).shape == (0, 61)


def test_a_failure_between_blocks_appends_nothing(tiny):
    ids = ids_of(tiny, 9)
    caches = [tiny.new_cache(), tiny.new_cache()]
    tiny.step([ids[:4], ids[:2]], caches)

    def interrupted(name, values):
        if name == "h.1.ln_1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.forward(ids[4:], caches[0], trace=interrupted)
    assert [cache.length for cache in caches] == [4, 2]
    assert_same_bits(tiny.step([ids[4:], ids[2:]], caches), tiny.forward(ids)[[-1, -1]])


# ---- the rest of the interface -------------------------------------------------------------------------


def test_attributes(verse, tiny):
    assert (verse.dtype, verse.config.n_layer, verse.path.name) == ("bfloat16", 4, "shakespeare-1m")
    assert "4 blocks, 128 wide" in repr(verse) and repr(tiny.new_cache(7)) == "Cache: 0 of 7 positions"
    parameters = sum(values.size for values in tensors_of(tiny).values())
    assert parameters * 4 <= tiny.nbytes < parameters * 4 * 1.3  # columns are kept in panels of 16
    weights = tiny._weights
    assert weights.tables["wte.weight"] is weights.packed["lm_head"][0].weight  # tied: in memory once
    with pytest.raises(TypeError, match="load it again from its path"):
        tiny.__reduce__()


def test_the_kernels_need_numpy_alone():
    code = """
import sys, llorch
heavy = {"llorch.models", "llorch.text", "ml_dtypes", "tokenizers", "safetensors", "rich", "click", "huggingface_hub"}
heavy &= set(sys.modules)
assert not heavy, heavy
assert "GPT2" in dir(llorch) and llorch.GPT2 is llorch.CausalLM and "llorch.models" in sys.modules
try:
    llorch.GPT3
except AttributeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "module 'llorch' has no attribute 'GPT3'"


# ---- transformers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    """Loads transformers' model of a folder. It may warn as it likes: it is not ours."""
    pytest.importorskip("transformers", exc_type=ImportError)
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield lambda folder, dtype: GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).eval()
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("switch", ("shakespeare", *SWITCHES))
def test_transformers(theirs, tmp_path, verse, switch):
    """Within 1e-3 of transformers, and no more than twice as far from its float64 run as its own float32 run."""
    import torch

    model = verse
    if switch != "shakespeare":
        entries = SWITCHES[switch] | {"model_type": "gpt2", "tie_word_embeddings": switch != "untied"}
        model = random_model(tmp_path / "model", entries, untied=switch == "untied")
    ids = ids_of(model, 100)
    single, double = (
        theirs(model.path, dtype)(torch.tensor(ids)[None]).logits[0].numpy() for dtype in (torch.float32, torch.float64)
    )
    got = model.forward(ids)
    assert np.abs(got - single).max() < 1e-3
    assert np.abs(got - double).max() <= 2 * np.abs(single - double).max()


@pytest.mark.filterwarnings("ignore")
def test_transformers_choose_the_same(theirs, verse):
    """Greedily, 8 tokens after each of 200 prompts of different lengths, ours all in one batch."""
    import torch

    prompts = [ids_of(verse, 1 + i % 23, seed=i).tolist() for i in range(200)]
    caches = [verse.new_cache() for _ in prompts]
    chunks, texts = prompts, [list(ids) for ids in prompts]
    for _ in range(8):
        chunks = [[int(token)] for token in llorch.argmax(verse.step(chunks, caches))]
        for text, chunk in zip(texts, chunks, strict=True):
            text += chunk
    peer = theirs(verse.path, torch.float32)
    for prompt, text in zip(prompts, texts, strict=True):
        logits = peer(torch.tensor(text[:-1])[None]).logits[0, len(prompt) - 1 :]
        assert logits.argmax(-1).tolist() == text[len(prompt) :]


@pytest.mark.filterwarnings("ignore")
def test_transformers_depends_on_the_cache(theirs, verse):
    """Negative control: the comparison that `test_chunks` makes does show a difference in ordinary code."""
    import torch

    peer, same = theirs(verse.path, torch.float32), []
    for seed in range(5):
        ids = ids_of(verse, 40, seed)
        at_once = peer(torch.tensor(ids)[None]).logits[0].numpy()
        start = peer(torch.tensor(ids[:39])[None], use_cache=True)
        end = peer(torch.tensor(ids[39:])[None], past_key_values=start.past_key_values)
        same.append(same_bits(torch.cat([start.logits[0], end.logits[0]]).numpy(), at_once))
        assert same_bits(in_chunks(verse, ids, [39, 1]), verse.forward(ids))
    assert not all(same)
