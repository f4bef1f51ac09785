"""OLMo 2, the whole model, as specified."""

from llorch.reference._attention import attention
from llorch.reference._decoder import Array, Decoder
from llorch.reference._gate import NAMES, gate
from llorch.reference._rope import rope


class OLMo2(Decoder):
    __doc__ = Decoder.__doc__

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        h = h + self.norm(self.attention(h, layer, cos, sin), f"layers.{layer}.post_attention_layernorm")
        return h + self.norm(self.feed_forward(h, layer), f"layers.{layer}.post_feedforward_layernorm")

    def attention(self, x: Array, layer: int, cos: Array, sin: Array) -> Array:
        """Causal attention of block `layer`: x (T, E) to (T, E). Norms go over all heads of a row together."""
        name = f"layers.{layer}.self_attn."
        q = self.cut(self.norm(self.linear(x, name + "q_proj"), name + "q_norm"))
        k = self.cut(self.norm(self.linear(x, name + "k_proj"), name + "k_norm"))
        v = self.heads(x, name + "v_proj")
        return self.linear(self.merged(attention(rope(q, cos, sin), rope(k, cos, sin), v)), name + "o_proj")

    def feed_forward(self, x: Array, layer: int) -> Array:
        """The feed-forward layer of block `layer`: x (T, E) to (T, E)."""
        g, u = (self.linear(x, f"layers.{layer}.mlp.{name}") for name in ("gate_proj", "up_proj"))
        return self.linear(gate(g, u, activation=NAMES[self.config.hidden_act]), f"layers.{layer}.mlp.down_proj")
