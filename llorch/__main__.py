"""`llorch` and `python -m llorch`: the command line, where its packages are installed."""

import sys

from llorch import _interrupts


def main() -> None:
    """Runs the command line and ends the process: SIGINT and, after an error, the hooks of `sys` are its own."""
    _interrupts.command.begin()
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
