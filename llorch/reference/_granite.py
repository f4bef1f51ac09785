"""Granite, the whole model, as specified."""

import numpy as np

from llorch.reference._attention import attention
from llorch.reference._decoder import Array, Decoder
from llorch.reference._gate import NAMES, gate
from llorch.reference._rope import rope


class Granite(Decoder):
    __doc__ = Decoder.__doc__

    def embed(self, tokens: Array) -> Array:
        return super().embed(tokens) * np.float32(self.config.embedding_multiplier)

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        m, at = np.float32(self.config.residual_multiplier), f"layers.{layer}"
        h = h + self.attention(self.norm(h, f"{at}.input_layernorm"), f"{at}.self_attn", cos, sin) * m
        return h + self.feed_forward(self.norm(h, f"{at}.post_attention_layernorm"), f"{at}.mlp") * m

    def attention(self, x: Array, at: str, cos: Array, sin: Array) -> Array:
        """Causal attention by the weights of that name: x (T, E) to (T, E)."""
        q, k, v = (self.heads(x, f"{at}.{part}_proj") for part in "qkv")
        y = attention(rope(q, cos, sin), rope(k, cos, sin), v, scale=float(self.config.attention_multiplier))
        return self.linear(self.merged(y), f"{at}.o_proj")

    def feed_forward(self, x: Array, at: str) -> Array:
        """The feed-forward layer by the weights of that name: x (T, E) to (T, E)."""
        g, u = self.linear(x, f"{at}.gate_proj"), self.linear(x, f"{at}.up_proj")
        return self.linear(gate(g, u, activation=NAMES[self.config.hidden_act]), f"{at}.down_proj")

    def head(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            logits: Array = super().head(x) / np.float32(self.config.logits_scaling)
        return logits
