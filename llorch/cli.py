"""The command line: `llorch validate`, `llorch config`."""

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

import click
from rich.console import Console
from rich.table import Table

import llorch
from llorch.validation import Check, checkpoint_01, run

STYLES = {"pass": "green", "fail": "bold red", "skip": "yellow"}


@click.group()
@click.version_option(llorch.__version__)
def main() -> None:
    """CPU kernels whose every output bit is specified, and the tools to prove it."""


@main.command()
def config() -> None:
    """Print compiler, instruction sets, threads and versions."""
    llorch.show_config()


@main.command()
@click.option("--json", "json_file", type=click.File("w", lazy=False), help="Write everything measured to this file.")
@click.option("--report", type=click.File("w", lazy=False), help="Write a Markdown report to this file.")
def validate(json_file: TextIO | None, report: TextIO | None) -> None:
    """Checkpoint 1 of GPT-2 inference, LayerNorm. Exit status 0 only if every check that ran holds."""
    started = time.perf_counter()
    checks: list[Check] = []
    progress = Console(stderr=True)
    with progress.status("validating") as display:
        for check in run(checkpoint_01.steps(), lambda step: display.update(f"{step.group}: {step.title}")):
            checks.append(check)
    summary = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 1),
        "output_sha256": checkpoint_01.output_hash(),
        "config": llorch.config(),
        "counts": {status: sum(check.status == status for check in checks) for status in STYLES},
    }
    show(checks, summary)
    if json_file:
        json.dump({**summary, "checks": [vars(check) for check in checks]}, json_file, indent=1, default=str)
    if report:
        report.write(markdown(checks, summary))
    sys.exit(1 if summary["counts"]["fail"] else 0)


def show(checks: list[Check], summary: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("", "check", "measured", "bound", title="Checkpoint 1: LayerNorm [2, 1024]", title_justify="left")
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_section()
            table.add_row("", f"[bold]{group}")
        table.add_row(f"[{STYLES[check.status]}]{check.status}", check.name, check.measured, check.bound)
    console.print(table)
    counts, here = summary["counts"], summary["config"]
    console.print(
        f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped in {summary['seconds']} s; "
        f"{here['isa']} on {here['cpu']}\noutput SHA-256 {summary['output_sha256']}"
    )


def markdown(checks: list[Check], summary: dict[str, Any]) -> str:
    """The report: what was compared, hashes, versions, CPU and instruction set."""
    lines = [
        "# llorch validate: checkpoint 1, LayerNorm",
        "",
        "x[i,j] = sin(float32(i*1024+j)*0.001)*0.5, float32 [2, 1024]; weight ones, bias zeros, eps 1e-5.",
        f"{summary['date']}; repeat with `llorch validate`. Output SHA-256 `{summary['output_sha256']}`.",
        "",
        "| status | group | check | measured | bound | what |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for c in checks:
        cells = (c.status, c.group, c.name, c.measured, c.bound, " ".join((c.what, c.detail)))
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    lines += ["", *(f"- {key}: {value}" for key, value in summary["config"].items()), ""]
    return "\n".join(lines)
