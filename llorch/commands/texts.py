"""Texts from a file or standard input, one a line: what `llorch embed` and `llorch search` read."""

import errno
import json
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

import llorch
from llorch._text import printable, shown
from llorch.commands import common
from llorch.text.tokenizer import checked

CHUNK = 1 << 20

field_option = click.option(
    "--field", metavar="NAME", help="The lines of FILE are JSON objects, and this entry is the text."
)
batch_option = click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Texts that are computed together. It changes speed and memory, no bit.",
)


def load(model: str, dtype: str | None, compute: str) -> "llorch.TextEncoder":
    """The model of a folder, a .gguf file or a hub id, and its tokenizer."""
    with common.failures():
        encoder = llorch.TextEncoder.from_pretrained(model, dtype=dtype, compute=compute)
        encoder.max_seq_length  # noqa: B018  a tokenizer that is missing is told before a text is read
        return encoder


class Texts:
    """The texts of a file, read as they are asked for. A carriage return before the end of a line is passed over.

    ValueError names the line that isn't UTF-8, or with `field` isn't a JSON object that has a text of this name.
    """

    def __init__(self, path: str, field: str | None) -> None:
        self.path, self.field = path, field
        self.name = "standard input" if path == "-" else path

    def __iter__(self) -> Iterator[str]:
        with self._open() as file:
            for number, line in enumerate(file, 1):
                yield self._text(line, number)

    def _open(self) -> BinaryIO:
        return sys.stdin.buffer if self.path == "-" else Path(self.path).open("rb")

    def _text(self, raw: bytes, number: int) -> str:
        place = f"{printable(self.name)}, line {number}"
        line = common.decoded(raw, number, self.name).removesuffix("\n").removesuffix("\r")
        if self.field is None:
            return line
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place} isn't JSON: {error}") from None
        text = entry.get(self.field) if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"{place} has no text {shown(repr(self.field))}")
        return checked(text, f"{place}: {self.field}")

    def count(self) -> int | None:
        """How many there are, where that can be counted before they are read. OSError for a file that can't be read."""
        if self.path == "-":
            return None
        mode = Path(self.path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", self.path)
        if not stat.S_ISREG(mode):
            return None
        lines, last = 0, b"\n"
        with Path(self.path).open("rb") as file:
            while block := file.read(CHUNK):
                lines, last = lines + block.count(b"\n"), block[-1:]
        return lines + (last != b"\n")


class Counted:
    """Texts that know how many they are, for a progress bar."""

    def __init__(self, texts: Iterator[str], count: int) -> None:
        self.texts, self.number = texts, count

    def __iter__(self) -> Iterator[str]:
        return self.texts

    def __len__(self) -> int:
        return self.number


def watched(texts: Texts, see: Callable[[str], object]) -> Any:
    """The texts, each of which is shown to see() when it is read."""

    def each() -> Iterator[str]:
        for text in texts:
            see(text)
            yield text

    count = texts.count()
    return each() if count is None else Counted(each(), count)
