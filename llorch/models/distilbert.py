"""DistilBERT: what config.json can say, and the graph. GGUF has it as architecture bert.

The network is that of transformers' modeling_distilbert.py: BERT's, without types of tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llorch.models import encoder
from llorch.models.bert import norm
from llorch.models.encoder import Classifier, Embedding, EncoderConfig
from llorch.models.graph import Graph
from llorch.models.parts import Attention, NormedSums, Plain
from llorch.models.registry import Family

THEIRS = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "hidden_act": "activation",
}


@dataclass(frozen=True)
class DistilBertConfig(EncoderConfig):
    """Sizes and switches of a DistilBERT, checked when made.

    config.json's dim, hidden_dim, n_layers, n_heads and activation are hidden_size, intermediate_size,
    num_hidden_layers, num_attention_heads and hidden_act. type_vocab_size is 0, layer_norm_eps 1e-12.

    The others, and the errors: as `llorch.models.encoder.EncoderConfig` has them.
    """

    num_hidden_layers: int = 6
    type_vocab_size: int = 0

    NAME = "DistilBERT"
    REFUSED: ClassVar[Mapping[str, Any]] = {"type_vocab_size": 0, "layer_norm_eps": 1e-12}

    @classmethod
    def entries_of(cls, entries: Mapping[str, Any]) -> dict[str, Any]:
        return super().entries_of(
            dict(entries) | {ours: entries[name] for ours, name in THEIRS.items() if name in entries}
        )


def block(c: DistilBertConfig) -> NormedSums:
    """h = LayerNorm(out_lin(attention(h)) + h), h = LayerNorm(lin2(act(lin1(h))) + h)."""
    q, k, v, out = (f"attention.{name}_lin" for name in ("q", "k", "v", "out"))
    return NormedSums(
        Attention(q, k, v, out=out, bias="qkvo", rope="", causal=False),
        Plain(c.function, "ffn.lin1", "ffn.lin2"),
        norm(c, "sa_layer_norm"),
        norm(c, "output_layer_norm"),
    )


def graph(c: DistilBertConfig, classifier: Classifier | None = None) -> Graph:
    places = Embedding("embeddings.position_embeddings", "positions")
    return encoder.graph(
        c,
        [Embedding("embeddings.word_embeddings"), places],
        norm(c, "embeddings.LayerNorm"),
        [block(c)] * c.layers,
        classifier=classifier,
        prefix="transformer.layer.",
    )


def classifier(c: DistilBertConfig) -> Graph:
    return graph(c, Classifier("pre_classifier", "relu", "classifier"))


FAMILY = Family(
    "DistilBERT",
    ("distilbert",),
    DistilBertConfig.from_dict,
    graph,
    "DistilBert",
    kind="encoder",
    classifier=classifier,
    prefixes=("distilbert.",),
    others=(r"pre_classifier\..*", r"vocab_(transform|layer_norm|projector)\..*"),
)
