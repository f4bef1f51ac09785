"""GPT-2: what its config.json can say, and its graph."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from llorch.models import config as check
from llorch.models.config import ModelConfig
from llorch.models.graph import Graph, Parameter, Step
from llorch.models.registry import Family

# reorder_and_upcast_attn isn't refused: it asks 16-bit code to compute attention in float32, as llorch always does.


@dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """Sizes and switches of a GPT-2, checked when made.

    Attributes
    ----------
    vocab_size, n_positions, n_embd, n_layer, n_head : int
        Tokens, the longest context, the width, blocks, and heads of a block (n_embd is a multiple of n_head).
    n_inner : int or None
        Width of the feed-forward layer; None is 4 * n_embd.
    activation_function : str
        gelu_new (also gelu_pytorch_tanh, gelu_fast), gelu, relu, silu (swish) or tanh.
    layer_norm_epsilon : float
        Finite, not negative.
    scale_attn_weights : bool
        Scores are divided by the root of the head's width, n_embd / n_head.
    scale_attn_by_inverse_layer_idx : bool
        Scores of block i, from 0, are divided by i + 1 as well.
    bos_token_id : int or None
        The token that begins a text.
    eos_token_id : int, tuple of ints or None
        What ends one.

    Raises
    ------
    TypeError, ValueError
        Names the entry, what it is and what it must be.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_head"):
            check.size(getattr(self, name), name)
        check.size(self.n_layer, "n_layer", check.MOST_LAYERS)
        if self.n_inner is not None:
            check.size(self.n_inner, "n_inner")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, it must be a multiple of n_head, {self.n_head}")
        check.activation(self.activation_function, "activation_function")
        check.number(self.layer_norm_epsilon, "layer_norm_epsilon")
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx"):
            check.flag(getattr(self, name), name)
        check.token(self.bos_token_id, "bos_token_id")
        object.__setattr__(self, "eos_token_id", check.tokens(self.eos_token_id, "eos_token_id"))

    @property
    def context(self) -> int:
        return self.n_positions

    @property
    def layers(self) -> int:
        return self.n_layer

    @property
    def head_dim(self) -> int:
        """Values of a head: n_embd / n_head."""
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def activation(self) -> str:
        """The activation by llorch's name: gelu_tanh, gelu, silu, relu or tanh."""
        return check.ACTIVATIONS[self.activation_function]

    def scale(self, layer: int) -> float:
        """What scores of block `layer`, from 0, are multiplied by: 1 / sqrt(head_dim) / (layer + 1), or as much of it
        as the switches ask for, in float64; attention rounds it once, to float32."""
        scale = 1 / math.sqrt(self.head_dim) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "GPT2Config":
        """A configuration from the entries of a config.json; those that don't concern the mathematics are ignored.

        ValueError names an entry that asks for something llorch doesn't have.
        """
        if not isinstance(entries, Mapping):
            raise TypeError(f"a configuration must be a mapping of names to values, got {type(entries).__name__}")
        kind = entries.get("model_type", "gpt2")
        if kind != "gpt2":
            raise ValueError(f"model_type is {kind!r}, it must be 'gpt2'")
        check.refuse(entries, "GPT-2", {})
        return cls(**{field.name: entries[field.name] for field in fields(cls) if field.name in entries})

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "GPT2Config":
        """From a GGUF file's metadata, and its tensors' shapes."""
        get = check.GGUF(metadata, "gpt2")
        return cls(
            vocab_size=check.rows(shapes, "token_embd.weight"),
            n_positions=get("context_length"),
            n_embd=get("embedding_length"),
            n_layer=get("block_count"),
            n_head=get("attention.head_count"),
            n_inner=get("feed_forward_length", None),
            layer_norm_epsilon=get("attention.layer_norm_epsilon"),
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        )


def block(c: GPT2Config, layer: int) -> tuple[Step, ...]:
    """h = h + c_proj(attention(c_attn(ln_1(h)))), h = h + c_proj(activation(c_fc(ln_2(h))))."""
    eps, H = {"eps": c.layer_norm_epsilon}, c.n_head

    def heads(name: str, first: int, what: str) -> Step:
        return Step(name, "heads", ("attn.qkv",), "HTD", "qkv", what, options={"first": first, "count": H})

    return (
        Step("ln_1", "layer_norm", ("x",), "TE", "norm", "LayerNorm of the block's input", "ln_1", options=eps),
        Step("attn.qkv", "linear", ("ln_1",), "TW", weight="attn.c_attn"),
        heads("attn.q", 0, "queries"),
        heads("attn.k", H, "keys"),
        heads("attn.v", 2 * H, "values"),
        Step(
            "attn.cache_k", "cache", ("attn.k",), "HTD", "cache",
            "keys in the cache after the prompt: attn.k, bit for bit", checked_against="attn.k",
        ),
        Step(
            "attn.cache_v", "cache", ("attn.v",), "HTD", "cache",
            "values in the cache after the prompt: attn.v, bit for bit", checked_against="attn.v",
        ),
        Step(
            "attn.scores", "scores", ("attn.q", "attn.cache_k"), "HTS", "scores",
            "q k' scale; -inf where query t may not see position s",
            options={"scale": c.scale(layer), "causal": True, "window": None, "softcap": None},
        ),
        Step(
            "attn.context", "attend", ("attn.scores", "attn.cache_v"), "TE", "attention",
            "softmax(scores) v, the heads side by side",
        ),
        Step(
            "attn.c_proj", "linear", ("attn.context",), "TE", "attention",
            "attention output: context through c_proj", "attn.c_proj",
        ),
        Step("residual", "add", ("x", "attn.c_proj"), "TE", "attention", "the block's input + attn.c_proj"),
        Step("ln_2", "layer_norm", ("residual",), "TE", "feed_forward", "LayerNorm of residual", "ln_2", options=eps),
        Step("mlp.c_fc", "linear", ("ln_2",), "TF", "feed_forward", "before the activation", "mlp.c_fc"),
        Step(
            "mlp.act", "activation", ("mlp.c_fc",), "TF", "feed_forward", "after the activation",
            options={"function": c.activation},
        ),
        Step("mlp.c_proj", "linear", ("mlp.act",), "TE", "feed_forward", "feed-forward output", "mlp.c_proj"),
        Step("", "add", ("residual", "mlp.c_proj"), "TE", "block", "the block's output: residual + mlp.c_proj"),
    )  # fmt: skip


PARAMETERS = (
    Parameter("wte.weight", "VE", "token_embd.weight"),
    Parameter("wpe.weight", "PE", "position_embd.weight"),
    Parameter("ln_f.weight", "E", "output_norm.weight"),
    Parameter("ln_f.bias", "E", "output_norm.bias"),
    Parameter("lm_head.weight", "VE", "output.weight", optional="wte.weight"),
)

# Hugging Face's matrices are (in, out), as GPT-2's Conv1D has them; GGUF's are (out, in), as everywhere.
BLOCK_PARAMETERS = (
    Parameter("ln_1.weight", "E", "attn_norm.weight"),
    Parameter("ln_1.bias", "E", "attn_norm.bias"),
    Parameter("attn.c_attn.weight", "EW", "attn_qkv.weight", conv1d=True),
    Parameter("attn.c_attn.bias", "W", "attn_qkv.bias"),
    Parameter("attn.c_proj.weight", "EE", "attn_output.weight", conv1d=True),
    Parameter("attn.c_proj.bias", "E", "attn_output.bias"),
    Parameter("ln_2.weight", "E", "ffn_norm.weight"),
    Parameter("ln_2.bias", "E", "ffn_norm.bias"),
    Parameter("mlp.c_fc.weight", "EF", "ffn_up.weight", conv1d=True),
    Parameter("mlp.c_fc.bias", "F", "ffn_up.bias"),
    Parameter("mlp.c_proj.weight", "FE", "ffn_down.weight", conv1d=True),
    Parameter("mlp.c_proj.bias", "E", "ffn_down.bias"),
)


def graph(c: GPT2Config) -> Graph:
    H, D, E = c.n_head, c.head_dim, c.n_embd
    sizes = {"E": E, "V": c.vocab_size, "P": c.n_positions, "F": c.inner}
    sizes |= {"H": H, "G": H, "D": D, "Q": E, "R": E, "W": 3 * E}
    before = (
        Step("tokens", "embedding", ("ids",), "TE", weight="wte"),
        Step("places", "embedding", ("positions",), "TE", weight="wpe"),
        Step("embed", "add", ("tokens", "places"), "TE", "embed", "wte[id] + wpe[position]"),
    )
    after = (
        Step(
            "ln_f", "layer_norm", ("x",), "TE", "final_norm", "the final LayerNorm", "ln_f",
            options={"eps": c.layer_norm_epsilon},
        ),
        Step(
            "logits", "linear", ("ln_f",), "TV", "logits",
            "ln_f through the head, which is wte where it is tied", "lm_head",
        ),
    )  # fmt: skip
    blocks = tuple(block(c, layer) for layer in range(c.n_layer))
    return Graph(sizes, before, blocks, after, PARAMETERS, BLOCK_PARAMETERS, "h.")


def shapes(c: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model and its shape, without the LM head. Weights are (in, out) as GPT-2's Conv1D has them."""
    return graph(c).shapes()


FAMILY = Family(
    "GPT-2",
    ("gpt2",),
    GPT2Config.from_dict,
    graph,
    "GPT2",
    architectures=("gpt2",),
    config_of_gguf=GPT2Config.from_gguf,
    prefixes=("transformer.",),
)
