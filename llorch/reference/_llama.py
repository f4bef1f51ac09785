"""Llama, 1 to 3.x, the whole model, as specified."""

from llorch.reference._attention import attention
from llorch.reference._decoder import Array, Decoder
from llorch.reference._gate import NAMES, gate
from llorch.reference._rope import rope


class Llama(Decoder):
    __doc__ = Decoder.__doc__

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        h = h + self.attention(self.norm(h, f"layers.{layer}.input_layernorm"), layer, cos, sin)
        return h + self.feed_forward(self.norm(h, f"layers.{layer}.post_attention_layernorm"), layer)

    def attention(self, x: Array, layer: int, cos: Array, sin: Array) -> Array:
        """Causal attention of block `layer`: x (T, E) to (T, E)."""
        q = rope(self.heads(x, f"layers.{layer}.self_attn.q_proj"), cos, sin)
        k = rope(self.heads(x, f"layers.{layer}.self_attn.k_proj"), cos, sin)
        v = self.heads(x, f"layers.{layer}.self_attn.v_proj")
        return self.linear(self.merged(attention(q, k, v)), f"layers.{layer}.self_attn.o_proj")

    def feed_forward(self, x: Array, layer: int) -> Array:
        """The feed-forward layer of block `layer`: x (T, E) to (T, E)."""
        g, u = (self.linear(x, f"layers.{layer}.mlp.{name}") for name in ("gate_proj", "up_proj"))
        return self.linear(gate(g, u, activation=NAMES[self.config.hidden_act]), f"layers.{layer}.mlp.down_proj")
