"""llama.cpp's text of its tensors, as llama-eval-callback and llama-debug print it.

A line says a tensor's name, type, operation and shape; then come its values in brackets, to four decimals and with the
middle left out of every axis that is longer than six; then their sum. So a part of each tensor is known, and what it
sums up to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llorch.validate.ladder.distance import Array

# ggml_debug: Qcur-0 = (f32) MUL_MAT(blk.0.attn_q.weight{576, 576, 1, 1}, attn_norm-0{576, 5, 1, 1}}) = {576, 5, 1, 1}
TENSOR = re.compile(
    r"\b\w+: +(?P<name>\S.{0,99}?) = \((?P<type>\w+)\) +(?P<op>[\w ]{1,40})\(.*\) = "
    r"\{(?P<ne>\d{1,12}(?:, ?\d{1,12}){0,3})\}",
    re.ASCII,
)
SUM = re.compile(r"\bsum = (?P<sum>[-+\w.]+)", re.ASCII)
TOKEN = re.compile(r"\[|\]|\.\.\.|[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|inf|nan)", re.ASCII)
VALUES = re.compile(r"[\s\[\],.\d+\-einfa]*", re.ASCII)  # a line of brackets and numbers
TYPES = "f32", "f16", "bf16"
ROTATED = re.compile(r"(Q|K)cur-(\d+)", re.ASCII)
OUTPUT = re.compile(r"kqv_out-(\d+)", re.ASCII)
PRODUCTS = "MUL_MAT", "ADD"  # what makes the attention's output; the context is made by others


@dataclass
class Shown:
    """A tensor of the text. shape : in NumPy's order. at, values : what is shown, and where, as flat indices. total :
    the sum that is printed, None without one."""

    name: str
    op: str
    shape: tuple[int, ...]
    at: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    total: float | None = None

    def array(self) -> Array:
        """float32, NaN where nothing is shown; a NaN that is shown is infinite, as wrong as it was."""
        found = np.full(self.shape, np.nan, np.float32)
        shown = np.array(self.values, np.float32)
        found.reshape(-1)[self.at] = np.where(np.isnan(shown), np.inf, shown)
        return found


def looks_like(beginning: bytes) -> bool:
    """Whether a file that begins so may be such a text: every other has a zero byte in its first eight."""
    return b"\0" not in beginning[:64]


def read(path: Path) -> dict[str, Shown]:
    """The tensors of the text by their names, of the first evaluation that has the most positions. Queries and keys
    behind their rotation are Qcur_rope and Kcur_rope; kqv_out is kqv_merged_cont or attn_out, by what makes it."""
    with path.open(encoding="utf-8", errors="replace") as file:
        runs = _runs(_tensors(file))
    return max(runs, key=_positions, default={})


def _tensors(lines: Iterable[str]) -> Iterator[Shown]:
    current: Shown | None = None
    state: _Place | None = None
    for line in lines:
        if match := TENSOR.search(line):
            if current is not None:
                yield current
            ne = [int(n) for n in match["ne"].split(",")]
            ne += [1] * (4 - len(ne))
            wanted = match["type"].lower() in TYPES and 0 < math.prod(ne) < 2**40
            current = Shown(match["name"], match["op"].strip(), tuple(ne[::-1])) if wanted else None
            state = _Place(current) if current is not None else None
        elif current is not None and state is not None:
            if match := SUM.search(line):
                with suppress(ValueError):
                    current.total = float(match["sum"])
                state = None
            else:
                state.take(line)
    if current is not None:
        yield current


class _Place:
    """Where the values of a line stand. A bracket opens the next axis, of which "..." leaves the middle out; the
    outermost axis has none of its own."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self.index = [0]  # along each axis so far

    def take(self, line: str) -> None:
        if not VALUES.fullmatch(line):
            return
        shape, index = self.shown.shape, self.index
        for token in TOKEN.findall(line):
            if token == "[":
                index.append(0)
            elif token == "]":
                if len(index) > 1:
                    index.pop()
                    index[-1] += 1
            elif len(index) > len(shape):
                continue
            elif token == "...":  # as many at the end as before
                index[-1] = max(index[-1], shape[len(index) - 1] - index[-1])
            elif len(index) == len(shape):
                if all(i < n for i, n in zip(index, shape, strict=True)):
                    self.shown.at.append(int(np.ravel_multi_index(index, shape)))
                    self.shown.values.append(float(token))
                index[-1] += 1


def _runs(tensors: Iterable[Shown]) -> list[dict[str, Shown]]:
    """By evaluations: a new one begins where the first tensor's name and operation come again."""
    runs: list[dict[str, Shown]] = []
    first = None
    for shown in tensors:
        if first is None:
            first = shown.name, shown.op
        if not runs or (shown.name, shown.op) == first:
            runs.append({})
        runs[-1][_own_name(shown)] = shown
    return runs


def _own_name(shown: Shown) -> str:
    """Where one name is several tensors', one for each."""
    if shown.op == "ROPE" and (match := ROTATED.fullmatch(shown.name)):
        return f"{match[1]}cur_rope-{match[2]}"
    if match := OUTPUT.fullmatch(shown.name):
        return f"{'attn_out' if shown.op in PRODUCTS else 'kqv_merged_cont'}-{match[1]}"
    return shown.name


def _positions(run: dict[str, Shown]) -> int:
    """How many tokens were evaluated together: the rows of the first tensor, the embedding."""
    return next((shown.shape[2] for shown in run.values()), 0)
