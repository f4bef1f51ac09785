"""ModernBERT: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_modernbert.py: norms before attention and a gated feed-forward layer,
rotations, and a window on both sides of a query on most layers, which are rotated by another base.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llorch.models import config as check
from llorch.models import encoder
from llorch.models.encoder import Embedding, EncoderConfig
from llorch.models.graph import Graph, Rope
from llorch.models.parts import Attention, Block, Gated, Norm
from llorch.models.registry import Family

FULL, SLIDING = check.LAYER_TYPES


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """Sizes and switches of a ModernBERT, checked when made. type_vocab_size is 0.

    Attributes
    ----------
    hidden_activation : str
        As hidden_act in other families.
    norm_eps : float
        Finite, not negative.
    norm_bias, attention_bias, mlp_bias : bool
        Whether all norms, attention's two layers, the feed-forward layer's two have biases.
    local_attention : int
        On layers with a window a query sees local_attention // 2 positions on each side of its own.
    layer_types : sequence of str or None
        "full_attention" or "sliding_attention", of each layer. None: from the first on, one of
        global_attn_every_n_layers has no window.
    global_rope_theta, local_rope_theta : float
        The base of the rotations on layers without a window, and with one.

    The others, and the errors: as `llorch.models.encoder.EncoderConfig` has them.
    """

    vocab_size: int = 50368
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    type_vocab_size: int = 0
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    local_attention: int = 128
    layer_types: tuple[str, ...] | None = None
    global_attn_every_n_layers: int = 3
    global_rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0
    bos_token_id: int | None = 50281
    eos_token_id: int | tuple[int, ...] | None = 50282

    NAME = "ModernBERT"
    EPS = "norm_eps"
    REFUSED: ClassVar[Mapping[str, Any]] = {**EncoderConfig.REFUSED, "type_vocab_size": 0}

    def __post_init__(self) -> None:
        check.activation(self.hidden_activation, "hidden_activation")
        object.__setattr__(self, "hidden_act", self.hidden_activation)
        super().__post_init__()
        if self.width_of_head % 2:
            raise ValueError(f"head_dim is {self.head_dim}, it must be even: its values are rotated in pairs")
        for name in ("global_rope_theta", "local_rope_theta"):
            if not check.number(getattr(self, name), name, most=math.inf) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be positive")
        if check.size(self.local_attention, "local_attention") < 2:
            raise ValueError("local_attention is 1, it must be at least 2: its half is a window on each side")
        every = check.size(self.global_attn_every_n_layers, "global_attn_every_n_layers")
        sliding = [layer % every > 0 for layer in range(self.layers)]
        object.__setattr__(self, "layer_types", check.layer_types(self.layer_types, sliding, self.window))

    @property
    def window(self) -> int:
        """Positions that a query sees on each side of its own, on layers with a window."""
        return self.local_attention // 2

    def rope_of(self, kind: str) -> Rope:
        """The table of rotations of this kind of layers."""
        return Rope(self.width_of_head, self.global_rope_theta if kind == FULL else self.local_rope_theta)

    @classmethod
    def entries_of(cls, entries: Mapping[str, Any]) -> dict[str, Any]:
        found = super().entries_of(entries)
        given = check.ropes_by_kind(entries)
        for kind, name in ((FULL, "global_rope_theta"), (SLIDING, "local_rope_theta")):
            rules = {f"rope_parameters.{kind}": given[kind], "rope_scaling": entries.get("rope_scaling")}
            for where, rule in rules.items():
                base, scaling, partial = check.rope_entries({"rope_scaling": rule})
                if check.rope_scaling(scaling) is not None or partial not in (None, 1):
                    raise ValueError(f"{where} is {rule}: llorch's {cls.NAME} scales no angles")
                if base is not None:
                    found[name] = base
        return found

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        found = super().entries_of_gguf(get, shapes)
        layers = check.size(found["num_hidden_layers"], f"{get.architecture}.block_count", check.MOST_LAYERS)
        pattern = get("attention.sliding_window_pattern", cls.global_attn_every_n_layers)
        if isinstance(pattern, list | tuple):  # true where there is a window
            kinds = {"layer_types": tuple(check.LAYER_TYPES[bool(one)] for one in pattern[:layers])}
        else:
            kinds = {"global_attn_every_n_layers": pattern}
        return found | {
            "norm_bias": "token_embd_norm.bias" in shapes,
            "attention_bias": "blk.0.attn_output.bias" in shapes,
            "mlp_bias": "blk.0.ffn_down.bias" in shapes,
            "local_attention": get("attention.sliding_window"),
            "global_rope_theta": get("rope.freq_base"),
            "local_rope_theta": get("rope.freq_base_swa", get("rope.freq_base")),
            **kinds,
        }


def block(c: ModernBertConfig, layer: int, kind: str) -> Block:
    """h = h + Wo(attention(rope(q), rope(k), v)), h = h + Wo(act(g) * u), g and u from Wi. Both read LayerNorm(h), but
    the first layer's attention h itself, which the embeddings' norm has made."""
    return Block(
        Attention(
            qkv="attn.Wqkv",
            out="attn.Wo",
            bias="qkvo" if c.attention_bias else "",
            rope=kind,
            causal=False,
            window=c.window if kind == SLIDING else None,
        ),
        Gated(c.function, gate_up="mlp.Wi", down="mlp.Wo", bias=c.mlp_bias),
        norm(c, "attn_norm") if layer else None,
        norm(c, "mlp_norm"),
    )


def norm(c: ModernBertConfig, name: str) -> Norm:
    return Norm(name, c.norm_eps, "layer_norm", bias=c.norm_bias)


def graph(c: ModernBertConfig) -> Graph:
    kinds = c.layer_types or ()
    return encoder.graph(
        c,
        [Embedding("embeddings.tok_embeddings")],
        norm(c, "embeddings.norm"),
        [block(c, layer, kind) for layer, kind in enumerate(kinds)],
        last=norm(c, "final_norm"),
        ropes={kind: c.rope_of(kind) for kind in check.LAYER_TYPES if kind in kinds},
        prefix="layers.",
    )


FAMILY = Family(
    "ModernBERT",
    ("modernbert",),
    ModernBertConfig.from_dict,
    graph,
    "ModernBert",
    kind="encoder",
    architectures=("modern-bert",),
    config_of_gguf=ModernBertConfig.from_gguf,
    prefixes=("model.",),
    others=(r"(head|decoder)\..*",),
)
