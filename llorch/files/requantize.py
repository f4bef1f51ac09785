"""A GGUF file with its matrices in another format: llama.cpp, transformers and llorch read it.

Written by the package gguf. Every matrix is quantised from the exact values that the file has, in slices: it takes
memory for one tensor of the new file and a slice of values, whatever the model's size. The bytes are the same on every
machine.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llorch import _core
from llorch._text import printable, shown
from llorch.files.gguf import ARRAY, STRING, Strings, read_gguf_model, read_types
from llorch.files.output import replacing
from llorch.files.tensor import BLOCKS, Entry, Reader, size

# What a matrix gets whose rows aren't whole blocks of 256: the format of 32 that llama.cpp takes for it. F16 where rows
# aren't whole blocks of 32 either.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# Matrices that llama.cpp doesn't multiply with, or not in blocks: they stay as they are.
KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "ssm_conv1d.weight"),
    *("shortconv.conv.weight", "attn_rel_b.weight", "altup", "laurel", "per_layer_model_proj", "time_mix_"),
)
# Of the source alone: it is one file now, and other data made it.
LEFT_OUT = ("split.", "quantize.imatrix.")
SLICE = 1 << 21  # values


class Choice(NamedTuple):
    """A tensor and its new format; why: it isn't the one asked for, "" otherwise."""

    entry: Entry
    format: str
    why: str

    @property
    def nbytes(self) -> int:
        return size(self.entry.shape, self.format)


def choose(entries: dict[str, Entry], format: str, head: str | None = None) -> list[Choice]:
    """What becomes of each tensor. head: a format for the matrix that gives the logits."""
    of_logits = "output.weight" if "output.weight" in entries else "token_embd.weight"
    choices = []
    for name, entry in entries.items():
        wanted = head if head is not None and name == of_logits else format
        plain = entry.format in ("F32", "F16", "BF16")
        if len(entry.shape) < 2:
            choices.append(Choice(entry, "F32" if plain or entry.format in BLOCKS else entry.format, "a vector"))
        elif not (plain or entry.format in BLOCKS) or not name.endswith(".weight") or any(k in name for k in KEPT):
            choices.append(Choice(entry, entry.format, "kept as it is"))
        else:
            values, chosen = BLOCKS[wanted].values, wanted
            if entry.shape[-1] % values:
                chosen = FALLBACK.get(wanted, "F16") if entry.shape[-1] % 32 == 0 else "F16"
            why = f"rows of {entry.shape[-1]} aren't blocks of {values}" if chosen != wanted else ""
            choices.append(Choice(entry, chosen, why))
    return choices


def requantize(
    source: Path,
    output: Path,
    format: str,
    head: str | None = None,
    advance: Callable[[int, int | None], None] = lambda done, of: None,
) -> list[Choice]:
    """Writes the model of a GGUF file, or of the parts of a split one, to output, its matrices in format; returns what
    became of each tensor.

    format, head : of blocks of integers; head is for the matrix that gives the logits.
    advance : told of (done, of) bytes of the source.

    ModuleNotFoundError without the package gguf. ValueError for a source that isn't read, and for weights that the
    format can't hold. OSError as files give them. Where anything fails, output is as it was.
    """
    try:
        import gguf
    except ImportError:
        raise ModuleNotFoundError('writing GGUF files needs the package gguf: pip install "llorch[quantize]"') from None
    metadata, entries, parts = read_gguf_model(source)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture.isprintable():
        raise ValueError(f"{printable(str(source))}: general.architecture is {shown(architecture)}, it must be a name")
    if not entries:
        raise ValueError(f"{printable(str(source))} has no tensors")
    choices = choose(entries, format, head)
    if len(parts) > 1 and output.exists() and any(output.samefile(part) for part in parts):
        raise ValueError(f"{printable(str(output))} is a part of the model that is read")
    with replacing(output) as part, contextlib.closing(gguf.GGUFWriter(part, architecture)) as writer:
        _add_metadata(gguf, writer, metadata, read_types(parts[0]), printable(str(source)))
        name = f"MOSTLY_{format}" + (
            "_S" if format in ("Q3_K", "Q4_K", "Q5_K") else ""
        )  # as llama.cpp's without mixtures
        writer.add_file_type(gguf.LlamaFileType[name])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for entry, chosen, _ in choices:
            kind = gguf.GGMLQuantizationType[chosen]
            writer.add_tensor_info(
                entry.name, entry.shape, np.dtype(np.float32), size(entry.shape, chosen), raw_dtype=kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        reader, done, of = Reader(), 0, sum(entry.nbytes for entry in entries.values())
        for choice in choices:
            writer.write_tensor_data(_converted(reader, choice))
            done += choice.entry.nbytes
            advance(done, of)
    return choices


def _add_metadata(
    gguf: Any, writer: Any, metadata: dict[str, Any], types: dict[str, tuple[int, int]], place: str
) -> None:
    """Every key with its own type. An empty array is left out, as the package gguf does."""
    for key, value in metadata.items():
        kind, of = types[key]
        if key in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        if key.startswith(LEFT_OUT) or (kind == ARRAY and not len(value)):
            continue
        if key == "general.alignment":
            writer.add_custom_alignment(value)
            continue
        if kind == ARRAY and of == ARRAY:
            raise ValueError(
                f"{place}: metadata key {shown(key)} is an array of arrays, which the package gguf can't write"
            )
        if kind == STRING:
            value = value.encode("utf-8", "surrogateescape")
        elif isinstance(value, Strings):
            value = [text.encode("utf-8", "surrogateescape") for text in value]
        sub_type = gguf.GGUFValueType(of) if kind == ARRAY else None
        writer.add_key_value(key, value, gguf.GGUFValueType(kind), sub_type=sub_type)


def _converted(reader: Reader, choice: Choice) -> NDArray[Any]:
    """The bytes of a tensor in its new format."""
    entry, format, _ = choice
    if format == entry.format:
        return reader.read(entry)
    made = np.empty(choice.nbytes, np.uint8)
    K = entry.shape[-1] if entry.shape else 1
    rows = math.prod(entry.shape[:-1]) if K else 0
    from_row, to_row = size((K,), entry.format), size((K,), format)
    for first in range(0, rows, step := max(1, SLICE // max(K, 1))):
        count = min(step, rows - first)
        data = reader.read(entry, first * from_row, count * from_row)
        values = _core.dequantize(data, entry.format, (count, K))
        into = made[first * to_row : (first + count) * to_row]
        try:
            into[:] = _narrowed(values, format).reshape(-1).view(np.uint8)
        except ValueError as error:
            place = entry.place if count == rows else f"{entry.place}, rows from {first} on"
            raise ValueError(f"{place}: {error}") from None
    return made


def _narrowed(values: NDArray[Any], format: str) -> NDArray[Any]:
    if format in BLOCKS:
        return _core.quantize(values, format)
    if format == "F32":
        return values
    halves = _core.cast(values, np.float16)
    if not np.isfinite(halves).all():
        raise ValueError("weights have values that float16 doesn't hold")
    return halves


def summary(choices: list[Choice], format: str) -> list[str]:
    """What became of the tensors, in lines: formats with the number of tensors, and why some have another."""
    groups: Counter[tuple[str, str, str]] = Counter()
    for entry, chosen, why in choices:
        copied = chosen == entry.format and not why
        groups[chosen, why or ("copied, it was so before" if copied else ""), entry.format] += 1
    lines = []
    for (chosen, why, before), count in sorted(groups.items(), key=lambda item: (item[0][0] != format, item[0])):
        came = f" from {before}" if before != chosen else ""
        lines.append(f"{count:,} in {chosen}{came}{f': {why}' if why else ''}")
    weights = sum(math.prod(choice.entry.shape) for choice in choices)
    new, old = sum(choice.nbytes for choice in choices), sum(choice.entry.nbytes for choice in choices)
    if weights:
        lines.append(f"{8 * new / weights:.2f} bits a weight, {8 * old / weights:.2f} before")
    if any(entry.format in BLOCKS and chosen != entry.format for entry, chosen, _ in choices):
        lines.append("some weights were quantised before: what that lost isn't here either")
    return lines
