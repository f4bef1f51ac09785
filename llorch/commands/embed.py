"""`llorch embed`."""

import io
import json
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import click
import numpy as np
from numpy.typing import NDArray

from llorch.commands import common, texts
from llorch.commands.options import check_new, output_option


@click.command("embed", short_help="Embed every line of a file.")
@click.argument("file")
@common.model_option(required=True)
@output_option(
    "FILE",
    "Where the embeddings go: NumPy's .npy, or .jsonl with each line's text and embedding.",
    as_it_comes=True,
)
@texts.field_option
@click.option("--prompt-name", metavar="NAME", help="Which of the model's prompts goes before each text.")
@click.option("--prompt", metavar="TEXT", help="A text that goes before each text.")
@click.option("--normalize", is_flag=True, help="Divide each embedding by its length, whatever the model's files say.")
@click.option(
    "--output-dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the embeddings in a .npy file.",
)
@texts.batch_option
@common.dtype_option
@common.compute_option
@common.threads_option
def command(
    file: str,
    model: str,
    output: Path,
    field: str | None,
    prompt_name: str | None,
    prompt: str | None,
    normalize: bool,
    output_dtype: str,
    batch_size: int,
    force: bool,
    dtype: str | None,
    compute: str,
) -> None:
    """Embed the lines of FILE, "-" for standard input: row i of the output is line i, an empty one too.

    A line's embedding has the same bits whatever lines are around it. Of a line longer than the model reads, what is
    over is left out. When the command is interrupted, the output is whole, with the lines that were done.
    """
    kinds: dict[str, type[Output]] = {".npy": Npy, ".jsonl": Lines}
    if output.suffix not in kinds:
        raise click.BadParameter(f"{output} must end in .npy or .jsonl", param_hint="'-o'")
    if output.suffix == ".jsonl" and output_dtype != "float32":
        raise click.UsageError("--output-dtype is for .npy files")
    check_new(output, force)
    if file != "-" and output.exists() and Path(file).exists() and output.samefile(file):
        raise common.Failure(f"{output} is what is to be embedded")
    encoder = texts.load(model, dtype, compute)
    lines: deque[str] = deque()
    with common.failures():
        source = texts.Texts(file, field)
        batches = encoder.encode_stream(
            texts.watched(source, lines.append),
            batch_size=batch_size,
            show_progress_bar=True,
            normalize_embeddings=True if normalize else None,
            prompt_name=prompt_name,
            prompt=prompt,
            output_dtype=output_dtype,
        )
        # without a buffer, which would keep what a full disk has refused, and refuse to be cut
        with output.open("wb", buffering=0) as opened:
            out = kinds[output.suffix](opened, encoder.embedding_dimension, output_dtype)
            try:
                for rows in batches:
                    out.write(rows, [lines.popleft() for _ in rows])
            except BaseException as error:
                out.close()
                if isinstance(error, KeyboardInterrupt):
                    common.echo(f"interrupted: {output} has the first {out.count:,} embeddings", err=True)
                raise
    common.echo(f"{output}: {common.many(out.count, 'embedding')} of {encoder.embedding_dimension} values")


class Output(Protocol):
    """A file that is whole after every write, and after close, wherever writing was broken off. It has `count`
    embeddings."""

    count: int

    def __init__(self, file: BinaryIO, width: int, dtype: str) -> None: ...
    def write(self, rows: NDArray[Any], lines: list[str]) -> None: ...
    def close(self) -> None: ...


def put(file: BinaryIO, data: bytes) -> None:
    """Writes all of data to a file without a buffer. OSError has its name."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from None


class Npy:
    """NumPy's format, version 1. The header has the number of rows, and NumPy leaves room in it for any: rows are
    written first."""

    def __init__(self, file: BinaryIO, width: int, dtype: str) -> None:
        self.file, self.width, self.dtype, self.count = file, width, np.dtype(dtype), 0
        self._header()

    def write(self, rows: NDArray[Any], lines: list[str]) -> None:
        put(self.file, rows.astype(self.dtype.newbyteorder("<")).tobytes())
        self.count += len(rows)
        self._header()

    def close(self) -> None:
        self._header()
        self.file.truncate(self.begin + self.count * self.width * self.dtype.itemsize)

    def _header(self) -> None:
        kind = self.dtype.newbyteorder("<").str
        head = io.BytesIO()
        shape = (self.count, self.width)
        np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
        self.begin = len(head.getvalue())
        self.file.seek(0)
        put(self.file, head.getvalue())
        self.file.seek(0, 2)


class Lines:
    """JSON lines, {"text": ..., "embedding": [...]}; 9 digits give every float32 back."""

    def __init__(self, file: BinaryIO, width: int, dtype: str) -> None:
        self.file, self.count, self.whole = file, 0, 0
        self.format = "[" + ", ".join(["%.9g"] * width) + "]"

    def write(self, rows: NDArray[Any], lines: list[str]) -> None:
        if not np.isfinite(rows).all():
            place = self.count + 1 + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise ValueError(f"the embedding of line {place} isn't finite, and JSON has no such number")
        made = []
        for line, row in zip(lines, rows.tolist(), strict=True):
            numbers = (self.format % tuple(row)).replace("-0,", "-0.0,").replace("-0]", "-0.0]")  # -0 is read as an int
            made.append(f'{{"text": {json.dumps(line, ensure_ascii=False)}, "embedding": {numbers}}}\n')
        raw = "".join(made).encode()
        put(self.file, raw)
        self.whole += len(raw)
        self.count += len(rows)

    def close(self) -> None:
        self.file.truncate(self.whole)
