"""Gemma 3, its text: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_gemma3.py: Gemma 2's, with norms of queries and keys, and rotations of
another base on the layers that have a window. What such a file has for images is left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llorch.models import config as check
from llorch.models import decoder
from llorch.models.gemma2 import FULL, SLIDING, Gemma2Config, alternating, block
from llorch.models.graph import Graph, Rope
from llorch.models.parts import Norm
from llorch.models.registry import Family

OF_THE_WHOLE = ("bos_token_id", "eos_token_id", "tie_word_embeddings")  # what a model of text and images says outside


@dataclass(frozen=True)
class Gemma3Config(Gemma2Config):
    """Sizes and switches of the text of a Gemma 3, checked when made: those of Gemma 2, and

    Attributes
    ----------
    rope_theta, rope_scaling : of layers without a window.
    rope_local_base_freq : float
        The base of the rotations on layers with one.
    rope_local_scaling : mapping or None
        Their scaling.

    Raises
    ------
    TypeError, ValueError
        Names the entry, what it is and what it must be.
    """

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    rope_theta: float = 1000000.0
    rope_local_base_freq: float = 10000.0
    rope_local_scaling: Mapping[str, Any] | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    NAME = "Gemma 3"
    # transformers' Gemma 3 doesn't cap scores, whatever the entry says
    REFUSED: ClassVar[Mapping[str, Any]] = {"use_bidirectional_attention": False, "attn_logit_softcapping": None}
    PERIOD: ClassVar[int] = 6
    WIDEST: ClassVar[int] = 62

    def __post_init__(self) -> None:
        super().__post_init__()
        if not check.number(self.rope_local_base_freq, "rope_local_base_freq", most=math.inf) > 0:
            raise ValueError(f"rope_local_base_freq is {self.rope_local_base_freq}, it must be positive")
        object.__setattr__(self, "rope_local_scaling", check.rope_scaling(self.rope_local_scaling))

    @classmethod
    def entries_of(cls, entries: Mapping[str, Any]) -> dict[str, Any]:
        if entries.get("text_config") is not None:  # the file of a model of text and images
            inner = check.mapping(entries["text_config"], "text_config")
            outer = {name: value for name, value in entries.items() if name != "text_config"}
            whole = {name: outer[name] for name in OF_THE_WHOLE if outer.get(name) is not None}
            entries = outer | dict(inner) | whole
        full, local = check.ropes_by_kind(entries).values()
        full |= check.mapping(entries.get("rope_scaling") or {}, "rope_scaling")
        found = super().entries_of(dict(entries) | {"rope_parameters": full, "rope_scaling": None})
        base, scaling, partial = check.rope_entries({"rope_parameters": local})
        if partial not in (None, 1):
            raise ValueError(f"partial_rotary_factor is {partial}: llorch's {cls.NAME} rotates all of a head")
        if base is not None:
            found["rope_local_base_freq"] = base
        if scaling:
            found["rope_local_scaling"] = scaling
        if "layer_types" not in entries and entries.get("sliding_window_pattern") is not None:
            layers = check.size(
                found.get("num_hidden_layers", cls.num_hidden_layers), "num_hidden_layers", check.MOST_LAYERS
            )
            found["layer_types"] = alternating(entries["sliding_window_pattern"], layers)
        return found

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        found = super().entries_of_gguf(get, shapes)
        if get("attention.sliding_window", None) is None:
            found |= {"sliding_window": None, "layer_types": (FULL,) * found["num_hidden_layers"]}
        return found | {
            "rope_theta": get("rope.freq_base", 1000000.0),
            "rope_local_base_freq": get("rope.freq_base_swa", 10000.0),
            "attn_logit_softcapping": None,
            "final_logit_softcapping": get("final_logit_softcapping", None),
        }


def graph(c: Gemma3Config) -> Graph:
    main = c.rope()
    local = c.rope_local_scaling and {"max_position_embeddings": c.max_position_embeddings, **c.rope_local_scaling}
    tables = {FULL: main, SLIDING: Rope(main.width, c.rope_local_base_freq, local)}
    return decoder.graph(
        c,
        [block(c, kind, norms_of_heads=True, rope=kind) for kind in c.kinds],
        Norm("norm", c.rms_norm_eps, unit=True),
        ropes={kind: tables[kind] for kind in tables if kind in c.kinds},
        factor=math.sqrt(c.hidden_size),
        rounded=True,
        softcap=c.final_logit_softcapping,
    )


FAMILY = Family(
    "Gemma 3",
    ("gemma3_text", "gemma3"),
    Gemma3Config.from_dict,
    graph,
    "Gemma3",
    architectures=("gemma3",),
    config_of_gguf=Gemma3Config.from_gguf,
    prefixes=("model.language_model.", "language_model.model.", "language_model.", "model."),
    others=(r"(vision_tower|vision_model|multi_modal_projector)\..*",),
)
