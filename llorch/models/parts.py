"""The parts that a family's block is put together from, decoders' and encoders' alike.

Each part knows its steps, and its parameters' names in both sorts of files:

    Norm                    RMSNorm or LayerNorm. The place it has in the block gives it its name in GGUF.
    Attention               projections apart or in one, biases, norms of queries and keys, rotation, window, softcap
    Gated, Plain            the feed-forward layers: down(act(gate) * up), and second(act(first))
    Block                   the two, with norms before them, after them, or both; one after the other or side by side
    NormedSums              the two, each sum normed, as BERT has it

Names of a part's weights are Hugging Face's and have Llama's as defaults. GGUF's are the same in every architecture, so
they stand here once.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llorch.models.graph import Parameter, Step


@dataclass(frozen=True)
class Norm:
    """A norm. weight : its name. eps. op : "rms_norm" or "layer_norm". bias : whether it has one. unit : its weight is
    1 + what Hugging Face's file has."""

    weight: str
    eps: float
    op: str = "rms_norm"
    bias: bool = False
    unit: bool = False

    @property
    def title(self) -> str:
        return "RMSNorm" if self.op == "rms_norm" else "LayerNorm"

    def step(self, name: str, x: str, rung: str, what: str, axes: str = "TE") -> Step:
        return Step(name, self.op, (x,), axes, rung, f"{self.title} of {what}", self.weight, options={"eps": self.eps})

    def parameters(self, gguf: str, axis: str = "E") -> Iterator[Parameter]:
        yield Parameter(f"{self.weight}.weight", axis, f"{gguf}.weight", unit=self.unit)
        if self.bias:
            yield Parameter(f"{self.weight}.bias", axis, f"{gguf}.bias")


def linear(weight: str, axes: str, gguf: str, bias: bool, **layout: Any) -> Iterator[Parameter]:
    """The parameters of a linear layer; layout: how files lay out its rows, as Parameter has it."""
    yield Parameter(f"{weight}.weight", axes, f"{gguf}.weight", **layout)
    if bias:
        yield Parameter(f"{weight}.bias", axes[0], f"{gguf}.bias", **layout)


@dataclass(frozen=True)
class Attention:
    """Attention, from its input to the output projection.

    q, k, v, qkv, out : names of the projections; qkv is that of all three in one, "" where they stand apart.
    bias : which of them have one, by letters of "qkvo"; with qkv "qkv" is one.
    q_norm, k_norm : norms of queries and keys before the rotation, None for none. over_all : of a whole row, not of
        each head.
    rope : the table that queries and keys are rotated by, None for none; "" where no layer of the model has one, and
        there is no such step.
    causal : whether a query sees the positions up to its own alone. Keys and values then go to a cache.
    window : positions that a query sees, itself the last of them; not causal: how far it sees on both sides. None: all.
    position_bias : the table outside the blocks of what is added to scores, "" for none. buckets : which row of it, for
        each distance of a key from the query.
    scale : of the scores, None for 1 / sqrt(width of a head). softcap : of the scores, None for none.
    interleaved : GGUF has the rotated pairs of queries and keys side by side. by_head : Hugging Face has in qkv the
        query, key and value of each head side by side.
    """

    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    qkv: str = ""
    out: str = "self_attn.o_proj"
    bias: str = ""
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    over_all: bool = False
    rope: str | None = "main"
    causal: bool = True
    window: int | None = None
    position_bias: str = ""
    buckets: tuple[int, ...] = ()
    scale: float | None = None
    softcap: float | None = None
    interleaved: bool = False
    by_head: bool = False

    def steps(self, x: str, H: int, G: int) -> Iterator[Step]:
        """From x to attn.c_proj."""
        names = {"q": "queries", "k": "keys", "v": "values"}
        norms = {"q": self.q_norm, "k": self.k_norm, "v": None}
        flat, shape = {"q": "TQ", "k": "TR", "v": "TR"}, {"q": "HTD", "k": "GTD", "v": "GTD"}
        first = {"q": 0, "k": H, "v": H + G} if self.qkv else {"q": 0, "k": 0, "v": 0}
        if self.qkv:
            yield Step("attn.qkv", "linear", (x,), "TW", weight=self.qkv)
        for letter, what in names.items():
            source, norm = "attn.qkv", norms[letter]
            if not self.qkv:
                source = f"attn.{letter}_flat"
                yield Step(source, "linear", (x,), flat[letter], weight=getattr(self, letter))
            if norm is not None and self.over_all:
                yield norm.step(f"attn.{letter}_norm", source, "qkv", f"all {what}", flat[letter])
                source = f"attn.{letter}_norm"
            count = H if letter == "q" else G
            options = {"first": first[letter], "count": count}
            yield Step(f"attn.{letter}", "heads", (source,), shape[letter], "qkv", what, options=options)
        last = {letter: f"attn.{letter}" for letter in "qk"}
        for letter in "qk":
            norm = norms[letter]
            if norm is not None and not self.over_all:
                last[letter] = f"attn.{letter}_norm"
                yield norm.step(last[letter], f"attn.{letter}", "qkv", f"each head of {names[letter]}", shape[letter])
        for letter in "qk" if self.rope != "" else "":
            before, last[letter] = last[letter], f"attn.{letter}_rope"
            yield Step(
                last[letter], "rope", (before,), shape[letter], "rotation",
                f"{names[letter]} after the rotation", options={"table": self.rope},
            )  # fmt: skip
        last["v"] = "attn.v"
        for letter in "kv" if self.causal else "":
            before, last[letter] = last[letter], f"attn.cache_{letter}"
            yield Step(
                last[letter], "cache", (before,), "GTD", "cache",
                f"{names[letter]} in the cache after the prompt: {before}, bit for bit", checked_against=before,
            )  # fmt: skip
        mask: dict[str, Any] = {"scale": self.scale, "causal": self.causal}
        mask |= {"window": self.window, "softcap": self.softcap}
        shown = "q k' scale"
        if self.position_bias:
            mask |= {"position_bias": self.position_bias, "buckets": self.buckets}
            shown = f"{shown} + the bias of the distance"
        if self.causal or self.window:
            shown = f"{shown}; -inf where query t may not see position s"
        yield Step("attn.scores", "scores", (last["q"], last["k"]), "HTS", "scores", shown, options=mask)
        yield Step(
            "attn.context", "attend", ("attn.scores", last["v"]), "TQ", "attention",
            "softmax(scores) v, the heads side by side",
        )  # fmt: skip
        through = self.out.rpartition(".")[2]
        what = f"attention output: context through {through}"
        yield Step("attn.c_proj", "linear", ("attn.context",), "TE", "attention", what, self.out)

    def parameters(self) -> Iterator[Parameter]:
        pairs = {"q": "H", "k": "G", "v": ""} if self.interleaved else {"q": "", "k": "", "v": ""}
        if self.qkv:
            yield from linear(self.qkv, "WE", "attn_qkv", "qkv" in self.bias, by_head=self.by_head)
        else:
            for letter, axes in (("q", "QE"), ("k", "RE"), ("v", "RE")):
                name, biased = getattr(self, letter), letter in self.bias
                yield from linear(name, axes, f"attn_{letter}", biased, interleaved=pairs[letter])
        for letter, norm, axis in (("q", self.q_norm, "Q"), ("k", self.k_norm, "R")):
            if norm is not None:
                yield from norm.parameters(f"attn_{letter}_norm", axis if self.over_all else "D")
        yield from linear(self.out, "EQ", "attn_output", "o" in self.bias)


@dataclass(frozen=True)
class Gated:
    """A gated feed-forward layer: down(function(gate(x)) * up(x)).

    gate, up, gate_up, down : names of the linear layers; gate_up is that of gate and up in one, "" where they stand
    apart. bias : whether they have biases.
    """

    function: str
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    gate_up: str = ""
    down: str = "mlp.down_proj"
    bias: bool = False

    def steps(self, x: str, F: int) -> Iterator[Step]:
        """From x to mlp.c_proj."""
        names = (("mlp.gate", self.gate, "gate, before the activation", 0), ("mlp.up", self.up, "up", F))
        if self.gate_up:
            yield Step("mlp.gate_up", "linear", (x,), "TU", weight=self.gate_up)
        for name, weight, what, first in names:
            if self.gate_up:
                cut = {"first": first, "count": F}
                yield Step(name, "columns", ("mlp.gate_up",), "TF", "feed_forward", what, options=cut)
            else:
                yield Step(name, "linear", (x,), "TF", "feed_forward", what, weight)
        yield Step(
            "mlp.act", "activation", ("mlp.gate",), "TF", "feed_forward", "gate, after the activation",
            options={"function": self.function},
        )  # fmt: skip
        yield Step("mlp.product", "multiply", ("mlp.act", "mlp.up"), "TF", "feed_forward", "mlp.act * mlp.up")
        yield Step("mlp.c_proj", "linear", ("mlp.product",), "TE", "feed_forward", "feed-forward output", self.down)

    def parameters(self) -> Iterator[Parameter]:
        if self.gate_up:
            yield from linear(self.gate_up, "UE", "ffn_up", self.bias)
        else:
            yield from linear(self.gate, "FE", "ffn_gate", self.bias)
            yield from linear(self.up, "FE", "ffn_up", self.bias)
        yield from linear(self.down, "EF", "ffn_down", self.bias)


@dataclass(frozen=True)
class Plain:
    """A feed-forward layer: second(function(first(x))). bias : whether the two have biases."""

    function: str
    first: str = "mlp.fc1"
    second: str = "mlp.fc2"
    bias: bool = True

    def steps(self, x: str, F: int) -> Iterator[Step]:
        """From x to mlp.c_proj."""
        yield Step("mlp.c_fc", "linear", (x,), "TF", "feed_forward", "before the activation", self.first)
        yield Step(
            "mlp.act", "activation", ("mlp.c_fc",), "TF", "feed_forward", "after the activation",
            options={"function": self.function},
        )  # fmt: skip
        yield Step("mlp.c_proj", "linear", ("mlp.act",), "TE", "feed_forward", "feed-forward output", self.second)

    def parameters(self) -> Iterator[Parameter]:
        yield from linear(self.first, "FE", "ffn_up", self.bias)
        yield from linear(self.second, "EF", "ffn_down", self.bias)


@dataclass(frozen=True)
class Block:
    """Attention and a feed-forward layer, each added to what came in.

    norm_1, norm_2 : before attention and before the feed-forward layer; None for none.
    attention_norm, feed_forward_norm : after them, before they are added; None for none.
    parallel : both read the block's input, and the sum is (feed-forward output + attention output) + input.
    shared_norm : both read what norm_1 makes of the block's input, and the sum is (input + attention output) +
        feed-forward output; norm_2 is None.
    multiplier : what both outputs are multiplied by before they are added.
    """

    attention: Attention
    feed_forward: Gated | Plain
    norm_1: Norm | None = None
    norm_2: Norm | None = None
    attention_norm: Norm | None = None
    feed_forward_norm: Norm | None = None
    parallel: bool = False
    shared_norm: bool = False
    multiplier: float = 1.0

    def __post_init__(self) -> None:
        if self.shared_norm and (self.norm_1 is None or self.norm_2 is not None or self.parallel):
            raise ValueError("shared_norm needs norm_1, and neither norm_2 nor parallel, whose sum has another order")

    def steps(self, H: int, G: int, F: int) -> Iterator[Step]:
        x = "x"
        if self.norm_1 is not None:
            x = "ln_1"
            yield self.norm_1.step(x, "x", "norm", "the block's input")
        yield from self.attention.steps(x, H, G)
        y = "attn.c_proj"
        if self.attention_norm is not None:
            y = "attn.norm"
            yield self.attention_norm.step(y, "attn.c_proj", "attention", "attn.c_proj")
        if self.multiplier != 1:
            y = yield from self._multiplied("attn.scaled", y, "attention")
        x = "x"
        if not self.parallel:
            x = "residual"
            yield Step(x, "add", ("x", y), "TE", "attention", f"the block's input + {y}")
        before = x
        if self.norm_2 is not None:
            x = "ln_2"
            what = "the block's input" if self.parallel else before
            yield self.norm_2.step(x, before, "feed_forward", what)
        elif self.shared_norm:
            x = "ln_1"
        yield from self.feed_forward.steps(x, F)
        z = "mlp.c_proj"
        if self.feed_forward_norm is not None:
            z = "mlp.norm"
            yield self.feed_forward_norm.step(z, "mlp.c_proj", "feed_forward", "mlp.c_proj")
        if self.multiplier != 1:
            z = yield from self._multiplied("mlp.scaled", z, "feed_forward")
        if self.parallel:
            yield Step("branches", "add", (z, y), "TE", "feed_forward", f"{z} + {y}")
            yield Step("", "add", ("branches", "x"), "TE", "block", "the block's output: branches + its input")
        else:
            yield Step("", "add", ("residual", z), "TE", "block", f"the block's output: residual + {z}")

    def _multiplied(self, name: str, x: str, rung: str) -> Generator[Step, None, str]:
        what = f"{x} * {self.multiplier:.6g}"
        yield Step(name, "scale", (x,), "TE", rung, what, options={"factor": self.multiplier})
        return name

    def parameters(self) -> Iterator[Parameter]:
        if self.norm_1 is not None:
            yield from self.norm_1.parameters("attn_norm")
        yield from self.attention.parameters()
        if self.attention_norm is not None:
            yield from self.attention_norm.parameters("post_attention_norm")
        if self.norm_2 is not None:
            yield from self.norm_2.parameters("ffn_norm")
        yield from self.feed_forward.parameters()
        if self.feed_forward_norm is not None:
            yield from self.feed_forward_norm.parameters("post_ffw_norm")


@dataclass(frozen=True)
class NormedSums:
    """Attention and a feed-forward layer, each added to what came in, and the sum normed: x = norm(f(x) + x), twice."""

    attention: Attention
    feed_forward: Gated | Plain
    norm_1: Norm
    norm_2: Norm

    def steps(self, H: int, G: int, F: int) -> Iterator[Step]:
        yield from self.attention.steps("x", H, G)
        yield Step("attn.sum", "add", ("attn.c_proj", "x"), "TE", "attention", "attn.c_proj + the block's input")
        yield self.norm_1.step("residual", "attn.sum", "attention", "attn.sum")
        yield from self.feed_forward.steps("residual", F)
        yield Step("mlp.sum", "add", ("mlp.c_proj", "residual"), "TE", "feed_forward", "mlp.c_proj + residual")
        yield self.norm_2.step("", "mlp.sum", "block", "mlp.sum: the block's output")

    def parameters(self) -> Iterator[Parameter]:
        yield from self.attention.parameters()
        yield from self.norm_1.parameters("attn_output_norm")
        yield from self.feed_forward.parameters()
        yield from self.norm_2.parameters("layer_output_norm")


def parameters_of(blocks: Sequence[Block | NormedSums], name: str) -> tuple[Parameter, ...]:
    """Those of all blocks. A block may be without a norm or a layer of the others; ValueError where blocks of a family
    of this name have one that differs, or not with the same bias."""
    found = {one.name: one for block in dict.fromkeys(blocks) for one in block.parameters()}
    for block in dict.fromkeys(blocks):
        own = {one.name: one for one in block.parameters()}
        weights = {one.rpartition(".")[0] for one in own}
        if own != {key: one for key, one in found.items() if key.rpartition(".")[0] in weights}:
            raise ValueError(f"blocks of a {name} must have the same parameters in the norms and layers of one name")
    return tuple(found.values())


def steps_of(blocks: Sequence[Block | NormedSums], H: int, G: int, F: int) -> tuple[tuple[Step, ...], ...]:
    """The steps of each block."""
    made = {block: tuple(block.steps(H, G, F)) for block in set(blocks)}
    return tuple(made[block] for block in blocks)
