"""RoBERTa, the whole model, as specified: BERT whose positions begin behind the padding token's."""

from typing import Any

from numpy.typing import NDArray

from llorch.reference._bert import Bert
from llorch.reference._unary import tanh

Array = NDArray[Any]


class Roberta(Bert):
    """config is an `llorch.models.roberta.RobertaConfig`; tensors are without "roberta."."""

    def embed(self, tokens: Array, types: Array) -> Array:
        """LayerNorm((word + token type) + position), (T, E)."""
        first = self.config.pad_token_id + 1
        h = self.weights["embeddings.word_embeddings.weight"][tokens]
        if "embeddings.token_type_embeddings.weight" in self.weights:
            h = h + self.weights["embeddings.token_type_embeddings.weight"][types]
        h = h + self.weights["embeddings.position_embeddings.weight"][first : first + tokens.size]
        return self.norm(h, "embeddings.LayerNorm")

    def labels(self, first: Array) -> Array:
        return self.linear(tanh(self.linear(first, "classifier.dense")), "classifier.out_proj")
