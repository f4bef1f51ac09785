"""ModernBERT, the whole model, as specified."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._attention import attention
from llorch.reference._encoder import Encoder
from llorch.reference._gate import activation
from llorch.reference._rope import rope, rope_table

Array = NDArray[Any]


class ModernBert(Encoder):
    """config is an `llorch.models.modernbert.ModernBertConfig`; tensors are without "model."."""

    EPS = "norm_eps"

    def forward(self, ids: Any, token_types: Any = None) -> Array:
        h = super().forward(ids, token_types)
        with np.errstate(all="ignore"):
            return self.norm(h, "final_norm")

    def embed(self, tokens: Array, types: Array) -> Array:
        """LayerNorm(word), (T, E)."""
        return self.norm(self.weights["embeddings.tok_embeddings.weight"][tokens], "embeddings.norm")

    def block(self, h: Array, layer: int) -> Array:
        at = f"layers.{layer}"
        n = self.norm(h, f"{at}.attn_norm") if layer else h
        h = h + self.attention(n, layer, f"{at}.attn")
        return h + self.feed_forward(self.norm(h, f"{at}.mlp_norm"), f"{at}.mlp")

    def attention(self, x: Array, layer: int, at: str) -> Array:
        """Attention to all positions, or to those of a window on both sides; queries and keys are rotated: x (T, E) to
        (T, E)."""
        c, T, H = self.config, x.shape[0], self.config.num_attention_heads
        q, k, v = self.linear(x, f"{at}.Wqkv").reshape(T, 3, H, x.shape[1] // H).transpose(1, 2, 0, 3)
        near = c.layer_types[layer] == "sliding_attention"
        cos, sin = rope_table(q.shape[2], T, base=c.local_rope_theta if near else c.global_rope_theta)
        window = c.local_attention // 2 if near else None
        y = attention(rope(q, cos, sin), rope(k, cos, sin), v, causal=False, window=window)
        return self.linear(self.merged(y), f"{at}.Wo")

    def feed_forward(self, x: Array, at: str) -> Array:
        """Wo(act(g) * u), g and u the halves of Wi(x): x (T, E) to (T, E)."""
        y = self.linear(x, f"{at}.Wi")
        F = y.shape[1] // 2
        return self.linear(activation(y[:, :F], self.config.hidden_activation) * y[:, F:], f"{at}.Wo")
