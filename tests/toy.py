"""A family that llorch doesn't have, with a norm of its own place: one table and one text, and nothing else.

Norms come after attention and the feed-forward layer, before the residual sum; each layer but the first sees a window.
"""

from dataclasses import dataclass

import numpy as np

from llorch import reference
from llorch.models.config import ModelConfig
from llorch.models.graph import Graph, Parameter, Rope, Step
from llorch.models.registry import Family
from llorch.reference import widen


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    vocab_size: int = 71
    width: int = 32
    heads: int = 4
    blocks: int = 2
    positions: int = 200
    window: int = 6
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    @property
    def context(self):
        return self.positions

    @property
    def layers(self):
        return self.blocks

    @classmethod
    def from_dict(cls, entries):
        return cls(**{name: value for name, value in entries.items() if name in cls.__dataclass_fields__})


# ---- the table -----------------------------------------------------------------------------------------


def block(c, layer):
    window = c.window if layer else None
    flat = [Step(f"attn.{x}_flat", "linear", ("x",), "TE", weight=f"{x}") for x in "qkv"]
    split = {"first": 0, "count": c.heads}
    heads = [Step(f"attn.{x}", "heads", (f"attn.{x}_flat",), "HTD", "qkv", x, options=split) for x in "qkv"]
    rotated = [
        Step(f"attn.{x}_rope", "rope", (f"attn.{x}",), "HTD", "rotation", x, options={"table": "r"}) for x in "qk"
    ]
    mask = {"scale": None, "causal": True, "window": window, "softcap": None}
    return (
        *flat,
        *heads,
        *rotated,
        Step("attn.cache_k", "cache", ("attn.k_rope",), "HTD", "cache", "keys", checked_against="attn.k_rope"),
        Step("attn.cache_v", "cache", ("attn.v",), "HTD", "cache", "values", checked_against="attn.v"),
        Step("attn.scores", "scores", ("attn.q_rope", "attn.cache_k"), "HTS", "scores", "scores", options=mask),
        Step("attn.context", "attend", ("attn.scores", "attn.cache_v"), "TE", "attention", "context"),
        Step("attn.c_proj", "linear", ("attn.context",), "TE", "attention", "attention output", "o"),
        Step("attn.norm", "layer_norm", ("attn.c_proj",), "TE", "norm", "norm of it", "norm_1", options={"eps": 1e-5}),
        Step("residual", "add", ("x", "attn.norm"), "TE", "attention", "sum"),
        Step("mlp.c_fc", "linear", ("residual",), "TF", "feed_forward", "before tanh", "up"),
        Step("mlp.act", "activation", ("mlp.c_fc",), "TF", "feed_forward", "tanh", options={"function": "tanh"}),
        Step("mlp.c_proj", "linear", ("mlp.act",), "TE", "feed_forward", "output", "down"),
        Step("mlp.norm", "rms_norm", ("mlp.c_proj",), "TE", "norm", "norm of it", "norm_2", options={"eps": 1e-6}),
        Step("", "add", ("residual", "mlp.norm"), "TE", "block", "the block's output"),
    )


def graph(c):
    E = c.width
    sizes = {"E": E, "V": c.vocab_size, "P": c.positions, "F": 3 * E, "H": c.heads, "G": c.heads, "D": E // c.heads}
    sizes |= {"Q": E, "R": E, "W": 3 * E}
    inside = [Parameter(f"{name}.weight", "EE") for name in "qkvo"]
    inside += [Parameter("up.weight", "FE"), Parameter("down.weight", "EF"), Parameter("down.bias", "E")]
    inside += [Parameter("norm_1.weight", "E"), Parameter("norm_1.bias", "E"), Parameter("norm_2.weight", "E")]
    before = Step("embed", "embedding", ("ids",), "TE", "embed", "embedding", "table", options={"factor": 4.0})
    after = (
        Step("head", "linear", ("x",), "TV", weight="table"),
        Step("logits", "softcap", ("head",), "TV", "logits", "capped", options={"cap": 3.0}),
    )
    blocks = tuple(block(c, layer) for layer in range(c.blocks))
    outside = (Parameter("table.weight", "VE"),)
    return Graph(sizes, (before,), blocks, after, outside, tuple(inside), "blocks.", {"r": Rope(sizes["D"], 100.0)})


# ---- the text ------------------------------------------------------------------------------------------


class Toy:
    def __init__(self, config, tensors):
        self.config, self.weights = config, {name: widen(values) for name, values in tensors.items()}

    def forward(self, ids):
        c, w = self.config, self.weights
        h = w["table.weight"][np.asarray(ids)] * np.float32(4)
        cos, sin = reference.rope_table(c.width // c.heads, len(h), base=100.0)
        for i in range(c.blocks):
            a = f"blocks.{i}."
            q, k, v = (
                reference.linear(h, w[f"{a}{x}.weight"].T).reshape(len(h), c.heads, -1).transpose(1, 0, 2)
                for x in "qkv"
            )
            q, k = reference.rope(q, cos, sin), reference.rope(k, cos, sin)
            y = reference.attention(q, k, v, window=c.window if i else None)
            y = reference.linear(y.transpose(1, 0, 2).reshape(h.shape), w[f"{a}o.weight"].T)
            h = h + reference.layer_norm(y, w[f"{a}norm_1.weight"], w[f"{a}norm_1.bias"], eps=1e-5)
            y = reference.tanh(reference.linear(h, w[f"{a}up.weight"].T))
            y = reference.linear(y, w[f"{a}down.weight"].T, w[f"{a}down.bias"])
            h = h + reference.rms_norm(y, w[f"{a}norm_2.weight"], eps=1e-6)
        y = reference.linear(h, w["table.weight"].T)
        return reference.tanh(y / np.float32(3)) * np.float32(3)


FAMILY = Family("Toy", ("toy",), ToyConfig.from_dict, graph, Toy)
