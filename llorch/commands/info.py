"""`llorch info`."""

import dataclasses
import json
import math
from collections import Counter
from typing import Any

import click

from llorch.commands import common

UNITS = {"MB": 1e6, "GB": 1e9}


@click.command("info")
@click.argument("model")
@common.json_option
def command(model: str, as_json: bool) -> None:
    """What MODEL is: configuration, parameters, files, and the memory it will take. Reads no weights."""
    from llorch.models import loading as weights
    from llorch.models.gpt2 import GPT2Config

    with common.failures():
        folder = weights.find_folder(model)
        config = GPT2Config.from_file(folder / "config.json")
        tensors = {k: v for k, v in weights.find_tensors(folder).items() if not weights.IGNORED.fullmatch(k)}
        sizes = {path.name: path.stat().st_size for path in sorted({entry.file for entry in tensors.values()})}
    dtypes = Counter(weights.NAMES.get(entry.dtype, entry.dtype) for entry in tensors.values())
    parameters = sum(math.prod(entry.shape) for entry in tensors.values())
    position = 8 * config.n_layer * config.n_embd  # a key and a value of float32 in each block
    found: dict[str, Any] = {
        "path": str(folder),
        "config": dataclasses.asdict(config),
        "parameters": parameters,
        "tensors": dict(dtypes),
        "files": sizes,
        "memory": {
            "float32": 4 * parameters,
            "bfloat16, float16": 2 * parameters,
            "cache, a position": position,
            "cache, whole context": position * config.n_positions,
        },
    }
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    lines = [("path", found["path"]), *found["config"].items(), ("parameters", f"{parameters:,}")]
    lines += [("tensors", ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items()))]
    lines += [(f"file {name}", _size(size)) for name, size in sizes.items()]
    lines += [(f"memory, {name}", f"about {_size(size)}") for name, size in found["memory"].items()]
    for name, value in lines:
        click.echo(f"{name + ':':33}{'' if value is None else value}")


def _size(count: int) -> str:
    unit = "GB" if count >= 1e9 else "MB"
    return f"{count / UNITS[unit]:.1f} {unit}" if count >= 1e5 else f"{count:,} bytes"
