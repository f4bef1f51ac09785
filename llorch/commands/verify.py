"""`llorch verify`."""

import contextlib
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from llorch._text import printable
from llorch.commands import common


@click.command("verify", short_help="Check a receipt: one prefill, and every choice is drawn again.")
@click.argument("receipts", type=click.Path(path_type=Path))
@common.model_option()
@click.option("--sample", type=click.IntRange(1), metavar="K", help="Check K of the receipts alone, chosen by --seed.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which ones --sample takes.")
@common.dtype_option
@common.threads_option
def command(receipts: Path, model: str, sample: int | None, seed: int, dtype: str | None) -> None:
    """Check RECEIPTS, a receipt's file, or a file with a receipt a line.

    Exit status: 0 all are equal; 1 one isn't; 2 it can't be told, as a receipt is of another model, or is none.
    """
    from llorch import receipts as library

    name = printable(str(receipts))
    try:
        text = receipts.read_text("utf-8")
        found = _several(text)
    except (OSError, UnicodeDecodeError) as error:
        raise _Unknown(f"{name}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    places = list(range(len(found)))
    if sample is not None:
        places = sorted(random.Random(seed).sample(places, min(sample, len(places))))
    engine = common.load(model, dtype, _compute(found[place] for place in places))
    worst = 0
    with common.failures():
        for place in places:
            where = name if len(found) == 1 else f"{name}, line {place + 1}"
            try:
                verdict = library.verify(library.loads(found[place]), engine)
                status, message = verdict.status, verdict.message
            except library.Malformed as error:
                status, message = 2, f"not a receipt: {error}"
            common.echo(f"{where}: {message}")
            worst = max(worst, status, key=(0, 2, 1).index)  # one that isn't equal is what matters most
    sys.exit(worst)


def _several(text: str) -> list[str]:
    """The receipts of a file: one over several lines, or one a line."""
    lines = [line for line in text.splitlines() if line.strip()]
    each = len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines)
    return lines if each else [text]


def _compute(texts: Iterable[str]) -> str:
    """The arithmetic that the first of them names; of another one the others can't be told."""
    from llorch import receipts

    for text in texts:
        with contextlib.suppress(receipts.Malformed):
            return "int16" if receipts.loads(text)["compute"] == "int16" else "float32"
    return "float32"


class _Unknown(common.Failure):
    exit_code = 2
