"""GPT-2, the whole model, as specified."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import widen
from llorch.reference._attention import attention
from llorch.reference._gate import activation
from llorch.reference._linear import linear
from llorch.reference._norm import layer_norm

Array = NDArray[Any]


class GPT2:
    """See `llorch.GPT2`.

    config has Hugging Face's names as attributes: an `llorch.models.gpt2.GPT2Config`. tensors are the arrays of
    model.safetensors by name, without "transformer.": matrices (in, out), float32, float16 or bfloat16, which widen
    exactly. lm_head.weight is wte.weight where it isn't there.
    """

    def __init__(self, config: Any, tensors: dict[str, Array]) -> None:
        self.config = config
        self.weights = {name: widen(tensors[name], name) for name in tensors}

    def forward(self, ids: Any) -> Array:
        """Logits (T, vocab_size) of token ids (T,), at positions 0 .. T - 1."""
        tokens = np.asarray(ids)
        with np.errstate(all="ignore"):
            h = self.weights["wte.weight"][tokens] + self.weights["wpe.weight"][: tokens.size]
            for i in range(self.config.n_layer):
                h = h + self.attention(self.norm(h, f"h.{i}.ln_1"), i)
                h = h + self.feed_forward(self.norm(h, f"h.{i}.ln_2"), i)
        head = "lm_head.weight" if "lm_head.weight" in self.weights else "wte.weight"
        return linear(self.norm(h, "ln_f"), self.weights[head].T)

    def attention(self, x: Array, layer: int) -> Array:
        """Causal attention of block `layer`: x (T, E) to (T, E)."""
        T, E = x.shape
        H, D = self.config.n_head, E // self.config.n_head
        q, k, v = self.linear(x, f"h.{layer}.attn.c_attn").reshape(T, 3, H, D).transpose(1, 2, 0, 3)
        scale = np.float64(1)
        if self.config.scale_attn_weights:
            scale = scale / np.sqrt(np.float64(D))
        if self.config.scale_attn_by_inverse_layer_idx:
            scale = scale / np.float64(layer + 1)
        y = attention(q, k, v, scale=float(scale))
        return self.linear(y.transpose(1, 0, 2).reshape(T, E), f"h.{layer}.attn.c_proj")

    def feed_forward(self, x: Array, layer: int) -> Array:
        """The feed-forward layer of block `layer`: x (T, E) to (T, E)."""
        y = activation(self.linear(x, f"h.{layer}.mlp.c_fc"), self.config.activation_function)
        return self.linear(y, f"h.{layer}.mlp.c_proj")

    def linear(self, x: Array, name: str) -> Array:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Array, name: str) -> Array:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(x, weight, bias, eps=self.config.layer_norm_epsilon)
