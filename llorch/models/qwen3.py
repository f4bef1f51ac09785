"""Qwen 3: RMSNorm of each head of queries and keys before the rotation, heads of any width, windows as Qwen 2 has them.

The network is that of transformers' modeling_qwen3.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llorch.models import config as check
from llorch.models import decoder
from llorch.models.graph import Graph
from llorch.models.parts import Attention, Block, Gated, Norm
from llorch.models.qwen2 import Qwen2Config
from llorch.models.registry import Family


@dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """Sizes and switches of a Qwen 3, checked when made.

    Attributes
    ----------
    head_dim : int or None
        Values of a head, even: 128 where nothing says it.
    attention_bias : bool
        Whether the projections of attention have biases.

    The others, and the errors: as `Qwen2Config` has them.
    """

    head_dim: int | None = 128
    attention_bias: bool = False

    NAME = "Qwen3"

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super().entries_of_gguf(get, shapes) | {"attention_bias": "blk.0.attn_q.bias" in shapes}


def graph(c: Qwen3Config) -> Graph:
    """h = h + o_proj(attention(rope(norm(q)), rope(norm(k)), v)), h = h + down_proj(act(gate_proj) * up_proj)."""
    blocks = [
        Block(
            Attention(
                bias="qkvo" if c.attention_bias else "",
                q_norm=Norm("self_attn.q_norm", c.rms_norm_eps),
                k_norm=Norm("self_attn.k_norm", c.rms_norm_eps),
                window=window,
            ),
            Gated(c.function),
            norm_1=Norm("input_layernorm", c.rms_norm_eps),
            norm_2=Norm("post_attention_layernorm", c.rms_norm_eps),
        )
        for window in check.windows(c.layer_types, c.sliding_window)
    ]
    return decoder.graph(c, blocks, Norm("norm", c.rms_norm_eps))


FAMILY = Family(
    "Qwen3",
    ("qwen3",),
    Qwen3Config.from_dict,
    graph,
    "Qwen3",
    architectures=("qwen3",),
    config_of_gguf=Qwen3Config.from_gguf,
    prefixes=("model.",),
)
