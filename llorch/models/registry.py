"""The families, and which of them a file is of.

A family is a module with a FAMILY: its configuration, its graph, and the names of its files. `register` adds one from
elsewhere, with nothing else to change.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from llorch._rope import rope_table
from llorch._text import printable, shown
from llorch.files import Source, open_model
from llorch.files.tensor import Reader
from llorch.models.config import ModelConfig
from llorch.models.graph import Graph

MODULES = tuple(
    f"llorch.models.{name}"
    for name in (
        *("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3"),
        *("gemma2", "gemma3", "olmo2", "gpt_neox", "starcoder2", "stablelm", "granite"),
        *("bert", "distilbert", "roberta", "nomic_bert", "mpnet", "modernbert"),
    )
)

# Buffers that old checkpoints carry along: the causal mask, the frequencies of the rotations, 0, 1, 2 ...
BUFFERS = (
    r"(.*\.)?(attn\.(bias|masked_bias)|attention\.(bias|masked_bias)|rotary_emb\.(inv_freq|\w+_cached)|position_ids)"
)
# Heads of other tasks than the next token: classification, multiple choice, questions, rewards, BERT's.
HEADS = r"(score|classifier|multiple_choice_head|qa_outputs|cls|pooler|v_head|value_head|reward_head|summary)\..*"


@dataclass(frozen=True)
class Family:
    """A family of models.

    name : for people, "Llama".
    model_types, architectures : config.json's model_type, and GGUF's general.architecture.
    config, config_of_gguf : from entries of config.json; from a GGUF file's metadata and its tensors' shapes.
    graph : of a configuration.
    reference : the class in llorch.reference, by name, or a class.
    kind : "decoder", whose graph ends with the logits of the next token, or "encoder", with the hidden state.
    classifier : of a configuration, the graph that ends with an encoder's labels of a text; None where there is none.
    prefixes : what may stand before every name in Hugging Face's files.
    renamed : other names that files have for a parameter, and the graph's. endings : the same of ends of names.
    left_out, others : patterns of names that are left out, besides BUFFERS and HEADS: the former without a word.
    """

    name: str
    model_types: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], ModelConfig]
    graph: Callable[[Any], Graph]
    reference: Any
    kind: str = "decoder"
    classifier: Callable[[Any], Graph] | None = None
    architectures: tuple[str, ...] = ()
    config_of_gguf: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], ModelConfig] | None = None
    prefixes: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    endings: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def plain(self, name: str) -> str:
        """The graph's name of a tensor in Hugging Face's files."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        for theirs, ours in self.endings.items():
            if name.endswith(theirs):
                name = name.removesuffix(theirs) + ours
        return self.renamed.get(name, name)

    def sort_of(self, name: str) -> str:
        """Of a name that the graph doesn't have: "buffer", "head" or "" for one that isn't known."""
        if re.fullmatch(BUFFERS, name) or any(re.fullmatch(pattern, name) for pattern in self.left_out):
            return "buffer"
        return "head" if any(re.fullmatch(pattern, name) for pattern in (HEADS, *self.others)) else ""


_registered: list[Family] = []


def register(family: Family) -> Family:
    """Makes a family known to `from_pretrained`; one of the same names takes the place of the one before."""
    _registered.insert(0, family)
    return family


def families() -> list[Family]:
    return [*_registered, *map(_family, MODULES)]


def _family(module: str) -> Family:
    family: Family = importlib.import_module(module).FAMILY
    return family


def _named(name: str, names: Callable[[Family], tuple[str, ...]]) -> Family | None:
    """The family that has a name among its `names`. Modules are imported until it is found, a millisecond or two each:
    first the one that is called so, as nearly all are."""
    modules = sorted(MODULES, key=lambda module: module.rpartition(".")[2] != name.replace("-", "_"))
    every = itertools.chain(_registered, map(_family, modules))
    return next((family for family in every if name in names(family)), None)


def open_known(path_or_hub_id: str | Path) -> Source:
    """`llorch.files.open_model`, where weights that can't be read are told only of a family that llorch has: nobody
    should look for the weights of a model that can't be run with them either."""
    try:
        return open_model(path_or_hub_id)
    except (FileNotFoundError, ValueError):
        try:
            without = open_model(path_or_hub_id, weights=False)
        except (OSError, ValueError, TypeError):
            without = None
        if without is not None:
            family_of(without)
        raise


def family_of(source: Source) -> Family:
    """The family of a file. ValueError names the kind of model that isn't built, and those that are."""
    names: Callable[[Family], tuple[str, ...]]
    if source.kind == "gguf":
        what, wanted = "general.architecture", source.config.get("general.architecture")
        names = attrgetter("architectures")
    else:
        what, wanted = "model_type", source.config.get("model_type", "gpt2")  # old GPT-2s don't say it
        names = attrgetter("model_types")
    family = _named(wanted, names) if isinstance(wanted, str) else None
    if family is None:
        known = sorted({name for family in families() for name in names(family)})
        raise ValueError(f"{printable(str(_place(source)))}: {what} is {shown(wanted)}, llorch has {', '.join(known)}")
    return family


def config_of(source: Source, family: Family) -> ModelConfig:
    """The configuration of a file. ValueError or TypeError names the file and the entry."""
    try:
        if source.kind == "gguf":
            if family.config_of_gguf is None:
                raise ValueError(f"{family.name} is not known from GGUF")
            shapes = {name: entry.shape for name, entry in source.tensors.items()}
            return _with_factors(source, family.config_of_gguf(source.config, shapes))
        return family.config(source.config)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{printable(str(_place(source)))}: {error}") from None


FACTORS = {"rope_freqs": "rope_freqs", "long_factor": "rope_factors_long", "short_factor": "rope_factors_short"}


def _with_factors(source: Source, config: ModelConfig) -> ModelConfig:
    """With the factors of the rotations, which a GGUF file has among its tensors."""
    tensors = {entry: source.tensors.get(f"{name}.weight") for entry, name in FACTORS.items()}
    found = {entry: Reader().array(one).reshape(-1).tolist() for entry, one in tensors.items() if one is not None}
    if not found or not hasattr(config, "rope_scaling"):
        return config
    if "rope_freqs" in found:
        scaling = {"rope_type": "gguf", "rope_freqs": found["rope_freqs"]}
    else:
        scaling = {"rope_type": "longrope", **(config.rope_scaling or {}), **found}
    return dataclasses.replace(config, rope_scaling=scaling)  # type: ignore[type-var]


def check_ropes(source: Source, config: ModelConfig, graph: Graph) -> None:
    """ValueError names the file, where its numbers make no table of rotations: now, not when a position is met."""
    for rope in graph.ropes.values():
        try:
            rope_table(rope.width, [0, config.context - 1], base=rope.base, scaling=rope.scaling)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ValueError(f"{printable(str(_place(source)))}: rotations: {error}") from None


def _place(source: Source) -> Path:
    """The file that has the configuration."""
    return source.path if source.kind == "gguf" else source.path / "config.json"
