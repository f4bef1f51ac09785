"""What a model computes, as data: a family is a table of steps, and everything reads it.

The engine compiles the steps into calls of kernels. The validator walks them in its own arithmetics and takes its
ladder from them. The loader takes from them which tensors a file must have, and in which shape. llorch.reference has
each family once more, as readable text; a test ties the two.

Axes are letters, whose sizes a graph gives:

    T  positions of a text, S the same as keys      E  width of the model          V  tokens of the vocabulary
    H  heads, G heads of keys and values            D  width of a head             F  width of the feed-forward layer
    Q  H * D, R  G * D, W  Q + 2 R, U  2 F          P  positions that have an embedding, Y types of tokens
    C  labels of a classifier                       B  buckets of distances

A step's operation is one of `OPERATIONS`; what it needs beyond inputs and weights are its options:

    embedding   a row of the table for each of its input: "ids", "positions" or "token_types". factor: what a row is
                multiplied by; rounded: it is rounded to the type that the table is kept in first; first: the row of
                position 0
    layer_norm, rms_norm   over the last axis. eps
    linear      x @ weight + bias
    heads       columns [first * D, (first + count) * D) of (T, width), as (count, T, D)
    columns     columns [first, first + count) of (T, width)
    row         of the first position, by itself
    rope        rotates pairs of a head's values by the position. table: which of the graph's rope tables; None for its
                input as it is
    cache       keys or values as the cache keeps them: its input
    scores      q k' times scale, masked. scale; causal; window and softcap, None for none; position_bias: a table
                (B, H) outside the blocks, of which a row is added to the heads' scores; buckets: which, for each
                distance of a key from the query, -reach .. reach, for further ones the first or the last
    attend      softmax(scores) v, the heads side by side: (T, Q)
    activation  function: a name of `FUNCTIONS`
    add, multiply   of two tensors, value by value
    scale       x * factor. factor, rounded to float32
    divide      x / divisor. divisor, rounded to float32; x * (1 / divisor) has other bits
    softcap     cap * tanh(x / cap). cap
    pool        one row of those of all positions. by: "mean", or "cls" and "last" for that of the first and the last
    normalize   a row divided by its length

The last two are what llorch.text makes of an encoder's hidden state: no family has them, the validator puts them behind
its graph.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

OPERATIONS = frozenset(
    (
        *("embedding", "layer_norm", "rms_norm", "linear", "heads", "columns", "rope", "cache", "scores", "attend"),
        *("activation", "add", "multiply", "scale", "divide", "softcap", "row"),
        *("pool", "normalize"),
    )
)
GIVEN = ("ids", "positions", "token_types")  # what goes into a graph
FUNCTIONS = ("gelu", "gelu_tanh", "silu", "relu", "tanh", "sigmoid")


@dataclass(frozen=True)
class Step:
    """One operation, and the tensor that it makes.

    name : of the tensor; in a block what follows "h.{layer}.", "" for the output of the block.
    op, inputs : the operation, and the names of what goes in, made before it in the same part of the graph; "x" is a
        block's input (and the last block's output, after the blocks); those of `GIVEN` are there from the start.
    axes : letters of its shape.
    rung : the rung of the validator's ladder that it stands on; "" for one that isn't compared.
    what : for people, in a few words.
    weight : the parameters, by their name without ".weight" and ".bias"; "" for none.
    checked_against : the tensor of a dump that it is compared with, bit for bit, in the place of llorch's own: a cache
        must hold the very keys that went in.
    options : what the operation needs besides; see the module.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    axes: str
    rung: str = ""
    what: str = ""
    weight: str = ""
    checked_against: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.op not in OPERATIONS:
            raise ValueError(
                f"step {self.name!r} has op {self.op!r}, it must be one of {', '.join(sorted(OPERATIONS))}"
            )
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))


@dataclass(frozen=True)
class Parameter:
    """A tensor of the file.

    name : in Hugging Face's files, without the family's prefix; in a block what follows "h.0." or "layers.0.".
    axes : letters of its shape there.
    gguf : its name in GGUF, in a block what follows "blk.0.".
    optional : the file may leave it out, and what then stands for it: the name of another parameter, or "" for nothing.
        None if it must be there.
    conv1d : Hugging Face has this matrix as (in, out); all others, and those of GGUF, are (out, in).
    interleaved : GGUF has the rotated pairs of each head (as many as this axis has heads) side by side: "H" or "G".
    by_head : Hugging Face has the query, key and value of each head side by side; GGUF, as the graph's steps, first the
        queries of all heads.
    unit : a norm's weight that is 1 + what Hugging Face has, one addition in float32; GGUF has the sum.
    """

    name: str
    axes: str
    gguf: str = ""
    optional: str | None = None
    conv1d: bool = False
    interleaved: str = ""
    by_head: bool = False
    unit: bool = False


@dataclass(frozen=True)
class Rope:
    """A table of rotations: pairs i, i + width / 2 of a head turn by position * base^(-2 i / width), or as `scaling`
    (Hugging Face's entries, or GGUF's factors) has it."""

    width: int
    base: float
    scaling: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Graph:
    """A model of one configuration.

    sizes : of the letters, but T and S. before, blocks, after : steps in order; the last of `before` is the first
    block's x, the last of all the result: a decoder's logits, an encoder's hidden state or labels. parameters,
    block_parameters : outside the blocks, and of all blocks, of which each has those that its steps name. block_prefix:
    Hugging Face's, "h." or "layers.". ropes : tables by name.
    """

    sizes: Mapping[str, int]
    before: tuple[Step, ...]
    blocks: tuple[tuple[Step, ...], ...]
    after: tuple[Step, ...]
    parameters: tuple[Parameter, ...]
    block_parameters: tuple[Parameter, ...]
    block_prefix: str
    ropes: Mapping[str, Rope] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for steps in (self.before, *self.blocks, self.after):
            known = {"x", *GIVEN}
            for step in steps:
                if missing := [name for name in step.inputs if name not in known]:
                    raise ValueError(f"step {step.name!r} takes {missing[0]!r}, which no step before it makes")
                known.add(step.name)

    @property
    def decodes(self) -> bool:
        """Whether it gives the logits of the next token."""
        return any(step.name == "logits" for step in self.after)

    @property
    def fullest(self) -> tuple[Step, ...]:
        """The steps of the block that lacks none."""
        return max(self.blocks, key=len)

    def shape(self, axes: str, T: int = 0) -> tuple[int, ...]:
        """The shape of a tensor with these axes, for T positions."""
        return tuple(T if axis in "TS" else self.sizes[axis] for axis in axes)

    def prefix(self, layer: int) -> str:
        """What stands before a block's parameters in Hugging Face's files: "h.3."."""
        return f"{self.block_prefix}{layer}."

    def all_parameters(self) -> Iterator[tuple[str, str, Parameter]]:
        """Every parameter with its full names, in Hugging Face's files and in GGUF; block by block."""
        for parameter in self.parameters:
            yield parameter.name, parameter.gguf, parameter
        for layer, steps in enumerate(self.blocks):
            named = {step.weight for step in steps}
            for parameter in self.block_parameters:
                if parameter.name.rpartition(".")[0] not in named:
                    continue
                yield self.prefix(layer) + parameter.name, f"blk.{layer}.{parameter.gguf}", parameter

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape in Hugging Face's files of every parameter that must be there, by its name."""
        return {name: self.shape(p.axes) for name, _, p in self.all_parameters() if p.optional is None}
