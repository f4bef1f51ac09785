"""Gemma 2 and the text of Gemma 3, the whole models, as specified."""

from typing import Any

import numpy as np

from llorch.reference._arithmetic import narrow, widen
from llorch.reference._attention import attention
from llorch.reference._decoder import Array, Decoder
from llorch.reference._gate import NAMES, gate
from llorch.reference._norm import rms_norm
from llorch.reference._rope import rope, rope_table
from llorch.reference._unary import tanh


class Gemma2(Decoder):
    __doc__ = Decoder.__doc__

    def __init__(self, config: Any, tensors: dict[str, Array]) -> None:
        super().__init__(config, tensors)
        # sqrt(E), rounded to the type of the embedding; what it multiplies is float32
        root = np.sqrt(np.float64(config.hidden_size)).astype(np.float32).reshape(1)
        self.factor = widen(narrow(root, tensors["embed_tokens.weight"].dtype))

    def embed(self, tokens: Array) -> Array:
        return super().embed(tokens) * self.factor

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        name = f"layers.{layer}."
        y = self.attention(self.norm(h, name + "input_layernorm"), layer, cos, sin)
        h = h + self.norm(y, name + "post_attention_layernorm")
        y = self.feed_forward(self.norm(h, name + "pre_feedforward_layernorm"), layer)
        return h + self.norm(y, name + "post_feedforward_layernorm")

    def attention(self, x: Array, layer: int, cos: Array, sin: Array) -> Array:
        """Causal attention of block `layer`: x (T, E) to (T, E)."""
        c, name = self.config, f"layers.{layer}.self_attn."
        q, k, v = (self.heads(x, name + part) for part in ("q_proj", "k_proj", "v_proj"))
        y = attention(
            rope(self.norm_of_heads(q, name + "q_norm"), cos, sin),
            rope(self.norm_of_heads(k, name + "k_norm"), cos, sin),
            v,
            scale=float(np.float64(1) / np.sqrt(np.float64(c.query_pre_attn_scalar))),
            window=c.sliding_window if c.layer_types[layer] == "sliding_attention" else None,
            softcap=c.attn_logit_softcapping,
        )
        return self.linear(self.merged(y), name + "o_proj")

    def norm_of_heads(self, x: Array, name: str) -> Array:
        """Queries or keys (heads, T, D) before the rotation: Gemma 2 leaves them as they are."""
        return x

    def feed_forward(self, x: Array, layer: int) -> Array:
        """The feed-forward layer of block `layer`: x (T, E) to (T, E)."""
        g, u = (self.linear(x, f"layers.{layer}.mlp.{name}") for name in ("gate_proj", "up_proj"))
        return self.linear(gate(g, u, activation=NAMES[self.config.hidden_activation]), f"layers.{layer}.mlp.down_proj")

    def head(self, x: Array) -> Array:
        y = super().head(x)
        if self.config.final_logit_softcapping is None:
            return y
        cap = np.float32(self.config.final_logit_softcapping)
        with np.errstate(all="ignore"):
            return tanh(y / cap) * cap

    def norm(self, x: Array, name: str) -> Array:
        """RMSNorm with the weight 1 + w, one addition in float32."""
        return rms_norm(x, np.float32(1) + self.weights[f"{name}.weight"], eps=self.config.rms_norm_eps)


class Gemma3(Gemma2):
    __doc__ = Decoder.__doc__

    def rotations(self, T: int) -> tuple[Array, Array]:
        """cos and sin (2, T, D/2) of positions 0 .. T - 1: of layers without a window, and of those with one."""
        c = self.config
        cos, sin = np.zeros((2, T, c.head_dim // 2), np.float32), np.zeros((2, T, c.head_dim // 2), np.float32)
        scaling = c.rope_local_scaling and {
            "max_position_embeddings": c.max_position_embeddings,
            **c.rope_local_scaling,
        }
        cos[0], sin[0] = super().rotations(T)
        cos[1], sin[1] = rope_table(c.head_dim, T, base=c.rope_local_base_freq, scaling=scaling)
        return cos, sin

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        place = 1 if self.config.layer_types[layer] == "sliding_attention" else 0
        return super().block(h, layer, cos[place], sin[place])

    def norm_of_heads(self, x: Array, name: str) -> Array:
        """Queries or keys (heads, T, D) before the rotation: each head by itself."""
        return self.norm(x, name)
