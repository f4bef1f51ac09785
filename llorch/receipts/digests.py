"""Which model it is: hashes of what its files say, whatever their format.

tensors : SHA-256 of a line for each parameter, sorted: its name in the graph, its shape in Hugging Face's files, and
the SHA-256 of its values, float32 in little-endian order, as the graph's steps take them. A head that is tied to the
embedding counts as the embedding again. Where layers are computed by integers, the bytes of the blocks count in the
place of values, after the format's name and a colon: the same values in other blocks have other bits there.
graph : SHA-256 of the steps, their options and the rotations.
tokenizer : SHA-256 of its tokens by id.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from llorch import _core
from llorch._rope import rope_table
from llorch.files.tensor import BLOCKS
from llorch.models import loading
from llorch.models.compile import groups
from llorch.models.graph import Graph
from llorch.text.tokenizer import Tokenizer

_lock = threading.Lock()


def sha256(value: Any) -> str:
    """Of a value of JSON, written in one way: sorted keys, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def of_model(model: Any) -> dict[str, str]:
    """The hashes of a loaded model, made once: its files are read for them."""
    with _lock:
        made: dict[str, str] | None = model.__dict__.get("_digests")
        if made is None:
            made = _core._in_fpenv(_of_model, model)
            model.__dict__["_digests"] = made
    return made


def _of_model(model: Any) -> dict[str, str]:
    found = {"model_tensors": tensors(model), "model_graph": graph(model.graph, model.config.context)}
    try:
        found["tokenizer"] = tokenizer(model.tokenizer)
    except (ImportError, OSError, ValueError):  # ids alone need none
        found["tokenizer"] = ""
    return found


def tensors(model: Any) -> str:
    source, graph = model.source, model.graph
    loader = loading.Loader(source, graph, loading.find(source, model.family, graph), *model.asked)
    packed = {loader.there(f"{name}.weight") for group in groups(graph) for name in group.names}
    packed |= {f"{step.weight}.weight" for step in graph.before if step.op == "embedding" and step.inputs[0] == "ids"}
    each: dict[str, str] = {}
    for name in loader.entries:
        if len(loader.parameters[name].axes) == 1:
            each[name] = _sha256(loader.vector(name))
        elif name in packed and loader.kept(name) in loading.INTEGERS:
            each[name] = _of_blocks(loader, name)
        else:
            each[name] = _sha256(_laid(loader.rounded(loader.read(name)), loader, name))
    lines = []
    for name, parameter in loader.parameters.items():
        there = loader.there(name)
        if there in each:
            shape = ",".join(str(length) for length in graph.shape(parameter.axes))
            lines.append(f"{name} {shape} {each[there]}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _sha256(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").data).hexdigest()


def _laid(values: Any, loader: loading.Loader, name: str) -> Any:
    """As Hugging Face's files have it."""
    return values.T if loader.source.kind == "gguf" and loader.parameters[name].conv1d else values


def _of_blocks(loader: loading.Loader, name: str) -> str:
    """A matrix that is kept in blocks of integers: its values count, or the blocks where these are computed with."""
    entry, kept = loader.entries[name], loader.kept(name).upper()
    if loader.compute == "float32" and entry.format in BLOCKS:
        return _sha256(_laid(loader.read(name), loader, name))
    turned = loader.parameters[name].conv1d and loader.source.kind == "hf"
    if entry.format in BLOCKS:
        blocks = loader.rows(name, 0, entry.shape[0], loader.reader)
    else:
        values = loader.read(name)
        blocks = _core.quantize(values.T if turned else values, kept)
    if loader.compute != "float32":
        return f"{kept}:{hashlib.sha256(np.ascontiguousarray(blocks).data).hexdigest()}"
    values = _core.dequantize(blocks, kept, entry.shape[::-1] if turned else entry.shape)
    return _sha256(_laid(values.T if turned else values, loader, name))


def graph(graph: Graph, context: int) -> str:
    """What is computed, without its words for people. Numbers count as the float32 that the kernels take, rotations by
    what they come to: GGUF and Hugging Face say these in other ways."""

    def step(one: Any) -> list[Any]:
        return [one.name, one.op, list(one.inputs), one.axes, one.weight, _plain(one.options)]

    positions = sorted({*range(0, min(64, context)), *(2**k for k in range(32) if 2**k < context), context - 1})
    ropes = {}
    for name, rope in graph.ropes.items():
        pair = rope_table(rope.width, np.array(positions), base=rope.base, scaling=rope.scaling)
        ropes[name] = [hashlib.sha256(np.ascontiguousarray(table, "<f4").data).hexdigest() for table in pair]
    return sha256(
        {
            "sizes": dict(graph.sizes),
            "before": [step(one) for one in graph.before],
            "blocks": [[step(one) for one in steps] for steps in graph.blocks],
            "after": [step(one) for one in graph.after],
            "ropes": ropes,
        }
    )


def _plain(value: Any) -> Any:
    """An option as JSON has it; a float as the float32 nearest to it, written in hexadecimal."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(np.float32(value)).hex()
    return value


def tokenizer(found: Tokenizer) -> str:
    tokens = found.library.get_vocab(with_added_tokens=True)
    return sha256(sorted([id, token] for token, id in tokens.items()))
