"""Options that the validator's commands share."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from llorch.commands import common
from llorch.files.output import check_replaceable


def writable(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Opens the file for writing, so that a mistyped path is found before the work and not after; changes nothing. A
    pipe or a device isn't opened: a pipe would wait for its reader."""
    if value is None:
        return None
    try:
        if value.exists():
            if value.is_file() or value.is_dir():
                value.open("ab").close()
        else:
            place = Path(os.path.realpath(value))  # a link that leads nowhere stays
            place.open("ab").close()
            place.unlink()
    except OSError as error:
        raise click.BadParameter(f"can't write {value}: {error.strerror}") from None
    return value


def _replaceable(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """A file in whose place another can be put."""
    if str(value) == "-":
        raise click.BadParameter("it must be a file, and not standard output")
    try:
        check_replaceable(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    except OSError as error:
        raise click.BadParameter(f"can't write {value}: {error.strerror}") from None
    return value


def file_option(flag: str, name: str, metavar: str, help: str) -> Callable[..., Any]:
    return click.option(flag, name, type=click.Path(path_type=Path), callback=writable, metavar=metavar, help=help)


def output_option(metavar: str, help: str, *, as_it_comes: bool = False) -> Callable[..., Any]:
    """-o and --force, of a file that a command makes: whole, or, as_it_comes, piece by piece."""
    path, callback = click.Path(path_type=Path, dir_okay=False), writable if as_it_comes else _replaceable
    made = click.option("-o", "--output", required=True, type=path, callback=callback, metavar=metavar, help=help)
    force = click.option("--force", is_flag=True, help="Write over a file that is there.")
    return lambda command: made(force(command))


def check_new(output: Path, force: bool) -> None:
    """Fails for a file that is there, unless it may be written over."""
    if output.exists() and not force:
        raise common.Failure(f"{output} is there already: name another file, or give --force")


def _ids(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.replace(",", " ").split())
    except ValueError:
        raise click.BadParameter(f"{value!r} must be token ids, such as 15496,13") from None


prompt_option = click.option("--prompt", default="Hello.", show_default=True, help='The text; "-" is standard input.')
ids_option = click.option("--ids", callback=_ids, metavar="N,N,...", help="Token ids in the place of a text.")


def layers_option(default: frozenset[int] | None) -> Callable[..., Any]:
    """--layers: a set of blocks; None is what the command makes of it, an empty set all of them."""

    def parse(context: click.Context, parameter: click.Parameter, value: str | None) -> frozenset[int] | None:
        if value is None:
            return default
        if value == "all":
            return frozenset()
        found: set[int] = set()
        for part in value.split(","):
            match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip())
            if match is None:
                raise click.BadParameter(f'{value!r} must be blocks, such as 0,3-5, or "all"')
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        return frozenset(found)

    shown = "the one that diverges first, or 0" if default is None else ",".join(map(str, default))
    return click.option(
        "--layers", callback=parse, metavar="N,N-N|all", help=f"Blocks to show tensor by tensor.  [default: {shown}]"
    )
