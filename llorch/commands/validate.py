"""`llorch validate`, and the options that its relatives share."""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from llorch.commands import common
from llorch.models.shapes import SHAPES
from llorch.validate.kernels import Step, peers, run
from llorch.validate.kernels import layer_norm as checkpoint_01
from llorch.validate.kernels import qkv as checkpoint_02
from llorch.validate.report import kernels as report

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


def file_option(flag: str, name: str, metavar: str, help: str) -> Callable[..., Any]:
    return click.option(flag, name, type=click.Path(path_type=Path), callback=writable, metavar=metavar, help=help)


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
            match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
            if match is None:
                raise click.BadParameter(f'{value!r} must be blocks, such as 0,3-5, or "all"')
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        return frozenset(found)

    shown = "the one that diverges first, or 0" if default is None else ",".join(map(str, default))
    return click.option(
        "--layers", callback=parse, metavar="N,N-N|all", help=f"Blocks to show tensor by tensor.  [default: {shown}]"
    )


@click.command("validate")
@click.option("--model", default=common.EMBEDDED, show_default=True, help="A folder, or an id on Hugging Face's hub.")
@click.option("--shape", type=click.Choice(list(SHAPES)), help="Random weights of this size in the place of a model.")
@prompt_option
@ids_option
@click.option("--self-test", is_flag=True, help="Inject every known fault, and see that each is found and named.")
@layers_option(frozenset({0}))
@file_option("--json", "json_path", "FILE", "Write everything measured to this file.")
@file_option("--report", "report_path", "FILE", "Write a report: a page of HTML, of the kernels Markdown.")
@click.option("--kernels", is_flag=True, help="The kernels by themselves, on fixed input, in the place of the ladder.")
@click.option(
    "--peer",
    "wanted",
    multiple=True,
    type=click.Choice([*(peer.key for peer in peers.PEERS), "none"]),
    help='"none": llorch and its oracle alone. Another implies --kernels: run this library only (repeatable).',
)
@click.option(
    "--checkpoint",
    "chosen",
    multiple=True,
    type=click.Choice(list(CHECKPOINTS)),
    help="Implies --kernels: this checkpoint only (repeatable).",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only what failed, and the summary.")
@common.threads_option
@click.pass_context
def command(
    context: click.Context,
    model: str,
    shape: str | None,
    prompt: str,
    ids: tuple[int, ...] | None,
    self_test: bool,
    layers: frozenset[int],
    json_path: Path | None,
    report_path: Path | None,
    kernels: bool,
    wanted: tuple[str, ...],
    chosen: tuple[str, ...],
    quiet: bool,
) -> None:
    """Every tensor of GPT-2 inference on a model, 12 checkpoints deep.

    llorch is compared with its oracle bit for bit, and with transformers, if it is installed, within each rung's
    tolerance. `llorch dump` and `llorch compare` do the same with any other engine.

    Then, where no model is named, the kernels by themselves: LayerNorm (checkpoint 1) and the projection to Q, K and V,
    attention and the feed-forward layer (2) on fixed input, against published values and every library that is
    installed. --kernels runs these alone and shows every check.

    The exit status is 0 if all that ran holds, 1 if something failed.
    """
    if kernels or chosen or (wanted and wanted != ("none",)):
        if self_test:
            raise click.UsageError("--self-test is of the ladder, not of --kernels")
        context.exit(0 if _kernels(json_path, report_path, wanted, chosen, quiet) else 1)
    named = context.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE
    if shape is not None and named:
        raise click.UsageError("--model and --shape can't be given both")
    with _model(model, shape) as name:
        if self_test:
            holds = _self_test(name, json_path, report_path, quiet)
        else:
            peer, too = "none" not in wanted, shape is None and not named
            holds = _ladder(name, prompt, ids, layers, json_path, report_path, peer, too, quiet)
    context.exit(0 if holds else 1)


@contextmanager
def _model(model: str, shape: str | None) -> Iterator[str]:
    """The model's name, or the folder of random weights, which is there as long as it is needed."""
    if shape is None:
        yield model
        return
    from llorch.models.shapes import write_random

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"random-{shape}")
        path.mkdir()
        with common.failures(), common.progress(f"making {path.name}") as progress:
            write_random(path, SHAPES[shape], progress=progress)
        yield str(path)


def _ladder(
    model: str,
    prompt: str,
    ids: tuple[int, ...] | None,
    layers: frozenset[int],
    json_path: Path | None,
    report_path: Path | None,
    peer: bool,
    kernels: bool,
    quiet: bool,
) -> bool:
    from llorch.validate.ladder.run import run_ladder
    from llorch.validate.report import html as page
    from llorch.validate.report import terminal as show

    with common.failures(), common.progress("the oracle") as progress:
        result = run_ladder(model, common.text_of(prompt), ids=ids, peer=peer, progress=progress)
    show.show_ladder(result, report.console(), layers or None, quiet=quiet)
    content = show.ladder_json(result)
    alone = _run_kernels(() if peer else ("none",), ()) if kernels else None
    if alone is not None:
        report.show_summary(alone, report.console())
        content |= {"kernels": report.content(alone), "holds": result.holds and alone.holds}
    if json_path is not None:
        json_path.write_text(report.as_json(content), encoding="utf-8")
    if report_path is not None:
        report_path.write_text(page.of_ladder(result, alone), encoding="utf-8")
    return result.holds and (alone is None or alone.holds)


def _self_test(model: str, json_path: Path | None, report_path: Path | None, quiet: bool) -> bool:
    from llorch.validate.ladder import selftest
    from llorch.validate.ladder.trace import Model
    from llorch.validate.report import terminal as show

    if report_path is not None:
        raise click.UsageError("--self-test has no report, its table and --json say everything")
    clock = time.perf_counter()
    with common.failures(), common.progress("injecting faults") as progress:
        cases = list(selftest.run(Model(model), progress=progress))
    holds = show.show_self_test(cases, report.console(), time.perf_counter() - clock, quiet=quiet)
    if json_path is not None:
        json_path.write_text(report.as_json(show.self_test_json(cases)), encoding="utf-8")
    return holds


def _kernels(
    json_path: Path | None, report_path: Path | None, wanted: tuple[str, ...], chosen: tuple[str, ...], quiet: bool
) -> bool:
    whole = _run_kernels(wanted, chosen)
    report.show(whole, report.console(), quiet=quiet)
    if json_path is not None:
        json_path.write_text(report.as_json(report.content(whole)), encoding="utf-8")
    if report_path is not None:
        report_path.write_text(report.as_markdown(whole), encoding="utf-8")
    return whole.holds


def _run_kernels(wanted: tuple[str, ...], chosen: tuple[str, ...]) -> report.Report:
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

    return report.Report(results, started, time.perf_counter() - clock)
