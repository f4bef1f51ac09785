"""StableLM, the whole model, as specified."""

from llorch.reference._attention import attention
from llorch.reference._decoder import Array, Decoder
from llorch.reference._gate import NAMES, gate
from llorch.reference._norm import layer_norm
from llorch.reference._rope import rope


class StableLM(Decoder):
    __doc__ = Decoder.__doc__

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        n = self.norm(h, f"layers.{layer}.input_layernorm")
        h = h + self.attention(n, layer, cos, sin)
        if not self.config.use_parallel_residual:
            n = self.norm(h, f"layers.{layer}.post_attention_layernorm")
        return h + self.feed_forward(n, layer)

    def attention(self, x: Array, layer: int, cos: Array, sin: Array) -> Array:
        """Causal attention of block `layer`: x (T, E) to (T, E). The first values of each head are rotated."""
        name = f"layers.{layer}.self_attn."
        q, k, v = (self.heads(x, name + part) for part in ("q_proj", "k_proj", "v_proj"))
        y = attention(rope(q, cos, sin), rope(k, cos, sin), v)
        return self.linear(self.merged(y), name + "o_proj")

    def feed_forward(self, x: Array, layer: int) -> Array:
        """The feed-forward layer of block `layer`: x (T, E) to (T, E)."""
        g, u = (self.linear(x, f"layers.{layer}.mlp.{name}") for name in ("gate_proj", "up_proj"))
        return self.linear(gate(g, u, activation=NAMES[self.config.hidden_act]), f"layers.{layer}.mlp.down_proj")

    def norm(self, x: Array, name: str) -> Array:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(x, weight, bias, eps=self.config.layer_norm_eps)
