"""StableLM: LayerNorm, the first values of each head rotated, a gated feed-forward layer.

The network is that of transformers' modeling_stablelm.py. Attention and the feed-forward layer stand one after the
other, or side by side with one norm for both.
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
class StableLMConfig(DecoderConfig):
    """Sizes and switches of a StableLM, checked when made.

    Attributes
    ----------
    layer_norm_eps : float
        Finite, not negative.
    partial_rotary_factor : float
        The part of a head that is rotated.
    use_qkv_bias : bool
        Whether queries, keys and values have biases; no other linear layer has.
    use_parallel_residual : bool
        Whether the feed-forward layer reads what attention reads, and there is no second norm.

    The others, and the errors: as `DecoderConfig` has them.
    """

    vocab_size: int = 50304
    hidden_size: int = 2560
    intermediate_size: int = 6912
    max_position_embeddings: int = 4096
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.25
    use_qkv_bias: bool = False
    use_parallel_residual: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 0

    NAME = "StableLM"
    EPS = "layer_norm_eps"
    GGUF_EPS = "attention.layer_norm_epsilon"
    REFUSED: ClassVar[Mapping[str, Any]] = {"qk_layernorm": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads_fill_width()

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        for norm in ("attn_q_norm", "attn_k_norm"):
            if f"blk.0.{norm}.weight" in shapes:
                raise ValueError(f"blk.0.{norm}.weight is there: llorch's {cls.NAME} doesn't support norms of heads")
        # The converter writes use_parallel_residual as true where config.json doesn't have it: the tensors are right.
        return super().entries_of_gguf(get, shapes) | {
            "use_qkv_bias": "blk.0.attn_q.bias" in shapes,
            "use_parallel_residual": "blk.0.ffn_norm.weight" not in shapes,
        }


def block(c: StableLMConfig) -> Block:
    """h = h + o_proj(attention(rope(q), rope(k), v)), h = h + down_proj(act(gate_proj) * up_proj); with
    use_parallel_residual both read the norm of the same h, and h is the sum of all three."""

    def norm(name: str) -> Norm:
        return Norm(name, c.layer_norm_eps, "layer_norm", bias=True)

    return Block(
        Attention(bias="qkv" if c.use_qkv_bias else ""),
        Gated(c.function),
        norm_1=norm("input_layernorm"),
        norm_2=None if c.use_parallel_residual else norm("post_attention_layernorm"),
        shared_norm=c.use_parallel_residual,
    )


def graph(c: StableLMConfig) -> Graph:
    return decoder.graph(c, [block(c)] * c.layers, Norm("norm", c.layer_norm_eps, "layer_norm", bias=True))


FAMILY = Family(
    "StableLM",
    ("stablelm",),
    StableLMConfig.from_dict,
    graph,
    "StableLM",
    architectures=("stablelm",),
    config_of_gguf=StableLMConfig.from_gguf,
    prefixes=("model.",),
)
