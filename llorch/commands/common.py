"""What the commands share: options, loading, progress, output, errors."""

import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

import llorch
from llorch._progress import progress as progress
from llorch._text import counted, printable

if TYPE_CHECKING:
    from rich.console import Console

    from llorch.text.causal_lm import CausalLM

EMBEDDED = "shakespeare-1m"
# llorch.models.loading's, which takes long to import: a test holds them together.
FLOATS = ("float32", "bfloat16", "float16")
INTEGERS = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")

dtype_option = click.option(
    "--dtype",
    type=click.Choice((*FLOATS, *INTEGERS), case_sensitive=False),
    help="How the weights are kept. Without it: as in the file. From q8_0 on, blocks: matrices that are floats in the "
    "file are quantised, if their rows are whole blocks (of 32 values, of 256 from q2_k on).",
)
compute_option = click.option(
    "--compute",
    type=click.Choice(("float32", "int16")),
    default="float32",
    show_default=True,
    help="The arithmetic of linear layers. int16: of weights in blocks of integers, with activations of 16 bits.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def model_option(default: str | None = EMBEDDED, more: str = "", required: bool = False) -> Callable[..., Any]:
    """--model: whatever `llorch.CausalLM.from_pretrained` takes."""
    given: dict[str, Any] = {"required": True} if required else {"default": default}
    return click.option(
        "--model",
        **given,
        show_default=not required and default is not None,
        help=f"A folder, a .gguf file, or an id on Hugging Face's hub.{more}",
    )


def _set_threads(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
    if value is not None:
        llorch.set_num_threads(value)


threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    callback=_set_threads,
    expose_value=False,
    help="Threads. Without it: LLORCH_NUM_THREADS, or as many as affinity and the control group's quota allow.",
)


def echo(text: str, *, err: bool = False) -> None:
    """Prints a line, or several: the one way out for what isn't a table or the model's own text.

    Whatever a terminal would obey is shown escaped: names, types and values come from files.
    """
    with _standard("error" if err else "output"):
        click.echo("\n".join(printable(line) for line in text.split("\n")), err=err)


@contextmanager
def _standard(name: str) -> Iterator[None]:
    """What standard output or error refuses, as a full disk does, is a Failure; but that nobody reads it any more."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(f"standard {name}: {error.strerror}") from error


@contextmanager
def results() -> "Iterator[Console]":
    """The console for tables on standard output."""
    from llorch.validate.report import terminal

    with _standard("output"):
        yield terminal.console()


def _obeyed(c: str) -> bool:
    """Controls, marks of direction and other invisible signs. The two joiners are letters' and emojis' own."""
    return c not in "\n\t\u200c\u200d" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")


class ModelText:
    """Standard output for the text of a model, as it comes.

    In a file or a pipe it is the model's text, character for character. A terminal gets it with every character escaped
    that it would obey, but newlines and tabs: what a model writes comes from its files and its prompt. Unlike in names,
    spaces of all kinds stay.
    """

    def __init__(self) -> None:
        self.out = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # it was closed before we began, as by >&-
        self.terminal = self.out.isatty()
        if hasattr(self.out, "reconfigure"):
            self.out.reconfigure(errors="replace")  # a terminal that lacks a character shows ? for it

    def write(self, text: str) -> None:
        if self.terminal:
            text = "".join(printable(c) if _obeyed(c) else c for c in text)
        with _standard("output"):
            self.out.write(text)
            self.out.flush()


def say_dim(text: str) -> None:
    """A line of ours between the texts of others, on a terminal."""
    from rich.text import Text

    from llorch._console import SafeConsole

    with _standard("output"):
        SafeConsole(soft_wrap=True, highlight=False).print(Text(text, style="dim"))


class Failure(click.ClickException):
    """An error that isn't the command line's; knows its command, as click's usage errors do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.ctx = click.get_current_context(silent=True)


@contextmanager
def failures() -> Iterator[None]:
    """What the library finds wrong with a file, a prompt or a parameter, as one line and exit status 1."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ImportError, ValueError, TypeError, IndexError, MemoryError) as error:
        if isinstance(error, OSError) and error.filename and error.strerror:  # as the library's own: what, then why
            raise Failure(f"{error.filename}: {error.strerror}") from error
        raise Failure(str(error) or type(error).__name__) from error


def save(path: Path, text: str) -> None:
    """Writes a file of text; a full disk is a Failure."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error


@contextmanager
def ended_tidily() -> Iterator[None]:
    """While the body runs, what asks the process to end (SIGTERM, SIGHUP) lets it remove its unfinished files. The exit
    status is what shells report: 128 and the signal's number."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    asked = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():  # whose alone handlers are
        asked = []
    for number in asked:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in asked:
            signal.signal(number, signal.SIG_DFL)


def many(count: int, what: str) -> str:
    """1 token, 1,000 tokens."""
    return counted(count, what, ",")


def tokens(count: int) -> str:
    return many(count, "token")


def load(model: str, dtype: str | None = None, compute: str = "float32") -> "CausalLM":
    """The model of a folder, a .gguf file or a hub id; the loader shows its own progress."""
    with failures():
        return llorch.CausalLM.from_pretrained(model, dtype=dtype, compute=compute)


def text_of(argument: str) -> str:
    """The argument itself, or standard input for "-"."""
    if argument != "-":
        return argument
    with failures():
        return "".join(standard_input()).replace("\r\n", "\n").replace("\r", "\n")


def standard_input() -> Iterator[str]:
    """The lines of standard input, which is UTF-8 whatever the locale is. ValueError names the line that isn't."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield decoded(line, number, "standard input")


def decoded(raw: bytes, number: int, name: str) -> str:
    """A line of a file, without the mark that some editors put first. ValueError says where it isn't UTF-8."""
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        place = f"{printable(name)}, line {number}"
        raise ValueError(f"{place} isn't UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from None
