"""What the commands share: options, loading, progress, errors."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

import llorch

if TYPE_CHECKING:
    from llorch.text.causal_lm import CausalLM

EMBEDDED = "shakespeare-1m"
DTYPES = ("float32", "bfloat16", "float16")
SLOW = 1.0  # seconds after which a person wants to see that something happens

dtype_option = click.option(
    "--dtype", type=click.Choice(DTYPES), help="How the weights are kept. Without it: as in the file."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _set_threads(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
    if value is not None:
        llorch.set_num_threads(value)


threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    callback=_set_threads,
    expose_value=False,
    help="Threads. Without it: LLORCH_NUM_THREADS, or all cores.",
)


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
    except (OSError, ImportError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, OSError) and error.filename and error.strerror:  # as the library's own: what, then why
            raise Failure(f"{error.filename}: {error.strerror}") from error
        raise Failure(str(error) or type(error).__name__) from error


def load(model: str, dtype: str | None = None) -> "CausalLM":
    """The model of a folder or hub id; the loader shows its own progress."""
    with failures():
        return llorch.CausalLM.from_pretrained(model, dtype=dtype)


def text_of(argument: str) -> str:
    """The argument itself, or standard input for "-"."""
    if argument != "-":
        return argument
    with failures():
        return sys.stdin.read()


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, of) that shows a bar on stderr where that is a terminal and it takes more than a second."""
    started, bar, task = time.monotonic(), None, None

    def advance(done: int, of: int) -> None:
        nonlocal bar, task
        if bar is None and done < of and time.monotonic() - started > SLOW and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns: Any = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            bar = Progress(*columns, console=Console(stderr=True), transient=True)
            bar.start()
            task = bar.add_task(what)
        if bar is not None and task is not None:
            bar.update(task, completed=done, total=of)
            if done >= of:
                bar.stop()
                bar = None

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()
