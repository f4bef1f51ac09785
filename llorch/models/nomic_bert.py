"""Nomic BERT: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_nomic_bert.py: BERT's, with rotations in the place of positions and a
gated feed-forward layer. Names of tensors are those of its files, which transformers renames.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llorch.models import encoder
from llorch.models.bert import norm
from llorch.models.encoder import Embedding, EncoderConfig
from llorch.models.graph import Graph
from llorch.models.parts import Attention, Gated, NormedSums
from llorch.models.registry import Family

# What the first files call it.
THEIRS = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
    "rope_theta": "rotary_emb_base",
}


@dataclass(frozen=True)
class NomicBertConfig(EncoderConfig):
    """Sizes and switches of a Nomic BERT, checked when made.

    Attributes
    ----------
    rope_theta : float
        The base of the rotations.
    rope_scaling : mapping or None
        As `llorch.models.decoder.DecoderConfig` has it.

    The others, and the errors: as `llorch.models.encoder.EncoderConfig` has them. The first files' entries (n_embd,
    rotary_emb_base ...) are understood too.
    """

    vocab_size: int = 30528
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rope_theta: float = 1000.0
    rope_scaling: Mapping[str, Any] | None = None

    NAME = "Nomic BERT"
    REFUSED: ClassVar[Mapping[str, Any]] = {
        **EncoderConfig.REFUSED,
        "causal": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "num_experts": 0,
        "parallel_block": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "use_rms_norm": False,
    }

    @classmethod
    def entries_of(cls, entries: Mapping[str, Any]) -> dict[str, Any]:
        theirs = {ours: entries[name] for ours, name in THEIRS.items() if name in entries}
        if theirs.get("hidden_act") == "swiglu":
            theirs["hidden_act"] = "silu"
        return super().entries_of(dict(entries) | theirs)


def block(c: NomicBertConfig) -> NormedSums:
    """h = LayerNorm(out_proj(attention(rope(q), rope(k), v)) + h), h = LayerNorm(fc2(act(fc12(h)) * fc11(h)) + h)."""
    return NormedSums(
        Attention(qkv="attn.Wqkv", out="attn.out_proj", causal=False),
        Gated(c.function, "mlp.fc12", "mlp.fc11", down="mlp.fc2"),
        norm(c, "norm1"),
        norm(c, "norm2"),
    )


def graph(c: NomicBertConfig) -> Graph:
    types = [Embedding("embeddings.token_type_embeddings", "token_types")] if c.type_vocab_size else []
    return encoder.graph(
        c,
        [Embedding("embeddings.word_embeddings"), *types],
        norm(c, "emb_ln"),
        [block(c)] * c.layers,
        ropes={"main": c.rope()},
        prefix="encoder.layers.",
    )


FAMILY = Family(
    "Nomic BERT",
    ("nomic_bert",),
    NomicBertConfig.from_dict,
    graph,
    "NomicBert",
    kind="encoder",
    architectures=("nomic-bert",),
    config_of_gguf=NomicBertConfig.from_gguf,
    prefixes=("nomic_bert.",),
    left_out=(r"pooler\..*",),
)
