"""rich's console, on which nothing from a file is obeyed. Needs the package rich."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from llorch._text import printable


class SafeConsole(Console):
    """A Console that shows every control character of what it is given to print escaped, but newlines.

    Styles and the movements of a progress bar are added later, and are rich's own.
    """

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable() or text == "\n":
                yield segment
            else:
                yield Segment("\n".join(map(printable, text.split("\n"))), segment.style)
