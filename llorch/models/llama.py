"""Llama, 1 to 3.x, and whatever else calls itself one: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_llama.py: RMSNorm, rotated queries and keys, grouped heads, a gated
feed-forward layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llorch.models import config as check
from llorch.models import decoder
from llorch.models.decoder import DecoderConfig
from llorch.models.graph import Graph
from llorch.models.parts import Attention, Block, Gated, Norm
from llorch.models.registry import Family


@dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """Sizes and switches of a Llama, checked when made.

    Attributes
    ----------
    rms_norm_eps : float
        Finite, not negative.
    attention_bias, mlp_bias : bool
        Whether those layers have biases.

    The others, and the errors: as `DecoderConfig` has them.
    """

    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2

    NAME = "Llama"

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super().entries_of_gguf(get, shapes) | {
            "attention_bias": "blk.0.attn_q.bias" in shapes,
            "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
        }


def block(c: LlamaConfig) -> Block:
    """h = h + o_proj(attention(rope(q), rope(k), v)), h = h + down_proj(act(gate_proj) * up_proj)."""
    return Block(
        Attention(bias="qkvo" if c.attention_bias else "", interleaved=True),
        Gated(c.function, bias=c.mlp_bias),
        norm_1=Norm("input_layernorm", c.rms_norm_eps),
        norm_2=Norm("post_attention_layernorm", c.rms_norm_eps),
    )


def graph(c: LlamaConfig) -> Graph:
    return decoder.graph(c, [block(c)] * c.layers, Norm("norm", c.rms_norm_eps))


FAMILY = Family(
    "Llama",
    ("llama",),
    LlamaConfig.from_dict,
    graph,
    "Llama",
    architectures=("llama",),
    config_of_gguf=LlamaConfig.from_gguf,
    prefixes=("model.",),
)
