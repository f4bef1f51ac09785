"""StarCoder2: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_starcoder2.py: LayerNorm, biases, grouped heads, a window on all layers
and a plain feed-forward layer.
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
class StarCoder2Config(DecoderConfig):
    """Sizes and switches of a StarCoder2, checked when made: those of `llorch.models.decoder.DecoderConfig`, and

    Attributes
    ----------
    norm_epsilon : float
        Finite, not negative.
    sliding_window : int or None
        Positions that a query sees, itself the last of them; None for all.
    use_bias : bool
        Whether linear layers have biases.

    Raises
    ------
    TypeError, ValueError
        Names the entry, what it is and what it must be.
    """

    vocab_size: int = 49152
    hidden_size: int = 3072
    intermediate_size: int = 12288
    num_hidden_layers: int = 30
    num_attention_heads: int = 24
    num_key_value_heads: int | None = 2
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 4096
    norm_epsilon: float = 1e-5
    sliding_window: int | None = None
    use_bias: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256

    NAME = "StarCoder2"
    EPS = "norm_epsilon"
    GGUF_EPS = "attention.layer_norm_epsilon"

    def __post_init__(self) -> None:
        super().__post_init__()
        check.window(self.sliding_window, "sliding_window")

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super().entries_of_gguf(get, shapes) | {
            "sliding_window": get("attention.sliding_window", None),
            "use_bias": "blk.0.attn_q.bias" in shapes,
        }


def block(c: StarCoder2Config) -> Block:
    """h = h + o_proj(attention(rope(q), rope(k), v)), h = h + c_proj(act(c_fc))."""

    def norm(name: str) -> Norm:
        return Norm(name, c.norm_epsilon, "layer_norm", bias=True)

    return Block(
        Attention(bias="qkvo" if c.use_bias else "", window=c.sliding_window),
        Plain(c.function, "mlp.c_fc", "mlp.c_proj", bias=c.use_bias),
        norm_1=norm("input_layernorm"),
        norm_2=norm("post_attention_layernorm"),
    )


def graph(c: StarCoder2Config) -> Graph:
    return decoder.graph(c, [block(c)] * c.layers, Norm("norm", c.norm_epsilon, "layer_norm", bias=True))


FAMILY = Family(
    "StarCoder2",
    ("starcoder2",),
    StarCoder2Config.from_dict,
    graph,
    "StarCoder2",
    architectures=("starcoder2",),
    config_of_gguf=StarCoder2Config.from_gguf,
    prefixes=("model.",),
)
