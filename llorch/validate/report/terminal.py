"""What the ladder's commands print, and their JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llorch.validate.ladder import dumps
from llorch.validate.ladder import rungs as ladder
from llorch.validate.ladder.compare import Comparison, Row
from llorch.validate.ladder.run import Ladder, Step
from llorch.validate.ladder.selftest import Case
from llorch.validate.report.kernels import machine

NAME = 32  # characters of their name for a tensor
GOOD, BAD, DIM = "green", "bold red", "dim"


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
    return "exact" if row.allowed == ladder.EXACT else f"{row.allowed:.0e}".replace("e-0", "e-")


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
    console.print(Text(f"{result.model}, prompt {result.prompt!r}: {len(result.ids)} tokens", style="bold"))
    with_peer = result.peer is not None
    peer = (">transformers", ">ULP", ">rel. L2", "allowed") if with_peer else ()
    table = _table(">rung", "tensor", "bits", ">noise", *peer)
    for name, members in _groups(result.steps, layers):
        differing = sum(step.differing for step in members)
        bits = Text(f"{differing:,} DIFFER", style=BAD) if differing else Text("equal", style=GOOD)
        cells: list[Any] = [_rung(members), name, bits, _small(max(step.floor.absolute for step in members))]
        rows = [step.peer for step in members if step.peer is not None]
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
    console.print(Text(f"text: {result.text!r}" if result.text else f"new tokens: {result.generated}"))
    if result.missing:
        console.print(Text(f"transformers: {result.missing}; llorch was compared with its oracle alone", "yellow"))
    if result.peer is not None and result.peer.first is not None:
        show_divergence(result.peer, console)
    wrong = sum(step.differing > 0 for step in result.steps)
    size = len(result.steps)
    parts = [f"llorch = oracle: {size - wrong} of {size} tensors, bit for bit"]
    if result.peer is not None:
        bad = sum(row.status == "diverges" for row in result.peer.rows)
        parts.append(f"transformers {result.versions.get('transformers', '')}: {size - bad} of {size} within tolerance")
    took = ", ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    console.print(Text("; ".join(parts), style=GOOD if result.holds else BAD))
    console.print(Text(took, style=DIM))
    console.print(Text(f"model SHA-256 {result.sha256}", style=DIM), soft_wrap=True)


def show_divergence(comparison: Comparison, console: Console) -> None:
    """The first tensor that diverges, how, and the diagnosis."""
    first = comparison.first
    if first is None:
        return
    source = dumps.printable(first.source)
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
        source = dumps.printable(worst.source) if len(members) == 1 and worst.source != name else ""
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


def show_self_test(cases: Sequence[Case], console: Console, seconds: float, *, quiet: bool = False) -> bool:
    """A line for each fault (quiet: that wasn't caught); whether all were caught."""
    table = _table("", "fault", "blocks", "first divergence", "diagnosis")
    for case in cases:
        if case.caught and quiet:
            continue
        where = "" if not case.layers else str(case.layers[0])
        if len(case.layers) > 1:
            where = f"{case.layers[0]}-{case.layers[-1]}"
        status = Text("ok", style=GOOD)
        if not case.caught:
            status = Text("MISS" if case.visible else "unseen", style=BAD)
        found = case.found if case.found == case.wanted else f"{case.found}, wanted {case.wanted}"
        table.add_row(status, case.says, where, found, case.diagnosis)
    console.print(table)
    caught = sum(case.caught for case in cases)
    faults = len({case.key for case in cases}) - 1
    good = caught == len(cases)
    console.print(
        Text(
            f"{caught} of {len(cases)} found at the right tensor by the right name: {faults} faults and a control, "
            f"in {seconds:.1f} s",
            style=GOOD if good else BAD,
        )
    )
    return good


# ---- JSON ----------------------------------------------------------------------------------------------------


def row_json(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": row.tensor.name,
        "rung": row.tensor.rung.number,
        "layer": row.tensor.layer,
        "status": row.status,
    }
    if row.status != "absent":
        found |= {
            "theirs": row.source,
            "note": row.note,
            "against": row.against or "ours",
            "tolerance": row.allowed,
            "max_abs": row.absolute,
            "ulp": row.ulp,
            "relative_l2": row.relative,
            "worst_index": row.worst,
            "their_value": row.theirs,
            "our_value": row.ours,
            "beyond_tolerance": row.wrong,
            "values": row.size,
        }
    return found


def comparison_json(result: Comparison) -> dict[str, Any]:
    found = result.diagnosis
    return {
        "holds": result.holds,
        "theirs": result.theirs,
        "ours": result.ours,
        "first_divergence": row_json(result.first) if result.first else None,
        "diagnosis": None
        if found is None
        else {
            "fault": found.key,
            "says": found.says,
            "layers": found.layers,
            "where": found.where,
            "relative_l2": found.distance,
            "relative_l2_without": found.healthy,
            "also": found.also_keys,
        },
        "trials": result.tried,
        "notes": result.notes,
        "unknown": result.unknown,
        "tensors": [row_json(row) for row in result.rows],
    }


def step_json(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": step.tensor.name,
        "rung": step.tensor.rung.number,
        "layer": step.tensor.layer,
        "shape": step.tensor.shape,
        "tolerance": step.tensor.tolerance,
        "bits_differing_from_oracle": step.differing,
        "float32_noise": vars(step.floor),
    }
    if step.peer is not None and step.peer_error is not None:
        found |= {"transformers": row_json(step.peer), "transformers_error": vars(step.peer_error)}
    return found


def ladder_json(result: Ladder) -> dict[str, Any]:
    return {
        "holds": result.holds,
        "model": result.model,
        "model_sha256": result.sha256,
        "prompt": result.prompt,
        "ids": result.ids,
        "generated": result.generated,
        "text": result.text,
        "first_divergence": result.first.name if result.first else None,
        "transformers": result.missing or "compared",
        "diagnosis": comparison_json(result.peer)["diagnosis"] if result.peer else None,
        "seconds": {name: round(value, 2) for name, value in result.seconds.items()},
        "versions": result.versions,
        "machine": machine(),
        "tensors": [step_json(step) for step in result.steps],
    }


def self_test_json(cases: Sequence[Case]) -> dict[str, Any]:
    return {"holds": all(case.caught for case in cases), "cases": [vars(case) for case in cases]}
