"""Mistral, the whole model, as specified."""

from llorch.reference._attention import attention
from llorch.reference._decoder import Array, Decoder
from llorch.reference._gate import NAMES, gate
from llorch.reference._rope import rope


class Mistral(Decoder):
    __doc__ = Decoder.__doc__

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        c, at = self.config, f"layers.{layer}"
        x = self.norm(h, f"{at}.input_layernorm")
        q = self.heads(x, f"{at}.self_attn.q_proj")
        k = self.heads(x, f"{at}.self_attn.k_proj")
        v = self.heads(x, f"{at}.self_attn.v_proj")
        y = attention(rope(q, cos, sin), rope(k, cos, sin), v, window=c.sliding_window)
        h = h + self.linear(self.merged(y), f"{at}.self_attn.o_proj")
        x = self.norm(h, f"{at}.post_attention_layernorm")
        g, u = self.linear(x, f"{at}.mlp.gate_proj"), self.linear(x, f"{at}.mlp.up_proj")
        return h + self.linear(gate(g, u, activation=NAMES[c.hidden_act]), f"{at}.mlp.down_proj")
