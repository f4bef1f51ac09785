"""The report of a ladder or a comparison: one page of HTML with everything in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from itertools import groupby

import numpy as np

from llorch._text import printable, shown
from llorch.validate.kernels.suites import KernelReport
from llorch.validate.ladder import distance, dumps, layouts
from llorch.validate.ladder.compare import Comparison
from llorch.validate.ladder.diagnose import Diagnosis
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.rows import Row
from llorch.validate.ladder.run import Ladder, error, versions
from llorch.validate.ladder.rungs import Tensor
from llorch.validate.ladder.sources import Model, trace_float64
from llorch.validate.report.picture import picture

STYLE = """
:root { --ink: #1c2127; --soft: #5d6873; --line: #dde2e7; --page: #fff; --card: #f6f8fa; --theirs: #1f6feb;
  --noise: #8b949e; --limit: #bf8700; --bad: #cf222e; --good: #1a7f37 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --line: #30363d; --page: #0d1117;
  --card: #161b22; --theirs: #58a6ff; --noise: #8b949e; --limit: #d29922; --bad: #ff7b72; --good: #3fb950 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1080px;
  margin: 2em auto; padding: 0 1.2em }
h1 { font-size: 1.5em; margin: 0 } h2 { font-size: 1.12em; margin: 2.2em 0 .5em }
p.lead { margin: .3em 0 1.4em; color: var(--soft) }
.verdict { border-left: 5px solid; padding: .6em 1em; background: var(--card); border-radius: 0 6px 6px 0 }
.verdict p { margin: .15em 0 } .good { border-color: var(--good) } .bad { border-color: var(--bad) }
.good strong, td.ok { color: var(--good) } .bad strong, td.fail { color: var(--bad) }
table { border-collapse: collapse; width: 100%; font-size: 13.5px } th { text-align: left; color: var(--soft);
  font-weight: 600 } th, td { padding: .22em .8em .22em 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
code, td.name { font-family: ui-monospace, monospace; font-size: .92em; overflow-wrap: anywhere }
summary { cursor: pointer; padding: .3em 0; color: var(--soft) } details[open] summary { color: var(--ink) }
svg { width: 100%; height: auto; background: var(--card); border-radius: 6px }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
.key span { margin-right: 1.6em } .key b { font-size: 1.2em }
td:last-child, th:last-child { padding-right: 0 } .ladder table { table-layout: fixed }
.ladder th:nth-child(1) { width: 2.6em } .ladder th:nth-child(2) { width: 10.5em }
"""


@dataclass(frozen=True)
class Point:
    """One tensor: float32's own noise, the engine's distance from `base` (None: it has none), its row."""

    tensor: Tensor
    noise: float
    distance: float | None
    row: Row | None
    differing: int | None = None


# ---- the plot ------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1040, 420, 52, 12, 34, 56


def plot(points: Sequence[Point], name: str, base: str) -> str:
    """Errors over the tensors in their order, on a logarithmic scale."""
    drawn = [point for point in points if point.tensor.dtype == "float32"]
    present = [d for p in drawn for d in (p.noise, p.distance, p.tensor.tolerance) if d and math.isfinite(d)]
    low = math.floor(math.log10(max(min(present, default=1e-8), 1e-9)))
    high = max(math.ceil(math.log10(max(present, default=1e-3))), -2)

    def x(i: int) -> float:
        return LEFT + 8 + (WIDTH - LEFT - RIGHT - 16) * (i / max(len(drawn) - 1, 1))

    def y(value: float) -> float:
        level = low - 0.5 if value == 0 else high if not math.isfinite(value) else math.log10(value)
        level = min(max(level, low - 0.5), high)
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - level) / (high - low + 0.5)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Largest error of each tensor">']
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>')
    parts.append(f'<text x="{LEFT - 6}" y="{y(0) + 4:.1f}" text-anchor="end">0</text>')

    at = 0
    groups = [(layer, len(list(part))) for layer, part in groupby(drawn, key=lambda point: point.tensor.layer)]
    wide = (WIDTH - LEFT - RIGHT) / max(len(drawn), 1)
    for layer, count in groups:
        begin = x(at) - wide / 2
        if at:
            parts.append(
                f'<line x1="{begin:.1f}" x2="{begin:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="var(--line)"/>'
            )
        if layer is not None and (count * wide > 26 or layer % 4 == 0):
            middle = begin + count * wide / 2
            parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">h.{layer}</text>')
        at += count
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 12}" text-anchor="middle">tensors in the order in which they are '
        f"computed; large dots are outputs of blocks</text>"
    )

    def line(values: Sequence[tuple[int, float]], style: str) -> str:
        way = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in values)
        return f'<polyline points="{way}" fill="none" {style}/>'

    noise = [(i, point.noise) for i, point in enumerate(drawn)]
    area = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in noise)
    if noise:
        foot = y(0)
        parts.append(
            f'<polygon points="{x(0):.1f},{foot:.1f} {area} {x(len(drawn) - 1):.1f},{foot:.1f}" fill="var(--noise)" '
            'opacity="0.18"/>'
        )
    parts.append(line(noise, 'stroke="var(--noise)" stroke-width="1.2"'))
    for i, point in enumerate(drawn):
        if point.tensor.tolerance:
            a, b, height = x(i) - wide / 2, x(i) + wide / 2, y(point.tensor.tolerance)
            parts.append(
                f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{height:.1f}" y2="{height:.1f}" stroke="var(--limit)" '
                'stroke-width="1.6"/>'
            )
    theirs = [(i, point.distance) for i, point in enumerate(drawn) if point.distance is not None]
    parts.append(line([(i, d) for i, d in theirs if d is not None], 'stroke="var(--theirs)" stroke-width="1"'))
    marked = False
    for i, point in enumerate(drawn):
        if point.distance is None:
            continue
        bad = point.row is not None and point.row.status == "diverges"
        radius = 4 if point.tensor.kind == "" else 2
        colour = "var(--bad)" if bad else "var(--theirs)"
        parts.append(
            f'<circle cx="{x(i):.1f}" cy="{y(point.distance):.1f}" r="{radius + bad}" fill="{colour}"><title>'
            f"{escape(point.tensor.name)}: {name} {point.distance:.2e} from {base}, float32 noise {point.noise:.2e}"
            "</title></circle>"
        )
        if bad and not marked:
            marked = True
            anchor, shift = ("start", 6) if x(i) < WIDTH / 2 else ("end", -6)
            parts.append(
                f'<line x1="{x(i):.1f}" x2="{x(i):.1f}" y1="{TOP - 8}" y2="{HEIGHT - BOTTOM}" stroke="var(--bad)" '
                'stroke-dasharray="3 3"/>'
                f'<text x="{x(i) + shift:.1f}" y="{TOP}" text-anchor="{anchor}" '
                f'style="fill: var(--bad); font-weight: 600">first: {escape(point.tensor.name)}</text>'
            )
    key = [("theirs", f"{name}, distance from {base}"), ("noise", "noise floor: the float32 oracle's own"),
           ("limit", "tolerance of the rung")]  # fmt: skip
    legend = "".join(f'<span><b style="color: var(--{colour})">&#9632;</b> {escape(t)}</span>' for colour, t in key)
    return "\n".join([*parts, "</svg>", f'<p class="key lead">{legend}</p>'])


# ---- the page ------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """Cells are HTML already; classes: of each column."""
    kinds = [*classes, *[""] * (len(head) - len(classes))]

    def cell(tag: str, kind: str, content: str) -> str:
        return f'<{tag} class="{kind}">{content}</{tag}>' if kind else f"<{tag}>{content}</{tag}>"

    lines = ["<table><thead><tr>", *(cell("th", "n" if k == "n" else "", h) for k, h in zip(kinds, head, strict=True))]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        lines.append("<tr>" + "".join(cell("td", k, c) for k, c in zip(kinds, row, strict=True)) + "</tr>")
    return "".join(lines) + "</tbody></table>"


def rows_of(points: Sequence[Point], name: str) -> str:
    """The ladder, a folded part for each block but the first and those with a divergence."""
    bits = any(point.differing is not None for point in points)
    compared = any(point.row is not None for point in points)
    head = ["rung", "tensor", "shape"] + (["llorch = oracle"] if bits else []) + ["float32 noise"]
    head += [f"{escape(name)}", "ULP", "rel. L2", "allowed", ""] if compared else []
    classes = ["n", "name", ""] + ([""] if bits else []) + ["n"] + (["n", "n", "n", "n", ""] if compared else [])

    def cells(point: Point) -> list[str]:
        tensor, row = point.tensor, point.row
        found = [str(tensor.rung.number), tensor.name, str(list(tensor.shape))]
        if point.differing is not None:
            found.append("bit for bit" if not point.differing else f"<strong>{point.differing:,} differ</strong>")
        elif bits:
            found.append("")
        found.append(f"{point.noise:.1e}")
        if compared:
            if row is None or row.status == "absent":
                return [*found, "", "", "", "", "not there"]
            status = "ok" if row.status == "ok" else '<strong style="color: var(--bad)">diverges</strong>'
            allowed = "exact" if not row.allowed else f"{row.allowed:.0e}"
            note = f" {escape(row.note)}" if row.note else ""
            found += [f"{row.absolute:.1e}", f"{row.ulp:.3g}", f"{row.relative:.1e}", allowed, status + note]
        return found

    parts = []
    for layer, group in groupby(points, key=lambda point: point.tensor.layer):
        members = list(group)
        body = table(head, [cells(point) for point in members], classes)
        bad = any(p.differing or (p.row is not None and p.row.status == "diverges") for p in members)
        if layer is None:
            parts.append(body)
        else:
            mark = "diverges" if bad else f"{len(members)} tensors"
            opened = " open" if bad or layer == 0 else ""
            parts.append(f"<details{opened}><summary>Block {layer}: {mark}</summary>{body}</details>")
    return '<div class="ladder">' + "\n".join(parts) + "</div>"


def worst_elements(points: Sequence[Point], most: int = 10) -> str:
    rows = [p.row for p in points if p.row is not None and p.row.size and p.row.allowed]
    rows.sort(key=lambda row: -row.absolute / row.allowed)
    cells = [
        [
            row.tensor.name,
            str(list(row.worst)),
            f"{row.theirs:.9g}",
            f"{row.ours:.9g}",
            f"{row.absolute:.2e}",
            f"{row.ulp:.3g}",
            f"{row.absolute / row.allowed:.3g}",
        ]
        for row in rows[:most]
    ]
    head = ["tensor", "at", "theirs", "llorch", "difference", "ULP", "of the tolerance"]
    return table(head, cells, ["name", "", "n", "n", "n", "n", "n"])


def page(title: str, lead: str, verdict: str, good: bool, sections: Sequence[tuple[str, str]]) -> str:
    body = "\n".join(f"<h2>{escape(name)}</h2>\n{content}" for name, content in sections if content)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p class="lead">{lead}</p>
<div class="verdict {"good" if good else "bad"}">{verdict}</div>
{body}
</body></html>
"""


def said(first: Row | None, found: Diagnosis | None, tried: int) -> str:
    """The first divergence and the diagnosis, as paragraphs."""
    if first is None:
        return ""
    name, place = escape(first.tensor.name), escape(first.tensor.place)
    lines = [
        f"<p><strong>First divergence: <code>{name}</code></strong>, {place}</p>",
        f"<p>{escape(first.how)}</p>",
    ]
    if found is not None:
        where = f", {found.where}" if found.where else ""
        lines.append(f"<p><strong>Diagnosis: {escape(found.says + where)}</strong></p>")
        lines.append(
            f"<p>Tried in the oracle it gives their tensor to {found.distance:.1e}; without it they are "
            f"{found.healthy:.1e} apart (relative L2); {tried} trials.</p>"
        )
        lines += [f"<p>This data can't tell it from: {escape(says)}</p>" for says in found.also]
        if found.left_of:
            lines.append(f"<p>{escape(found.rest)}</p>")
        if (then := found.then) is not None:
            where = f", {then.where}" if then.where else ""
            lines.append(f"<p><strong>Besides: {escape(then.says + where)}</strong></p>")
            lines.append(
                f"<p>The two give their tensor to {then.distance:.1e}, the first alone to {then.healthy:.1e}.</p>"
            )
            lines += [f"<p>This data can't tell the second from: {escape(says)}</p>" for says in then.also]
    elif tried:
        lines.append(f"<p>None of the {tried} faults tried in the oracle gives their tensor.</p>")
    return "\n".join(lines)


def facts(entries: Mapping[str, str]) -> str:
    rows = [[escape(shown(name)), f"<code>{escape(printable(value))}</code>"] for name, value in entries.items()]
    return table(["", ""], rows)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def of_ladder(result: Ladder, kernels: KernelReport | None = None) -> str:
    """The page of `run_ladder`; kernels: what ran beside it."""
    points = [
        Point(
            found.tensor,
            found.floor.absolute,
            found.peer_error.absolute if found.peer_error else None,
            found.peer,
            found.differing,
        )
        for found in result.tensors
    ]
    wrong = [found for found in result.tensors if found.differing]
    size = len(result.tensors)
    verdict = f"<p><strong>llorch = oracle: {size - len(wrong)} of {size} tensors, bit for bit</strong></p>"
    if wrong:
        verdict += f"<p><strong>First wrong bits: <code>{escape(wrong[0].tensor.name)}</code></strong></p>"
    if result.peer is None:
        verdict += f"<p>transformers: {escape(result.missing)}</p>"
    else:
        bad = sum(row.status == "diverges" for row in result.peer.rows)
        version = escape(result.versions.get("transformers", ""))
        verdict += f"<p>transformers {version}: {size - bad} of {size} tensors within the tolerances</p>"
        verdict += said(result.peer.first, result.peer.diagnosis, result.peer.tried)
    if result.generated:
        verdict += f"<p>Greedy: <code>{escape(repr(result.text) if result.text else str(result.generated))}</code></p>"
    for suite in kernels.results if kernels else ():
        verdict += f"<p>Kernels, {escape(suite.line)}</p>"
    took = ", ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    prompt = f"prompt <code>{escape(repr(result.prompt))}</code>, {len(result.ids)} tokens"
    lead = f"{escape(printable(result.model))}, {prompt}; {now()}"
    entries = {
        "model SHA-256": result.sha256,
        "compute": result.compute,
        "token ids": str(result.ids),
        **result.versions,
        "time": took,
    }
    return page(
        "llorch validate",
        lead,
        verdict,
        result.holds and (kernels is None or kernels.holds),
        [
            ("Largest error of each tensor", plot(points, "transformers", "float64")),
            ("Worst elements, beside transformers", worst_elements(points) if result.peer else ""),
            ("The ladder", rows_of(points, "transformers - llorch")),
            ("Versions and hashes", facts(entries)),
        ],
    )


@np.errstate(all="ignore")
def of_comparison(
    result: Comparison, theirs: Dump, ours: Dump, model: Model | None, names: Mapping[str, str] | None = None
) -> str:
    """The page of `compare`. With a model, errors are distances from its float64 run; else from ours."""
    ours = layouts.with_weights(theirs, ours)
    reads, _ = layouts.align(theirs, ours, names)
    exact = trace_float64(model, ours.ids, ours.arrays.get("generated")) if model is not None else ours.arrays
    points = []
    for row in result.rows:
        name, off = row.tensor.name, None
        if name in reads and reads[name].fits:
            read = reads[name]
            want = exact.get(name, ours.arrays[name])
            found, right, _finite = distance.comparable(read, row.tensor, want)
            off = float(distance.differences(found, right).max(initial=0.0))
        elif name in reads:
            off = math.inf
        noise = error(row.tensor, ours.arrays[name], exact.get(name, ours.arrays[name])).absolute
        points.append(Point(row.tensor, noise, off, row))
    wrong = sum(row.status == "diverges" for row in result.rows)
    counted = f"{result.compared} of the ladder's {len(result.rows)} tensors compared"
    said_first = "All agree" if result.holds else f"{wrong} diverge" + "s" * (wrong == 1)
    verdict = f"<p><strong>{said_first}</strong>: {counted}</p>"
    verdict += said(result.first, result.diagnosis, result.tried)
    verdict += "".join(f"<p>{escape(note)}</p>" for note in result.notes)
    prompt = ours.metadata.get("prompt", "")
    lead = (
        f"<code>{escape(result.theirs)}</code> beside <code>{escape(result.ours)}</code>, "
        f"prompt <code>{escape(repr(prompt))}</code>, {len(ours.ids)} tokens; {now()}"
    )
    entries = {f"ours: {k}": v for k, v in ours.metadata.items() if k not in ("config", "prompt")}
    entries |= {f"theirs: {k}": v[:200] for k, v in theirs.metadata.items()}
    for key, value in versions().items():
        entries.setdefault(key, value)
    base = "float64" if model is not None else "llorch"
    unknown = f"<p>{escape(dumps.names_of(result.unknown, 200))}</p>" if result.unknown else ""
    where, view = "", ""
    shown_row = result.first or max(
        (row for row in result.rows if row.worst and row.allowed),
        key=lambda row: row.absolute / row.allowed,
        default=None,
    )
    if shown_row is not None and shown_row.tensor.name in reads:
        tensor = shown_row.tensor
        where = (
            f"Where the error sits in {tensor.name}, the {'first that diverges' if result.first else 'furthest off'}"
        )
        view = picture(reads[tensor.name], tensor, ours.arrays[tensor.name], shown_row.allowed or tensor.loose or 1e-5)
    return page(
        "llorch compare",
        lead,
        verdict,
        result.holds,
        [
            ("Largest error of each tensor", plot(points, "theirs", base)),
            (where, view),
            ("Worst elements", worst_elements(points)),
            ("The ladder", rows_of(points, "theirs - llorch")),
            ("Their tensors that are none of the ladder's", unknown),
            ("Versions and hashes", facts(entries)),
        ],
    )
