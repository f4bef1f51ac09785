"""What `llorch validate` shows and writes: the table, the Markdown report, the JSON."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import llorch
from llorch.validate.kernels import Check

WIDTH = 100
STYLES = {"pass": "green", "fail": "bold red", "skip": "yellow", "info": "cyan"}
COMMAND = 'pip install ".[gpt2,references]" && llorch validate --kernels'


def summary(counts: Counter[str]) -> str:
    words = {"pass": "passed", "fail": "failed", "skip": "skipped", "info": "for information"}
    return ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts[key])


@dataclass(frozen=True)
class Result:
    """The checks of one checkpoint."""

    title: str  # "Checkpoint 1: LayerNorm"
    input: str
    checks: list[Check]
    seconds: float

    @property
    def counts(self) -> Counter[str]:
        return Counter(check.status for check in self.checks)

    @property
    def holds(self) -> bool:
        """Something ran, and nothing of it failed."""
        return self.counts["fail"] == 0 and self.counts["pass"] > 0

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the checkpoint's inputs and outputs, by the name of the check that computed them."""
        return {check.name: check.data["sha256"] for check in self.checks if "sha256" in check.data}


@dataclass(frozen=True)
class Report:
    """The checkpoints of a run with all that a second person needs to repeat them."""

    results: list[Result]
    started: float  # seconds since the epoch
    seconds: float

    @property
    def counts(self) -> Counter[str]:
        return sum((result.counts for result in self.results), Counter())

    @property
    def holds(self) -> bool:
        return all(result.holds for result in self.results)

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M UTC")

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries that ran, by name."""
        found = {}
        for check in (check for result in self.results for check in result.checks):
            if "version" in check.data:
                version = check.data["version"]
                found[check.name.partition(f" {version}")[0]] = version
        return found


def machine() -> dict[str, Any]:
    """`llorch.config()` and the operating system."""
    return llorch.config() | {"os": platform.platform()}


def console() -> Console:
    """100 columns where the output is no terminal, and at most that in one."""
    plain = Console()
    return Console(width=min(WIDTH, plain.width) if plain.is_terminal else WIDTH)


def table(checks: list[Check], width: int) -> Table:
    """Status, check, measured and bound of one group; the same columns for every group."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.width = width
    grid.add_column(width=4)
    grid.add_column(ratio=36)
    grid.add_column(ratio=37)
    grid.add_column(ratio=20)
    for check in checks:
        style = STYLES[check.status]
        grid.add_row(
            Text("FAIL" if check.status == "fail" else check.status, style=style),
            Text(check.name),
            Text(check.measured, style="" if check.status == "pass" else style),
            Text(check.bound, style="dim"),
        )
    grid.add_row()
    return grid


def show(report: Report, console: Console, *, quiet: bool = False) -> None:
    """Prints the checkpoints' tables in groups, the details of what failed, and the summary."""
    for result in () if quiet else report.results:
        console.print(Text(result.title, style="bold"))
        console.print(Text(result.input + "\n"))
        for group, checks in groupby(result.checks, key=lambda check: check.group):
            console.print(Text(group, style="bold"))
            console.print(table(list(checks), console.width))
    for result in report.results:
        if result.counts["fail"]:
            console.print(Text(result.title, style="bold"))
        show_failed(result, console)
    info = machine()
    style = "bold green" if report.holds else "bold red"
    console.print(Text(f"{summary(report.counts)} in {report.seconds:.1f} s", style=style))
    for result in report.results:
        for name, value in result.hashes.items():
            where = f"{result.title.partition(':')[0].lower()}, {name.removeprefix('SHA-256 of the ')}"
            console.print(Text(f"SHA-256, {where}: {value}"), soft_wrap=True)
    console.print(Text(f"llorch {info['llorch']}, instruction set {info['isa']}, {info['cpu']}"), soft_wrap=True)


def show_failed(result: Result, console: Console) -> None:
    for check in result.checks:
        if check.status == "fail":
            console.print(Text(f"FAIL  {check.name}: {check.measured}", style=STYLES["fail"]))
            console.print(Text(f"      {check.what} {check.detail}".rstrip()))


def show_summary(report: Report, console: Console) -> None:
    """A line for each checkpoint, and what failed: for a run whose main thing is another."""
    for result in report.results:
        style = STYLES["pass" if result.holds else "fail"]
        console.print(Text(f"kernels, {line(result)}", style=style), soft_wrap=True)
        show_failed(result, console)
    console.print(Text("every check of the kernels: llorch validate --kernels", style="dim"))


def line(result: Result) -> str:
    return f"{result.title[0].lower()}{result.title[1:]}: {summary(result.counts)}"


def plain(value: Any) -> Any:
    """The same as JSON values: tuples as lists, infinities and NaN as strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_json(content: dict[str, Any]) -> str:
    return json.dumps(plain(content), indent=1, allow_nan=False) + "\n"


def content(report: Report) -> dict[str, Any]:
    """Everything, machine readable."""

    def counted(counts: Counter[str]) -> dict[str, int]:
        return {key: counts[key] for key in STYLES}

    return {
        "holds": report.holds,
        "date": report.date,
        "seconds": round(report.seconds, 2),
        "summary": counted(report.counts),
        "machine": machine(),
        "libraries": report.versions,
        "command": COMMAND,
        "checkpoints": [
            {
                "title": result.title,
                "input": result.input,
                "holds": result.holds,
                "seconds": round(result.seconds, 2),
                "summary": counted(result.counts),
                "hashes": result.hashes,
                "checks": [asdict(check) for check in result.checks],
            }
            for result in report.results
        ],
    }


def as_markdown(report: Report) -> str:
    """The report for a second person: what was compared, the tables, hashes, versions, how to repeat it."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    def outcome(result: Result | Report) -> str:
        return f"{'Everything that ran holds' if result.holds else '**Something failed**'}: {summary(result.counts)}"

    info = machine()
    lines = [
        "# llorch validate",
        "",
        f"{outcome(report)}, in {report.seconds:.1f} s, on {report.date}.",
        "",
        "To repeat it, in a checkout of the version below:",
        "",
        f"    {COMMAND}",
    ]
    for result in report.results:
        lines += [
            "",
            f"## {result.title}",
            "",
            f"{outcome(result)}, in {result.seconds:.1f} s.",
            "",
            "Input:",
            "",
            f"    {result.input}",
            "",
            "| hash | SHA-256 of little-endian float32 |",
            "| --- | --- |",
            *(f"| {name.removeprefix('SHA-256 of the ')} | `{value}` |" for name, value in result.hashes.items()),
        ]
        for group, checks in groupby(result.checks, key=lambda check: check.group):
            lines += [
                "",
                f"### {group}",
                "",
                "| status | check | measured | bound | what |",
                "| --- | --- | --- | --- | --- |",
            ]
            for check in checks:
                what = f"{check.what} {check.detail}".strip()
                cells = (check.status, check.name, check.measured, check.bound, what)
                lines.append("| " + " | ".join(map(cell, cells)) + " |")
    lines += ["", "## Versions and machine", "", "| | |", "| --- | --- |"]
    for key, value in (info | report.versions).items():
        shown = ", ".join(value) if isinstance(value, tuple) else str(value)
        lines.append(f"| {key} | {cell(shown)} |")
    return "\n".join(lines) + "\n"
