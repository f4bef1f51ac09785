"""Mistral: a Llama without biases, whose queries see a window of positions.

The network is that of transformers' modeling_mistral.py. GGUF files call it llama, where it has no window, or mistral3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llorch.models import config as check
from llorch.models import decoder
from llorch.models.decoder import DecoderConfig
from llorch.models.graph import Graph
from llorch.models.parts import Attention, Block, Gated, Norm
from llorch.models.registry import Family


@dataclass(frozen=True)
class MistralConfig(DecoderConfig):
    """Sizes and switches of a Mistral, checked when made.

    Attributes
    ----------
    rms_norm_eps : float
        Finite, not negative.
    sliding_window : int or None
        Positions that a query sees, itself the last of them; None is all.

    The others, and the errors: as `DecoderConfig` has them.
    """

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    rms_norm_eps: float = 1e-6
    sliding_window: int | None = 4096

    NAME = "Mistral"
    REFUSED: ClassVar[Mapping[str, Any]] = {"layer_types": None}
    GGUF_REFUSED: ClassVar[Mapping[str, Any]] = {
        "attention.temperature_scale": 0,
        "rope.scaling.yarn_log_multiplier": 0,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check.window(self.sliding_window, "sliding_window")

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super().entries_of_gguf(get, shapes) | {"sliding_window": get("attention.sliding_window", 0) or None}


def graph(c: MistralConfig) -> Graph:
    """h = h + o_proj(attention(rope(q), rope(k), v)), h = h + down_proj(act(gate_proj) * up_proj)."""
    block = Block(
        Attention(window=c.sliding_window, interleaved=True),
        Gated(c.function),
        norm_1=Norm("input_layernorm", c.rms_norm_eps),
        norm_2=Norm("post_attention_layernorm", c.rms_norm_eps),
    )
    return decoder.graph(c, [block] * c.layers, Norm("norm", c.rms_norm_eps))


FAMILY = Family(
    "Mistral",
    ("mistral",),
    MistralConfig.from_dict,
    graph,
    "Mistral",
    architectures=("mistral3",),
    config_of_gguf=MistralConfig.from_gguf,
    prefixes=("model.",),
)
