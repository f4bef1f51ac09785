"""`llorch` and `python -m llorch`: the command line, where its packages are installed."""

import sys


def main() -> None:
    try:
        from llorch.cli import main as command

        command(prog_name="llorch")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"click", "rich"}:
            raise
        sys.exit(f'the command line needs the package {package}: pip install "llorch[gpt2]"')
    except KeyboardInterrupt:  # while packages are imported; the command line handles its own
        sys.exit(130)


if __name__ == "__main__":
    main()
