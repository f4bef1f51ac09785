"""What decoders share: the base of their configurations, and the parts that a family's block is put together from.

A family's table is a `Block` of parts. Each part knows its steps, and its parameters' names in both sorts of files:

    Norm                    RMSNorm or LayerNorm. The place it has in the block gives it its name in GGUF.
    Attention               projections apart or in one, biases, norms of queries and keys, rotation, window, softcap
    Gated, Plain            the feed-forward layers: down(act(gate) * up), and second(act(first))
    Block                   the two, with norms before them, after them, or both; one after the other or side by side
    graph                   blocks between the embedding and the head

Names of a part's weights are Hugging Face's and have Llama's as defaults. GGUF's are the same in every architecture, so
they stand here once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from llorch.models import config as check
from llorch.models.config import ModelConfig
from llorch.models.graph import Graph, Parameter, Rope, Step

# ---- configurations ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """Sizes and switches of a decoder, checked when made. A family adds its own as further fields; those with a bool as
    default are checked to be one.

    Attributes
    ----------
    vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, max_position_embeddings : int
        Tokens, the width, that of the feed-forward layer, blocks, heads, the longest context.
    num_key_value_heads : int or None
        Heads of keys and values, a divisor of num_attention_heads; None is as many.
    head_dim : int or None
        Values of a head, even; None is hidden_size / num_attention_heads.
    hidden_act : str
        silu, or another of GPT-2's.
    rope_theta : float
        The base of the rotations.
    rope_scaling : mapping or None
        Hugging Face's entries (rope_type llama3, linear, yarn, longrope), or GGUF's factors.
    tie_word_embeddings : bool
        Whether the head is the embedding where the file has none.
    bos_token_id : int or None
    eos_token_id : int, list of ints or None

    Raises
    ------
    TypeError, ValueError
        Names the entry, what it is and what it must be.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    # Of the family: its name for people; the entry of its norms' epsilon, and GGUF's; entries of config.json and of
    # GGUF's metadata that aren't supported, each with the value that asks for nothing.
    NAME: ClassVar[str] = "decoder"
    EPS: ClassVar[str] = "rms_norm_eps"
    GGUF_EPS: ClassVar[str] = "attention.layer_norm_rms_epsilon"
    REFUSED: ClassVar[Mapping[str, Any]] = {}
    GGUF_REFUSED: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"):
            check.size(getattr(self, name), name)
        check.size(self.max_position_embeddings, "max_position_embeddings")
        check.size(self.num_hidden_layers, "num_hidden_layers", check.MOST_LAYERS)
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.num_attention_heads % check.size(self.num_key_value_heads, "num_key_value_heads"):
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, it must be a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size is {self.hidden_size}, without head_dim it must be a multiple of "
                    f"num_attention_heads, {self.num_attention_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        check.size(self.head_dim, "head_dim")
        if self.has("partial_rotary_factor"):
            check.number(self.partial, "partial_rotary_factor", most=math.nextafter(1, 2))
        if self.rotary_dim % 2 or not self.rotary_dim:
            partly = "" if self.partial == 1 else f" and partial_rotary_factor {self.partial}: {self.rotary_dim} values"
            raise ValueError(f"head_dim is {self.head_dim}{partly}, it must be even: its values are rotated in pairs")
        check.activation(self.hidden_act, "hidden_act")
        check.number(self.eps, self.EPS)
        if not check.number(self.rope_theta, "rope_theta", most=math.inf) > 0:
            raise ValueError(f"rope_theta is {self.rope_theta}, it must be positive")
        for field in fields(self):
            if isinstance(field.default, bool):
                check.flag(getattr(self, field.name), field.name)
        check.token(self.bos_token_id, "bos_token_id")
        object.__setattr__(self, "eos_token_id", check.tokens(self.eos_token_id, "eos_token_id"))
        object.__setattr__(self, "rope_scaling", check.rope_scaling(self.rope_scaling))

    def check_heads_fill_width(self) -> None:
        """For a family whose head_dim is no entry of its own."""
        if self.hidden_size != self.num_attention_heads * self.width_of_head:
            raise ValueError(
                f"head_dim is {self.head_dim}, it must be hidden_size / num_attention_heads, "
                f"{self.hidden_size} / {self.num_attention_heads}"
            )

    @property
    def context(self) -> int:
        return self.max_position_embeddings

    @property
    def layers(self) -> int:
        return self.num_hidden_layers

    @property
    def eps(self) -> float:
        """The norms' epsilon, whatever its entry is called."""
        return getattr(self, self.EPS)  # type: ignore[no-any-return]

    @property
    def function(self) -> str:
        """The activation by llorch's name."""
        return check.ACTIVATIONS[self.hidden_act]

    @property
    def width_of_head(self) -> int:
        """head_dim, which is there once the configuration has been checked."""
        assert self.head_dim is not None
        return self.head_dim

    @property
    def partial(self) -> float:
        """The part of a head that is rotated, where the family has that entry."""
        return getattr(self, "partial_rotary_factor", 1.0)

    @property
    def rotary_dim(self) -> int:
        """Values of a head that are rotated, the first ones."""
        return int(self.width_of_head * self.partial)

    def rope(self) -> Rope:
        """The table of rotations."""
        scaling = self.rope_scaling and {"max_position_embeddings": self.max_position_embeddings, **self.rope_scaling}
        return Rope(self.rotary_dim, self.rope_theta, scaling)

    @classmethod
    def has(cls, name: str) -> bool:
        """Whether the family has an entry."""
        return any(field.name == name for field in fields(cls))

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        """A configuration from the entries of a config.json; those that don't concern the mathematics are ignored.

        ValueError names an entry that asks for something llorch doesn't have.
        """
        return cls(**cls.entries_of(entries))

    @classmethod
    def entries_of(cls, entries: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a configuration, from the entries of a config.json."""
        check.refuse(entries, cls.NAME, cls.REFUSED)
        found = {field.name: entries[field.name] for field in fields(cls) if field.name in entries}
        theta, scaling, partial = check.rope_entries(entries)
        if theta is not None:
            found["rope_theta"] = theta
        if cls.has("partial_rotary_factor"):
            if partial is not None:
                found["partial_rotary_factor"] = partial
        elif partial not in (None, 1):
            raise ValueError(f"partial_rotary_factor is {partial}: llorch's {cls.NAME} rotates all of a head")
        return found | {"rope_scaling": scaling}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        """From a GGUF file's metadata, and its tensors' shapes. Factors of the rotations come with the tensors."""
        get = check.GGUF(metadata, str(metadata.get("general.architecture")))
        return cls(**cls.entries_of_gguf(get, shapes))

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The arguments of a configuration, from an architecture's metadata. A family adds its own."""
        found = {
            "vocab_size": check.rows(shapes, "token_embd.weight"),
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": get("attention.head_count"),
            "num_key_value_heads": get("attention.head_count_kv", None),
            "head_dim": get("attention.key_length", None),
            "max_position_embeddings": get("context_length"),
            cls.EPS: get(cls.GGUF_EPS),
            "rope_theta": get("rope.freq_base", 10000.0),
            "rope_scaling": check.gguf_rope_scaling(get, shapes),
            "tie_word_embeddings": "output.weight" not in shapes,
            "bos_token_id": get.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": check.gguf_ends(get.metadata),
        }
        D = found["head_dim"]
        if D is None:
            H = check.size(found["num_attention_heads"], f"{get.architecture}.attention.head_count")
            D = check.size(found["hidden_size"], f"{get.architecture}.embedding_length") // H
        rotated = get("rope.dimension_count", None)
        if cls.has("partial_rotary_factor"):
            found["partial_rotary_factor"] = check.part(rotated, D, f"{get.architecture}.rope.dimension_count")
        elif rotated not in (None, D):
            raise ValueError(
                f"{get.architecture}.rope.dimension_count is {rotated}, it must be the width of a head, {D}"
            )
        for name, harmless in {"attention.value_length": D, **cls.GGUF_REFUSED}.items():
            if get(name, None) not in (None, harmless):
                raise ValueError(f"{get.architecture}.{name} is {get(name)}: llorch's {cls.NAME} has {harmless}")
        if get("expert_count", 0):
            raise ValueError(
                f"{get.architecture}.expert_count is {get('expert_count')}: mixtures of experts are not supported"
            )
        return found


# ---- parts of a block ----------------------------------------------------------------------------------


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


def _linear(weight: str, axes: str, gguf: str, bias: bool, **layout: Any) -> Iterator[Parameter]:
    """The parameters of a linear layer; layout: how files lay out its rows, as Parameter has it."""
    yield Parameter(f"{weight}.weight", axes, f"{gguf}.weight", **layout)
    if bias:
        yield Parameter(f"{weight}.bias", axes[0], f"{gguf}.bias", **layout)


@dataclass(frozen=True)
class Attention:
    """Causal attention, from its input to the output projection.

    q, k, v, qkv, out : names of the projections; qkv is that of all three in one, "" where they stand apart.
    bias : which of them have one, by letters of "qkvo"; with qkv "qkv" is one.
    q_norm, k_norm : norms of queries and keys before the rotation, None for none. over_all : of a whole row, not of
        each head.
    rope : the table that queries and keys are rotated by, None for none.
    window : positions that a query sees, itself the last of them; None for all.
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
    window: int | None = None
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
        for letter in "qk":
            yield Step(
                f"attn.{letter}_rope", "rope", (last[letter],), shape[letter], "rotation",
                f"{names[letter]} after the rotation", options={"table": self.rope},
            )  # fmt: skip
        yield Step(
            "attn.cache_k", "cache", ("attn.k_rope",), "GTD", "cache",
            "keys in the cache after the prompt: attn.k_rope, bit for bit", checked_against="attn.k_rope",
        )  # fmt: skip
        yield Step(
            "attn.cache_v", "cache", ("attn.v",), "GTD", "cache",
            "values in the cache after the prompt: attn.v, bit for bit", checked_against="attn.v",
        )  # fmt: skip
        yield Step(
            "attn.scores", "scores", ("attn.q_rope", "attn.cache_k"), "HTS", "scores",
            "q k' scale; -inf where query t may not see position s",
            options={"scale": self.scale, "causal": True, "window": self.window, "softcap": self.softcap},
        )  # fmt: skip
        yield Step(
            "attn.context", "attend", ("attn.scores", "attn.cache_v"), "TQ", "attention",
            "softmax(scores) v, the heads side by side",
        )  # fmt: skip
        through = self.out.rpartition(".")[2]
        what = f"attention output: context through {through}"
        yield Step("attn.c_proj", "linear", ("attn.context",), "TE", "attention", what, self.out)

    def parameters(self) -> Iterator[Parameter]:
        pairs = {"q": "H", "k": "G", "v": ""} if self.interleaved else {"q": "", "k": "", "v": ""}
        if self.qkv:
            yield from _linear(self.qkv, "WE", "attn_qkv", "qkv" in self.bias, by_head=self.by_head)
        else:
            for letter, axes in (("q", "QE"), ("k", "RE"), ("v", "RE")):
                name, biased = getattr(self, letter), letter in self.bias
                yield from _linear(name, axes, f"attn_{letter}", biased, interleaved=pairs[letter])
        for letter, norm, axis in (("q", self.q_norm, "Q"), ("k", self.k_norm, "R")):
            if norm is not None:
                yield from norm.parameters(f"attn_{letter}_norm", axis if self.over_all else "D")
        yield from _linear(self.out, "EQ", "attn_output", "o" in self.bias)


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
            yield from _linear(self.gate_up, "UE", "ffn_up", self.bias)
        else:
            yield from _linear(self.gate, "FE", "ffn_gate", self.bias)
            yield from _linear(self.up, "FE", "ffn_up", self.bias)
        yield from _linear(self.down, "EF", "ffn_down", self.bias)


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
        yield from _linear(self.first, "FE", "ffn_up", self.bias)
        yield from _linear(self.second, "EF", "ffn_down", self.bias)


@dataclass(frozen=True)
class Block:
    """Attention and a feed-forward layer, each added to what came in.

    norm_1, norm_2 : before attention and before the feed-forward layer; None for none.
    attention_norm, feed_forward_norm : after them, before they are added; None for none.
    parallel : both read the block's input, and the sum is (feed-forward output + attention output) + input.
    shared_norm : both read what norm_1 makes of the block's input, and the sum is (input + attention output) +
        feed-forward output; norm_2 is None.
    """

    attention: Attention
    feed_forward: Gated | Plain
    norm_1: Norm | None = None
    norm_2: Norm | None = None
    attention_norm: Norm | None = None
    feed_forward_norm: Norm | None = None
    parallel: bool = False
    shared_norm: bool = False

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
        if self.parallel:
            yield Step("branches", "add", (z, y), "TE", "feed_forward", f"{z} + {y}")
            yield Step("", "add", ("branches", "x"), "TE", "block", "the block's output: branches + its input")
        else:
            yield Step("", "add", ("residual", z), "TE", "block", f"the block's output: residual + {z}")

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


# ---- the whole -----------------------------------------------------------------------------------------


def graph(
    c: DecoderConfig,
    blocks: Sequence[Block],
    norm: Norm,
    *,
    ropes: Mapping[str, Rope] | None = None,
    factor: float = 1.0,
    rounded: bool = False,
    softcap: float | None = None,
    embed: str = "embed_tokens",
    head: str = "lm_head",
    prefix: str = "layers.",
) -> Graph:
    """Embedding, blocks, norm and head.

    norm : the last one. ropes : tables by name; None: one, "main", that of the configuration. factor : what rows of the
    embedding are multiplied by; rounded : to the type of the embedding first. softcap : of the logits. embed, head :
    names of those weights. prefix : of blocks.
    """
    H, G, D = c.num_attention_heads, c.num_key_value_heads, c.width_of_head
    assert G is not None
    F = c.intermediate_size
    sizes = {"E": c.hidden_size, "V": c.vocab_size, "P": c.max_position_embeddings, "F": F, "U": 2 * F}
    sizes |= {"H": H, "G": G, "D": D, "Q": H * D, "R": G * D, "W": (H + 2 * G) * D}
    inside = tuple(blocks[0].parameters())
    if any(tuple(block.parameters()) != inside for block in set(blocks)):
        raise ValueError(f"blocks of a {c.NAME} must have the same parameters")
    row, options = f"{embed}[id]", {}
    if factor != 1.0:
        row, options = f"{row} * {factor:.6g}", {"factor": factor, "rounded": rounded}
    before = (Step("embed", "embedding", ("ids",), "TE", "embed", row, embed, options=options),)
    what = f"ln_f through the head, which is {embed} where it is tied"
    logits = "logits" if softcap is None else "head"
    after = [
        Step("ln_f", norm.op, ("x",), "TE", "final_norm", f"the final {norm.title}", norm.weight,
             options=norm.step("", "x", "", "").options),
        Step(logits, "linear", ("ln_f",), "TV", "logits" if softcap is None else "", what, head),
    ]  # fmt: skip
    if softcap is not None:
        what = f"{softcap} * tanh(head / {softcap})"
        after.append(Step("logits", "softcap", ("head",), "TV", "logits", what, options={"cap": softcap}))
    outside = (
        Parameter(f"{embed}.weight", "VE", "token_embd.weight"),
        *norm.parameters("output_norm"),
        Parameter(
            f"{head}.weight", "VE", "output.weight", optional=f"{embed}.weight" if c.tie_word_embeddings else None
        ),
    )
    made = {block: tuple(block.steps(H, G, F)) for block in set(blocks)}
    tables = {"main": c.rope()} if ropes is None else ropes
    return Graph(sizes, before, tuple(made[block] for block in blocks), tuple(after), outside, inside, prefix, tables)
