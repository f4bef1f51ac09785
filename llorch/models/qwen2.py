"""Qwen 2 and 2.5: a Llama with biases of queries, keys and values, and windows in the upper layers, if asked for.

The network is that of transformers' modeling_qwen2.py.
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
class Qwen2Config(DecoderConfig):
    """Sizes and switches of a Qwen 2, checked when made.

    Attributes
    ----------
    rms_norm_eps : float
        Finite, not negative.
    use_sliding_window : bool
        Whether there is a window at all.
    sliding_window : int or None
        Positions that a query sees, itself the last of them, in layers of "sliding_attention".
    max_window_layers : int
        The first layer that has it, where layer_types isn't there.
    layer_types : sequence of str or None
        "full_attention" or "sliding_attention", of each layer.

    The others, and the errors: as `DecoderConfig` has them.
    """

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None

    NAME = "Qwen2"
    # GGUF has no word for which layers have a window.
    GGUF_REFUSED: ClassVar[Mapping[str, Any]] = {"attention.sliding_window": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        window = check.window(self.sliding_window, "sliding_window") if self.use_sliding_window else None
        first = check.integer(self.max_window_layers, "max_window_layers")
        types = check.layer_types(
            self.layer_types, [window is not None and layer >= first for layer in range(self.layers)], window
        )
        object.__setattr__(self, "sliding_window", window)
        object.__setattr__(self, "layer_types", types)


def graph(c: Qwen2Config) -> Graph:
    """h = h + o_proj(attention(rope(q), rope(k), v)), h = h + down_proj(act(gate_proj) * up_proj)."""
    blocks = [
        Block(
            Attention(bias="qkv", window=window),
            Gated(c.function),
            norm_1=Norm("input_layernorm", c.rms_norm_eps),
            norm_2=Norm("post_attention_layernorm", c.rms_norm_eps),
        )
        for window in check.windows(c.layer_types, c.sliding_window)
    ]
    return decoder.graph(c, blocks, Norm("norm", c.rms_norm_eps))


FAMILY = Family(
    "Qwen2",
    ("qwen2",),
    Qwen2Config.from_dict,
    graph,
    "Qwen2",
    architectures=("qwen2",),
    config_of_gguf=Qwen2Config.from_gguf,
    prefixes=("model.",),
)
