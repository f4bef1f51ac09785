"""`llorch info`."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from llorch.commands import common

if TYPE_CHECKING:
    from llorch.files import Entry, Source

UNITS = {"MB": 1e6, "GB": 1e9}
TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model")
PANEL = 16  # a head's values are kept in whole panels of so many
MOST_LEFT_OUT = 8  # tensors that are named one by one; --json has all


@click.command("info")
@click.argument("model")
@common.json_option
def command(model: str, as_json: bool) -> None:
    """What MODEL is: family, configuration, tensors, and the memory it will take. Reads no weights.

    MODEL is a folder, a .gguf file, or an id on Hugging Face's hub. A model that llorch can't run is shown too,
    with the reason.
    """
    from llorch.files import open_model

    with common.failures():
        source = open_model(model)
        found = describe(source)
    if as_json:
        common.echo(json.dumps(found, indent=1))
    else:
        for name, value in _lines(found):
            common.echo(f"{name + ':':32} {value}")


def describe(source: "Source") -> dict[str, Any]:
    """What a model's files say of it. Where `problem` isn't None, it can't be run."""
    from llorch.models import loading
    from llorch.models.registry import config_of, family_of

    found: dict[str, Any] = {"path": str(source.path), "kind": source.kind, "family": None, "problem": None}
    tensors = dict(source.tensors)
    left_out: dict[str, str] = {}
    try:
        family = family_of(source)
        found["family"] = family.name
        config = config_of(source, family)
        graph = family.graph(config)
        sizes = graph.sizes
        found["config"] = dataclasses.asdict(config)  # type: ignore[call-overload]
        found |= {
            "layers": config.layers,
            "width": sizes["E"],
            "heads": sizes["H"],
            "key_value_heads": sizes["G"],
            "head_dim": sizes["D"],
            "context": config.context,
            "vocab_size": config.vocab_size,
        }
        model = loading.find(source, family, graph)
        left_out = dict.fromkeys(model.heads, "a head of another task") | dict.fromkeys(model.buffers, "a buffer")
        tensors = {name: entry for name, entry in tensors.items() if name not in left_out}
    except (ValueError, TypeError) as error:
        found["problem"] = str(error)
        found["config"] = _plain(source.config)
    parameters = sum(math.prod(entry.shape) for entry in tensors.values())
    found |= {
        "parameters": parameters,
        "tensors": _formats(tensors),
        "left_out": left_out,
        "tokenizer": _tokenizer(source),
        "files": {path.name: path.stat().st_size for path in source.files},
    }
    if found["problem"] is None:
        G, D = found["key_value_heads"], found["head_dim"]
        position = 4 * found["layers"] * G * (D + -(-D // PANEL) * PANEL)  # a key and a value, both float32
        found["memory"] = {
            "float32": 4 * parameters,
            "bfloat16, float16": 2 * parameters,
            "cache, a position": position,
            "cache, whole context": position * found["context"],
        }
    return found


def _formats(tensors: Mapping[str, "Entry"]) -> dict[str, dict[str, Any]]:
    """Of each format: tensors, parameters, bytes, and bits a parameter, with the scales that its blocks have."""
    found: dict[str, dict[str, Any]] = {}
    for entry in tensors.values():
        one = found.setdefault(entry.format, {"tensors": 0, "parameters": 0, "bytes": 0})
        one["tensors"] += 1
        one["parameters"] += math.prod(entry.shape)
        one["bytes"] += entry.nbytes
    for one in found.values():
        one["bits"] = 8 * one["bytes"] / one["parameters"] if one["parameters"] else 0.0
    return found


def _tokenizer(source: "Source") -> str | None:
    if source.kind == "gguf":
        kind = source.config.get("tokenizer.ggml.model")
        tokens: Any = source.config.get("tokenizer.ggml.tokens")
        if not isinstance(kind, str):
            return None
        before = source.config.get("tokenizer.ggml.pre")
        said = f"{kind}, pre-tokenizer {before}" if isinstance(before, str) else kind
        return f"{said}, {len(tokens):,} tokens" if hasattr(tokens, "__len__") else said
    return ", ".join(name for name in TOKENIZERS if (source.path / name).is_file()) or None


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The short entries of a configuration: a GGUF file has its whole vocabulary in it."""
    short = {k: v for k, v in config.items() if isinstance(v, int | float | str | None) and len(str(v)) <= 80}
    return {name: value for name, value in short.items() if not re.match(r"tokenizer\.|general\.", name)}


def _lines(found: dict[str, Any]) -> list[tuple[str, Any]]:
    lines = [("path", found["path"]), ("family", found["family"] or "unknown")]
    if found["problem"] is not None:
        lines.append(("can't be run", found["problem"]))
    else:
        heads = f"{found['heads']} of {found['head_dim']} values"
        if found["key_value_heads"] != found["heads"]:
            heads += f", {found['key_value_heads']} of keys and values"
        lines += [(name, found[name]) for name in ("layers", "width")]
        lines += [("heads", heads), ("context", found["context"]), ("vocabulary", found["vocab_size"])]
    lines += [(f"config, {name}", "" if value is None else value) for name, value in found["config"].items()]
    lines += [("parameters", f"{found['parameters']:,}")]
    for name, one in found["tensors"].items():
        lines.append((f"tensors, {name}", f"{one['tensors']}, {_bits(one['bits'])} bits a parameter"))
    left_out = list(found["left_out"].items())
    lines += [(f"left out, {name}", why) for name, why in left_out[:MOST_LEFT_OUT]]
    if len(left_out) > MOST_LEFT_OUT:  # the part of a model that is for images has hundreds
        lines.append(("left out", f"and {len(left_out) - MOST_LEFT_OUT} more"))
    lines += [("tokenizer", found["tokenizer"] or "none")]
    lines += [(f"file {name}", _size(size)) for name, size in found["files"].items()]
    lines += [(f"memory, {name}", f"about {_size(size)}") for name, size in found.get("memory", {}).items()]
    return lines


def _bits(bits: float) -> str:
    return f"{bits:.2f}".rstrip("0").rstrip(".")


def _size(count: int) -> str:
    unit = "GB" if count >= 1e9 else "MB"
    return f"{count / UNITS[unit]:.1f} {unit}" if count >= 1e5 else f"{count:,} bytes"
