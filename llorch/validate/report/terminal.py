"""What the commands print."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llorch._console import SafeConsole
from llorch._text import printable, shown
from llorch.validate.kernels.common import Check
from llorch.validate.kernels.suites import KernelReport, SuiteResult, machine, summary
from llorch.validate.ladder import dumps, rungs
from llorch.validate.ladder.compare import Comparison
from llorch.validate.ladder.rows import Row
from llorch.validate.ladder.run import Ladder
from llorch.validate.ladder.selftest import Injection
from llorch.validate.weights.compare import Row as WeightRow
from llorch.validate.weights.compare import WeightComparison

WIDTH = 100
NAME = 32  # characters of their name for a tensor
GOOD, BAD, DIM = "green", "bold red", "dim"
STYLES = {"pass": GOOD, "fail": BAD, "skip": "yellow", "info": "cyan"}


def console() -> Console:
    """100 columns where the output is no terminal, and at most that in one."""
    plain = SafeConsole()
    return SafeConsole(width=min(WIDTH, plain.width) if plain.is_terminal else WIDTH)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        right = name.startswith(">")
        table.add_column(
            name.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=name != "fault"
        )
    return table


def _small(x: float) -> str:
    return "0" if x == 0 else f"{x:.1e}"


def _tolerance(row: Row) -> str:
    return "exact" if row.allowed == rungs.EXACT else f"{row.allowed:.0e}".replace("e-0", "e-")


def _note(row: Row) -> str:
    return row.note


def _groups(rows: Sequence[Any], detailed: Collection[int] | None) -> list[tuple[str, list[Any]]]:
    """One group a tensor; one a block for those that aren't shown in detail (None: all are)."""
    groups: list[tuple[str, list[Any]]] = []
    for layer, part in groupby(rows, key=lambda row: row.tensor.layer):
        members = list(part)
        if layer is None or detailed is None or layer in detailed:
            groups += [(row.tensor.name, [row]) for row in members]
        else:
            groups.append((f"h.{layer}, {len(members)} tensors", members))
    return groups


def _rung(members: Sequence[Any]) -> str:
    numbers = sorted({row.tensor.rung.number for row in members})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def show_ladder(
    result: Ladder, console: Console, layers: Collection[int] | None = (0,), *, quiet: bool = False
) -> None:
    """layers: the blocks whose every tensor has a line of its own, None for all. quiet: no table."""
    console.print(Text(f"{printable(result.model)}, prompt {result.prompt!r}: {len(result.ids)} tokens", style="bold"))
    with_peer = result.peer is not None
    peer = (">transformers", ">ULP", ">rel. L2", "allowed") if with_peer else ()
    table = _table(">rung", "tensor", "bits", ">noise", *peer)
    for name, members in _groups(result.tensors, layers):
        differing = sum(found.differing for found in members)
        bits = Text(f"{differing:,} DIFFER", style=BAD) if differing else Text("equal", style=GOOD)
        cells: list[Any] = [_rung(members), name, bits, _small(max(found.floor.absolute for found in members))]
        rows = [found.peer for found in members if found.peer is not None]
        if rows:
            worst = max(rows, key=lambda row: (row.status == "diverges", row.absolute))
            style = BAD if worst.status == "diverges" else ""
            allowed = _tolerance(worst) if len(rows) == 1 else f"{_tolerance(worst)} ({worst.tensor.kind or 'output'})"
            cells += [
                Text(_small(worst.absolute), style=style),
                f"{worst.ulp:.3g}",
                _small(worst.relative),
                Text("FAIL " if style else "") + Text(allowed, style=DIM),
            ]
        table.add_row(*cells)
    if not quiet:
        console.print(table)
        console.print(Text("bits: llorch beside its oracle. noise: the oracle's distance from float64.", style=DIM))
    if result.generated:
        console.print(Text(f"text: {result.text!r}" if result.text else f"new tokens: {result.generated}"))
    if result.missing:
        console.print(Text(f"transformers: {result.missing}; llorch was compared with its oracle alone", "yellow"))
    if result.peer is not None and result.peer.first is not None:
        show_divergence(result.peer, console)
    wrong = sum(found.differing > 0 for found in result.tensors)
    size = len(result.tensors)
    parts = [f"llorch = oracle: {size - wrong} of {size} tensors, bit for bit"]
    if result.peer is not None:
        bad = sum(row.status == "diverges" for row in result.peer.rows)
        parts.append(f"transformers {result.versions.get('transformers', '')}: {size - bad} of {size} within tolerance")
    took = ", ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    console.print(Text("; ".join(parts), style=GOOD if result.holds else BAD))
    console.print(Text(took, style=DIM))
    console.print(Text(f"model SHA-256 {result.sha256}, compute {result.compute}", style=DIM), soft_wrap=True)


def show_divergence(comparison: Comparison, console: Console) -> None:
    """The first tensor that diverges, how, and the diagnosis."""
    first = comparison.first
    if first is None:
        return
    source = shown(first.source)
    name = first.tensor.name + (f" (their {source})" if source not in ("", first.tensor.name) else "")
    console.print(Text(f"\nFirst divergence: {name}", style=BAD))
    console.print(Text(f"  {first.tensor.place}: {first.tensor.what}"))
    console.print(Text(f"  {first.how}"))
    found = comparison.diagnosis
    if found is not None:
        console.print(Text(f"  Diagnosis: {found.says}{', ' + found.where if found.where else ''}", style="bold"))
        console.print(
            Text(
                f"  Tried in the oracle it gives their tensor to {found.distance:.1e}; without it they are "
                f"{found.healthy:.1e} apart (relative L2). {comparison.tried} trials."
            )
        )
        for says in found.also:
            console.print(Text(f"  This data can't tell it from: {says}"))
        if found.left_of:
            console.print(Text(f"  {found.rest}"))
        if (then := found.then) is not None:
            where = f", {then.where}" if then.where else ""
            console.print(Text(f"  Besides: {then.says}{where}", style="bold"))
            console.print(
                Text(f"  The two give their tensor to {then.distance:.1e}, the first alone to {then.healthy:.1e}.")
            )
            for says in then.also:
                console.print(Text(f"  This data can't tell the second from: {says}"))
    elif comparison.tried:
        console.print(Text(f"  None of the {comparison.tried} faults tried in the oracle gives their tensor."))
    console.print()


def show_comparison(result: Comparison, console: Console, layers: Collection[int] | None = None) -> None:
    """A line for each tensor that they have (layers: as in show_ladder)."""
    rows = [row for row in result.rows if row.status != "absent"]
    table = _table(">rung", "tensor", "theirs", ">difference", ">ULP", ">rel. L2", "allowed")
    for name, members in _groups(rows, layers):
        worst = max(members, key=lambda row: (row.status == "diverges", row.absolute))
        bad = worst.status == "diverges"
        source = shown(worst.source) if len(members) == 1 and worst.source != name else ""
        table.add_row(
            _rung(members),
            name,
            Text(source if len(source) <= NAME else "..." + source[3 - NAME :]),
            Text("shape" if bad and not worst.size else _small(worst.absolute), style=BAD if bad else ""),
            f"{worst.ulp:.3g}" if worst.size else "",
            _small(worst.relative) if worst.size else "",
            Text("FAIL ", style=BAD) + Text(_tolerance(worst), style=DIM)
            if bad
            else Text(_tolerance(worst), style=DIM),
        )
    console.print(table)
    show_divergence(result, console)
    for note, several in groupby(sorted((row for row in rows if row.note and row.size), key=_note), key=_note):
        names = [row.tensor.name for row in several]
        console.print(Text(f"{note}: {dumps.names_of(names, 4)}", style=DIM))
    for note in result.notes:
        console.print(Text(note, style="yellow"))
    if result.unknown:
        console.print(Text(f"not of the ladder: {dumps.names_of(result.unknown, 12)}", style=DIM))
    summary = f"{result.compared} of the ladder's {len(result.rows)} tensors compared: "
    wrong = sum(row.status == "diverges" for row in rows)
    console.print(
        Text(
            summary + (f"{wrong} diverge{'s' * (wrong == 1)}" if wrong else "all agree"),
            style=GOOD if result.holds else BAD,
        )
    )


def show_self_test(injections: Sequence[Injection], console: Console, seconds: float, *, quiet: bool = False) -> bool:
    """A line for each fault (quiet: that wasn't caught); of several families one each, and a line for what wasn't.
    Whether all were caught."""
    families = list(dict.fromkeys(injection.family for injection in injections))
    if len(families) > 1:
        summary = _table("", "family", ">injected", ">found", ">lost in the tolerances")
        for family in families:
            own = [injection for injection in injections if injection.family == family]
            missed, faint = sum(not one.caught for one in own), sum(one.caught and not one.visible for one in own)
            mark = Text("MISS", style=BAD) if missed else Text("ok", style=GOOD)
            summary.add_row(mark, family, str(len(own)), str(len(own) - missed - faint), str(faint or ""))
        if not quiet:
            console.print(summary)
    table = _table("", *(["family"] if len(families) > 1 else []), "fault", "blocks", "first divergence", "diagnosis")
    for injection in injections:
        if injection.caught and (quiet or len(families) > 1):
            continue
        where = "" if not injection.layers else str(injection.layers[0])
        if len(injection.layers) > 1:
            where = f"{injection.layers[0]}-{injection.layers[-1]}"
        status = Text("ok" if injection.visible else "lost", style=GOOD)
        if not injection.caught:
            status = Text("MISS" if injection.visible else "unseen", style=BAD)
        found = (
            injection.found if injection.found == injection.wanted else f"{injection.found}, wanted {injection.wanted}"
        )
        cells = [injection.family] if len(families) > 1 else []
        table.add_row(status, *cells, injection.says, where, found, injection.diagnosis)
    if table.row_count:
        console.print(table)
    caught = sum(injection.caught for injection in injections)
    lost = sum(injection.caught and not injection.visible for injection in injections)
    faults = len({injection.key for injection in injections}) - 1
    good = caught == len(injections)
    controls = "a control" if len(families) == 1 else f"{len(families)} controls, one a family"
    lost_too = f"; {lost} of them change no more than the tolerances allow" if lost else ""
    console.print(
        Text(
            f"{caught} of {len(injections)} found at the right tensor by the right name{lost_too}: {faults} faults and "
            f"{controls}, in {seconds:.1f} s",
            style=GOOD if good else BAD,
        )
    )
    return good


# ---- weights -----------------------------------------------------------------------------------------------------

WEIGHT_NAME = 44  # characters of a tensor's name


def _together(rows: Sequence[WeightRow], *, every: bool) -> list[list[WeightRow]]:
    """Tensors of the same kind and the same verdict, which share a line if they are alike: of all blocks."""
    groups: dict[Any, list[WeightRow]] = {}
    for i, row in enumerate(rows):
        alone = every or (row.alike is not True and row.verdict == "different")
        shown = row.says if row.verdict not in ("rounded", "quantised") else ""
        key = i if alone else (row.kind, row.verdict, row.formats, row.alike, shown)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _blocks_of(group: Sequence[WeightRow]) -> str:
    """The name of a tensor, or of that of several blocks: layers.0-29.mlp.up_proj.weight."""
    row = group[0]
    if row.layer is None or len(group) == 1:
        return row.name
    numbers = [member.layer for member in group if member.layer is not None]
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    several = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    prefix = row.name.removesuffix(row.kind).removesuffix(".").removesuffix(str(row.layer))
    return f"{prefix}{several}.{row.kind}"


def show_weights(result: WeightComparison, console: Console, *, every: bool = False) -> None:
    """A line for each tensor, or for all blocks' that are alike in the same way; then how those differ that do."""
    console.print(Text(f"A {printable(result.a)}, B {printable(result.b)}: a {result.family}", style="bold"))
    styles = {True: GOOD, False: BAD, None: "yellow"}
    table = _table("tensor", "A", "B", "verdict", ">largest", ">of bound")
    for group in _together(result.rows, every=every):
        row = group[0]
        fits = [member.fit for member in group if member.fit is not None]
        inside = [fit.worst for fit in fits if fit.worst not in (0.0, float("inf"))]
        name = _blocks_of(group)
        table.add_row(
            Text(name if len(name) <= WEIGHT_NAME else "..." + name[3 - WEIGHT_NAME :]),
            *(Text(printable(format)) for format in row.formats),
            Text(row.verdict, style=styles[row.alike]),
            _small(max(fit.largest for fit in fits)) if fits else "",
            f"{max(inside):.2f}" if inside and row.verdict in ("rounded", "quantised", "unclear") else "",
        )
    console.print(table)
    told: dict[str, list[WeightRow]] = {}
    for row in result.rows:
        if row.says and row.verdict not in ("rounded", "quantised"):
            told.setdefault(row.says, []).append(row)
        elif row.joined:
            told.setdefault("in one tensor in one file, in several in the other", []).append(row)
    for says, group in told.items():
        style = DIM if group[0].alike else styles[group[0].alike]
        names = [row.name for row in group]
        verdict = "" if group[0].alike else f"{group[0].verdict}: "
        console.print(Text(f"{dumps.names_of(names, 3)}: {verdict}{says}", style=style))
    for note in result.notes:
        console.print(Text(note, style="yellow"))
    for letter, names in zip("AB", result.unknown, strict=True):
        if names:
            console.print(Text(f"not known in {letter}: {dumps.names_of(names, 12)}", style=DIM))
    if any(row.verdict == "quantised" for row in result.rows):
        words = (
            "of bound: 1 is half a step of the block's own grid and what rounding its scale moves; a value beyond the"
            " grid's range may be cut off as far as the format's quantisers do."
        )
        console.print(Text(words, style=DIM))
    size, count = len(result.rows), {key: sum(row.alike is key for row in result.rows) for key in styles}
    if result.alike:
        summary = f"{size} tensors: all alike"
    else:
        parts = [f"{count[False]} differ{'s' * (count[False] == 1)}"] if count[False] else []
        parts += [f"of {count[None]} nobody can tell"] if count[None] else []
        summary = f"{size} tensors: {', '.join(parts)}"
    console.print(Text(summary, style=styles[result.alike]))


# ---- the kernels -----------------------------------------------------------------------------------------------


def _checks(checks: list[Check], width: int) -> Table:
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


def show_kernels(report: KernelReport, console: Console, *, quiet: bool = False) -> None:
    """Prints the suites' tables in groups, the details of what failed, and the summary."""
    for result in () if quiet else report.results:
        console.print(Text(result.title, style="bold"))
        console.print(Text(result.input + "\n"))
        for group, checks in groupby(result.checks, key=lambda check: check.group):
            console.print(Text(group, style="bold"))
            console.print(_checks(list(checks), console.width))
    for result in report.results:
        if result.counts["fail"]:
            console.print(Text(result.title, style="bold"))
        show_failed(result, console)
    info = machine()
    style = "bold green" if report.holds else "bold red"
    console.print(Text(f"{summary(report.counts)} in {report.seconds:.1f} s", style=style))
    for result in report.results:
        for name, value in result.hashes.items():
            where = f"{result.title}, {name.removeprefix('SHA-256 of the ')}"
            console.print(Text(f"SHA-256, {where}: {value}"), soft_wrap=True)
    console.print(Text(f"llorch {info['llorch']}, instruction set {info['isa']}, {info['cpu']}"), soft_wrap=True)


def show_failed(result: SuiteResult, console: Console) -> None:
    for check in result.checks:
        if check.status == "fail":
            console.print(Text(f"FAIL  {check.name}: {check.measured}", style=STYLES["fail"]))
            console.print(Text(f"      {check.what} {check.detail}".rstrip()))


def show_summary(report: KernelReport, console: Console) -> None:
    """A line for each suite, and what failed: for a run whose main thing is another."""
    for result in report.results:
        style = STYLES["pass" if result.holds else "fail"]
        console.print(Text(f"kernels, {result.line}", style=style), soft_wrap=True)
        show_failed(result, console)
    console.print(Text("every check of the kernels: llorch kernels", style="dim"))
