"""What the texts of encoders share: their weights, and the small steps that all of them take in the same way."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import widen
from llorch.reference._linear import linear
from llorch.reference._norm import layer_norm

Array = NDArray[Any]


class Encoder:
    """A family says what goes into the first block, and what a block is.

    config has Hugging Face's names as attributes: a configuration of llorch.models. tensors are the arrays of
    model.safetensors by name, without what stands before all of them: matrices (out, in), float32, float16 or bfloat16,
    which widen exactly. A layer has a bias where there is one.
    """

    EPS = "layer_norm_eps"  # the configuration's name of the norms' epsilon

    def __init__(self, config: Any, tensors: dict[str, Array]) -> None:
        self.config = config
        self.weights = {name: widen(tensors[name], name) for name in tensors}

    def forward(self, ids: Any, token_types: Any = None) -> Array:
        """The last hidden state (T, E) of token ids (T,), of these types (T,), or None for all 0."""
        tokens = np.asarray(ids)
        types = np.zeros(tokens.size, np.int64) if token_types is None else np.asarray(token_types)
        with np.errstate(all="ignore"):
            h = self.embed(tokens, types)
            for i in range(self.config.num_hidden_layers):
                h = self.block(h, i)
        return h

    def classify(self, ids: Any, token_types: Any = None) -> Array:
        """The labels (num_labels,) of a text by a model that has a classifier."""
        labels: Array = self.labels(self.forward(ids, token_types)[:1])[0]
        return labels

    def embed(self, tokens: Array, types: Array) -> Array:
        """What goes into the first block, (T, E)."""
        raise NotImplementedError

    def block(self, h: Array, layer: int) -> Array:
        """Block `layer`: h (T, E) to (T, E)."""
        raise NotImplementedError

    def labels(self, first: Array) -> Array:
        """Labels (1, num_labels) of the hidden state of the first token, (1, E)."""
        raise NotImplementedError

    def heads(self, x: Array, name: str) -> Array:
        """A projection (T, E) to (T, H D), as (H, T, D)."""
        H = self.config.num_attention_heads
        y = self.linear(x, name)
        return y.reshape(y.shape[0], H, y.shape[1] // H).transpose(1, 0, 2)

    def merged(self, y: Array) -> Array:
        """(H, T, D) as (T, H D)."""
        return y.transpose(1, 0, 2).reshape(y.shape[1], y.shape[0] * y.shape[2])

    def linear(self, x: Array, name: str) -> Array:
        return linear(x, self.weights[f"{name}.weight"].T, self.weights.get(f"{name}.bias"))

    def norm(self, x: Array, name: str) -> Array:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return layer_norm(x, weight, bias, eps=getattr(self.config, self.EPS))
