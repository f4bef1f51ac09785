"""What llorch.text makes of an encoder's hidden state, as steps behind its graph: pooling, and the modules behind it,
up to the embedding of the text.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import llorch
from llorch.files import Source
from llorch.files.folder import find_model
from llorch.models.graph import Graph, Parameter, Step
from llorch.text import sentence_files
from llorch.text.sentence_files import Dense, Normalize, Sentences
from llorch.validate.ladder.distance import Array

LETTERS = "IJKLMO"  # axes of the widths that Dense layers give
POOLED, EMBEDDING = "pooled", "sentence_embedding"
WORDS = {"mean": "the mean of all positions", "cls": "the first position", "last": "the last position"}


@dataclass(frozen=True)
class Linear:
    """A linear layer (E to `width`) behind the pooling, and the function of it, "" for none."""

    width: int
    bias: bool
    function: str = ""


@dataclass(frozen=True)
class Ending:
    """How an embedding is made of the hidden state. pooling : "mean", "cls" or "last". after : linear layers, and None
    where a row is divided by its length."""

    pooling: str
    after: tuple[Linear | None, ...] = ()

    @classmethod
    def of(cls, sentences: Sentences) -> Ending:
        after: list[Linear | None] = [
            Linear(one.width, one.layer.bias is not None, one.activation or "") if isinstance(one, Dense) else None
            for one in sentences.after
        ]
        return cls(sentences.pooling, tuple(after))

    def written(self) -> str:
        """For a dump's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> Ending:
        """What `written` gave. KeyError, TypeError or ValueError for another text."""
        found = json.loads(text)
        after = tuple(None if one is None else Linear(int(one["width"]), bool(one["bias"]), str(one["function"]))
                      for one in found["after"])  # fmt: skip
        if found["pooling"] not in WORDS or sum(one is not None for one in after) > len(LETTERS):
            raise ValueError("it must have a pooling and linear layers that llorch has")
        return cls(found["pooling"], after)

    def behind(self, graph: Graph) -> Graph:
        """The graph of an encoder with these steps at its end."""
        x = graph.after[-1].name if graph.after else "x"
        hidden = x if graph.after else "the last block's output"
        steps = [Step(POOLED, "pool", (x,), "E", "pooling", f"{WORDS[self.pooling]} of {hidden}",
                      options={"by": self.pooling})]  # fmt: skip
        parameters, sizes, letters = [], dict(graph.sizes), iter(LETTERS)
        for i, module in enumerate(self.after):
            last = i == len(self.after) - 1
            x, axes = steps[-1].name, steps[-1].axes
            if module is None:
                name = EMBEDDING if last else f"normalized.{i}"
                steps.append(Step(name, "normalize", (x,), axes, "embedding", f"{x} divided by its length"))
                continue
            wide = next(letters)
            sizes[wide] = module.width
            layer = f"dense.{i}"
            name = EMBEDDING if last and not module.function else layer
            steps.append(Step(name, "linear", (x,), wide, "dense", f"{x} through Dense", weight=layer))
            parameters.append(Parameter(f"{layer}.weight", wide + axes))
            if module.bias:
                parameters.append(Parameter(f"{layer}.bias", wide))
            if module.function:
                end, options = EMBEDDING if last else f"{layer}.act", {"function": module.function}
                what = f"{module.function} of {layer}"
                steps.append(Step(end, "activation", (layer,), wide, "dense", what, options=options))
        return dataclasses.replace(
            graph, sizes=sizes, after=(*graph.after, *steps), parameters=(*graph.parameters, *parameters)
        )


def transformer_of(path_or_hub_id: str | Path) -> str | Path:
    """Where the transformer is, of sentence-transformers' folders, which may have it in another; else what was given.
    The errors of `sentence_files.load`."""
    try:
        folder = find_model(path_or_hub_id)
    except (OSError, ValueError, TypeError):  # which whoever opens it says better
        return path_or_hub_id
    return sentence_files.load(folder).folder if (folder / sentence_files.MODULES).is_file() else path_or_hub_id


def sentences_of(path_or_hub_id: str | Path, source: Source) -> Sentences:
    """What the files say, with the Normalize that a GGUF file doesn't: `llorch.TextEncoder.encode` by default."""
    found = sentence_files.with_metadata(sentence_files.load(find_model(path_or_hub_id)), source)
    return dataclasses.replace(found, after=(Normalize(),)) if found.normalized else found


def tensors_of(sentences: Sentences) -> dict[str, Array]:
    """The weights of linear layers, by the names of the steps."""
    found: dict[str, Array] = {}
    for i, module in enumerate(sentences.after):
        if isinstance(module, Dense):
            found[f"dense.{i}.weight"] = np.stack([module.layer.column(n) for n in range(module.width)])
            if module.layer.bias is not None:
                found[f"dense.{i}.bias"] = module.layer.bias
    return found


def by_kernels(hidden: Array, sentences: Sentences) -> dict[str, Array]:
    """The tensors of a text with this hidden state (T, E), as `llorch.TextEncoder` computes them."""
    pooling = sentences.pooling
    x = (
        llorch.mean_pool(hidden, [len(hidden)])
        if pooling == "mean"
        else hidden[:1]
        if pooling == "cls"
        else hidden[-1:]
    )
    made = {POOLED: x[0].copy()}
    for i, module in enumerate(sentences.after):
        last = i == len(sentences.after) - 1
        if isinstance(module, Normalize):
            x = llorch.normalize(x)
            made[EMBEDDING if last else f"normalized.{i}"] = x[0].copy()
            continue
        if module.activation:
            made[f"dense.{i}"] = module.layer(x)[0].copy()
        x = module(x)
        plain = f"dense.{i}.act" if module.activation else f"dense.{i}"
        made[EMBEDDING if last else plain] = x[0].copy()
    return made
