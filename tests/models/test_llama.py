"""Llama: every logit against the oracle, every way to cut the work, every file it comes in, transformers."""

import json

import numpy as np
import pytest
from gpt2_models import cast, tensors_of
from helpers import assert_same_bits, num_threads, rng, same_bits
from hypothesis import given
from hypothesis import strategies as st
from random_models import (
    LLAMA,
    by_reference,
    llama_metadata,
    random_llama,
    random_tensors,
    save,
    write_gguf,
)

import llorch
from llorch import reference
from llorch.models.llama import FAMILY, LlamaConfig
from llorch.testing import use_isa

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SWITCHES = {
    "plain": {},
    "all heads": {"num_key_value_heads": 6},
    "one key": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 20},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "odd sizes": {"hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 37},
    "gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "epsilon": {"rms_norm_eps": 0.01},
    "theta": {"rope_theta": 500000.0},
    "llama3": {"rope_scaling": LLAMA3},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "transformers 5": {"rope_parameters": {"rope_theta": 777.0, **LLAMA3}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 75}},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return random_llama(tmp_path_factory.mktemp("tiny") / "model")


def ids_of(model, length, seed=0):
    return rng(9, seed, length).integers(0, model.config.vocab_size, length)


def in_chunks(model, ids, lengths):
    cache, parts, first = model.new_cache(), [], 0
    for length in lengths:
        parts.append(model.forward(ids[first : first + length], cache))
        first += length
    assert first == len(ids) == cache.length
    return np.concatenate(parts)


# ---- the oracle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", SWITCHES)
def test_oracle_with_each_switch(tmp_path, switch, isa):
    model = random_llama(tmp_path / "model", SWITCHES[switch])
    ids = ids_of(model, 19)
    assert_same_bits(model.forward(ids), by_reference(model, ids))


def test_each_switch_changes_something(tmp_path, tiny):
    """Negative control: a switch that were ignored would pass by the oracle only if both ignored it."""
    ids = ids_of(tiny, 40)
    plain = tiny.forward(ids)
    for i, switch in enumerate(set(SWITCHES) - {"plain", "odd sizes"}):
        model = random_llama(tmp_path / str(i), SWITCHES[switch])
        assert np.abs(model.forward(ids) - plain).max() > 1e-4, switch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_oracle_past_a_block(tmp_path, dtype):
    """More than 128 positions, so that attention has a second block; also with the cache, token by token."""
    model = random_llama(tmp_path / "model", {"num_hidden_layers": 1}, dtype=dtype)
    assert model.dtype == dtype
    ids = ids_of(model, 131)
    wanted = by_reference(model, ids)
    assert_same_bits(model.forward(ids), wanted)
    assert_same_bits(in_chunks(model, ids, [1] * 131), wanted)


# ---- every way to cut the work -------------------------------------------------------------------------


@given(data=st.data())
def test_chunks_and_batches(tiny, data):
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    ids = ids_of(tiny, sum(lengths), seed=len(lengths))
    at_once = tiny.forward(ids)
    assert_same_bits(in_chunks(tiny, ids, lengths), at_once)
    others = [ids_of(tiny, data.draw(st.integers(1, 70)), seed=i) for i in range(3)]
    caches = [tiny.new_cache() for _ in range(4)]
    got = tiny.step([others[0], ids, *others[1:]], caches)
    assert_same_bits(got[1], at_once[-1])
    assert_same_bits(got[0], tiny.forward(others[0])[-1])
    more = tiny.step([[1], [2], [3], [4]], caches)
    assert_same_bits(more[1], tiny.forward([*ids, 2])[-1])


def test_threads_and_instruction_sets(tiny):
    ids = ids_of(tiny, 70)
    wanted = tiny.forward(ids)
    for isa in llorch.available_isas():
        for threads in (1, 2, 5):
            with use_isa(isa), num_threads(threads):
                assert_same_bits(tiny.forward(ids), wanted, f"{isa}, {threads} threads")


def test_another_token_is_seen(tiny):
    """Negative control of the above: what follows a changed token differs, what stands before it doesn't."""
    ids = ids_of(tiny, 20)
    changed = ids.copy()
    changed[7] = (changed[7] + 1) % tiny.config.vocab_size
    a, b = tiny.forward(ids), tiny.forward(changed)
    assert_same_bits(a[:7], b[:7])
    assert not any(same_bits(a[i], b[i]) for i in range(7, 20))


def test_trace_is_the_graph(tiny):
    """Unfused, every step is there by its name and shape, and the logits have the bits of the fused plan."""
    ids, seen = ids_of(tiny, 9), {}
    logits = tiny.forward(ids, trace=lambda name, values: seen.__setitem__(name, values.copy()))
    assert_same_bits(logits, tiny.forward(ids))
    assert_same_bits(seen["logits"], logits)
    for layer, steps in enumerate(tiny.graph.blocks):
        for step in steps:
            if step.op != "scores":
                name = f"h.{layer}.{step.name}" if step.name else f"h.{layer}"
                assert seen[name].shape == tiny.graph.shape(step.axes, 9), name
    weights = tensors_of(tiny)
    assert_same_bits(seen["embed"], weights["embed_tokens.weight"][ids])
    norm = reference.rms_norm(seen["embed"], weights["layers.0.input_layernorm.weight"], eps=tiny.config.rms_norm_eps)
    assert_same_bits(seen["h.0.ln_1"], norm)
    q = reference.linear(norm, weights["layers.0.self_attn.q_proj.weight"].T)
    assert_same_bits(seen["h.0.attn.q"], q.reshape(9, 6, 8).transpose(1, 0, 2))
    cos, sin = reference.rope_table(8, 9)
    assert_same_bits(seen["h.0.attn.q_rope"], reference.rope(seen["h.0.attn.q"], cos, sin))


def test_an_error_leaves_the_cache(tiny):
    cache = tiny.new_cache()
    ids = ids_of(tiny, 30)
    tiny.forward(ids[:20], cache)

    def fail(name, values):
        if name == "h.1.attn.context":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.forward(ids[20:], cache, trace=fail)
    assert cache.length == 20
    assert_same_bits(tiny.forward(ids[20:], cache), tiny.forward(ids)[20:])


# ---- files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [{}, {"head_dim": 20, "attention_bias": True, "tie_word_embeddings": False}])
def test_gguf_has_the_bits_of_safetensors(tmp_path, entries):
    config = LlamaConfig.from_dict(LLAMA | entries)
    tensors = random_tensors(FAMILY, config)
    folder = llorch.CausalLM.from_pretrained(save(tmp_path / "model", LLAMA | entries, tensors))
    path = write_gguf(tmp_path / "model.gguf", FAMILY, config, tensors, "llama", llama_metadata(config))
    file = llorch.CausalLM.from_pretrained(path)
    ids = ids_of(folder, 25)
    assert_same_bits(file.forward(ids), folder.forward(ids))


def test_gguf_rows_must_be_put_back(tmp_path):
    """Negative control: the same file with the rows as Hugging Face has them gives other logits."""
    config = LlamaConfig.from_dict(LLAMA)
    tensors = random_tensors(FAMILY, config)
    right = write_gguf(tmp_path / "a.gguf", FAMILY, config, tensors, "llama", llama_metadata(config))
    name = "layers.0.self_attn.q_proj.weight"
    straight = tensors[name].reshape(6, 4, 2, -1).swapaxes(1, 2).reshape(48, -1)
    wrong = write_gguf(tmp_path / "b.gguf", FAMILY, config, tensors | {name: straight}, "llama", llama_metadata(config))
    ids = ids_of(llorch.CausalLM.from_pretrained(right), 25)
    a, b = (llorch.CausalLM.from_pretrained(path).forward(ids) for path in (right, wrong))
    assert not same_bits(a, b)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_blocks_have_the_bits_of_their_values(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    entries = LLAMA | {"hidden_size": 96, "intermediate_size": 160}
    config = LlamaConfig.from_dict(entries)
    tensors = random_tensors(FAMILY, config)
    type_, values = gguf.GGMLQuantizationType[kind], {}

    def quantise(name, array):
        if array.ndim == 1:
            return array, None
        blocks = gguf.quants.quantize(array, type_)
        values[name] = gguf.quants.dequantize(blocks, type_)
        return blocks, type_

    path = write_gguf(tmp_path / "q.gguf", FAMILY, config, tensors, "llama", llama_metadata(config), quantise)
    plain = {}
    for name, array in values.items():
        heads = {"q_proj": 6, "k_proj": 2}.get(name.split(".")[-2])
        plain[name] = array
        if heads:
            plain[name] = array.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
    folder = save(tmp_path / "plain", entries, {k: np.ascontiguousarray(v) for k, v in (tensors | plain).items()})
    ids = rng(3).integers(0, 67, 20)
    a, b = llorch.CausalLM.from_pretrained(path), llorch.CausalLM.from_pretrained(folder)
    assert_same_bits(a.forward(ids), b.forward(ids))
    assert not same_bits(
        a.forward(ids), llorch.CausalLM.from_pretrained(save(tmp_path / "raw", entries, tensors)).forward(ids)
    )


def test_gguf_rope_freqs(tmp_path):
    config = LlamaConfig.from_dict(LLAMA)
    tensors = random_tensors(FAMILY, config)
    factors = np.array([1.0, 2.5, 4.0, 8.0], np.float32)
    import gguf

    def quantise(name, array):
        return array, None

    original = gguf.GGUFWriter.write_header_to_file

    def with_factors(self, *args, **kwargs):
        if "rope_freqs.weight" not in self.tensors[0]:
            self.add_tensor("rope_freqs.weight", factors)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_factors)
        path = write_gguf(tmp_path / "f.gguf", FAMILY, config, tensors, "llama", llama_metadata(config), quantise)
    model = llorch.CausalLM.from_pretrained(path)
    assert model.config.rope_scaling["rope_freqs"] == factors.tolist()
    ids = ids_of(model, 25)
    wanted = reference.Llama(model.config, tensors).forward(ids)
    assert_same_bits(model.forward(ids), wanted)
    plain = reference.Llama(config, tensors).forward(ids)
    assert not same_bits(plain, wanted)


def test_a_type_rounds_every_parameter_once(tmp_path):
    config = LlamaConfig.from_dict(LLAMA)
    tensors = random_tensors(FAMILY, config)
    wide = save(tmp_path / "wide", LLAMA, tensors)
    for dtype in ("bfloat16", "float16"):
        narrow = save(tmp_path / dtype, LLAMA, cast(tensors, dtype))
        a = llorch.CausalLM.from_pretrained(wide, dtype=dtype)
        b = llorch.CausalLM.from_pretrained(narrow)
        ids = ids_of(a, 9)
        assert a.dtype == b.dtype == dtype
        assert_same_bits(a.forward(ids), b.forward(ids))


def test_other_heads_and_wrappers(tmp_path):
    config = LlamaConfig.from_dict(LLAMA)
    tensors = random_tensors(FAMILY, config)
    plain = llorch.CausalLM.from_pretrained(save(tmp_path / "plain", LLAMA, tensors))
    folder = save(tmp_path / "more", LLAMA, tensors)
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    extra = {
        "score.weight": np.zeros((2, 48), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
    }
    save_file({"_orig_mod." + name: values for name, values in (load_file(file) | extra).items()}, file)
    with pytest.warns(UserWarning, match="score.weight") as said:
        model = llorch.CausalLM.from_pretrained(folder)
    assert len(said) == 1 and model.left_out == ("score.weight",)
    ids = ids_of(plain, 9)
    assert_same_bits(model.forward(ids), plain.forward(ids))


def test_what_is_unknown_or_missing_is_an_error(tmp_path):
    config = LlamaConfig.from_dict(LLAMA)
    tensors = random_tensors(FAMILY, config)
    with pytest.raises(ValueError, match=r"doesn't have: model.layers.0.self_attn.q_proj.oddity"):
        llorch.CausalLM.from_pretrained(
            save(tmp_path / "a", LLAMA, tensors | {"layers.0.self_attn.q_proj.oddity": np.zeros(3, np.float32)})
        )
    del tensors["layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"missing: layers.1.mlp.up_proj.weight"):
        llorch.CausalLM.from_pretrained(save(tmp_path / "b", LLAMA, tensors))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic.*how long the text has become"),
        ({"rope_scaling": {"type": "su"}}, "rope_type 'su', llorch has"),
        ({"num_key_value_heads": 4}, "must be a multiple of num_key_value_heads, 4"),
        ({"head_dim": 7}, "head_dim is 7, it must be even"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0, it must be positive"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish', llorch has"),
        ({"hidden_size": "x" * 3}, "hidden_size must be an int, got 'xxx'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"model_type": "mamba"}, "model_type is mamba, llorch has .*gpt2, .*llama"),
    ],
)
def test_what_isnt_supported_is_refused_by_name(tmp_path, entries, message):
    folder = save(tmp_path / "model", LLAMA | entries, random_tensors(FAMILY, LlamaConfig.from_dict(LLAMA)))
    with pytest.raises((ValueError, TypeError), match=message) as error:
        llorch.CausalLM.from_pretrained(folder)
    assert "config.json" in str(error.value) or "model_type" in message


def test_entries_that_change_nothing_are_ignored(tmp_path, tiny):
    entries = LLAMA | {"pretraining_tp": 2, "attention_dropout": 0.1, "use_cache": False, "novelty": [1]}
    model = llorch.CausalLM.from_pretrained(save(tmp_path / "m", entries, tensors_of(tiny)))
    ids = ids_of(tiny, 5)
    assert_same_bits(model.forward(ids), tiny.forward(ids))


def test_ends_of_a_text(tmp_path, tiny):
    folder = save(tmp_path / "m", LLAMA | {"eos_token_id": [3, 5]}, tensors_of(tiny))
    assert llorch.CausalLM.from_pretrained(folder).config.eos_token_ids == (3, 5)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert llorch.CausalLM.from_pretrained(folder).end_ids == {3, 5, 7}


# ---- transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["plain", "head_dim", "untied", "biases", "llama3", "linear", "yarn"])
def test_transformers(tmp_path, switch):
    """Made, saved and run by transformers, loaded here: within 2e-5 of the logits' standard deviation."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    entries = {k: v for k, v in (LLAMA | SWITCHES[switch]).items() if k != "model_type"}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **entries, initializer_range=0.2)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    theirs.save_pretrained(tmp_path / "model")
    model = llorch.CausalLM.from_pretrained(tmp_path / "model")
    ids = ids_of(model, 60)
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids[None])).logits[0].numpy()
    assert np.abs(model.forward(ids) - wanted).max() <= 2e-5 * wanted.std()
