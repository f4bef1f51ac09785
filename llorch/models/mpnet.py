"""MPNet: what config.json can say, and the graph.

The network is that of transformers' modeling_mpnet.py: BERT's without types of tokens, whose positions begin behind the
padding token's, and whose scores get a bias of each head by relative position.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llorch.models import config as check
from llorch.models import encoder
from llorch.models.bert import norm
from llorch.models.encoder import Classifier, Embedding, EncoderConfig
from llorch.models.graph import Graph
from llorch.models.parts import Attention, NormedSums, Plain
from llorch.models.registry import Family

FIRST = 2  # the row of the first position: modeling_mpnet.py doesn't ask config.json for the padding token
BUCKETS, REACH = 32, 128  # of relative positions, and the distance from which on all are in the last; fixed there too


@dataclass(frozen=True)
class MPNetConfig(EncoderConfig):
    """Sizes and switches of an MPNet, checked when made. type_vocab_size is 0.

    Attributes
    ----------
    relative_attention_num_buckets : int
        Rows of the table of biases by relative position, at least 32: so many are in use.

    The others, and the errors: as `llorch.models.encoder.EncoderConfig` has them.
    """

    vocab_size: int = 30527
    type_vocab_size: int = 0
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2
    relative_attention_num_buckets: int = 32

    NAME = "MPNet"
    REFUSED: ClassVar[Mapping[str, Any]] = {**EncoderConfig.REFUSED, "type_vocab_size": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("max_position_embeddings", FIRST + 1), ("relative_attention_num_buckets", BUCKETS)):
            if check.integer(getattr(self, name), name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least {least}")

    @property
    def context(self) -> int:
        return self.max_position_embeddings - FIRST


def bucket(distance: int) -> int:
    """The row of the table for a key that is so far behind the query (negative: before it)."""
    far = abs(distance)
    # from 8 on two buckets for each doubling
    row = far if far < 8 else min(8 + (far * far // 64).bit_length() - 1, 15)
    return row + (BUCKETS // 2 if distance > 0 else 0)


def block(c: MPNetConfig) -> NormedSums:
    """h = LayerNorm(o(attention(h)) + h), h = LayerNorm(dense(act(dense(h))) + h)."""
    q, k, v, o = (f"attention.attn.{letter}" for letter in "qkvo")
    return NormedSums(
        Attention(
            *(q, k, v),
            out=o,
            bias="qkvo",
            rope="",
            causal=False,
            position_bias="encoder.relative_attention_bias",
            buckets=tuple(bucket(distance) for distance in range(-REACH, REACH + 1)),
        ),
        Plain(c.function, "intermediate.dense", "output.dense"),
        norm(c, "attention.LayerNorm"),
        norm(c, "output.LayerNorm"),
    )


def graph(c: MPNetConfig, classifier: Classifier | None = None) -> Graph:
    places = Embedding("embeddings.position_embeddings", "positions", FIRST)
    return encoder.graph(
        c,
        [Embedding("embeddings.word_embeddings"), places],
        norm(c, "embeddings.LayerNorm"),
        [block(c)] * c.layers,
        classifier=classifier,
        buckets=c.relative_attention_num_buckets,
    )


def classifier(c: MPNetConfig) -> Graph:
    return graph(c, Classifier("classifier.dense", "tanh", "classifier.out_proj"))


FAMILY = Family(
    "MPNet",
    ("mpnet",),
    MPNetConfig.from_dict,
    graph,
    "MPNet",
    kind="encoder",
    classifier=classifier,
    prefixes=("mpnet.",),
    left_out=(r"pooler\..*",),
    others=(r"lm_head\..*",),
)
