"""The ladder: every tensor of inference that is compared, in the order in which it is computed.

It is read from the graph of a model's family: each step that stands on a rung is a tensor of the ladder. What comes
before and after a graph is the same for every family: the prompt's ids, and what is made of the logits, where there are
any. An encoder's ladder ends with the embedding of the text, or with its hidden state (llorch.validate.ladder.endings).
docs/validator.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from llorch.models.config import ModelConfig
from llorch.models.graph import Graph, Step

NEW_TOKENS = 10
EXACT = 0.0
DEEP = 8  # blocks; PyTorch's own noise reaches 1.1e-5 after 15 of GPT-2 Medium's shape

Part = Literal["before", "block", "after"]
Check = Literal["", "same", "last row", "softmax"]


@dataclass(frozen=True)
class Rung:
    """A stage of the computation.

    number : for people; 1 .. 12, 0 is what comes before the first.
    title : {norm} is the kind of norm that the family has.
    tolerance : of the absolute difference, EXACT for equal values. Where `scaled`, it is multiplied by the root mean
        square of the row (the last axis) if that is more than 1: float32 itself gives an error in proportion.
    deepens : it grows with the block, whose input brings the noise of all blocks before.
    """

    name: str
    number: int
    title: str
    tolerance: float
    scaled: bool = True
    deepens: bool = False


RUNGS = (
    Rung("embed", 0, "token ids and embeddings", 1e-5),
    Rung("norm", 1, "{norm} before attention", 1e-5, deepens=True),
    Rung("qkv", 2, "Q, K, V", 1e-4),
    Rung("cache", 3, "KV cache", EXACT),
    Rung("scores", 4, "attention scores, scaled and masked", 1e-4),
    Rung("attention", 5, "attention output", 1e-4),
    Rung("feed_forward", 6, "feed-forward output", 1e-4),
    Rung("block", 7, "block output", 1e-4),
    Rung("logits", 8, "logits", 1e-3, scaled=False),
    Rung("last_logits", 9, "logits of the last position", EXACT, scaled=False),
    Rung("argmax", 10, "argmax", EXACT),
    Rung("probs", 11, "probabilities", 1e-6, scaled=False),
    Rung("pooling", 8, "pooling", 1e-4),
    Rung("embedding", 9, "embedding of the text", 1e-5),
    Rung("generated", 12, f"text of {NEW_TOKENS} greedy tokens", EXACT),
)
_NAMED = {rung.name: rung for rung in RUNGS}
# Names that graphs have for parts of a rung, and their tolerances where those aren't the rung's.
_PARTS: dict[str, tuple[str, float | None]] = {
    "rotation": ("qkv", None),
    "final_norm": ("logits", 1e-4),
    "dense": ("embedding", 1e-4),
}


@dataclass(frozen=True)
class Kind:
    """One sort of tensor: `axes` are letters for its shape, row by row the last axis.

    name : in a block what follows "h.{layer}.", "" for its output. checked_against : the kind that a dump's own value
    is compared with, in the place of llorch's, by `check`: the same bits, the last row's, the softmax of it. loose :
    the tolerance where the dump doesn't have that.
    """

    name: str
    rung: Rung
    axes: str
    what: str
    tolerance: float
    part: Part
    dtype: str = "float32"
    title: str = ""
    checked_against: str = ""
    check: Check = ""
    loose: float = EXACT


class HasGraph(Protocol):
    """A model or a dump: what a ladder can be read from."""

    @property
    def graph(self) -> Graph: ...

    @property
    def config(self) -> ModelConfig: ...


@dataclass(frozen=True)
class Kinds:
    """The sorts of tensors of a graph, in order: those of a block once."""

    before: tuple[Kind, ...]
    block: tuple[Kind, ...]
    after: tuple[Kind, ...]

    def __iter__(self) -> Iterator[Kind]:
        return iter((*self.before, *self.block, *self.after))


def kinds(graph: Graph) -> Kinds:
    """Of a graph whose blocks have all the same steps, but for their options; one may lack some of them."""
    found: dict[str, Kind] = {}

    def of_step(step: Step, part: Part) -> Kind:
        name, own = _PARTS.get(step.rung, (step.rung, None))
        rung = _NAMED[name]
        norm = "RMSNorm" if step.op == "rms_norm" else "LayerNorm"
        against = found[step.checked_against] if step.checked_against else None
        kind = Kind(
            step.name,
            rung,
            step.axes,
            step.what,
            rung.tolerance if own is None else own,
            part,
            title=rung.title.format(norm=norm),
            checked_against=step.checked_against,
            check="same" if step.checked_against else "",
            loose=EXACT if against is None else against.tolerance,
        )
        found[step.name] = kind
        return kind

    def of_steps(steps: tuple[Step, ...], part: Part) -> list[Kind]:
        return [of_step(step, part) for step in steps if step.rung]

    before = [
        Kind("ids", _NAMED["embed"], "T", "token ids of the prompt", EXACT, "before", "int64", _NAMED["embed"].title),
        *of_steps(graph.before, "before"),
    ]
    block = of_steps(graph.fullest, "block")
    after = of_steps(graph.after, "after")
    if not graph.decodes:
        return Kinds(tuple(before), tuple(block), tuple(after))
    logits = next(kind for kind in after if kind.name == "logits")

    def last(name: str, axes: str, what: str, dtype: str = "float32", against: str = "", check: Check = "") -> Kind:
        rung = _NAMED[name]
        loose = logits.tolerance if check == "last row" else rung.tolerance
        return Kind(name, rung, axes, what, rung.tolerance, "after", dtype, rung.title, against, check, loose)

    after += [
        last(
            "last_logits",
            "V",
            "logits of the last position: the last row of logits, bit for bit",
            against="logits",
            check="last row",
        ),
        last("argmax", "", "lowest id among the largest of last_logits", "int64"),
        last("probs", "V", "softmax(last_logits)", against="last_logits", check="softmax"),
        last("generated", "N", f"{NEW_TOKENS} greedy tokens (as many as the context has room for)", "int64"),
    ]
    return Kinds(tuple(before), tuple(block), tuple(after))


@dataclass(frozen=True)
class Tensor:
    """A tensor of the ladder for one model and prompt.

    shape : what a dump of llorch has. layer : None outside the blocks. kind : its name within the block. The others: as
    Kind has them, checked_against by its whole name.
    """

    name: str
    kind: str
    layer: int | None
    rung: Rung
    axes: str
    shape: tuple[int, ...]
    what: str
    tolerance: float
    dtype: str
    part: Part
    title: str
    checked_against: str
    check: Check
    loose: float

    @property
    def place(self) -> str:
        """For people: "rung 4 (attention scores, scaled and masked), layer 3"."""
        layer = "" if self.layer is None else f", layer {self.layer}"
        return f"rung {self.rung.number} ({self.title}){layer}"

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers, as far apart by one as by all."""
        return self.dtype == "int64"


def block_name(layer: int, kind: str = "") -> str:
    """h.3.attn.q, or h.3 for the output of the block."""
    return f"h.{layer}.{kind}" if kind else f"h.{layer}"


def new_tokens(config: ModelConfig, T: int) -> int:
    """How many tokens the last rung has: NEW_TOKENS, or what the context has room for."""
    return max(0, min(NEW_TOKENS, config.context - T))


def tensors(of: HasGraph, T: int) -> list[Tensor]:
    """Every tensor for a prompt of T tokens, in the order in which it is computed; of: a Model or a Dump."""
    graph, new = of.graph, new_tokens(of.config, T)
    sorts = kinds(graph)

    def make(kind: Kind, layer: int | None) -> Tensor:
        deeper = max(1.0, (layer + 1) / DEEP) if layer and kind.rung.deepens else 1.0
        full = kind.name if layer is None else block_name(layer, kind.name)
        against = kind.checked_against
        return Tensor(
            full,
            kind.name,
            layer,
            kind.rung,
            kind.axes,
            (new,) if kind.axes == "N" else graph.shape(kind.axes, T),
            kind.what,
            kind.tolerance * deeper,
            kind.dtype,
            kind.part,
            kind.title,
            block_name(layer, against) if against and layer is not None else against,
            kind.check,
            kind.loose or kind.tolerance * deeper,
        )

    named = [{step.name for step in steps} for steps in graph.blocks]
    blocks = [make(kind, layer) for layer, own in enumerate(named) for kind in sorts.block if kind.name in own]
    return [*(make(kind, None) for kind in sorts.before), *blocks, *(make(kind, None) for kind in sorts.after)]


def weights_of(scores: Tensor, name: str) -> Tensor:
    """The tensor of attention weights, which is compared where a dump has it."""
    return replace(
        scores,
        name=name,
        kind=name.removeprefix(f"h.{scores.layer}."),
        what="softmax of the scores",
        checked_against="",
    )
