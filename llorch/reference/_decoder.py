"""What the texts of decoders share: their weights, and the small steps that all of them take in the same way."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import widen
from llorch.reference._linear import linear
from llorch.reference._norm import rms_norm
from llorch.reference._rope import rope_table

Array = NDArray[Any]


class Decoder:
    """See `llorch.CausalLM`. A family says what a block is.

    config has Hugging Face's names as attributes: a configuration of llorch.models. tensors are the arrays of
    model.safetensors by name, without "model.": matrices (out, in), float32, float16 or bfloat16, which widen exactly.
    lm_head.weight is embed_tokens.weight where it isn't there, and a layer has a bias where there is one. GGUF's
    rope_freqs.weight takes the place of config's rope_scaling.
    """

    EMBEDDING, LAST_NORM = "embed_tokens", "norm"  # names

    def __init__(self, config: Any, tensors: dict[str, Array]) -> None:
        self.config = config
        self.weights = {name: widen(tensors[name], name) for name in tensors}

    def forward(self, ids: Any) -> Array:
        """Logits (T, vocab_size) of token ids (T,), at positions 0 .. T - 1."""
        tokens = np.asarray(ids)
        cos, sin = self.rotations(tokens.size)
        h = self.embed(tokens)
        with np.errstate(all="ignore"):
            for i in range(self.config.num_hidden_layers):
                h = self.block(h, i, cos, sin)
        return self.head(self.norm(h, self.LAST_NORM))

    def embed(self, tokens: Array) -> Array:
        """Rows (T, E) of the embedding."""
        rows: Array = self.weights[f"{self.EMBEDDING}.weight"][tokens]
        return rows

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        """Block `layer`: h (T, E) to (T, E)."""
        raise NotImplementedError

    def head(self, x: Array) -> Array:
        """Logits (T, vocab_size) of x (T, E), which has been through the last norm."""
        name = "lm_head.weight" if "lm_head.weight" in self.weights else f"{self.EMBEDDING}.weight"
        return linear(x, self.weights[name].T)

    def rotations(self, T: int) -> tuple[Array, Array]:
        """cos and sin (T, R/2) of positions 0 .. T - 1, R the rotated values of a head."""
        scaling = self.config.rope_scaling
        if "rope_freqs.weight" in self.weights:
            scaling = {"rope_type": "gguf", "rope_freqs": self.weights["rope_freqs.weight"]}
        elif scaling is not None:
            scaling = {"max_position_embeddings": self.config.max_position_embeddings, **scaling}
        R = int(self.config.head_dim * getattr(self.config, "partial_rotary_factor", 1))
        return rope_table(R, T, base=self.config.rope_theta, scaling=scaling)

    def heads(self, x: Array, name: str) -> Array:
        """A projection (T, E) to (T, heads D), as (heads, T, D)."""
        return self.cut(self.linear(x, name))

    def cut(self, y: Array) -> Array:
        """(T, heads D) as (heads, T, D)."""
        D = self.config.head_dim
        return y.reshape(y.shape[0], y.shape[1] // D, D).transpose(1, 0, 2)

    def merged(self, y: Array) -> Array:
        """(heads, T, D) as (T, heads D)."""
        return y.transpose(1, 0, 2).reshape(y.shape[1], y.shape[0] * y.shape[2])

    def linear(self, x: Array, name: str) -> Array:
        return linear(x, self.weights[f"{name}.weight"].T, self.weights.get(f"{name}.bias"))

    def norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self.weights[f"{name}.weight"], eps=self.config.rms_norm_eps)
