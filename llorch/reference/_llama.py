"""Llama, 1 to 3.x, the whole model, as specified."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import widen
from llorch.reference._attention import attention
from llorch.reference._gate import NAMES, gate
from llorch.reference._linear import linear
from llorch.reference._norm import rms_norm
from llorch.reference._rope import rope, rope_table

Array = NDArray[Any]


class Llama:
    """See `llorch.CausalLM`.

    config has Hugging Face's names as attributes: an `llorch.models.llama.LlamaConfig`. tensors are the arrays of
    model.safetensors by name, without "model.": matrices (out, in), float32, float16 or bfloat16, which widen exactly.
    lm_head.weight is embed_tokens.weight where it isn't there, and a layer has a bias where there is one. GGUF's
    rope_freqs.weight takes the place of config's rope_scaling.
    """

    def __init__(self, config: Any, tensors: dict[str, Array]) -> None:
        self.config = config
        self.weights = {name: widen(tensors[name], name) for name in tensors}

    def forward(self, ids: Any) -> Array:
        """Logits (T, vocab_size) of token ids (T,), at positions 0 .. T - 1."""
        tokens = np.asarray(ids)
        cos, sin = self.rotations(tokens.size)
        h = self.weights["embed_tokens.weight"][tokens]
        with np.errstate(all="ignore"):
            for i in range(self.config.num_hidden_layers):
                h = h + self.attention(self.norm(h, f"layers.{i}.input_layernorm"), i, cos, sin)
                h = h + self.feed_forward(self.norm(h, f"layers.{i}.post_attention_layernorm"), i)
        head = "lm_head.weight" if "lm_head.weight" in self.weights else "embed_tokens.weight"
        return linear(self.norm(h, "norm"), self.weights[head].T)

    def rotations(self, T: int) -> tuple[Array, Array]:
        """cos and sin (T, D/2) of positions 0 .. T - 1."""
        scaling = self.config.rope_scaling
        if "rope_freqs.weight" in self.weights:
            scaling = {"rope_type": "gguf", "rope_freqs": self.weights["rope_freqs.weight"]}
        elif scaling is not None:
            scaling = {"max_position_embeddings": self.config.max_position_embeddings, **scaling}
        return rope_table(self.config.head_dim, T, base=self.config.rope_theta, scaling=scaling)

    def attention(self, x: Array, layer: int, cos: Array, sin: Array) -> Array:
        """Causal attention of block `layer`: x (T, E) to (T, E)."""
        q = rope(self.heads(x, f"layers.{layer}.self_attn.q_proj"), cos, sin)
        k = rope(self.heads(x, f"layers.{layer}.self_attn.k_proj"), cos, sin)
        v = self.heads(x, f"layers.{layer}.self_attn.v_proj")
        y = attention(q, k, v).transpose(1, 0, 2)
        return self.linear(y.reshape(x.shape[0], q.shape[0] * q.shape[2]), f"layers.{layer}.self_attn.o_proj")

    def heads(self, x: Array, name: str) -> Array:
        """A projection (T, E) to (T, heads D), as (heads, T, D)."""
        D = self.config.head_dim
        y = self.linear(x, name)
        return y.reshape(x.shape[0], y.shape[1] // D, D).transpose(1, 0, 2)

    def feed_forward(self, x: Array, layer: int) -> Array:
        """The feed-forward layer of block `layer`: x (T, E) to (T, E)."""
        g, u = (self.linear(x, f"layers.{layer}.mlp.{name}") for name in ("gate_proj", "up_proj"))
        return self.linear(gate(g, u, activation=NAMES[self.config.hidden_act]), f"layers.{layer}.mlp.down_proj")

    def linear(self, x: Array, name: str) -> Array:
        return linear(x, self.weights[f"{name}.weight"].T, self.weights.get(f"{name}.bias"))

    def norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self.weights[f"{name}.weight"], eps=self.config.rms_norm_eps)
