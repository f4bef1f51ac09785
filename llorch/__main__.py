"""`llorch` and `python -m llorch`: the command line, where its packages are installed."""

import sys


def main() -> None:
    try:
        from llorch.cli import main as command
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit(f'the command line needs the package {error.name}: pip install "llorch[gpt2]"')
    command(prog_name="llorch")


if __name__ == "__main__":
    main()
