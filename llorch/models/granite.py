"""Granite: a Llama with multipliers of the embedding, the scores, what each layer adds, and the logits.

The network is that of transformers' modeling_granite.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from llorch.models import config as check
from llorch.models import decoder, llama
from llorch.models.graph import Graph
from llorch.models.llama import LlamaConfig
from llorch.models.parts import Block, Norm
from llorch.models.registry import Family

SMALLEST = 2.0**-126  # a divisor below it could be zero in float32


@dataclass(frozen=True)
class GraniteConfig(LlamaConfig):
    """Sizes and switches of a Granite, checked when made: those of `llorch.models.llama.LlamaConfig`, and

    Attributes
    ----------
    embedding_multiplier, residual_multiplier : float
        What rows of the embedding, and the outputs of attention and feed-forward layers, are multiplied by; finite, not
        negative.
    attention_multiplier : float
        What scores are multiplied by, in the place of 1 / sqrt(head_dim); finite, not negative.
    logits_scaling : float
        What logits are divided by; finite, positive.

    Raises
    ------
    TypeError, ValueError
        Names the entry, what it is and what it must be.
    """

    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0

    NAME = "Granite"
    # llama.cpp takes this, of this architecture, as a switch of the rotations, which no config.json has.
    GGUF_REFUSED: ClassVar[Mapping[str, Any]] = {"rope.scaling.finetuned": True}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("embedding_multiplier", "attention_multiplier", "residual_multiplier"):
            check.number(getattr(self, name), name)
        if not check.number(self.logits_scaling, "logits_scaling") >= SMALLEST:
            raise ValueError(f"logits_scaling is {self.logits_scaling}, it must be positive")

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        found = super().entries_of_gguf(get, shapes)
        D = found["head_dim"] or found["hidden_size"] // found["num_attention_heads"]
        return found | {  # 0 stands for none
            "embedding_multiplier": get("embedding_scale", 0) or 1.0,
            "attention_multiplier": get("attention.scale", 0) or 1 / math.sqrt(check.size(D, "head_dim")),
            "residual_multiplier": get("residual_scale", 0) or 1.0,
            "logits_scaling": get("logit_scale"),
        }


def block(c: GraniteConfig) -> Block:
    """h = h + m * o_proj(attention(rope(q), rope(k), v)), h = h + m * down_proj(act(gate_proj) * up_proj)."""
    made = llama.block(c)
    return replace(
        made,
        attention=replace(made.attention, scale=c.attention_multiplier),
        multiplier=c.residual_multiplier,
    )


def graph(c: GraniteConfig) -> Graph:
    return decoder.graph(
        c,
        [block(c)] * c.layers,
        Norm("norm", c.rms_norm_eps),
        factor=c.embedding_multiplier,
        divisor=c.logits_scaling,
    )


FAMILY = Family(
    "Granite",
    ("granite",),
    GraniteConfig.from_dict,
    graph,
    "Granite",
    architectures=("granite",),
    config_of_gguf=GraniteConfig.from_gguf,
    prefixes=("model.",),
)
