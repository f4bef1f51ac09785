"""Llama, 1 to 3.x, and whatever else calls itself one: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_llama.py: RMSNorm, rotated queries and keys, grouped heads, a gated
feed-forward layer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from llorch.models import config as check
from llorch.models.config import ModelConfig
from llorch.models.graph import Graph, Parameter, Rope, Step
from llorch.models.registry import Family


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """Sizes and switches of a Llama, checked when made.

    Attributes
    ----------
    vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, max_position_embeddings : int
        Tokens, the width, that of the feed-forward layer, blocks, heads, the longest context.
    num_key_value_heads : int or None
        Heads of keys and values, a divisor of num_attention_heads; None is as many.
    head_dim : int or None
        Values of a head, even; None is hidden_size / num_attention_heads.
    hidden_act : str
        silu, or another of GPT-2's.
    rms_norm_eps : float
        Finite, not negative.
    rope_theta : float
        The base of the rotations.
    rope_scaling : mapping or None
        Hugging Face's entries (rope_type llama3, linear, yarn, longrope), or GGUF's factors.
    attention_bias, mlp_bias, tie_word_embeddings : bool
        Whether those layers have biases; whether the head is the embedding where the file has none.
    bos_token_id : int or None
    eos_token_id : int, list of ints or None

    Raises
    ------
    TypeError, ValueError
        Names the entry, what it is and what it must be.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"):
            check.size(getattr(self, name), name)
        check.size(self.max_position_embeddings, "max_position_embeddings")
        check.size(self.num_hidden_layers, "num_hidden_layers", check.MOST_LAYERS)
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.num_attention_heads % check.size(self.num_key_value_heads, "num_key_value_heads"):
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, it must be a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size is {self.hidden_size}, without head_dim it must be a multiple of "
                    f"num_attention_heads, {self.num_attention_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if check.size(self.head_dim, "head_dim") % 2:
            raise ValueError(f"head_dim is {self.head_dim}, it must be even: its values are rotated in pairs")
        check.activation(self.hidden_act, "hidden_act")
        check.number(self.rms_norm_eps, "rms_norm_eps")
        if not check.number(self.rope_theta, "rope_theta", most=math.inf) > 0:
            raise ValueError(f"rope_theta is {self.rope_theta}, it must be positive")
        for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
            check.flag(getattr(self, name), name)
        check.token(self.bos_token_id, "bos_token_id")
        object.__setattr__(self, "eos_token_id", check.tokens(self.eos_token_id, "eos_token_id"))
        object.__setattr__(self, "rope_scaling", check.rope_scaling(self.rope_scaling))

    @property
    def context(self) -> int:
        return self.max_position_embeddings

    @property
    def layers(self) -> int:
        return self.num_hidden_layers

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "LlamaConfig":
        """A configuration from the entries of a config.json; those that don't concern the mathematics are ignored.

        ValueError names an entry that asks for something llorch doesn't have.
        """
        check.refuse(entries, "Llama", {"partial_rotary_factor": 1})
        found = {field.name: entries[field.name] for field in fields(cls) if field.name in entries}
        theta, scaling = check.rope_entries(entries)
        if theta is not None:
            found["rope_theta"] = theta
        return cls(**found | {"rope_scaling": scaling})

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "LlamaConfig":
        """From a GGUF file's metadata, and its tensors' shapes. The factors of rope_freqs come with the weights."""
        get = check.GGUF(metadata, "llama")
        heads, width = get("attention.head_count"), get("embedding_length")
        head_dim = get("attention.key_length", None)
        rotated = get("rope.dimension_count", None)
        config = cls(
            vocab_size=check.rows(shapes, "token_embd.weight"),
            hidden_size=width,
            intermediate_size=get("feed_forward_length"),
            num_hidden_layers=get("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=get("attention.head_count_kv", None),
            head_dim=head_dim,
            max_position_embeddings=get("context_length"),
            rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
            rope_theta=get("rope.freq_base", 10000.0),
            rope_scaling=check.gguf_rope_scaling(get, shapes),
            attention_bias="blk.0.attn_q.bias" in shapes,
            mlp_bias="blk.0.ffn_gate.bias" in shapes,
            tie_word_embeddings="output.weight" not in shapes,
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_id=check.gguf_ends(metadata),
        )
        if rotated not in (None, config.head_dim):
            raise ValueError(
                f"llama.rope.dimension_count is {rotated}, it must be the width of a head, {config.head_dim}"
            )
        for name, harmless in (("attention.value_length", config.head_dim), ("rope.scaling.attn_factor", 1)):
            if get(name, None) not in (None, harmless):
                raise ValueError(f"llama.{name} is {get(name)}: llorch's Llama has {harmless}")
        if get("expert_count", 0):
            raise ValueError(f"llama.expert_count is {get('expert_count')}: mixtures of experts are not supported")
        return config


def block(c: LlamaConfig) -> tuple[Step, ...]:
    """h = h + o_proj(attention(rope(q), rope(k), v)), h = h + down_proj(act(gate_proj) * up_proj)."""
    eps, H, G = {"eps": c.rms_norm_eps}, c.num_attention_heads, c.num_key_value_heads

    def heads(letter: str, count: int | None, axes: str, what: str) -> tuple[Step, Step]:
        flat = f"attn.{letter}_flat"
        return (
            Step(flat, "linear", ("ln_1",), "TQ" if axes == "HTD" else "TR", weight=f"self_attn.{letter}_proj"),
            Step(f"attn.{letter}", "heads", (flat,), axes, "qkv", what, options={"first": 0, "count": count}),
        )

    def rotated(letter: str, axes: str, what: str) -> Step:
        return Step(
            f"attn.{letter}_rope", "rope", (f"attn.{letter}",), axes, "rotation", f"{what} after the rotation",
            options={"table": "main"},
        )  # fmt: skip

    return (
        Step("ln_1", "rms_norm", ("x",), "TE", "norm", "RMSNorm of the block's input", "input_layernorm", options=eps),
        *heads("q", H, "HTD", "queries"),
        *heads("k", G, "GTD", "keys"),
        *heads("v", G, "GTD", "values"),
        rotated("q", "HTD", "queries"),
        rotated("k", "GTD", "keys"),
        Step(
            "attn.cache_k", "cache", ("attn.k_rope",), "GTD", "cache",
            "keys in the cache after the prompt: attn.k_rope, bit for bit", checked_against="attn.k_rope",
        ),
        Step(
            "attn.cache_v", "cache", ("attn.v",), "GTD", "cache",
            "values in the cache after the prompt: attn.v, bit for bit", checked_against="attn.v",
        ),
        Step(
            "attn.scores", "scores", ("attn.q_rope", "attn.cache_k"), "HTS", "scores",
            "q k' scale; -inf where query t may not see position s",
            options={"scale": None, "causal": True, "window": None, "softcap": None},
        ),
        Step(
            "attn.context", "attend", ("attn.scores", "attn.cache_v"), "TQ", "attention",
            "softmax(scores) v, the heads side by side",
        ),
        Step(
            "attn.c_proj", "linear", ("attn.context",), "TE", "attention",
            "attention output: context through o_proj", "self_attn.o_proj",
        ),
        Step("residual", "add", ("x", "attn.c_proj"), "TE", "attention", "the block's input + attn.c_proj"),
        Step(
            "ln_2", "rms_norm", ("residual",), "TE", "feed_forward", "RMSNorm of residual", "post_attention_layernorm",
            options=eps,
        ),
        Step("mlp.gate", "linear", ("ln_2",), "TF", "feed_forward", "gate, before the activation", "mlp.gate_proj"),
        Step("mlp.up", "linear", ("ln_2",), "TF", "feed_forward", "up", "mlp.up_proj"),
        Step(
            "mlp.act", "activation", ("mlp.gate",), "TF", "feed_forward", "gate, after the activation",
            options={"function": check.ACTIVATIONS[c.hidden_act]},
        ),
        Step("mlp.product", "multiply", ("mlp.act", "mlp.up"), "TF", "feed_forward", "mlp.act * mlp.up"),
        Step("mlp.c_proj", "linear", ("mlp.product",), "TE", "feed_forward", "feed-forward output", "mlp.down_proj"),
        Step("", "add", ("residual", "mlp.c_proj"), "TE", "block", "the block's output: residual + mlp.c_proj"),
    )  # fmt: skip


def parameters(c: LlamaConfig) -> tuple[tuple[Parameter, ...], tuple[Parameter, ...]]:
    outside = (
        Parameter("embed_tokens.weight", "VE", "token_embd.weight"),
        Parameter("norm.weight", "E", "output_norm.weight"),
        Parameter(
            "lm_head.weight", "VE", "output.weight", optional="embed_tokens.weight" if c.tie_word_embeddings else None
        ),
    )
    inside = [
        Parameter("input_layernorm.weight", "E", "attn_norm.weight"),
        Parameter("self_attn.q_proj.weight", "QE", "attn_q.weight", interleaved="H"),
        Parameter("self_attn.k_proj.weight", "RE", "attn_k.weight", interleaved="G"),
        Parameter("self_attn.v_proj.weight", "RE", "attn_v.weight"),
        Parameter("self_attn.o_proj.weight", "EQ", "attn_output.weight"),
        Parameter("post_attention_layernorm.weight", "E", "ffn_norm.weight"),
        Parameter("mlp.gate_proj.weight", "FE", "ffn_gate.weight"),
        Parameter("mlp.up_proj.weight", "FE", "ffn_up.weight"),
        Parameter("mlp.down_proj.weight", "EF", "ffn_down.weight"),
    ]
    if c.attention_bias:
        inside += [
            Parameter("self_attn.q_proj.bias", "Q", "attn_q.bias", interleaved="H"),
            Parameter("self_attn.k_proj.bias", "R", "attn_k.bias", interleaved="G"),
            Parameter("self_attn.v_proj.bias", "R", "attn_v.bias"),
            Parameter("self_attn.o_proj.bias", "E", "attn_output.bias"),
        ]
    if c.mlp_bias:
        inside += [
            Parameter("mlp.gate_proj.bias", "F", "ffn_gate.bias"),
            Parameter("mlp.up_proj.bias", "F", "ffn_up.bias"),
            Parameter("mlp.down_proj.bias", "E", "ffn_down.bias"),
        ]
    return outside, tuple(inside)


def graph(c: LlamaConfig) -> Graph:
    H, G, D = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    assert G is not None and D is not None
    sizes = {"E": c.hidden_size, "V": c.vocab_size, "P": c.max_position_embeddings, "F": c.intermediate_size}
    sizes |= {"H": H, "G": G, "D": D, "Q": H * D, "R": G * D, "W": (H + 2 * G) * D}
    before = (Step("embed", "embedding", ("ids",), "TE", "embed", "embed_tokens[id]", "embed_tokens"),)
    after = (
        Step(
            "ln_f", "rms_norm", ("x",), "TE", "final_norm", "the final RMSNorm", "norm",
            options={"eps": c.rms_norm_eps},
        ),
        Step(
            "logits", "linear", ("ln_f",), "TV", "logits",
            "ln_f through the head, which is embed_tokens where it is tied", "lm_head",
        ),
    )  # fmt: skip
    outside, inside = parameters(c)
    scaling = c.rope_scaling and {"max_position_embeddings": c.max_position_embeddings, **c.rope_scaling}
    ropes = {"main": Rope(D, c.rope_theta, scaling)}
    return Graph(sizes, before, (block(c),) * c.num_hidden_layers, after, outside, inside, "layers.", ropes)


FAMILY = Family(
    "Llama",
    ("llama",),
    LlamaConfig.from_dict,
    graph,
    "Llama",
    architectures=("llama",),
    config_of_gguf=LlamaConfig.from_gguf,
    prefixes=("model.",),
)
