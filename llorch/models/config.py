"""What the configurations of all families share: checks of entries, and what others ask of one."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from llorch._text import printable
from llorch.models.graph import Rope

# Hugging Face's names of activations, and llorch's function for each.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "tanh": "tanh",
}

LARGEST = 2**24  # values in a row that the kernels specify
FLOAT32_END = 2**128 - 2**103  # the least number that rounds to infinity in float32
MOST_LAYERS = 10_000  # a hostile number must not cost memory before the file is looked at

# Entries of any family that ask for mathematics that isn't built: each may be absent or have the value here.
REFUSED: dict[str, Any] = {"add_cross_attention": False, "pruned_heads": {}, "quantization_config": None}


class ModelConfig:
    """A configuration: its family's entries, checked when made, by the names of its config.json.

    Attributes
    ----------
    vocab_size, context, layers : int
        Rows of the embedding; the most positions of a text; blocks.
    bos_token_id : int or None
        The token that begins a text.
    eos_token_ids : tuple of int
        Tokens that end one.
    """

    vocab_size: int
    bos_token_id: int | None

    @property
    def context(self) -> int:
        raise NotImplementedError

    @property
    def layers(self) -> int:
        raise NotImplementedError

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        found = getattr(self, "eos_token_id", None)
        return () if found is None else tuple(found) if isinstance(found, list | tuple) else (int(found),)


def integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {_shown(value)}")
    return operator.index(value)


def size(value: Any, name: str, most: int = LARGEST) -> int:
    """A number of things: at least 1."""
    if not 1 <= integer(value, name) <= most:
        raise ValueError(f"{name} is {_shown(value)}, it must be at least 1 and at most {most}")
    return int(value)


def number(value: Any, name: str, least: float = 0.0, most: float = FLOAT32_END) -> float:
    """A float of [least, most): finite in float32."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not least <= value < min(most, 2**1024) or not math.isfinite(value):  # an int may be too large for a float
        kind = "finite in float32 and not negative" if (least, most) == (0.0, FLOAT32_END) else f"in [{least}, {most})"
        raise ValueError(f"{name} is {_shown(value)}, it must be {kind}")
    return float(value)


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {_shown(value)}")
    return value


def flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {_shown(value)}")
    return value


def token(value: Any, name: str) -> int | None:
    return None if value is None else _id(value, name)


def tokens(value: Any, name: str) -> int | tuple[int, ...] | None:
    """One token id, or several."""
    if isinstance(value, list | tuple):
        return tuple(_id(one, name) for one in value)
    return token(value, name)


def _id(value: Any, name: str) -> int:
    """One beyond the vocabulary is left to be: it never comes."""
    if integer(value, name) < 0:
        raise ValueError(f"{name} is {_shown(value)}, a token's id can't be negative")
    return int(value)


def activation(value: Any, name: str) -> str:
    """llorch's function for Hugging Face's name."""
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(f"{name} is {_shown(value)}, llorch has {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[value]


def refuse(entries: Mapping[str, Any], family: str, refused: Mapping[str, Any]) -> None:
    """ValueError for an entry that asks for what isn't built: each may be absent, null, false, or as here."""
    for name, harmless in {**REFUSED, **refused}.items():
        if entries.get(name) not in (None, False, harmless):
            raise ValueError(f"{name} is {_shown(entries[name])}: llorch's {family} doesn't support it")


# ---- rotations: entries of config.json -----------------------------------------------------------------

ROPE_TYPES = ("linear", "llama3", "yarn", "longrope", "gguf")


def rope_entries(entries: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """rope_theta, rope_scaling and partial_rotary_factor, None where nothing says it: by the names of transformers 4,
    or in the rope_parameters of transformers 5, which hold all three."""
    found = entries.get("rope_parameters")
    if found is None:
        found = entries.get("rope_scaling")
    if found is not None and not isinstance(found, Mapping):
        raise TypeError(f"rope_parameters (or rope_scaling) must be a mapping, got {_shown(found)}")
    theta, partial = entries.get("rope_theta"), entries.get("partial_rotary_factor")
    if found is None:
        return theta, None, partial
    scaling = dict(found)
    inner, part = scaling.pop("rope_theta", None), scaling.pop("partial_rotary_factor", None)
    if entries.get("original_max_position_embeddings") is not None:  # which some rules look at
        scaling.setdefault("original_max_position_embeddings", entries["original_max_position_embeddings"])
    return theta if inner is None else inner, scaling, partial if part is None else part


def ropes_by_kind(entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rotations of each kind of layers, by transformers 5's rope_parameters; {} where nothing says them."""
    both = mapping(entries.get("rope_parameters") or {}, "rope_parameters")
    if unknown := [name for name in both if name not in LAYER_TYPES]:
        raise ValueError(f"rope_parameters has {_shown(unknown[0])}, it must have {' and '.join(LAYER_TYPES)}")
    return {kind: dict(mapping(both.get(kind) or {}, f"rope_parameters.{kind}")) for kind in LAYER_TYPES}


def rope_scaling(value: Any) -> Mapping[str, Any] | None:
    """The rule in force; None where angles are not scaled. ValueError names a rule that isn't built."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"rope_scaling must be a mapping, got {_shown(value)}")
    entries = dict(value)
    kind = entries.get("rope_type", entries.pop("type", "default"))
    if kind in ("default", None):
        return None
    if kind == "dynamic":
        raise ValueError(
            "rope_scaling has rope_type 'dynamic': its angles depend on how long the text has become, so that a text "
            "at once and token by token would differ; llorch can't run it"
        )
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope_scaling has rope_type {_shown(kind)}, llorch has {', '.join(ROPE_TYPES)}")
    return entries | {"rope_type": kind}


# ---- windows: entries of config.json -------------------------------------------------------------------

LAYER_TYPES = ("full_attention", "sliding_attention")


def window(value: Any, name: str) -> int | None:
    """Positions that a query sees, None for all."""
    return None if value is None else size(value, name, 2**62)


def layer_types(value: Any, sliding: Sequence[bool], window: int | None) -> tuple[str, ...]:
    """The kinds of attention of each layer; where nothing says them, those that `sliding` has."""
    found = tuple(LAYER_TYPES[one] for one in sliding) if value is None else value
    if not isinstance(found, list | tuple) or len(found) != len(sliding):
        raise ValueError(f"layer_types must be a list of {len(sliding)}, one for each layer, got {_shown(value)}")
    for one in found:
        if one not in LAYER_TYPES:
            raise ValueError(f"layer_types has {_shown(one)}, llorch has {' and '.join(LAYER_TYPES)}")
    if LAYER_TYPES[1] in found and window is None:
        raise ValueError("layer_types has sliding_attention, but sliding_window (or use_sliding_window) says no window")
    return tuple(found)


def windows(types: Sequence[str] | None, window: int | None) -> list[int | None]:
    """The window of each layer, None for none."""
    return [window if kind == LAYER_TYPES[1] else None for kind in types or ()]


def _shown(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


# ---- GGUF ----------------------------------------------------------------------------------------------


class GGUF:
    """Entries of an architecture in a GGUF file's metadata: get("block_count") is that of "llama.block_count"."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata, self.architecture = metadata, architecture

    def __call__(self, name: str, *default: Any) -> Any:
        """ValueError if it isn't there and there is no default."""
        found = self.metadata.get(f"{self.architecture}.{name}", *default)
        if found is None and not default:
            raise ValueError(f"the metadata has no {self.architecture}.{name}")
        return found


def rows(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """The first axis of a tensor."""
    if not shapes.get(name):
        raise ValueError(f"tensor {name} is missing")
    return shapes[name][0]


def part(count: Any, whole: int, name: str) -> float:
    """The part that so many values are of a whole: int(whole * part) gives them back. None is all."""
    if count is None:
        return 1.0
    found = size(count, name, whole) / whole
    return found if int(whole * found) == count else math.nextafter(found, 2)


def gguf_ends(metadata: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The tokens that end a text or a turn."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [metadata.get(f"tokenizer.ggml.{name}") for name in names]
    return tuple(dict.fromkeys(id for id in found if isinstance(id, int))) or None


def gguf_rope_scaling(get: GGUF, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any] | None:
    """rope_scaling in Hugging Face's entries; factors that are among the tensors come with those."""
    given = get("rope.scaling.attn_factor", None)
    if "rope_factors_long.weight" in shapes:
        return _gguf_longrope(get, given)
    if given not in (None, 1):
        raise ValueError(f"{get.architecture}.rope.scaling.attn_factor is {given}: without rope_factors it must be 1")
    kind = get("rope.scaling.type", None)
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": get("rope.scaling.factor"),
            "original_max_position_embeddings": get("rope.scaling.original_context_length"),
        }
    raise ValueError(f"{get.architecture}.rope.scaling.type is {_shown(kind)}, llorch has none, linear and yarn")


def _gguf_longrope(get: GGUF, given: Any) -> Mapping[str, Any]:
    """longrope, whose lists are tensors. The factor of cosine and sine is there in float32: where it is the rule's own,
    rounded, the rule is meant."""
    name = "rope.scaling.original_context_length"
    original = size(get(name), f"{get.architecture}.{name}")
    context = size(get("context_length"), f"{get.architecture}.context_length")
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": original}
    own = math.sqrt(1 + math.log(context / original) / math.log(original)) if context > original > 1 else 1.0
    return scaling if given is None or np.float32(given) == np.float32(own) else scaling | {"attention_factor": given}


# ---- configurations of blocks of attention and a feed-forward layer ---------------------------------------


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Sizes and switches of a model whose blocks are attention and a feed-forward layer, checked when made.

    A family adds its own as further fields; those with a bool as default are checked to be one. Families that rotate
    queries and keys have the fields rope_theta and rope_scaling.

    Attributes
    ----------
    vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, max_position_embeddings : int
        Tokens, the width, that of the feed-forward layer, blocks, heads, the longest context.
    head_dim : int or None
        Values of a head, even where they are rotated; None is hidden_size / num_attention_heads.
    hidden_act : str
        silu, or another of GPT-2's.
    bos_token_id : int or None
    eos_token_id : int, tuple of ints or None

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
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    # Of the family: its name for people; the entry of its norms' epsilon, and GGUF's; entries of config.json and of
    # GGUF's metadata that aren't supported, each with the value that asks for nothing.
    NAME: ClassVar[str] = "model"
    EPS: ClassVar[str] = "rms_norm_eps"
    GGUF_EPS: ClassVar[str] = "attention.layer_norm_rms_epsilon"
    REFUSED: ClassVar[Mapping[str, Any]] = {}
    GGUF_REFUSED: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"):
            size(getattr(self, name), name)
        size(self.max_position_embeddings, "max_position_embeddings")
        size(self.num_hidden_layers, "num_hidden_layers", MOST_LAYERS)
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size is {self.hidden_size}, without head_dim it must be a multiple of "
                    f"num_attention_heads, {self.num_attention_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        size(self.head_dim, "head_dim")
        activation(self.hidden_act, "hidden_act")
        number(self.eps, self.EPS)
        if self.has("rope_theta"):
            self._check_rotation()
        for field in fields(self):
            if isinstance(field.default, bool):
                flag(getattr(self, field.name), field.name)
        token(self.bos_token_id, "bos_token_id")
        object.__setattr__(self, "eos_token_id", tokens(self.eos_token_id, "eos_token_id"))

    def _check_rotation(self) -> None:
        if self.has("partial_rotary_factor"):
            number(self.partial, "partial_rotary_factor", most=math.nextafter(1, 2))
        if self.rotary_dim % 2 or not self.rotary_dim:
            partly = "" if self.partial == 1 else f" and partial_rotary_factor {self.partial}: {self.rotary_dim} values"
            raise ValueError(f"head_dim is {self.head_dim}{partly}, it must be even: its values are rotated in pairs")
        theta = getattr(self, "rope_theta")  # noqa: B009  a field of those that have rotations
        if not number(theta, "rope_theta", most=math.inf) > 0:
            raise ValueError(f"rope_theta is {theta}, it must be positive")
        object.__setattr__(self, "rope_scaling", rope_scaling(getattr(self, "rope_scaling")))  # noqa: B009

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
        return ACTIVATIONS[self.hidden_act]

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
        theta, scaling = (getattr(self, name) for name in ("rope_theta", "rope_scaling"))
        scaling = scaling and {"max_position_embeddings": self.max_position_embeddings, **scaling}
        return Rope(self.rotary_dim, theta, scaling)

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
        refuse(entries, cls.NAME, cls.REFUSED)
        found = {field.name: entries[field.name] for field in fields(cls) if field.name in entries}
        if not cls.has("rope_theta"):
            return found
        theta, scaling, partial = rope_entries(entries)
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
        get = GGUF(metadata, str(metadata.get("general.architecture")))
        return cls(**cls.entries_of_gguf(get, shapes))

    @classmethod
    def entries_of_gguf(cls, get: GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The arguments of a configuration, from an architecture's metadata. A family adds its own."""
        found = {
            "vocab_size": rows(shapes, "token_embd.weight"),
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": get("attention.head_count"),
            "head_dim": get("attention.key_length", None),
            "max_position_embeddings": get("context_length"),
            cls.EPS: get(cls.GGUF_EPS),
            "bos_token_id": get.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": gguf_ends(get.metadata),
        }
        D = found["head_dim"]
        if D is None:
            H = size(found["num_attention_heads"], f"{get.architecture}.attention.head_count")
            D = size(found["hidden_size"], f"{get.architecture}.embedding_length") // H
        if cls.has("rope_theta"):
            found |= {"rope_theta": get("rope.freq_base", 10000.0), "rope_scaling": gguf_rope_scaling(get, shapes)}
        rotated = get("rope.dimension_count", None)
        if cls.has("partial_rotary_factor"):
            found["partial_rotary_factor"] = part(rotated, D, f"{get.architecture}.rope.dimension_count")
        elif rotated not in (None, D):
            raise ValueError(
                f"{get.architecture}.rope.dimension_count is {rotated}, it must be the width of a head, {D}"
            )
        has_windows = cls.has("sliding_window") or cls.has("local_attention")
        windows = {} if has_windows else {"attention.sliding_window": 0}
        for name, harmless in {"attention.value_length": D, **windows, **cls.GGUF_REFUSED}.items():
            if get(name, None) not in (None, harmless):
                raise ValueError(f"{get.architecture}.{name} is {get(name)}: llorch's {cls.NAME} has {harmless}")
        scale = number(get("attention.scale", 0), f"{get.architecture}.attention.scale")
        usual = 1 / math.sqrt(size(D, f"{get.architecture}.attention.key_length"))
        if scale and not cls.has("attention_multiplier") and np.float32(scale) != np.float32(usual):
            raise ValueError(f"{get.architecture}.attention.scale is {scale}: llorch's {cls.NAME} has {usual:.6g}")
        if get("expert_count", 0):
            raise ValueError(
                f"{get.architecture}.expert_count is {get('expert_count')}: mixtures of experts are not supported"
            )
        return found
