"""`llorch kernels`."""

from pathlib import Path

import click

from llorch.commands import common
from llorch.commands.options import file_option
from llorch.validate.kernels import peers, suites
from llorch.validate.report import json, markdown, terminal


def run(chosen: tuple[str, ...] = (), libraries: tuple[str, ...] | None = None) -> suites.KernelReport:
    """The suites, with a bar on stderr. libraries: None for every one that is installed, () for none."""
    with common.progress("the kernels") as progress:
        return suites.run_suites(chosen, libraries, lambda title, done, of: progress(done, of))


def show(report: suites.KernelReport, json_path: Path | None, report_path: Path | None, *, quiet: bool) -> bool:
    """Prints a run of the suites and writes its files; whether it holds."""
    with common.results() as console:
        terminal.show_kernels(report, console, quiet=quiet)
    if json_path is not None:
        common.save(json_path, json.text(json.of_kernels(report)))
    if report_path is not None:
        common.save(report_path, markdown.of_kernels(report))
    return report.holds


@click.command("kernels")
@click.option("--suite", "chosen", multiple=True, type=click.Choice(list(suites.SUITES)), help="This one (repeatable).")
@click.option(
    "--library",
    "libraries",
    multiple=True,
    type=click.Choice([peer.key for peer in peers.PEERS]),
    help="Compare with this library (repeatable).  [default: every one that is installed]",
)
@click.option("--no-peer", is_flag=True, help="Compare with no library.")
@file_option("--json", "json_path", "FILE", "Write everything measured to this file.")
@file_option("--report", "report_path", "FILE.md", "Write a report in Markdown.")
@click.option("-q", "--quiet", is_flag=True, help="Print only what failed, and the summary.")
@common.threads_option
@click.pass_context
def command(
    context: click.Context,
    chosen: tuple[str, ...],
    libraries: tuple[str, ...],
    no_peer: bool,
    json_path: Path | None,
    report_path: Path | None,
    quiet: bool,
) -> None:
    """The kernels by themselves, on fixed input: every check.

    LayerNorm, the projection to Q, K and V, attention and the feed-forward layer, against the oracle, exact results,
    published values and every library that is installed; their bits over runs, processes, instruction sets, threads,
    alignments and batches; and mistakes put in on purpose, which the comparison has to catch.

    The exit status is 0 if all that ran holds, 1 if something failed.
    """
    if no_peer and libraries:
        raise click.UsageError("--library and --no-peer can't be given both")
    report = run(chosen, () if no_peer else libraries or None)
    context.exit(0 if show(report, json_path, report_path, quiet=quiet) else 1)
