"""The text of Llama in llorch.reference: beside transformers, on random weights and on SmolLM2's own."""

import numpy as np
import pytest
from helpers import assert_same_bits, not_greedy, rng, same_bits, smollm2
from random_models import llama_tensors

import llorch
from llorch import reference
from llorch.models.llama import LlamaConfig

TINY = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": None, "max_position_embeddings": 256, "tie_word_embeddings": False}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0 + i / 3 for i in range(8)],
        "original_max_position_embeddings": 64, "factor": 4.0}  # fmt: skip

SWITCHES = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "groups": {"num_key_value_heads": 2},
    "head_dim": {"head_dim": 24, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "gelu": {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-3},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0, "original_max_position_embeddings": 64}},
    "yarn": {"rope_parameters": YARN | {"rope_theta": 10000.0}},
}


def ids_of(config, length):
    return rng(7, length).integers(0, config.vocab_size, length)


def by_transformers(entries, tensors, ids):
    """Logits (T, V) of transformers' own Llama with these tensors."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model("llama", **entries)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    names = {name if name.startswith("lm_head") else f"model.{name}": value for name, value in tensors.items()}
    loaded = model.load_state_dict({name: torch.from_numpy(value) for name, value in names.items()}, strict=False)
    assert not loaded.unexpected_keys
    assert set(loaded.missing_keys) <= ({"lm_head.weight"} if entries.get("tie_word_embeddings") else set())
    model.tie_weights()
    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.asarray(ids))[None]).logits[0].numpy()


def distance(got, wanted):
    """The largest difference, in standard deviations of what is wanted."""
    return np.abs(got.astype(np.float64) - wanted).max() / wanted.std(dtype=np.float64)


@pytest.mark.parametrize("switch", SWITCHES)
def test_beside_transformers(switch):
    entries = TINY | SWITCHES[switch]
    config, tensors = llama_tensors(entries)
    ids = ids_of(config, 20)
    assert distance(reference.Llama(config, tensors).forward(ids), by_transformers(entries, tensors, ids)) < 2e-5


class WithoutRotation(reference.Llama):
    def rotations(self, T):
        cos, sin = super().rotations(T)
        return np.ones_like(cos), np.zeros_like(sin)


class OtherBase(reference.Llama):
    def rotations(self, T):
        return reference.rope_table(self.config.head_dim, T, base=self.config.rope_theta * 1.01)


class SwappedGroups(reference.Llama):
    def heads(self, x, name):
        y = super().heads(x, name)
        return y[::-1] if "k_proj" in name or "v_proj" in name else y


class InterleavedPairs(reference.Llama):
    """The rotation of GGUF's layout: pairs side by side."""

    def attention(self, x, layer, cos, sin):
        D = self.config.head_dim
        order = np.arange(D).reshape(2, D // 2).T.reshape(-1)
        for name in ("q_proj", "k_proj"):
            at = f"layers.{layer}.self_attn.{name}.weight"
            kept = self.weights[at]
            self.weights[at] = kept.reshape(-1, D, kept.shape[1])[:, order].reshape(kept.shape)
        return super().attention(x, layer, cos, sin)


class SumBeforeNorm(reference.Llama):
    def feed_forward(self, x, layer):
        return super().feed_forward(x + np.float32(1e-3), layer)


@pytest.mark.parametrize(
    "wrong", (WithoutRotation, OtherBase, SwappedGroups, InterleavedPairs, SumBeforeNorm), ids=lambda w: w.__name__
)
def test_a_wrong_network_is_seen(wrong):
    """Negative control: each of them is beyond the tolerance that the comparison has."""
    entries = TINY | SWITCHES["groups"]
    config, tensors = llama_tensors(entries)
    ids = ids_of(config, 20)
    wanted = reference.Llama(config, tensors).forward(ids)
    assert distance(wrong(config, tensors).forward(ids), wanted) > 1e-3


def test_each_switch_changes_something():
    """Negative control: a switch that were ignored by both would pass the comparison."""
    config, tensors = llama_tensors(TINY)
    ids = ids_of(config, 9)
    plain = reference.Llama(config, tensors).forward(ids)
    for switch in set(SWITCHES) - {"plain", "groups", "head_dim", "biases"}:
        config = LlamaConfig.from_dict(TINY | SWITCHES[switch])
        kept = {name: value for name, value in tensors.items() if switch != "tied" or name != "lm_head.weight"}
        assert distance(reference.Llama(config, kept).forward(ids), plain) > 1e-4, switch
    config, tensors = llama_tensors(TINY | SWITCHES["biases"])
    kept = {name: value for name, value in tensors.items() if not name.endswith("bias")}
    assert distance(reference.Llama(config, kept).forward(ids), reference.Llama(config, tensors).forward(ids)) > 1e-4


@pytest.mark.parametrize("switch", ("groups", "yarn", "biases"))
def test_a_prefix_has_the_logits_of_the_whole(switch):
    config, tensors = llama_tensors(TINY | SWITCHES[switch])
    ids = ids_of(config, 30)
    model = reference.Llama(config, tensors)
    whole = model.forward(ids)
    for n in (1, 2, 13, 29):
        assert_same_bits(model.forward(ids[:n]), whole[:n], f"{switch}, {n} tokens")


class OrdinaryProduct(reference.Llama):
    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T


def test_an_ordinary_product_would_be_seen():
    """Negative control: with NumPy's product a prefix has other bits."""
    entries = TINY | {"hidden_size": 192, "intermediate_size": 320}
    config, tensors = llama_tensors(entries)
    ids = ids_of(config, 30)
    model = OrdinaryProduct(config, tensors)
    whole = model.forward(ids)
    assert not all(same_bits(model.forward(ids[:n]), whole[:n]) for n in (1, 2, 3, 5, 8, 13))


def test_factors_of_gguf_take_the_place_of_the_configs():
    config, tensors = llama_tensors(TINY | SWITCHES["yarn"])
    ids = ids_of(config, 7)
    factors = np.linspace(1, 9, 8).astype(np.float32)
    got = reference.Llama(config, tensors | {"rope_freqs.weight": factors}).forward(ids)
    named = LlamaConfig.from_dict(TINY | {"rope_scaling": {"rope_type": "gguf", "rope_freqs": factors.tolist()}})
    assert_same_bits(got, reference.Llama(named, tensors).forward(ids))
    assert not same_bits(got, reference.Llama(config, tensors).forward(ids))


def test_16_bit_weights_widen():
    config, tensors = llama_tensors(TINY)
    ids = ids_of(config, 5)
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    wide = {name: value.astype(np.float32) for name, value in half.items()}
    assert_same_bits(reference.Llama(config, half).forward(ids), reference.Llama(config, wide).forward(ids))


# ---- real weights ---------------------------------------------------------------------------------------


GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def of_gguf(file):
    """config.json's entries, and tensors by Hugging Face's names: dequantised here, by the oracle."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(file)
    value = lambda name: reader.get_field(f"llama.{name}").contents()  # noqa: E731
    heads, groups = value("attention.head_count"), value("attention.head_count_kv")
    tensors = {}
    for t in reader.tensors:
        shape = tuple(int(n) for n in t.shape[::-1])
        w = reference.dequantize(t.data.reshape(-1).view(np.uint8), t.tensor_type.name, shape)
        name = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight",
                "output.weight": "lm_head.weight"}.get(t.name)  # fmt: skip
        if name is None:
            _, layer, part, kind = t.name.split(".")
            name = f"layers.{layer}.{GGUF_NAMES[part]}.{kind}"
            if part in ("attn_q", "attn_k"):  # there the pairs of a head stand side by side
                pairs = w.reshape(heads if part == "attn_q" else groups, -1, 2, shape[1])
                w = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(shape)
        tensors[name] = w
    entries = {
        "vocab_size": tensors["embed_tokens.weight"].shape[0],
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": value("rope.freq_base")},
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    return entries, tensors


@pytest.mark.weights
def test_real_weights_beside_transformers():
    """SmolLM2's Q4_1 file: 64 greedy tokens are transformers', and of the first 5 the oracle's logits are 9e-5 apart at
    most, of a standard deviation of 7."""
    entries, tensors = of_gguf(smollm2())
    model = llorch.CausalLM.from_pretrained(smollm2())
    prompt = [6403, 1980, 253, 655]  # Once upon a time
    text = [*prompt, *model.generate(prompt, 64)]
    rows = by_transformers(entries, tensors, text)
    assert len(text) == 68 and not_greedy(rows, text, 4) == []
    assert not_greedy(rows, [*text[:40], 5, *text[41:]], 4) == [40]  # negative control

    ids, wanted = text[:5], rows[:5]
    got = reference.Llama(LlamaConfig.from_dict(entries), tensors).forward(ids)
    assert np.abs(got - wanted).max() < 1e-3
    assert_same_bits(model.forward(ids), got)  # and the engine has its bits
    swapped = SwappedGroups(LlamaConfig.from_dict(entries | {"num_hidden_layers": 1}), tensors).forward(ids[:2])
    right = reference.Llama(LlamaConfig.from_dict(entries | {"num_hidden_layers": 1}), tensors).forward(ids[:2])
    assert np.abs(swapped - right).max() > 0.1  # negative control
