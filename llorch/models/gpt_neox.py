"""GPT-NeoX, and Pythia: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_gpt_neox.py: LayerNorm, queries, keys and values by one layer, the first
values of each head rotated, attention and the feed-forward layer side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llorch.models import config as check
from llorch.models import decoder
from llorch.models.decoder import DecoderConfig
from llorch.models.graph import Graph
from llorch.models.parts import Attention, Block, Norm, Plain
from llorch.models.registry import Family


@dataclass(frozen=True)
class GPTNeoXConfig(DecoderConfig):
    """Sizes and switches of a GPT-NeoX, checked when made: those of `llorch.models.decoder.DecoderConfig`, and

    Attributes
    ----------
    rope_theta, partial_rotary_factor : float
        config.json's rotary_emb_base and rotary_pct: the base of the rotations, the part of a head that is rotated.
    layer_norm_eps : float
        Finite, not negative.
    use_parallel_residual : bool
        Whether the feed-forward layer reads the block's input, as attention does, and not what attention made of it.
    attention_bias : bool
        Whether the attention's two layers have biases; those of the feed-forward layer have.

    Raises
    ------
    TypeError, ValueError
        Names the entry, what it is and what it must be.
    """

    vocab_size: int = 50432
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.25
    use_parallel_residual: bool = True
    attention_bias: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2

    NAME = "GPT-NeoX"
    EPS = "layer_norm_eps"
    GGUF_EPS = "attention.layer_norm_epsilon"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads_fill_width()
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}: llorch's {self.NAME} has as many as "
                f"num_attention_heads, {self.num_attention_heads}"
            )

    @classmethod
    def entries_of(cls, entries: Mapping[str, Any]) -> dict[str, Any]:
        others = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        return super().entries_of(
            dict(entries) | {ours: entries[name] for ours, name in others.items() if name in entries}
        )

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super().entries_of_gguf(get, shapes) | {
            "use_parallel_residual": get("use_parallel_residual"),
            "attention_bias": "blk.0.attn_qkv.bias" in shapes,
        }


def block(c: GPTNeoXConfig) -> Block:
    """h = (mlp(norm(h)) + attention(norm(h))) + h, or one after the other."""

    def norm(name: str) -> Norm:
        return Norm(name, c.layer_norm_eps, "layer_norm", bias=True)

    return Block(
        Attention(
            qkv="attention.query_key_value",
            out="attention.dense",
            bias="qkvo" if c.attention_bias else "",
            by_head=True,
        ),
        Plain(c.function, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        norm_1=norm("input_layernorm"),
        norm_2=norm("post_attention_layernorm"),
        parallel=c.use_parallel_residual,
    )


def graph(c: GPTNeoXConfig) -> Graph:
    last = Norm("final_layer_norm", c.layer_norm_eps, "layer_norm", bias=True)
    return decoder.graph(c, [block(c)] * c.layers, last, embed="embed_in")


FAMILY = Family(
    "GPT-NeoX",
    ("gpt_neox",),
    GPTNeoXConfig.from_dict,
    graph,
    "GPTNeoX",
    architectures=("gptneox",),
    config_of_gguf=GPTNeoXConfig.from_gguf,
    prefixes=("gpt_neox.",),
    renamed={"embed_out.weight": "lm_head.weight"},
)
