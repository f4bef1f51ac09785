"""Phi-3, 3.5 and 4, the whole model, as specified."""

from llorch.reference._attention import attention
from llorch.reference._decoder import Array, Decoder
from llorch.reference._gate import NAMES, gate
from llorch.reference._rope import rope


class Phi3(Decoder):
    __doc__ = Decoder.__doc__

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        c, at = self.config, f"layers.{layer}"
        x = self.norm(h, f"{at}.input_layernorm")
        H, G = c.num_attention_heads, c.num_key_value_heads
        qkv = self.heads(x, f"{at}.self_attn.qkv_proj")
        q, k, v = qkv[:H], qkv[H : H + G], qkv[H + G :]
        y = attention(rope(q, cos, sin), rope(k, cos, sin), v, window=c.sliding_window)
        h = h + self.linear(self.merged(y), f"{at}.self_attn.o_proj")
        x = self.norm(h, f"{at}.post_attention_layernorm")
        both, F = self.linear(x, f"{at}.mlp.gate_up_proj"), c.intermediate_size
        return h + self.linear(gate(both[:, :F], both[:, F:], activation=NAMES[c.hidden_act]), f"{at}.mlp.down_proj")
