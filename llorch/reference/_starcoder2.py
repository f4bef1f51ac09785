"""StarCoder2, the whole model, as specified."""

from llorch.reference._attention import attention
from llorch.reference._decoder import Array, Decoder
from llorch.reference._gate import activation
from llorch.reference._norm import layer_norm
from llorch.reference._rope import rope


class StarCoder2(Decoder):
    __doc__ = Decoder.__doc__

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        h = h + self.attention(self.norm(h, f"layers.{layer}.input_layernorm"), layer, cos, sin)
        return h + self.feed_forward(self.norm(h, f"layers.{layer}.post_attention_layernorm"), layer)

    def attention(self, x: Array, layer: int, cos: Array, sin: Array) -> Array:
        """Causal attention of block `layer`, within the window: x (T, E) to (T, E)."""
        name = f"layers.{layer}.self_attn."
        q, k, v = (self.heads(x, name + part) for part in ("q_proj", "k_proj", "v_proj"))
        y = attention(rope(q, cos, sin), rope(k, cos, sin), v, window=self.config.sliding_window)
        return self.linear(self.merged(y), name + "o_proj")

    def feed_forward(self, x: Array, layer: int) -> Array:
        """The feed-forward layer of block `layer`: x (T, E) to (T, E)."""
        y = activation(self.linear(x, f"layers.{layer}.mlp.c_fc"), self.config.hidden_act)
        return self.linear(y, f"layers.{layer}.mlp.c_proj")

    def norm(self, x: Array, name: str) -> Array:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(x, weight, bias, eps=self.config.norm_epsilon)
