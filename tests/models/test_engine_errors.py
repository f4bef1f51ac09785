"""What a hostile caller or file may try: caches past their capacity, steps that share a tensor, senseless numbers."""

import contextlib
import json
import resource
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import toy
from helpers import assert_same_bits, normal, same_bits
from random_models import LLAMA, by_reference, random_llama, random_tensors, save

import llorch
from llorch import PackedLinear, reference
from llorch._core import SequenceCache
from llorch.models import gpt2, registry
from llorch.models.compile import Compiler, Part, Weights, groups
from llorch.models.engine import Tables
from llorch.models.graph import Graph, Rope, Step
from llorch.models.llama import LlamaConfig
from llorch.models.registry import Family


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return random_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def families(monkeypatch):
    """Those that a test registers are gone after it."""
    monkeypatch.setattr(registry, "_registered", list(registry._registered))


# ---- what Python says ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.forward(), r"^CausalLM\.forward\(\) missing 1 required positional argument: 'ids'"),
        (lambda m: m.generate(), r"^CausalLM\.generate\(\) missing 2 required"),
        (lambda m: m.generate("O", 1, warmth=1), "^got an unexpected keyword argument 'warmth'; sampling has temper"),
        (lambda m: m.score("O", warmth=1), r"^CausalLM\.score\(\) got an unexpected keyword argument 'warmth'"),
        (lambda m: m.step(1, []), "^chunks must be a sequence, got int"),
        (lambda m: m.step([[1]], None), "^caches must be a sequence, got NoneType"),
        (lambda m: m.forward([1], trace=3), r"^trace must be a function of \(name, array\), got int"),
        (lambda m: type(m).from_pretrained(3), "^path_or_hub_id must be a str or a Path, got int"),
        (lambda m: llorch.rope_table(4, 3, scaling=3), "^scaling must be a mapping or None, got int"),
        (lambda m: embedded().tokenizer.decode("ab"), r"^ids\[0\] is 'a', ids must be ints"),
        (lambda m: embedded().tokenizer.decode([1, True]), r"^ids\[1\] is True, ids must be ints"),
    ],
)
def test_wrong_calls_are_told_in_the_words_of_the_caller(tiny, call, message):
    with pytest.raises(TypeError, match=message):
        call(tiny)


def embedded():
    return llorch.CausalLM.from_pretrained("shakespeare-1m")


# ---- caches --------------------------------------------------------------------------------------------


class Meanwhile:
    """Token ids whose reading runs something else, as another thread could."""

    def __init__(self, run):
        self.run = run

    def __array__(self, dtype=None, copy=None):
        self.run()
        return np.array([1])


def test_a_cache_that_was_filled_meanwhile_is_full(tiny):
    """Its capacity is looked at again by who holds it: else blocks are written past their table's end."""
    cache, other = tiny.new_cache(5), tiny.new_cache(5)
    late = Meanwhile(lambda: tiny.forward([1, 2, 3, 4, 5], cache))
    with pytest.raises(ValueError, match=r"caches\[0\] holds 5 of at most 5 positions, 3 more don't fit"):
        tiny.step([[1, 1, 1], late], [cache, other])
    assert (cache.length, other.length) == (5, 0)
    assert_same_bits(cache.keys(1), filled(tiny, [1, 2, 3, 4, 5]).keys(1))


def filled(model, ids):
    cache = model.new_cache()
    model.forward(ids, cache)
    return cache


@pytest.mark.parametrize("layer", [-1, 99])
def test_a_layer_that_a_cache_has_not(tiny, layer):
    for read in (tiny.new_cache().keys, tiny.new_cache().values):
        with pytest.raises(IndexError, match=f"layer is {layer}, the cache has {tiny.config.layers} layers"):
            read(layer)


def test_threads_never_fill_a_cache_past_its_capacity(tiny):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            cache, gate = tiny.new_cache(8), threading.Barrier(4)

            def fill(cache=cache, gate=gate):
                gate.wait()
                for _ in range(8):
                    with contextlib.suppress(RuntimeError, ValueError):
                        tiny.step([[1]], [cache])

            threads = [threading.Thread(target=fill) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert 0 < cache.length <= 8
    finally:
        sys.setswitchinterval(interval)


KINDS = "<i8", "<i4", ">i8", ">i4", "i2", "i1", "u8", "u4", "u1"


def unaligned(ids):
    return np.frombuffer(b" " + ids.astype(np.int64).tobytes(), np.uint8)[1:].view(np.int64)


@pytest.mark.parametrize(
    "kept",
    [
        *(lambda ids, name=name: ids.astype(name) for name in KINDS),
        lambda ids: np.repeat(ids, 3)[::3],
        lambda ids: ids[::-1].copy()[::-1],
        lambda ids: np.ma.array(ids),
        unaligned,
    ],
)
def test_ids_in_arrays_of_any_kind(tiny, kept):
    """Some are read where they lie, others become int64 first: ids are the same ids, and wrong ones are found."""
    ids = np.array([5, 66, 0, 7])
    wanted = tiny.forward(ids.tolist())
    assert_same_bits(tiny.forward(kept(ids)), wanted)
    cache = tiny.new_cache()
    assert_same_bits(tiny.step([kept(ids)], [cache])[0], wanted[-1])
    for wrong in (67, 127, -1):
        ids[2] = wrong
        given = kept(ids)
        with pytest.raises(IndexError, match=rf"chunks\[0\]\[2\] is {given[2]}, ids must be in \[0, 67\)"):
            tiny.step([given], [cache])
    for shape in ((1, 4), (4, 1), (0,), ()):
        with pytest.raises(ValueError, match=r"chunks\[0\]"):
            tiny.step([kept(np.array([5, 66, 0, 7]))[: int(np.prod(shape))].reshape(shape)], [cache])
    assert cache.length == 4


@pytest.mark.parametrize("then", [[1], [1, 2, 3, 4], []])
def test_ids_that_change_while_they_are_read(tiny, then):
    caches, ids = [tiny.new_cache(), tiny.new_cache()], [1, 2, 3]

    def check(chunk, place):
        ids[:] = then
        return np.array([1])

    with pytest.raises(RuntimeError, match="changed while they were read"):
        tiny._plan("last").run([[np.int64(1)], ids], caches, False, 67, check, tiny._tables.grow)
    assert [cache.length for cache in caches] == [0, 0]


@pytest.mark.parametrize("sizes", [(1, 2, 8), (3, 2, 8), (2, 1, 8), (2, 2, 4)])
def test_a_cache_of_other_sizes(tiny, sizes):
    cache = SequenceCache(tiny, *sizes, 20)
    with pytest.raises(ValueError, match=r"caches\[0\] wasn't made by the model's new_cache"):
        tiny.forward([1, 2], cache)
    assert cache.length == 0


def test_sizes_of_a_cache(tiny):
    for sizes in ((2, 0, 8), (2, 2, 0), (2, 2**62, 8)):
        with pytest.raises(ValueError, match=r"(heads|head_dim) must be at least 1"):
            SequenceCache(tiny, *sizes, 20)


def test_forks_give_their_memory_back(tmp_path):
    """Their tables of blocks too: 64 KB of each layer here, of which the first page is touched."""
    model = random_llama(tmp_path / "model", {"max_position_embeddings": 1 << 20})
    cache = filled(model, [1, 2, 3])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(4000):
        cache.fork()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 8000
    assert_same_bits(cache.fork().keys(0), cache.keys(0))


# ---- tables --------------------------------------------------------------------------------------------


def test_tables_that_were_interrupted():
    """Between the arrays and their length: the rows aren't made a second time behind themselves."""

    class Plan:
        interrupts = 1

        def __setattr__(self, name, value):
            if Plan.interrupts:
                Plan.interrupts = 0
                raise KeyboardInterrupt
            object.__setattr__(self, name, value)

    plan = Plan()
    tables = Tables({"main": Rope(8, 10000.0)}, 2000)
    tables.plans.append(plan)
    with pytest.raises(KeyboardInterrupt):
        tables.grow(3)
    for positions in (3, 700, 1999):
        tables.grow(positions)
        cos, sin = plan.tables[0]
        assert positions <= len(cos) == tables.length <= 2000
        assert_same_bits(cos, reference.rope_table(8, len(cos))[0])
        assert_same_bits(sin, reference.rope_table(8, len(cos))[1])


# ---- graphs whose steps share a tensor -------------------------------------------------------------------


def of_family(folder, name, graph, text, config, entries=None):
    family = registry.register(Family(name, (name,), type(config).from_dict, graph, text))
    saved = save(folder, {"model_type": name} | (entries or {}), random_tensors(family, config), "")
    return llorch.CausalLM.from_pretrained(saved)


def changed(graph, change, *without):
    parameters = tuple(p for p in graph.block_parameters if p.name not in without)
    return replace(graph, blocks=tuple(change(block) for block in graph.blocks), block_parameters=parameters)


class OneKey(toy.Toy):
    """Values are the keys, before these are rotated."""

    def __init__(self, config, tensors):
        keys = {name.replace(".k.", ".v."): values for name, values in tensors.items() if ".k." in name}
        super().__init__(config, tensors | keys)


def values_are_keys(c):
    def change(block):
        steps = [step for step in block if step.name != "attn.v_flat"]
        return tuple(replace(step, inputs=("attn.k_flat",)) if step.name == "attn.v" else step for step in steps)

    return changed(toy.graph(c), change, "v.weight")


def test_values_that_are_the_keys_before_the_rotation(tmp_path, isa):
    """The rotation in place would rotate the values as well."""
    model = of_family(tmp_path / "m", "one-key", values_are_keys, OneKey, toy.ToyConfig())
    ids = np.arange(30)
    wanted = by_reference(model, ids)
    assert_same_bits(model.forward(ids), wanted)
    assert_same_bits(model.forward(ids, trace=lambda name, values: None), wanted)
    assert_same_bits(model.step([ids], [model.new_cache()])[0], wanted[-1])


def keys_again(c):
    def change(block):
        steps = []
        for step in block:
            steps.append(replace(step, inputs=("attn.more",)) if step.name == "attn.c_proj" else step)
            if step.name == "attn.context":
                steps.append(Step("attn.more", "add", ("attn.context", "attn.k_flat"), "TE"))
        return tuple(steps)

    return changed(toy.graph(c), change)


def test_keys_that_are_needed_after_the_rotation(tmp_path):
    """Fused and traced plans agree, also where the last positions alone go on."""
    model = of_family(tmp_path / "m", "keys-again", keys_again, toy.Toy, toy.ToyConfig())
    ids = np.arange(30)
    wanted = model.forward(ids, trace=lambda name, values: None)
    assert_same_bits(model.forward(ids), wanted)
    assert_same_bits(model.step([ids, ids[:7]], [model.new_cache(), model.new_cache()]), wanted[[29, 6]])
    assert not same_bits(by_reference(model, ids), wanted)  # negative control: the sum does something


GPT2 = {"vocab_size": 40, "n_positions": 50, "n_embd": 32, "n_layer": 1, "n_head": 2}


class OrderConfig(gpt2.GPT2Config):
    @classmethod
    def from_dict(cls, entries):
        return cls(**{name: value for name, value in entries.items() if name != "model_type"})


def test_positions_may_come_first(tmp_path):
    def graph(c):
        found = gpt2.graph(c)
        *before, total = found.before
        return replace(found, before=(*before, replace(total, inputs=("places", "tokens"))))

    model = of_family(tmp_path / "m", "order", graph, "GPT2", OrderConfig(**GPT2), GPT2)
    assert_same_bits(model.forward([3, 1, 4]), by_reference(model, [3, 1, 4]))


def test_tokens_that_are_needed_beside_their_positions(tmp_path):
    def graph(c):
        found = gpt2.graph(c)
        *before, total = found.before
        twice = Step("twice", "add", ("sum", "tokens"), "TE")
        return replace(found, before=(*before, replace(total, name="sum"), twice))

    with pytest.raises(ValueError, match="step 'sum' adds positions to 'tokens', which is needed again"):
        of_family(tmp_path / "m", "twice", graph, "GPT2", OrderConfig(**GPT2), GPT2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_two_gated_products_of_one_input(dtype):
    """Four layers side by side, the second pair kept in the same way as the first, or in another."""

    def pair(i):
        return (
            Step(f"g{i}", "linear", ("x",), "TF", weight=f"g{i}"),
            Step(f"u{i}", "linear", ("x",), "TF", weight=f"u{i}"),
            Step(f"a{i}", "activation", (f"g{i}",), "TF", options={"function": "silu"}),
            Step(f"p{i}", "multiply", (f"a{i}", f"u{i}"), "TF"),
        )

    both = (
        *pair(1),
        *pair(2),
        Step("sum", "add", ("p1", "p2"), "TF"),
        Step("down", "linear", ("sum",), "TE", weight="d"),
    )
    tokens = Step("tokens", "embedding", ("ids",), "TE", weight="e")
    graph = Graph(
        {"E": 32, "F": 16}, (tokens,), (both,), (Step("out", "linear", ("x",), "TE", weight="o"),), (), (), "h."
    )
    names = ("h.0.g1", "h.0.u1", "h.0.g2", "h.0.u2")
    assert names in [group.names for group in groups(graph)]
    w = normal(32, 64, seed=1)
    if dtype == "float32":
        parts = [Part(PackedLinear(w), {name: 16 * i for i, name in enumerate(names)})]
    else:
        halves = PackedLinear(w[:, :32].copy()), PackedLinear(w[:, 32:].astype(dtype))
        parts = [
            Part(half, {name: 16 * i for i, name in enumerate(names) if i // 2 == at}) for at, half in enumerate(halves)
        ]
    square, last = PackedLinear(normal(32, 32, seed=2)), PackedLinear(normal(16, 32, seed=3))
    packed = {"h.0.g1": parts, "h.0.d": [Part(last, {"h.0.d": 0})], "o": [Part(square, {"o": 0})]}
    weights = Weights(packed, {}, {"e.weight": normal(9, 32, seed=4)})
    fused, apart = (
        Compiler(graph, weights, fuse=fuse).run().run([np.arange(9)], None, True, 9, None) for fuse in (True, False)
    )
    assert np.isfinite(fused).all()
    assert_same_bits(fused, apart)


# ---- numbers of a file -----------------------------------------------------------------------------------


def loaded(folder, entries):
    (folder / "config.json").write_text(json.dumps(LLAMA | entries))
    return llorch.CausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from llorch.models.llama import FAMILY

    made = tmp_path_factory.mktemp("hostile") / "model"
    return save(made, LLAMA, random_tensors(FAMILY, LlamaConfig.from_dict(LLAMA)))


def test_many_layers_that_are_missing(folder):
    """Ten thousand blocks, 90,000 missing tensors: named in a moment, not looked for in all of them each."""
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=r"tensors are missing: layers\.2\.input_layernorm\.weight.* and 89978 more"):
        loaded(folder, {"num_hidden_layers": 10_000})
    assert time.perf_counter() - begin < 30


@pytest.mark.parametrize(
    "entries, text",
    [
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "scaling's factor is 0"),
        ({"rope_scaling": {"type": "linear"}}, "scaling has no factor"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0, "long_factor": 3.0}}, "rotations"),
        ({"rope_scaling": {"rope_type": "gguf", "rope_freqs": [1, 2]}}, "rope_freqs has 2 numbers"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-30}}, r"frequency of 1.00e\+30, it must be at most 1e\+10"),
        ({"rope_theta": 1e-300}, r"config.json: rotations: base 1e-300 and scaling make a frequency of"),
        ({"rope_theta": 10**400}, r"config.json: rope_theta is 10+\.\.\., it must be in"),
        ({"vocab_size": 10**300}, r"config.json: vocab_size is 10+\.\.\., it must be at least 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5: llorch's Llama rotates all of a head"),
    ],
)
def test_numbers_that_make_no_model(folder, entries, text):
    """Said when the model is loaded, by the name of the file: not when the first token comes."""
    with pytest.raises(ValueError, match=text) as caught:
        loaded(folder, entries)
    assert "config.json" in str(caught.value) and len(str(caught.value)) < 400


def test_a_harmless_partial_rotary_factor(folder):
    assert loaded(folder, {"partial_rotary_factor": 1.0}).forward([1]).shape == (1, 67)
