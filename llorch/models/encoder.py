"""What encoders share: the base of their configurations, and their graph, a sum of embeddings and blocks of
`llorch.models.parts`, up to the hidden state or to the labels of a classifier.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llorch.models import config as check
from llorch.models.config import TransformerConfig
from llorch.models.graph import Graph, Parameter, Rope, Step
from llorch.models.parts import Block, Norm, NormedSums, linear, parameters_of, steps_of


@dataclass(frozen=True)
class EncoderConfig(TransformerConfig):
    """Sizes and switches of an encoder, checked when made.

    Attributes
    ----------
    type_vocab_size : int
        Types of tokens, as a pair of texts has two of; 0 for none.
    layer_norm_eps : float
        Finite, not negative.
    num_labels : int
        What a classifier tells apart, where the model has one: the number of config.json's id2label, or 2.

    The others, and the errors: as `llorch.models.config.TransformerConfig` has them.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    num_labels: int = 2

    NAME = "encoder"
    EPS = "layer_norm_eps"
    GGUF_EPS = "attention.layer_norm_epsilon"
    REFUSED: ClassVar[Mapping[str, Any]] = {"is_decoder": False, "position_embedding_type": "absolute"}
    GGUF_REFUSED: ClassVar[Mapping[str, Any]] = {"attention.causal": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads_fill_width()
        check.size(self.num_labels, "num_labels")
        if check.integer(self.type_vocab_size, "type_vocab_size") < 0:
            raise ValueError(f"type_vocab_size is {self.type_vocab_size}, it must be at least 0")

    @classmethod
    def entries_of(cls, entries: Mapping[str, Any]) -> dict[str, Any]:
        labels = entries.get("id2label")
        counted = {"num_labels": len(labels)} if isinstance(labels, Mapping) and labels else {}
        return super().entries_of(entries) | counted

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        types = shapes.get("token_types.weight")
        count = 0 if types is None else 1 if len(types) == 1 else types[0]  # converters drop an axis of one
        return super().entries_of_gguf(get, shapes) | {"type_vocab_size": count}


@dataclass(frozen=True)
class Embedding:
    """One table of the sum that goes into the first block.

    weight : its name. by : what chooses a row: "ids", "positions" or "token_types". first : the row of position 0.
    """

    weight: str
    by: str = "ids"
    first: int = 0

    @property
    def step(self) -> Step:
        options = {"first": self.first} if self.first else {}
        return Step(NAMES[self.by], "embedding", (self.by,), "TE", weight=self.weight, options=options)

    @property
    def shown(self) -> str:
        """For people."""
        row = {"ids": "id", "positions": "position", "token_types": "type"}[self.by]
        return f"{self.weight.rpartition('.')[2]}[{row}{f' + {self.first}' if self.first else ''}]"

    def parameter(self) -> Parameter:
        axis = {"ids": "V", "positions": "P", "token_types": "Y"}[self.by]
        return Parameter(f"{self.weight}.weight", axis + "E", GGUF_NAMES[self.by])


NAMES = {"ids": "tokens", "positions": "places", "token_types": "types"}
GGUF_NAMES = {"ids": "token_embd.weight", "positions": "position_embd.weight", "token_types": "token_types.weight"}


@dataclass(frozen=True)
class Classifier:
    """Labels of a text, from the hidden state of its first token: last(function(first(h))).

    first, last : names of the linear layers, with biases; first and function may be "". GGUF has no names for them.
    """

    first: str
    function: str
    last: str

    def steps(self) -> Iterable[Step]:
        yield Step("first_row", "row", ("x",), "E", what="the hidden state of the first token")
        x = "first_row"
        if self.first:
            yield Step("pooler.dense", "linear", (x,), "E", what=f"{x} through {self.first}", weight=self.first)
            x = "pooler.dense"
        if self.function:
            options = {"function": self.function}
            yield Step("pooler", "activation", (x,), "E", what=f"{self.function} of {x}", options=options)
            x = "pooler"
        yield Step("labels", "linear", (x,), "C", what=f"{x} through {self.last}", weight=self.last)

    def parameters(self) -> Iterable[Parameter]:
        if self.first:
            yield from linear(self.first, "EE", "", True)
        yield from linear(self.last, "CE", "", True)


def graph(
    c: EncoderConfig,
    embeddings: Sequence[Embedding],
    norm: Norm | None,
    blocks: Sequence[Block | NormedSums],
    *,
    last: Norm | None = None,
    ropes: Mapping[str, Rope] | None = None,
    classifier: Classifier | None = None,
    positions: int | None = None,
    buckets: int = 0,
    prefix: str = "encoder.layer.",
) -> Graph:
    """A sum of embeddings, a norm, blocks; then what of it is asked for.

    embeddings : in the order of the sum, that of tokens first. norm : of the sum; last : after the blocks; None for
    none. ropes : tables by name. classifier : None for the hidden state. positions : rows of the table of positions.
    buckets : rows of the table of biases by distance, which stands outside the blocks that name it; 0 for none.
    prefix : of blocks.
    """
    H, D, F = c.num_attention_heads, c.width_of_head, c.intermediate_size
    sizes = {
        "E": c.hidden_size,
        "V": c.vocab_size,
        "F": F,
        "U": 2 * F,
        "Y": c.type_vocab_size,
        "C": c.num_labels,
        "B": buckets,
    }
    sizes |= {"P": c.max_position_embeddings if positions is None else positions}
    sizes |= {"H": H, "G": H, "D": D, "Q": H * D, "R": H * D, "W": 3 * H * D}
    before = [embeddings[0].step]
    shown = embeddings[0].shown
    for i, one in enumerate(embeddings[1:]):
        shown = f"({shown}) + {one.shown}" if i else f"{shown} + {one.shown}"
        total = (
            "embed" if norm is None and i == len(embeddings) - 2 else "sum" if i == len(embeddings) - 2 else f"sum_{i}"
        )
        before += [one.step, Step(total, "add", (before[-1].name, one.step.name), "TE", "embed", shown)]
    if norm is not None:
        before.append(norm.step("embed", before[-1].name, "embed", shown))
    outside = [one.parameter() for one in embeddings]
    after: list[Step] = []
    if norm is not None:
        outside += norm.parameters("token_embd_norm")
    if last is not None:
        after.append(last.step("ln_f", "x", "final_norm", "the last block's output"))
        outside += last.parameters("output_norm")
    if classifier is not None:
        after += classifier.steps()
        outside += classifier.parameters()
    tables = {one.attention.position_bias for one in blocks} - {""}
    outside += [Parameter(f"{name}.weight", "BH") for name in sorted(tables)]
    steps, inside = steps_of(blocks, H, H, F), parameters_of(blocks, c.NAME)
    return Graph(sizes, tuple(before), steps, tuple(after), tuple(outside), inside, prefix, ropes or {})
