"""OLMo 2: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_olmo2.py: norms come after attention and the feed-forward layer, none
before them; queries and keys are normed with all heads of a row together.
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
class OLMo2Config(DecoderConfig):
    """Sizes and switches of an OLMo 2, checked when made: those of `llorch.models.decoder.DecoderConfig`, and

    Attributes
    ----------
    rms_norm_eps : float
        Finite, not negative.
    attention_bias : bool
        Whether the attention's four layers have biases.

    Raises
    ------
    TypeError, ValueError
        Names the entry, what it is and what it must be.
    """

    vocab_size: int = 50304
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    eos_token_id: int | tuple[int, ...] | None = 50279

    NAME = "OLMo 2"

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        if get("attention.sliding_window", None) is not None:  # OLMo 3 has the same name there
            raise ValueError(
                f"{get.architecture}.attention.sliding_window is {get('attention.sliding_window')}: "
                f"llorch's {cls.NAME} has no windows"
            )
        return super().entries_of_gguf(get, shapes) | {"attention_bias": "blk.0.attn_q.bias" in shapes}


def block(c: OLMo2Config) -> Block:
    """h = h + norm(o_proj(attention(rope(norm(q)), rope(norm(k)), v))), h = h + norm(down_proj(act(gate) * up))."""
    eps = c.rms_norm_eps
    return Block(
        Attention(
            bias="qkvo" if c.attention_bias else "",
            q_norm=Norm("self_attn.q_norm", eps),
            k_norm=Norm("self_attn.k_norm", eps),
            over_all=True,
        ),
        Gated(c.function),
        attention_norm=Norm("post_attention_layernorm", eps),
        feed_forward_norm=Norm("post_feedforward_layernorm", eps),
    )


def graph(c: OLMo2Config) -> Graph:
    return decoder.graph(c, [block(c)] * c.layers, Norm("norm", c.rms_norm_eps))


FAMILY = Family(
    "OLMo 2",
    ("olmo2",),
    OLMo2Config.from_dict,
    graph,
    "OLMo2",
    architectures=("olmo2",),
    config_of_gguf=OLMo2Config.from_gguf,
    prefixes=("model.",),
)
