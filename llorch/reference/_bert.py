"""BERT, the whole model, as specified."""

from typing import Any

from numpy.typing import NDArray

from llorch.reference._attention import attention
from llorch.reference._encoder import Encoder
from llorch.reference._gate import activation
from llorch.reference._unary import tanh

Array = NDArray[Any]


class Bert(Encoder):
    """config is an `llorch.models.bert.BertConfig`; tensors are without "bert."."""

    def embed(self, tokens: Array, types: Array) -> Array:
        """LayerNorm((word + token type) + position), (T, E)."""
        h = self.weights["embeddings.word_embeddings.weight"][tokens]
        if "embeddings.token_type_embeddings.weight" in self.weights:  # which GGUF may leave out
            h = h + self.weights["embeddings.token_type_embeddings.weight"][types]
        h = h + self.weights["embeddings.position_embeddings.weight"][: tokens.size]
        return self.norm(h, "embeddings.LayerNorm")

    def block(self, h: Array, layer: int) -> Array:
        at = f"encoder.layer.{layer}"
        h = self.norm(self.attention(h, f"{at}.attention") + h, f"{at}.attention.output.LayerNorm")
        y = activation(self.linear(h, f"{at}.intermediate.dense"), self.config.hidden_act)
        return self.norm(self.linear(y, f"{at}.output.dense") + h, f"{at}.output.LayerNorm")

    def attention(self, x: Array, at: str) -> Array:
        """Attention of all positions to all: x (T, E) to (T, E)."""
        q, k, v = (self.heads(x, f"{at}.self.{name}") for name in ("query", "key", "value"))
        return self.linear(self.merged(attention(q, k, v, causal=False)), f"{at}.output.dense")

    def labels(self, first: Array) -> Array:
        return self.linear(tanh(self.linear(first, "pooler.dense")), "classifier")
