"""DistilBERT, the whole model, as specified."""

from typing import Any

from numpy.typing import NDArray

from llorch.reference._attention import attention
from llorch.reference._encoder import Encoder
from llorch.reference._gate import activation, relu

Array = NDArray[Any]


class DistilBert(Encoder):
    """config is an `llorch.models.distilbert.DistilBertConfig`; tensors are without "distilbert."."""

    def embed(self, tokens: Array, types: Array) -> Array:
        """LayerNorm(word + position), (T, E)."""
        places = self.weights["embeddings.position_embeddings.weight"][: tokens.size]
        return self.norm(self.weights["embeddings.word_embeddings.weight"][tokens] + places, "embeddings.LayerNorm")

    def block(self, h: Array, layer: int) -> Array:
        at = f"transformer.layer.{layer}"
        h = self.norm(self.attention(h, f"{at}.attention") + h, f"{at}.sa_layer_norm")
        y = activation(self.linear(h, f"{at}.ffn.lin1"), self.config.hidden_act)
        return self.norm(self.linear(y, f"{at}.ffn.lin2") + h, f"{at}.output_layer_norm")

    def attention(self, x: Array, at: str) -> Array:
        """Attention of all positions to all: x (T, E) to (T, E)."""
        q, k, v = (self.heads(x, f"{at}.{name}_lin") for name in "qkv")
        return self.linear(self.merged(attention(q, k, v, causal=False)), f"{at}.out_lin")

    def labels(self, first: Array) -> Array:
        return self.linear(relu(self.linear(first, "pre_classifier")), "classifier")
