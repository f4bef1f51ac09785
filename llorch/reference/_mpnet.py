"""MPNet, the whole model, as specified."""

from typing import Any

from numpy.typing import NDArray

from llorch.reference._attention import attention
from llorch.reference._encoder import Encoder
from llorch.reference._gate import activation
from llorch.reference._unary import tanh

Array = NDArray[Any]


class MPNet(Encoder):
    """config is an `llorch.models.mpnet.MPNetConfig`; tensors are without "mpnet."."""

    def embed(self, tokens: Array, types: Array) -> Array:
        """LayerNorm(word + position), (T, E). Positions begin behind the padding token, 1."""
        h = self.weights["embeddings.word_embeddings.weight"][tokens]
        h = h + self.weights["embeddings.position_embeddings.weight"][2 : 2 + tokens.size]
        return self.norm(h, "embeddings.LayerNorm")

    def block(self, h: Array, layer: int) -> Array:
        at = f"encoder.layer.{layer}"
        h = self.norm(self.attention(h, f"{at}.attention.attn") + h, f"{at}.attention.LayerNorm")
        y = activation(self.linear(h, f"{at}.intermediate.dense"), self.config.hidden_act)
        return self.norm(self.linear(y, f"{at}.output.dense") + h, f"{at}.output.LayerNorm")

    def attention(self, x: Array, at: str) -> Array:
        """Attention of all positions to all, with a bias by relative position: x (T, E) to (T, E)."""
        q, k, v = (self.heads(x, f"{at}.{letter}") for letter in "qkv")
        rows = [bucket(distance) for distance in range(-128, 129)]
        bias = self.weights["encoder.relative_attention_bias.weight"][rows].T
        return self.linear(self.merged(attention(q, k, v, causal=False, position_bias=bias)), f"{at}.o")

    def labels(self, first: Array) -> Array:
        return self.linear(tanh(self.linear(first, "classifier.dense")), "classifier.out_proj")


def bucket(distance: int) -> int:
    """The row of the table of biases for the key at t of a query at p, distance t - p: one for each distance below 8,
    two for each doubling from there on, and 16 more where the key comes later."""
    d = abs(distance)
    row = d if d < 8 else 8
    while 8 <= row < 15 and d * d >= 64 << (row - 7):
        row += 1
    return row + 16 if distance > 0 else row
