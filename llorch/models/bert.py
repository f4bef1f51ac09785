"""BERT, as MiniLM, BGE, E5 and many more have it: what config.json and GGUF can say, and the graph.

The network is that of transformers' modeling_bert.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llorch.models import encoder
from llorch.models.encoder import Classifier, Embedding, EncoderConfig
from llorch.models.graph import Graph
from llorch.models.parts import Attention, Norm, NormedSums, Plain
from llorch.models.registry import Family


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """Sizes and switches of a BERT, checked when made: as `llorch.models.encoder.EncoderConfig` has them."""

    NAME = "BERT"


def norm(c: EncoderConfig, name: str) -> Norm:
    return Norm(name, c.layer_norm_eps, "layer_norm", bias=True)


def block(c: EncoderConfig) -> NormedSums:
    """h = LayerNorm(dense(attention(h)) + h), h = LayerNorm(dense(act(dense(h))) + h)."""
    inner = "attention.self"
    return NormedSums(
        Attention(
            *(f"{inner}.query", f"{inner}.key", f"{inner}.value"),
            out="attention.output.dense",
            bias="qkvo",
            rope="",
            causal=False,
        ),
        Plain(c.function, "intermediate.dense", "output.dense"),
        norm(c, "attention.output.LayerNorm"),
        norm(c, "output.LayerNorm"),
    )


def embeddings(c: EncoderConfig, first: int = 0) -> Sequence[Embedding]:
    """(word + token type) + position."""
    types = [Embedding("embeddings.token_type_embeddings", "token_types")] if c.type_vocab_size else []
    places = Embedding("embeddings.position_embeddings", "positions", first)
    return [Embedding("embeddings.word_embeddings"), *types, places]


def graph(c: BertConfig, classifier: Classifier | None = None) -> Graph:
    blocks = [block(c)] * c.layers
    return encoder.graph(c, embeddings(c), norm(c, "embeddings.LayerNorm"), blocks, classifier=classifier)


def classifier(c: BertConfig) -> Graph:
    return graph(c, Classifier("pooler.dense", "tanh", "classifier"))


FAMILY = Family(
    "BERT",
    ("bert",),
    BertConfig.from_dict,
    graph,
    "Bert",
    kind="encoder",
    architectures=("bert",),
    config_of_gguf=BertConfig.from_gguf,
    classifier=classifier,
    prefixes=("bert.",),
    endings={".gamma": ".weight", ".beta": ".bias"},
    left_out=(r"pooler\..*",),
)
