"""Nomic BERT, the whole model, as specified."""

from typing import Any

from numpy.typing import NDArray

from llorch.reference._attention import attention
from llorch.reference._encoder import Encoder
from llorch.reference._gate import activation
from llorch.reference._rope import rope, rope_table

Array = NDArray[Any]


class NomicBert(Encoder):
    """config is an `llorch.models.nomic_bert.NomicBertConfig`; tensors are without "nomic_bert."."""

    def embed(self, tokens: Array, types: Array) -> Array:
        """LayerNorm(word + token type), (T, E)."""
        h = self.weights["embeddings.word_embeddings.weight"][tokens]
        if "embeddings.token_type_embeddings.weight" in self.weights:
            h = h + self.weights["embeddings.token_type_embeddings.weight"][types]
        return self.norm(h, "emb_ln")

    def block(self, h: Array, layer: int) -> Array:
        at = f"encoder.layers.{layer}"
        h = self.norm(self.attention(h, f"{at}.attn") + h, f"{at}.norm1")
        return self.norm(self.feed_forward(h, f"{at}.mlp") + h, f"{at}.norm2")

    def attention(self, x: Array, at: str) -> Array:
        """Attention of all positions to all, whose queries and keys are rotated: x (T, E) to (T, E)."""
        T, H = x.shape[0], self.config.num_attention_heads
        q, k, v = self.linear(x, f"{at}.Wqkv").reshape(T, 3, H, x.shape[1] // H).transpose(1, 2, 0, 3)
        scaling = self.config.rope_scaling
        if scaling is not None:
            scaling = {"max_position_embeddings": self.config.max_position_embeddings, **scaling}
        cos, sin = rope_table(q.shape[2], T, base=self.config.rope_theta, scaling=scaling)
        y = attention(rope(q, cos, sin), rope(k, cos, sin), v, causal=False)
        return self.linear(self.merged(y), f"{at}.out_proj")

    def feed_forward(self, x: Array, at: str) -> Array:
        """fc2(act(fc12(x)) * fc11(x)): x (T, E) to (T, E)."""
        gate = activation(self.linear(x, f"{at}.fc12"), self.config.hidden_act)
        return self.linear(gate * self.linear(x, f"{at}.fc11"), f"{at}.fc2")
