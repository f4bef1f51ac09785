"""The kernels' report for a second person: what was compared, the tables, hashes, versions, how to repeat it."""

from __future__ import annotations

from itertools import groupby

from llorch.validate.kernels.suites import COMMAND, KernelReport, SuiteResult, machine, summary


def of_kernels(report: KernelReport) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    def outcome(result: SuiteResult | KernelReport) -> str:
        return f"{'Everything that ran holds' if result.holds else '**Something failed**'}: {summary(result.counts)}"

    info = machine()
    lines = [
        "# llorch kernels",
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
