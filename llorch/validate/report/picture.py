"""Where in a tensor the error sits: a picture of positions and channels, as SVG with everything in it."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape

import numpy as np

from llorch.validate.ladder import distance
from llorch.validate.ladder.distance import Aligned, Array
from llorch.validate.ladder.rows import limits
from llorch.validate.ladder.rungs import Tensor

WIDTH, LEFT, TOP, FOOT = 1040, 64, 22, 44
MOST_COLUMNS, MOST_ROWS = 960, 480  # pixels; what is more is put together, the largest error of each stands for it
# Colours of errors in powers of ten of the tolerance: within it greys and blues, beyond it yellow to red.
STOPS = (
    (-3.0, (236, 240, 244)),
    (-0.01, (96, 150, 216)),
    (0.0, (250, 204, 76)),
    (2.0, (228, 92, 40)),
    (4.0, (130, 8, 50)),
)
NAMES = {"T": "position", "S": "key", "E": "channel", "D": "channel", "F": "channel", "Q": "channel", "R": "channel",
         "V": "token", "H": "head", "G": "head"}  # fmt: skip


@np.errstate(all="ignore")
def picture(read: Aligned, tensor: Tensor, want: Array, tolerance: float) -> str:
    """Their tensor beside what it should be: rows are positions, columns the values of one; heads stand side by side.
    "" for one without positions or without values, or of another shape."""
    theirs, ours, finite = distance.comparable(read, tensor, want)
    if theirs.shape != ours.shape or ours.ndim < 2 or not ours.size:
        return ""
    off = distance.differences(theirs, ours)
    level = np.log10(off / np.maximum(limits(tensor, ours, finite, tolerance), 1e-30))
    level = np.nan_to_num(level, nan=4.0, posinf=4.0, neginf=-3.0)
    heads = level.shape[0] if level.ndim == 3 else 1
    flat = level.transpose(1, 0, 2).reshape(level.shape[1], -1) if level.ndim == 3 else level
    first = off.transpose(1, 0, 2).reshape(flat.shape) if level.ndim == 3 else off
    shrunk = _shrunk(flat)
    rows, columns = flat.shape
    height = min(max(rows * 14, 60), 420)
    inside = WIDTH - LEFT - 12
    axis = NAMES.get(tensor.axes[-1], "value")
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {TOP + height + FOOT}" role="img" '
        f'aria-label="Where in {escape(tensor.name)} the error sits">',
        f'<image x="{LEFT}" y="{TOP}" width="{inside}" height="{height}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{_png(_coloured(shrunk))}"/>',
    ]

    def text(x: float, y: float, content: str, anchor: str = "middle") -> None:
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>')

    begin = rows - 1 if read.last else 0
    for row in dict.fromkeys(int(i) for i in np.linspace(0, rows - 1, min(rows, max(2, height // 28)))):
        shown = "last" if read.last else str(row + begin)
        text(LEFT - 8, TOP + height * (row + 0.5) / rows + 4, shown, "end")
    text(8, TOP - 8, NAMES.get(tensor.axes[-2], "row"), "start")
    for head in range(heads if heads > 1 else 0):
        left = LEFT + inside * head / heads
        if head:
            parts.append(
                f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{TOP - 14}" y2="{TOP + height}" stroke="var(--ink)" '
                'stroke-width="0.8"/>'
            )
        text(left + inside / heads / 2, TOP - 8, f"head {head}")
    if heads == 1:
        for column in dict.fromkeys(int(i) for i in np.linspace(0, columns - 1, 9)):
            text(LEFT + inside * (column + 0.5) / columns, TOP + height + 15, str(column))
    worst = np.unravel_index(int(np.argmax(first)), first.shape)
    x, y = LEFT + inside * (worst[1] + 0.5) / columns, TOP + height * (worst[0] + 0.5) / rows
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="var(--ink)" stroke-width="1.6"/>')
    where = f"{axis} of each {NAMES['H']}" if heads > 1 else axis
    joined = f"; {columns} in {shrunk.shape[1]} pixels" if shrunk.shape[1] < columns else ""
    text(LEFT + inside / 2, TOP + height + 34, f"{where}{joined}; the circle is at the largest error")
    return "\n".join([*parts, "</svg>", _legend()])


def _shrunk(level: Array) -> Array:
    """At most so many rows and columns, each with the largest of what it stands for."""
    for axis, most in ((0, MOST_ROWS), (1, MOST_COLUMNS)):
        size = level.shape[axis]
        if size > most:
            edges = np.linspace(0, size, most + 1).astype(int)[:-1]
            level = np.maximum.reduceat(level, edges, axis=axis)
    return level


def _coloured(level: Array) -> Array:
    """(rows, columns) as (rows, columns, 3) of uint8."""
    at = [stop for stop, _ in STOPS]
    channels = [np.interp(level, at, [colour[i] for _, colour in STOPS]) for i in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _png(pixels: Array) -> str:
    """(rows, columns, 3) of uint8 as a PNG file in base64. https://www.w3.org/TR/png-3/"""
    rows, columns, _ = pixels.shape
    lines = np.zeros((rows, 1 + 3 * columns), np.uint8)  # each begins with its filter, none
    lines[:, 1:] = pixels.reshape(rows, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def _legend() -> str:
    marks = ((-3.0, "a thousandth of the tolerance or less"), (-0.01, "just within it"), (0.0, "just beyond it"),
             (2.0, "100 times"), (4.0, "10,000 times or more"))  # fmt: skip
    colours = [_coloured(np.array([[level]]))[0, 0] for level, _ in marks]
    shown = (
        f'<span><b style="color: rgb({r},{g},{b})">&#9632;</b> {words}</span>'
        for (r, g, b), (_, words) in zip(colours, marks, strict=True)
    )
    return f'<p class="key lead">{"".join(shown)}</p>'
