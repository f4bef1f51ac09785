"""`llorch info`."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from llorch._text import shown
from llorch.commands import common

if TYPE_CHECKING:
    from llorch.files import Entry, Source

UNITS = {"MB": 1e6, "GB": 1e9}
TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model")
PANEL = 16  # a head's values are kept in whole panels of so many
MOST_LEFT_OUT = 8  # tensors that are named one by one; --json has all


@click.command("info", short_help="What a model is, whether it can be run, and its memory.")
@click.argument("model")
@common.json_option
def command(model: str, as_json: bool) -> None:
    """What MODEL is: family, configuration, tensors, and the memory it will take. Reads no weights.

    MODEL is a folder, a .gguf file, or an id on Hugging Face's hub. A model that llorch can't run is shown too,
    with the reason.
    """
    with common.failures():
        found = describe(*_opened(model))
    if as_json:
        common.echo(json.dumps(found, indent=1))
    else:
        for name, value in _lines(found):
            common.echo(f"{name + ':':32} {value}")


def _opened(model: str) -> tuple["Source", str | None]:
    """The model, and what is wrong with its weights where there is a configuration and they can't be read."""
    from llorch.files import open_model

    try:
        return open_model(model), None
    except (FileNotFoundError, ValueError) as error:
        try:
            return open_model(model, weights=False), str(error)
        except (OSError, ValueError, TypeError):
            raise error from None


def describe(source: "Source", unread: str | None = None) -> dict[str, Any]:
    """What a model's files say of it. Where `problem` isn't None, it can't be run. unread: why there are no tensors."""
    from llorch.models import loading
    from llorch.models.registry import config_of, family_of

    found: dict[str, Any] = {"path": str(source.path), "kind": source.kind, "family": None, "problem": None}
    tensors = dict(source.tensors)
    left_out: dict[str, str] = {}
    try:
        family = family_of(source)
        found["family"], found["role"] = family.name, family.kind
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
        if unread is not None:
            raise ValueError(unread)
        model = loading.find(source, family, graph)
        left_out = dict.fromkeys(model.heads, "a head of another task") | dict.fromkeys(model.buffers, "not needed")
        tensors = {name: entry for name, entry in tensors.items() if name not in left_out}
    except (ValueError, TypeError) as error:
        found["problem"] = str(error)
        found["config"] = _plain(source.config)
        found = _told(source) | found
    parameters = sum(math.prod(entry.shape) for entry in tensors.values())
    size = sum(entry.nbytes for entry in tensors.values())
    found |= {
        "parameters": parameters,
        "bytes": size,
        "bits": 8 * size / parameters if parameters else 0.0,
        "tensors": _formats(tensors),
        "left_out": left_out,
        **_text(source),
        "sampling": _sampling(source) if found.get("role") == "decoder" else None,
        "embeddings": _embeddings(source, found) if found.get("role") == "encoder" else None,
        "files": {path.name: path.stat().st_size for path in source.files},
    }
    if found["problem"] is None:
        found["compute"] = _computes(tensors)
        G, D = found["key_value_heads"], found["head_dim"]
        position = 4 * found["layers"] * G * (D + -(-D // PANEL) * PANEL)  # a key and a value, both float32
        found["memory"] = {"as in the file": size, "float32": 4 * parameters, "bfloat16, float16": 2 * parameters}
        if any(step.op == "cache" for step in graph.blocks[0]):
            found["memory"] |= {"cache, a position": position, "cache, whole context": position * found["context"]}
    return found


def _formats(tensors: Mapping[str, "Entry"]) -> dict[str, dict[str, Any]]:
    """Of each format: tensors, parameters, bytes, bits a parameter, with the scales that its blocks have, and its share
    of all parameters."""
    found: dict[str, dict[str, Any]] = {}
    parameters = sum(math.prod(entry.shape) for entry in tensors.values())
    for entry in tensors.values():
        one = found.setdefault(entry.format, {"tensors": 0, "parameters": 0, "bytes": 0})
        one["tensors"] += 1
        one["parameters"] += math.prod(entry.shape)
        one["bytes"] += entry.nbytes
    for one in found.values():
        one["bits"] = 8 * one["bytes"] / one["parameters"] if one["parameters"] else 0.0
        one["share"] = one["parameters"] / parameters if parameters else 0.0
    return found


def _computes(tensors: Mapping[str, "Entry"]) -> dict[str, float]:
    """Of each arithmetic that can be chosen: the share of the matrices' parameters that it has."""
    from llorch.models.loading import COMPUTES, INTEGERS

    matrices = [entry for entry in tensors.values() if len(entry.shape) > 1]
    total = sum(math.prod(entry.shape) for entry in matrices)
    blocks = sum(math.prod(entry.shape) for entry in matrices if entry.format.lower() in INTEGERS)
    return dict(zip(COMPUTES, (1.0, blocks / total if total else 0.0), strict=True))


def _sampling(source: "Source") -> dict[str, Any]:
    """How the files recommend to choose tokens, and what of that llorch hasn't; a problem where they can't be read."""
    from llorch.text import generation_config

    try:
        said = generation_config.recommended(source)
    except (OSError, ValueError, TypeError) as error:
        return {"problem": str(error)}
    parameters = dataclasses.asdict(said.parameters)
    del parameters["seed"]
    return {"parameters": parameters, "lacking": list(said.lacking), "problem": None}


def _told(source: "Source") -> dict[str, Any]:
    """The sizes of a model that can't be run, as far as its configuration has them under the usual names."""
    config = source.config
    names: dict[str, tuple[str, ...]]
    if source.kind == "gguf":
        prefix = f"{config.get('general.architecture')}."
        names = {
            "layers": ("block_count",),
            "width": ("embedding_length",),
            "heads": ("attention.head_count",),
            "key_value_heads": ("attention.head_count_kv",),
            "head_dim": ("attention.key_length",),
            "context": ("context_length",),
            "vocab_size": ("vocab_size",),
        }
    else:
        inner = config.get("text_config")  # of a model that also sees
        config, prefix = {**(inner if isinstance(inner, Mapping) else {}), **config}, ""
        names = {
            "layers": ("num_hidden_layers", "n_layer"),
            "width": ("hidden_size", "n_embd"),
            "heads": ("num_attention_heads", "n_head"),
            "key_value_heads": ("num_key_value_heads",),
            "head_dim": ("head_dim",),
            "context": ("max_position_embeddings", "n_positions"),
            "vocab_size": ("vocab_size",),
        }
    found = {"family_name": config.get("general.architecture" if source.kind == "gguf" else "model_type")}
    for ours, theirs in names.items():
        values = (config.get(prefix + name) for name in theirs)
        found[ours] = next((value for value in values if type(value) is int), None)
    return {name: value for name, value in found.items() if value is not None}


def _text(source: "Source") -> dict[str, Any]:
    """The tokenizer, and whether there is a chat template; each None where there is none, with a problem where it can't
    be used."""
    from llorch.text import template, tokenizer_files

    variables: Mapping[str, str] = {}
    chat: dict[str, Any] | None = None
    try:
        templates = template.load(source)
        variables = templates.variables
        if templates.templates:
            name = "default" if "default" in templates.templates else min(templates.templates)
            first = next((line for line in templates.templates[name].text.splitlines() if line.strip()), "")
            chat = {"names": list(templates.templates), "first_line": first[:200], "problem": None}
    except (OSError, ValueError) as error:
        chat = {"names": [], "first_line": "", "problem": str(error)}
    found: dict[str, Any] = {"tokenizer": None, "chat_template": chat}
    if source.kind == "gguf":
        kind, before = (source.config.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
        tokens: Any = source.config.get("tokenizer.ggml.tokens")
        if kind in (None, "none", "no_vocab"):  # as llama.cpp's converter says that there is none
            return found
        about = {"type": kind if isinstance(kind, str) else shown(kind), "pre": before}
        about["vocabulary"] = len(tokens) if hasattr(tokens, "__len__") else None
    else:
        files = [name for name in TOKENIZERS if (source.path / name).is_file()]
        if not files:
            return found
        about = {"type": ", ".join(files), "pre": None, "vocabulary": None}
    found["tokenizer"] = about | {"bos": None, "eos": None, "before_a_text": [], "problem": None}
    about = found["tokenizer"]
    try:
        tokenizer = tokenizer_files.load(source)
    except (ImportError, OSError, ValueError) as error:
        about["problem"] = str(error)
        return found
    if about["vocabulary"] is None:
        about["vocabulary"] = len(tokenizer)
    about["before_a_text"] = list(tokenizer.begin)
    for name in ("bos", "eos"):
        token = variables.get(f"{name}_token")
        id = None if token is None else tokenizer.library.token_to_id(token)
        if id is not None:
            about[name] = {"id": id, "token": token}
    return found


def _embeddings(source: "Source", found: Mapping[str, Any]) -> dict[str, Any]:
    """How `llorch.TextEncoder` makes a text's embedding; a problem where it can't."""
    from llorch.text import sentence_files

    try:
        said = sentence_files.with_metadata(sentence_files.load(source.path), source)
    except (OSError, ValueError, TypeError) as error:
        return {"problem": str(error)}
    length = min((one for one in (said.max_seq_length, found.get("context")) if one is not None), default=None)
    return {
        "pooling": said.pooling,
        "normalized": said.normalized or said.ends_normalized,
        "max_seq_length": length,
        "prompts": list(said.prompts),
        "default_prompt_name": said.default_prompt_name,
        "problem": None,
    }


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The short entries of a configuration: a GGUF file has its whole vocabulary in it."""
    short = {k: v for k, v in config.items() if isinstance(v, int | float | str | None) and len(str(v)) <= 80}
    return {name: value for name, value in short.items() if not re.match(r"tokenizer\.|general\.", name)}


def _lines(found: dict[str, Any]) -> list[tuple[str, Any]]:
    unknown = f"unknown to llorch, {shown(found['family_name'])}" if "family_name" in found else "unknown"
    role = ", an encoder" if found.get("role") == "encoder" else ""
    lines = [("path", found["path"]), ("family", (found["family"] or unknown) + role)]
    if found["problem"] is not None:
        lines.append(("can't be run", found["problem"]))
    lines += [(name, found[name]) for name in ("layers", "width") if name in found]
    if "heads" in found:
        heads = f"{found['heads']}" + (f" of {found['head_dim']} values" if "head_dim" in found else "")
        if found.get("key_value_heads", found["heads"]) != found["heads"]:
            heads += f", {found['key_value_heads']} of keys and values"
        lines.append(("heads", heads))
    lines += [(of, found[name]) for of, name in (("context", "context"), ("vocabulary", "vocab_size")) if name in found]
    lines += [(f"config, {name}", _value(value)) for name, value in found["config"].items()]
    weights = f"{found['parameters']:,}"
    if found["parameters"]:
        weights += f", {_size(found['bytes'])}, {_bits(found['bits'])} bits each"
    lines += [("parameters", weights)]
    for name, one in found["tensors"].items():
        share = f"{_percent(one['share'])} of the parameters"
        lines.append((f"tensors, {name}", f"{one['tensors']}, {share}, {_bits(one['bits'])} bits each"))
    if "compute" in found:
        integers = found["compute"]["int16"]
        lines.append(
            ("compute", "float32" + (f", or int16 for {_percent(integers)} of the matrices" if integers else ""))
        )
    left_out = list(found["left_out"].items())
    lines += [(f"left out, {name}", why) for name, why in left_out[:MOST_LEFT_OUT]]
    if len(left_out) > MOST_LEFT_OUT:  # the part of a model that is for images has hundreds
        lines.append(("left out", f"and {len(left_out) - MOST_LEFT_OUT} more"))
    lines += _text_lines(found["tokenizer"], found["chat_template"])
    if (said := found["sampling"]) is not None:
        lines += _sampling_lines(said)
    if (made := found["embeddings"]) is not None:
        lines += _embedding_lines(made)
    lines += [(f"file {name}", _size(size)) for name, size in found["files"].items()]
    lines += [(f"memory, {name}", f"about {_size(size)}") for name, size in found.get("memory", {}).items()]
    return lines


def _sampling_lines(said: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if said["problem"] is not None:
        return [("recommended sampling can't be used", said["problem"])]
    given = {name: value for name, value in said["parameters"].items() if value is not None}
    if given == {"temperature": 0.0}:
        lines = [("recommended sampling", "none, the likeliest token is taken")]
    else:
        lines = [("recommended sampling", ", ".join(f"{name} {value:g}" for name, value in given.items()))]
    return lines + ([("asked for, and not there", ", ".join(said["lacking"]))] if said["lacking"] else [])


def _embedding_lines(made: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if made["problem"] is not None:
        return [("embeddings can't be made", made["problem"])]
    pooled = {"mean": "the mean of the positions", "cls": "the first position", "last": "the last position"}
    text = pooled[made["pooling"]] + (", divided by its length" if made["normalized"] else "")
    lines = [("embedding", text)]
    if made["max_seq_length"] is not None:
        lines.append(("longest text", common.tokens(made["max_seq_length"])))
    if made["prompts"]:
        names = [f"{shown(name)} (default)" if name == made["default_prompt_name"] else shown(name)
                 for name in made["prompts"]]  # fmt: skip
        lines.append(("prompts", ", ".join(names)))
    return lines


def _value(value: Any) -> Any:
    """An entry of the configuration, for people: of several values one beside the other."""
    if isinstance(value, tuple | list) and not any(isinstance(one, dict | list | tuple) for one in value):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else value


def _text_lines(about: dict[str, Any] | None, chat: dict[str, Any] | None) -> list[tuple[str, Any]]:
    lines = []
    if about is None:
        lines.append(("tokenizer", "none"))
    else:
        before = "" if about["pre"] is None else f", pre-tokenizer {shown(about['pre'])}"
        count = "" if about["vocabulary"] is None else f", {common.tokens(about['vocabulary'])}"
        lines.append(("tokenizer", f"{shown(about['type'])}{before}{count}"))
        if about["problem"] is not None:
            lines.append(("tokenizer can't be used", about["problem"]))
        for name in ("bos", "eos"):
            if about[name] is not None:
                id, token = about[name]["id"], shown(about[name]["token"])
                first = ", before every text" if about["before_a_text"] == [id] else ""
                lines.append((name, f"{id}, {token}{first}"))
    if chat is None:
        lines.append(("chat template", "none"))
    elif chat["problem"] is not None:
        lines.append(("chat template can't be used", chat["problem"]))
    else:
        names = "" if chat["names"] == ["default"] else f" ({', '.join(map(shown, chat['names']))})"
        lines.append(("chat template", f"yes{names}, begins {shown(chat['first_line'])}"))
    return lines


def _bits(bits: float) -> str:
    return f"{bits:.2f}".rstrip("0").rstrip(".")


def _percent(share: float) -> str:
    return f"{_bits(100 * share)} %"


def _size(count: int) -> str:
    unit = "GB" if count >= 1e9 else "MB"
    return f"{count / UNITS[unit]:.1f} {unit}" if count >= 1e5 else f"{count:,} bytes"
