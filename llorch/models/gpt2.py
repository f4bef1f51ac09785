"""What a GPT-2 is, by the names of Hugging Face's config.json."""

import json
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

# Hugging Face's names, and llorch's function for each.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "tanh": "tanh",
}

# Entries that change the mathematics in a way that isn't built: each may be absent or have the value here.
# reorder_and_upcast_attn is not among them: it asks 16-bit code to compute attention in float32, as llorch always does.
REFUSED = {"add_cross_attention": False, "pruned_heads": {}, "quantization_config": None}

LARGEST = 2**24  # values in a row that the kernels specify
FLOAT32_END = 2**128 - 2**103  # the least number that rounds to infinity in float32
MOST_LAYERS = 10_000  # a hostile number must not cost memory before the file is looked at


@dataclass(frozen=True)
class GPT2Config:
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
    bos_token_id, eos_token_id : int or None
        The token that begins a text, and the one that ends it.

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
    eos_token_id: int | None = 50256

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if value is None and name == "n_inner":
                continue
            most = MOST_LAYERS if name == "n_layer" else LARGEST
            if not 1 <= _integer(value, name) <= most:
                raise ValueError(f"{name} is {value}, it must be at least 1 and at most {most}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, it must be a multiple of n_head, {self.n_head}")
        if not isinstance(self.activation_function, str) or self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"activation_function is {self.activation_function!r}, llorch has {', '.join(sorted(ACTIVATIONS))}"
            )
        eps = self.layer_norm_epsilon
        if isinstance(eps, bool) or not isinstance(eps, int | float):
            raise TypeError(f"layer_norm_epsilon must be a number, got {type(eps).__name__}")
        if not 0 <= eps < FLOAT32_END:  # as it is: an int may be too large for a float
            raise ValueError(f"layer_norm_epsilon is {eps}, it must be finite in float32 and not negative")
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) is not None:
                _integer(getattr(self, name), name)

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
        return ACTIVATIONS[self.activation_function]

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
        for name, harmless in REFUSED.items():
            if entries.get(name) not in (None, False, harmless):
                raise ValueError(f"{name} is {entries[name]!r}: llorch's GPT-2 doesn't support it")
        return cls(**{field.name: entries[field.name] for field in fields(cls) if field.name in entries})

    @classmethod
    def from_file(cls, path: str | Path) -> "GPT2Config":
        """The configuration in a config.json. OSError if it can't be read; ValueError or TypeError names the file."""
        path = Path(path)
        try:
            entries = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        try:
            return cls.from_dict(entries)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{path}: {error}") from None


def _integer(value: Any, name: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
