"""Gemma 2: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_gemma2.py: norms of weight 1 + w before and after each layer, an embedding
times the root of its width, windows on every other layer, softcaps of the scores and of the logits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llorch.models import config as check
from llorch.models import decoder
from llorch.models.decoder import DecoderConfig
from llorch.models.graph import Graph
from llorch.models.parts import Attention, Block, Gated, Norm
from llorch.models.registry import Family

FULL, SLIDING = check.LAYER_TYPES


@dataclass(frozen=True)
class Gemma2Config(DecoderConfig):
    """Sizes and switches of a Gemma 2, checked when made: those of `llorch.models.decoder.DecoderConfig`, and

    Attributes
    ----------
    hidden_activation : str
        gelu_pytorch_tanh, or another of GPT-2's; hidden_act is always the same, whatever an old file says.
    rms_norm_eps : float
        Finite, not negative.
    query_pre_attn_scalar : float
        Scores are divided by its root.
    sliding_window : int or None
        Positions that a query sees on layers that have a window, itself the last of them.
    layer_types : tuple of str, or None
        full_attention or sliding_attention for every layer; None: every `PERIOD`-th is full.
    attn_logit_softcapping, final_logit_softcapping : float or None
        Caps of the scores and of the logits; None for none.
    attention_bias : bool
        Whether the projections have biases.

    Raises
    ------
    TypeError, ValueError
        Names the entry, what it is and what it must be.
    """

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] | None = None
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 2
    eos_token_id: int | tuple[int, ...] | None = 1

    NAME = "Gemma 2"
    REFUSED: ClassVar[Mapping[str, Any]] = {"use_bidirectional_attention": False}
    PERIOD: ClassVar[int] = 2  # every so many layers one without a window
    WIDEST: ClassVar[int] = 46  # layers of the one model whose scalar isn't the width of a head, which GGUF doesn't say

    def __post_init__(self) -> None:
        check.activation(self.hidden_activation, "hidden_activation")
        object.__setattr__(self, "hidden_act", self.hidden_activation)
        super().__post_init__()
        if not check.number(self.query_pre_attn_scalar, "query_pre_attn_scalar") > 0:
            raise ValueError(f"query_pre_attn_scalar is {self.query_pre_attn_scalar}, it must be positive")
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            cap = getattr(self, name)
            if cap is not None and not check.number(cap, name) >= 2**-126:
                raise ValueError(f"{name} is {cap}, it must be null or a positive number")
        window = check.window(self.sliding_window, "sliding_window")
        kinds = self.layer_types if self.layer_types is not None else alternating(self.PERIOD, self.layers)
        object.__setattr__(self, "layer_types", check.layer_types(kinds, [False] * self.layers, window))

    @property
    def kinds(self) -> tuple[str, ...]:
        """layer_types, which are there once the configuration has been checked."""
        assert self.layer_types is not None
        return self.layer_types

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        found = super().entries_of_gguf(get, shapes)
        layers, heads = (
            check.size(found["num_hidden_layers"], "block_count", check.MOST_LAYERS),
            found["num_attention_heads"],
        )
        if get("attention.scale", None) is not None:
            raise ValueError(f"{get.architecture}.attention.scale is {get('attention.scale')}: it isn't supported")
        period = get("attention.sliding_window_pattern", cls.PERIOD)
        if isinstance(period, list | tuple):  # true where there is a window
            kinds = tuple(SLIDING if sliding else FULL for sliding in period)
        else:
            kinds = alternating(period, layers)
        # Files don't say what the scores are divided by: it is the width of a head but in one model of the family.
        widest = check.size(found["hidden_size"], "embedding_length") // check.size(heads, "attention.head_count")
        return found | {
            "query_pre_attn_scalar": widest if layers == cls.WIDEST else found["head_dim"] or widest,
            "sliding_window": get("attention.sliding_window", 4096),
            "layer_types": kinds,
            "attn_logit_softcapping": get("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": get("final_logit_softcapping", 30.0),
            "attention_bias": "blk.0.attn_q.bias" in shapes,
        }


def alternating(period: Any, layers: int) -> tuple[str, ...]:
    """Windows on all layers but every period-th."""
    check.size(period, "sliding_window_pattern")
    return tuple(SLIDING if (i + 1) % period else FULL for i in range(layers))


def block(c: Gemma2Config, kind: str, *, norms_of_heads: bool = False, rope: str = "main") -> Block:
    """h = h + norm(o_proj(attention(..)(norm(h)))), h = h + norm(down_proj(act(gate_proj) * up_proj)(norm(h)))."""

    def norm(name: str) -> Norm:
        return Norm(name, c.rms_norm_eps, unit=True)

    return Block(
        Attention(
            bias="qkvo" if c.attention_bias else "",
            q_norm=norm("self_attn.q_norm") if norms_of_heads else None,
            k_norm=norm("self_attn.k_norm") if norms_of_heads else None,
            rope=rope,
            window=c.sliding_window if kind == SLIDING else None,
            scale=1 / math.sqrt(c.query_pre_attn_scalar),
            softcap=c.attn_logit_softcapping,
        ),
        Gated(c.function),
        norm_1=norm("input_layernorm"),
        attention_norm=norm("post_attention_layernorm"),
        norm_2=norm("pre_feedforward_layernorm"),
        feed_forward_norm=norm("post_feedforward_layernorm"),
    )


def graph(c: Gemma2Config) -> Graph:
    return decoder.graph(
        c,
        [block(c, kind) for kind in c.kinds],
        Norm("norm", c.rms_norm_eps, unit=True),
        factor=math.sqrt(c.hidden_size),
        rounded=True,
        softcap=c.final_logit_softcapping,
    )


FAMILY = Family(
    "Gemma 2",
    ("gemma2",),
    Gemma2Config.from_dict,
    graph,
    "Gemma2",
    architectures=("gemma2",),
    config_of_gguf=Gemma2Config.from_gguf,
    prefixes=("model.",),
)
