"""`llorch validate`."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from llorch.commands import common
from llorch.commands.options import file_option, ids_option, layers_option, prompt_option
from llorch.models.shapes import SHAPES


@click.command("validate")
@common.model_option()
@click.option("--shape", type=click.Choice(list(SHAPES)), help="Random weights of this size in the place of a model.")
@prompt_option
@ids_option
@click.option(
    "--self-test",
    is_flag=True,
    help="Inject every known fault, and see that each is found by its name; without --model in every family.",
)
@layers_option(frozenset({0}))
@file_option("--json", "json_path", "FILE", "Write everything measured to this file.")
@file_option("--report", "report_path", "FILE", "Write a report: a page of HTML, of the kernels Markdown.")
@click.option("--no-peer", is_flag=True, help="llorch and its oracle alone, no other library.")
@click.option("--kernels", is_flag=True, help="The same as `llorch kernels`.")
@click.option("-q", "--quiet", is_flag=True, help="Print only what failed, and the summary.")
@common.compute_option
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
    no_peer: bool,
    kernels: bool,
    quiet: bool,
    compute: str,
) -> None:
    """Every tensor of inference on a model, 12 rungs deep.

    llorch is compared with its oracle bit for bit, and with transformers, if it is installed, within each rung's
    tolerance. `llorch dump` and `llorch compare` do the same with any other engine.

    Then, where no model is named, the kernels by themselves: `llorch kernels` shows every check of them.

    The exit status is 0 if all that ran holds, 1 if something failed.
    """
    if kernels:
        if self_test:
            raise click.UsageError("--self-test is of the ladder, not of --kernels")
        from llorch.commands.kernels import run, show

        holds = show(run((), () if no_peer else None), json_path, report_path, quiet=quiet)
        context.exit(0 if holds else 1)
    named = context.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE
    if self_test and compute != "float32":
        raise click.UsageError("--self-test is of --compute float32: its faults change weights' values")
    if shape is not None and named:
        raise click.UsageError("--model and --shape can't be given both")
    with _model(model, shape) as name:
        if self_test:
            holds = _self_test(name if shape is not None or named else None, json_path, report_path, quiet)
        else:
            too = shape is None and not named
            holds = _ladder(name, prompt, ids, layers, json_path, report_path, not no_peer, too, quiet, compute)
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
    compute: str,
) -> bool:
    from llorch.validate.ladder.run import run_ladder
    from llorch.validate.report import html, json, terminal

    with common.failures(), common.progress("the oracle") as progress:
        text = common.text_of(prompt)
        result = run_ladder(model, text, ids=ids, peer=peer, compute=compute, progress=progress)
    with common.results() as console:
        terminal.show_ladder(result, console, layers or None, quiet=quiet)
    content = json.of_ladder(result)
    alone = None
    if kernels:
        from llorch.commands.kernels import run

        alone = run((), None if peer else ())
        with common.results() as console:
            terminal.show_summary(alone, console)
        content |= {"kernels": json.of_kernels(alone), "holds": result.holds and alone.holds}
    if json_path is not None:
        common.save(json_path, json.text(content))
    if report_path is not None:
        common.save(report_path, html.of_ladder(result, alone))
    return result.holds and (alone is None or alone.holds)


def _self_test(model: str | None, json_path: Path | None, report_path: Path | None, quiet: bool) -> bool:
    """model: None for every family."""
    import llorch
    from llorch import validate
    from llorch.validate.report import json, terminal

    if report_path is not None:
        raise click.UsageError("--self-test has no report, its table and --json say everything")
    clock = time.perf_counter()
    with common.failures(), common.progress("injecting faults") as progress:
        injections = list(validate.self_test(model, workers=llorch.get_num_threads(), progress=progress))
    seconds = time.perf_counter() - clock
    with common.results() as console:
        holds = terminal.show_self_test(injections, console, seconds, quiet=quiet)
    if json_path is not None:
        common.save(json_path, json.text(json.of_self_test(injections)))
    return holds
