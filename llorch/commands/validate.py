"""`llorch validate`."""

import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from llorch.validation import Step, checkpoint_01, checkpoint_02, peers, report, run

CHECKPOINTS = {"1": checkpoint_01, "2": checkpoint_02}


def writable(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Opens the file for writing, so that a mistyped path is found before the work and not after; changes nothing."""
    if value is not None:
        try:
            new = not value.exists()
            value.open("ab").close()
            if new:
                value.unlink()
        except OSError as error:
            raise click.BadParameter(f"can't write {value}: {error.strerror}") from None
    return value


@click.command("validate")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    callback=writable,
    metavar="FILE",
    help="Write everything measured to this file.",
)
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    callback=writable,
    metavar="FILE.md",
    help="Write a Markdown report, with all that a second person needs to repeat it.",
)
@click.option(
    "--peer",
    "wanted",
    multiple=True,
    type=click.Choice([*(peer.key for peer in peers.PEERS), "none"]),
    help="Run this library only (repeatable), or none. Without it: every one that is installed.",
)
@click.option(
    "--checkpoint",
    "chosen",
    multiple=True,
    type=click.Choice(list(CHECKPOINTS)),
    help="Run this checkpoint only (repeatable). Without it: all of them.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only what failed, and the summary.")
@click.pass_context
def command(
    context: click.Context,
    json_path: Path | None,
    report_path: Path | None,
    wanted: tuple[str, ...],
    chosen: tuple[str, ...],
    quiet: bool,
) -> None:
    """The checkpoints of GPT-2 inference, against everything there is to compare them with.

    1 is LayerNorm; 2 the projection to Q, K and V, attention and the feed-forward layer.

    The exit status is 0 if all that ran holds (a library that is not installed is skipped), 1 if something failed.
    """
    started, clock = time.time(), time.perf_counter()
    checkpoints = [module for number, module in CHECKPOINTS.items() if not chosen or number in chosen]
    steps = [module.steps(wanted or None) for module in checkpoints]
    results: list[report.Result] = []
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("", total=sum(map(len, steps)), completed=-1)

        def begin(step: Step) -> None:
            progress.update(task, description=step.title, advance=1)

        for module, mine in zip(checkpoints, steps, strict=True):
            since = time.perf_counter()
            checks = list(run(mine, begin))
            results.append(report.Result(module.TITLE, module.INPUT, checks, time.perf_counter() - since))

    whole = report.Report(results, started, time.perf_counter() - clock)
    report.show(whole, report.console(), quiet=quiet)
    if json_path is not None:
        json_path.write_text(report.as_json(whole), encoding="utf-8")
    if report_path is not None:
        report_path.write_text(report.as_markdown(whole), encoding="utf-8")
    context.exit(0 if whole.holds else 1)
