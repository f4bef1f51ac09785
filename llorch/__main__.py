"""`llorch` and `python -m llorch`: the command line, where its packages are installed."""

import sys
import traceback
from types import TracebackType

from llorch import _interrupts
from llorch._text import printable


def _show_error(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """The traceback of an error that nothing foresaw; it may have a text from a file, which no terminal must obey."""
    lines = "".join(traceback.format_exception(kind, error, at)).splitlines()
    sys.stderr.write("\n".join(map(printable, lines)) + "\n")


def main() -> None:
    """Runs the command line and ends the process: SIGINT and, after an error, the hooks of `sys` are its own."""
    _interrupts.command.begin()
    sys.excepthook = _show_error
    try:
        from llorch import cli
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"click", "rich"}:
            raise
        sys.exit(f'the command line needs the package {package}: pip install "llorch[models]"')
    sys.exit(_interrupts.command.run(lambda: cli.main(prog_name="llorch")))


if __name__ == "__main__":
    main()
