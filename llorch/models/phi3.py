"""Phi-3, 3.5 and 4: queries, keys and values from one layer, gate and up from another, longrope, a window.

The network is that of transformers' modeling_phi3.py. Which of longrope's two lists is used is a matter of the
configuration, not of how long a text has become: docs/numerics.md, section 7.
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

ORIGINAL_CONTEXT = 4096  # Hugging Face's default of original_max_position_embeddings


@dataclass(frozen=True)
class Phi3Config(DecoderConfig):
    """Sizes and switches of a Phi-3, checked when made.

    Attributes
    ----------
    rms_norm_eps : float
        Finite, not negative.
    partial_rotary_factor : float
        The part of a head's values that is rotated, the first ones: above 0, at most 1.
    sliding_window : int or None
        Positions that a query sees, itself the last of them; None is all.

    The others, and the errors: as `DecoderConfig` has them.
    """

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    max_position_embeddings: int = 4096
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 32000
    rms_norm_eps: float = 1e-5
    partial_rotary_factor: float = 1.0
    sliding_window: int | None = None

    NAME = "Phi-3"

    def __post_init__(self) -> None:
        super().__post_init__()
        check.window(self.sliding_window, "sliding_window")
        if self.rope_scaling is not None and self.rope_scaling["rope_type"] != "longrope":
            raise ValueError(f"rope_scaling has rope_type {self.rope_scaling['rope_type']!r}, Phi-3 has longrope alone")

    @classmethod
    def entries_of(cls, entries: Mapping[str, Any]) -> dict[str, Any]:
        found = super().entries_of(entries)
        scaling = found["rope_scaling"]
        if scaling is not None:
            kind = scaling.pop("type", None)
            kind = scaling.get("rope_type", kind)
            # What the first files called "su" and "yarn" is longrope.
            found["rope_scaling"] = {
                "original_max_position_embeddings": ORIGINAL_CONTEXT,
                **scaling,
                "rope_type": "longrope" if kind in ("su", "yarn") else kind,
            }
        return found

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super().entries_of_gguf(get, shapes) | {"sliding_window": get("attention.sliding_window") or None}


def graph(c: Phi3Config) -> Graph:
    """h = h + o_proj(attention(rope(q), rope(k), v)), h = h + down_proj(act(gate) * up)."""
    block = Block(
        Attention(qkv="self_attn.qkv_proj", window=c.sliding_window),
        Gated(c.function, gate_up="mlp.gate_up_proj"),
        norm_1=Norm("input_layernorm", c.rms_norm_eps),
        norm_2=Norm("post_attention_layernorm", c.rms_norm_eps),
    )
    return decoder.graph(c, [block] * c.layers, Norm("norm", c.rms_norm_eps))


FAMILY = Family(
    "Phi-3",
    ("phi3",),
    Phi3Config.from_dict,
    graph,
    "Phi3",
    architectures=("phi3",),
    config_of_gguf=Phi3Config.from_gguf,
    prefixes=("model.",),
)
