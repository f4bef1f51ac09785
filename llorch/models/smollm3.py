"""SmolLM3: a Llama in which every fourth layer has no rotation, and those may have a window.

The network is that of transformers' modeling_smollm3.py.
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
class SmolLM3Config(DecoderConfig):
    """Sizes and switches of a SmolLM3, checked when made.

    Attributes
    ----------
    rms_norm_eps : float
        Finite, not negative.
    no_rope_layers : sequence of int or None
        Of each layer 1 where queries and keys are rotated, 0 where they aren't. None: 0 in every
        no_rope_layer_interval-th.
    no_rope_layer_interval : int
    use_sliding_window : bool
        Whether there is a window at all.
    sliding_window : int or None
        Positions that a query sees, itself the last of them, in layers of "sliding_attention".
    layer_types : sequence of str or None
        "full_attention" or "sliding_attention", of each layer. None: a window where there is no rotation.
    attention_bias, mlp_bias : bool
        Whether those layers have biases.

    The others, and the errors: as `DecoderConfig` has them.
    """

    vocab_size: int = 128256
    hidden_size: int = 2048
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 32768
    rope_theta: float = 2000000.0
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 128000
    eos_token_id: int | tuple[int, ...] | None = 128001
    rms_norm_eps: float = 1e-6
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: int = 4
    use_sliding_window: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False

    NAME = "SmolLM3"
    GGUF_REFUSED: ClassVar[Mapping[str, Any]] = {"attention.sliding_window": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        every = check.size(self.no_rope_layer_interval, "no_rope_layer_interval")
        rotated = self.no_rope_layers
        if rotated is None:
            rotated = tuple(int((layer + 1) % every != 0) for layer in range(self.layers))
        if not isinstance(rotated, list | tuple) or len(rotated) < self.layers or not set(rotated) <= {0, 1}:
            raise ValueError(f"no_rope_layers is {rotated!r}, it must have 0 or 1 for each of the {self.layers} layers")
        rotated = tuple(int(one) for one in rotated[: self.layers])
        window = check.window(self.sliding_window, "sliding_window") if self.use_sliding_window else None
        types = check.layer_types(self.layer_types, [window is not None and not one for one in rotated], window)
        object.__setattr__(self, "no_rope_layers", rotated)
        object.__setattr__(self, "sliding_window", window)
        object.__setattr__(self, "layer_types", types)

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super().entries_of_gguf(get, shapes) | {
            "attention_bias": "blk.0.attn_q.bias" in shapes,
            "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
        }


def graph(c: SmolLM3Config) -> Graph:
    """h = h + o_proj(attention(q, k, v)), h = h + down_proj(act(gate_proj) * up_proj); q, k rotated in some layers."""
    assert c.no_rope_layers is not None
    blocks = [
        Block(
            Attention(
                bias="qkvo" if c.attention_bias else "",
                rope="main" if rotated else None,
                window=window,
                interleaved=True,
            ),
            Gated(c.function, bias=c.mlp_bias),
            norm_1=Norm("input_layernorm", c.rms_norm_eps),
            norm_2=Norm("post_attention_layernorm", c.rms_norm_eps),
        )
        for rotated, window in zip(c.no_rope_layers, check.windows(c.layer_types, c.sliding_window), strict=True)
    ]
    return decoder.graph(c, blocks, Norm("norm", c.rms_norm_eps))


FAMILY = Family(
    "SmolLM3",
    ("smollm3",),
    SmolLM3Config.from_dict,
    graph,
    "SmolLM3",
    architectures=("smollm3",),
    config_of_gguf=SmolLM3Config.from_gguf,
    prefixes=("model.",),
)
