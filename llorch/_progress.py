"""The one progress bar: on stderr, where that is a terminal and rich is installed, from the second second on."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SLOW = 1.0  # seconds after which a person wants to see that something happens


@contextmanager
def progress(what: str, *, size: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """A function of (done, of) that draws a bar; of is None where nobody knows. size: they are bytes."""
    started, bar, task = time.monotonic(), None, None

    def advance(done: int, of: int | None) -> None:
        nonlocal bar, task
        if bar is None and (of is None or done < of) and time.monotonic() - started > SLOW and sys.stderr.isatty():
            bar = _bar(size)
            if bar is not None:
                bar.start()
                task = bar.add_task(what)
        if bar is not None:
            bar.update(task, completed=done, total=of)
            if of is not None and done >= of:
                bar.stop()
                bar = None

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _bar(size: bool) -> Any:
    try:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        from llorch._console import SafeConsole
    except ImportError:
        return None
    count: Any = DownloadColumn() if size else MofNCompleteColumn()
    columns: Any = TextColumn("{task.description}", markup=False), BarColumn(), count, TimeRemainingColumn()
    return Progress(*columns, console=SafeConsole(stderr=True), transient=True)
