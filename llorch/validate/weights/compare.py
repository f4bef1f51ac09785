"""Every tensor of two models, beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llorch._text import printable, shown
from llorch.models import loading
from llorch.models.graph import Graph, Parameter, Step
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.network import Progress, silent
from llorch.validate.weights import files
from llorch.validate.weights.files import Fused, Part, Side, Unreadable
from llorch.validate.weights.relations import Relation, explain
from llorch.validate.weights.values import WEIGHED, Fit, Values, fit, same_bits

SAMPLES = 64  # values of each tensor that are kept, to find one that is in another's place
LIKE = 0.97  # their correlation, from which on the two tensors are looked at
# What an engine may do to all its weights, whose file says nothing of it: ways to lay them out, and 1 + w.
LAYOUTS = {"pairs", "halves", "order", "by_head", "by_part", "interleaved", "apart", "transposed", "each transposed"}


@dataclass(frozen=True)
class Row:
    """What was found of one tensor.

    name, layer, kind : the graph's whole name; the block, None outside; the name within it. a, b : what the files call
    it, "" where it isn't there. formats : of both. verdict : "same bits", "same values", "rounded", "quantised",
    "permuted", "transposed", "scaled", "shifted", "part", "repeated", "another's", "missing", "unknown", "unreadable",
    "unclear" or "different". alike : True, False, or None where nobody can tell. says : in words. fit : of the two, or
    of what the relation makes of A's beside B's. found : the numbers of a relation. joined : whether one file has in
    one tensor what the other has in several.
    """

    name: str
    layer: int | None
    kind: str
    a: str
    b: str
    formats: tuple[str, str]
    verdict: str
    alike: bool | None
    says: str = ""
    fit: Fit | None = None
    found: dict[str, Any] = field(default_factory=dict)
    joined: bool = False


@dataclass(frozen=True)
class WeightComparison:
    """What `compare_weights` found. alike : False if a tensor differs, None if none does that can be compared, but some
    can't be. unknown : names in A and in B that are no parameter's."""

    a: str
    b: str
    family: str
    rows: list[Row]
    unknown: tuple[list[str], list[str]]
    notes: list[str] = field(default_factory=list)

    @property
    def alike(self) -> bool | None:
        found = {row.alike for row in self.rows}
        return False if False in found else None if None in found else True

    @property
    def first(self) -> Row | None:
        """The first that isn't alike."""
        return next((row for row in self.rows if row.alike is False), None)


@dataclass(frozen=True)
class _Unit:
    """One line of the comparison: the pieces of both sides that are compared, none where it isn't there."""

    name: str
    layer: int | None
    kind: str
    parameter: Parameter | None
    keys: tuple[tuple[str, ...], tuple[str, ...]]
    parts: tuple[Part, ...] = ()
    tied: bool = False

    @property
    def left_out(self) -> bool:
        """Whether a file needn't have it."""
        return self.parameter is None or self.parameter.optional is not None or self.tied


def compare_weights(a: str | Path, b: str | Path, *, progress: Progress = silent) -> WeightComparison:
    """Two models, tensor by tensor.

    Parameters
    ----------
    a, b : path
        A folder in Hugging Face's format, a GGUF file, a hub id, or a .safetensors or .npz file of another engine. One
        of the two must be a model, whose graph says what there is.
    progress : function of (done, of)

    Returns
    -------
    WeightComparison, a Row a tensor in the graph's order.

    Raises
    ------
    OSError, ValueError, TypeError
        As `llorch.CausalLM.from_pretrained`, but for tensors that are missing, unknown, or of another shape: that is
        what is looked for. ValueError where neither is a model.
    """
    sides = files.open_side(a), files.open_side(b)
    reference = next((side for side in sides if side.graph is not None), None)
    if reference is None or reference.graph is None or reference.family is None:
        raise ValueError(
            f"neither {sides[0].name} nor {sides[1].name} says what model it is: one of them must be a folder with "
            "config.json or a GGUF file"
        )
    for side in sides:
        files.find(side, reference)
    if empty := next((side for side in sides if not side.pieces), None):
        known = dict.fromkeys(empty.unknown)
        raise ValueError(
            f"{empty.name} has no tensor whose name is known for a {reference.family.name}: it has "
            f"{loading.some([*known]) or 'none'}"
        )
    units = list(_units(reference.graph, sides))
    rows, samples = [], ({}, {})  # type: tuple[list[Row], tuple[dict[str, _Sample], dict[str, _Sample]]]
    units = [unit for unit in units if any(unit.keys) or not unit.left_out]
    for i, unit in enumerate(units):
        rows.append(_row(unit, sides, samples))
        progress(i + 1, len(units))
    rows = [_placed(row, unit, sides, samples, units) for row, unit in zip(rows, units, strict=True)]
    rows = _consistent(rows, sides)
    for i, side in enumerate(sides):
        if side.kind == "free":
            continue
        for name in side.unknown:
            there = (shown(name), "") if i == 0 else ("", shown(name))
            says = f"the model of {'B' if i == 0 else 'A'} has no such tensor"
            rows.append(Row(shown(name), None, shown(name), *there, ("", ""), "unknown", False, says))
    unknown = tuple([printable(name) for name in side.unknown] for side in sides)
    notes = [*_settings(*sides)]
    return WeightComparison(sides[0].name, sides[1].name, reference.family.name, rows, unknown, notes)  # type: ignore[arg-type]


# ---- what is compared with what -------------------------------------------------------------------------------------


def _units(graph: Graph, sides: tuple[Side, Side]) -> Iterator[_Unit]:
    """Every parameter; of a layer that one file has whole and the other in parts, the whole."""
    have = tuple({*side.pieces} for side in sides)
    whole: dict[str, tuple[Fused, bool]] = {}  # by every name of it
    parameters = {name for name, _, _ in graph.all_parameters()}
    for fused in files.fused_layers(graph):
        apart = [all(name in names for name in fused.names) for names in have]
        together = [fused.whole in names for names in have]
        if any(together) and (any(apart) or fused.whole not in parameters):
            whole |= dict.fromkeys((fused.whole, *fused.names), (fused, True))
        elif fused.whole in parameters and any(apart):
            whole |= dict.fromkeys((fused.whole, *fused.names), (fused, False))
    done = set()
    for layer, steps in ((None, (*graph.before, *graph.after)), *enumerate(graph.blocks)):
        prefix = "" if layer is None else graph.prefix(layer)
        for parameter in graph.parameters if layer is None else graph.block_parameters:
            weight, _, _ = parameter.name.rpartition(".")
            name = prefix + parameter.name
            if weight not in {step.weight for step in steps} and weight not in _tables(graph):
                continue
            if name not in whole:
                yield _unit(graph, sides, name, layer, parameter, steps)
                continue
            fused, one = whole[name]
            if fused.whole not in done:
                done.add(fused.whole)
                if one:
                    keys = tuple((fused.whole,) if fused.whole in names else fused.names for names in have)
                    there = tuple(key if all(k in n for k in key) else () for key, n in zip(keys, have, strict=True))
                    kind = fused.whole.removeprefix(prefix)
                    own = parameter if name == fused.whole else None
                    yield _Unit(fused.whole, layer, kind, own, there, fused.parts)  # type: ignore[arg-type]
                else:  # both have the parts alone
                    for part, key in zip(fused.parts, fused.names, strict=True):
                        there = tuple((key,) if key in names else () for names in have)
                        moved = replace(part, first=0)
                        yield _Unit(key, layer, key.removeprefix(prefix), None, there, (moved,))  # type: ignore[arg-type]
    for key in dict.fromkeys(key for names in have for key in names):  # such as a bias that the graph doesn't have
        if key not in parameters and key not in whole:
            there = tuple((key,) if key in names else () for names in have)
            yield _Unit(key, None, key, None, there)  # type: ignore[arg-type]


def _tables(graph: Graph) -> set[str]:
    """Parameters outside the blocks that an option of a step names."""
    options = (step.options.get("position_bias") for steps in graph.blocks for step in steps)
    return {name for name in options if name}


def _unit(
    graph: Graph, sides: tuple[Side, Side], name: str, layer: int | None, parameter: Parameter, steps: Sequence[Step]
) -> _Unit:
    weight, _, _ = parameter.name.rpartition(".")
    there: list[tuple[str, ...]] = []
    tied = False
    for side in sides:
        key: tuple[str, ...] = (name,) if name in side.pieces else ()
        if not key and (side.kind != "free" or parameter.optional):
            stands = parameter.optional or _stands(side, parameter)
            if stands and stands in side.pieces:
                key, tied = (stands,), True
        there.append(key)
    if all(key != (name,) for key in there):
        there = [(), ()]  # neither has it
    parts = tuple(files.parts_of(graph, steps, weight))
    return _Unit(name, layer, parameter.name, parameter, (there[0], there[1]), parts, tied)


def _stands(side: Side, parameter: Parameter) -> str:
    """What a file has in the place of a parameter that it leaves out, by its own configuration."""
    if side.graph is None:
        return ""
    own = next((p for _, gguf, p in side.graph.all_parameters() if gguf and gguf == parameter.gguf), None)
    if own is None or not own.optional:
        return ""
    return own.optional


# ---- one tensor ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    shape: tuple[int, ...]
    values: Array


def _sample(values: Values) -> _Sample:
    flat = values.x.reshape(-1)
    at = np.linspace(0, max(flat.size - 1, 0), min(SAMPLES, flat.size)).astype(int)
    return _Sample(values.x.shape, flat[at].astype(np.float64))


def _row(unit: _Unit, sides: tuple[Side, Side], samples: tuple[dict[str, _Sample], dict[str, _Sample]]) -> Row:
    names = tuple(files.source_names(side, keys) for side, keys in zip(sides, unit.keys, strict=True))
    formats = tuple(_format(side, keys) for side, keys in zip(sides, unit.keys, strict=True))
    joined = {len(keys) for keys in unit.keys} == {1, len(unit.parts)} and len(unit.parts) > 1

    def row(verdict: str, alike: bool | None, says: str = "", **more: Any) -> Row:
        return Row(
            unit.name, unit.layer, unit.kind, names[0], names[1], (formats[0], formats[1]), verdict, alike, says,
            joined=joined, **more,
        )  # fmt: skip

    if not all(unit.keys):
        return _absent(unit, sides, row)
    try:
        a, b = (files.read_joined(side, keys) for side, keys in zip(sides, unit.keys, strict=True))
    except (Unreadable, ModuleNotFoundError) as error:
        return row("unreadable", None, str(error))
    for values, kept in zip((a, b), samples, strict=True):
        kept[unit.name] = _sample(values)
    a, b = _lined_up(a, b)
    tie = "; one has the embedding for it, which it is tied to" if unit.tied else ""
    if same_bits(a, b):
        return row("same bits", True, tie.removeprefix("; "))
    straight = fit(a, b) if a.x.shape == b.x.shape else None
    if straight is not None and straight.holds:
        plain = a.blocks is None and b.blocks is None and a.made is None and b.made is None
        verdict = "same values" if straight.equal else "rounded" if plain else "quantised"
        return row(verdict, True, _within(straight, plain) + tie, fit=straight)
    relation = explain(a, b, unit.parts)
    if relation is not None:
        return _related(relation, unit, sides, row)
    if straight is not None and (a.grid is not None or b.grid is not None):
        loose = fit(a, b, times=WEIGHED)
        if loose.holds:
            says = f"up to {straight.worst:.1f} times the bound"
            if any(side.weighed for side in sides):
                return row("quantised", True, f"with an importance matrix, {says}", fit=loose)
            says = f"{says} of its format: a quantiser that weighs some values against others may leave that"
            return row("unclear", None, says, fit=straight)
    return row("different", False, _difference(a, b, straight), fit=straight)


def _format(side: Side, keys: Sequence[str]) -> str:
    return "+".join(dict.fromkeys(side.pieces[key].format or "" for key in keys)) if keys else ""


def _lined_up(a: Values, b: Values) -> tuple[Values, Values]:
    """Without axes of one, where their numbers differ by those alone."""
    if a.x.ndim != b.x.ndim:
        lean = [tuple(n for n in one.x.shape if n != 1) for one in (a, b)]
        if lean[0] == lean[1]:
            return a.moved(lambda x: x.reshape(lean[0])), b.moved(lambda x: x.reshape(lean[0]))
    return a, b


def _absent(unit: _Unit, sides: tuple[Side, Side], row: Callable[..., Row]) -> Row:
    if not any(unit.keys):
        return row("missing", False, "in neither")
    i = 0 if not unit.keys[0] else 1
    side, letter = sides[i], "AB"[i]
    optional = unit.parameter is not None and unit.parameter.optional == ""
    if optional:
        return row("missing", False, f"{letter} leaves it out")
    if side.kind == "free" and side.unknown:
        more = loading.some(side.unknown)
        return row("missing", None, f"{letter} has none by a name that is known; not known are {more}")
    return row("missing", False, f"{letter} doesn't have it")


def _within(found: Fit, plain: bool) -> str:
    if found.equal:
        return ""
    if plain:
        return f"at most {found.largest:.1e} apart"
    return f"at most {found.worst:.2f} of half a step, {found.largest:.1e}"


def _related(relation: Relation, unit: _Unit, sides: tuple[Side, Side], row: Callable[..., Row]) -> Row:
    says, alike = relation.says, False
    if relation.verdict == "permuted" and relation.found.get("move") in ("pairs", "halves"):
        says = _rotation(relation.found["move"], unit, sides)
    if relation.verdict == "part" and relation.found["first"] and relation.found["first"] in _firsts(unit, sides):
        alike, says = True, f"one has {relation.found['first']} rows more at the beginning, which no position has"
    if not relation.fit.equal:
        rest = f"at most {relation.fit.worst:.2f} of what the formats may do"
        says = f"{says}; {rest}" if relation.verdict not in ("scaled", "shifted") else says
    return row(relation.verdict, alike, says, fit=relation.fit, found=relation.found)


def _firsts(unit: _Unit, sides: tuple[Side, Side]) -> set[int]:
    """Of a table of positions, the rows of position 0."""
    graphs = [side.graph for side in sides if side.graph is not None]
    embeddings = [step for graph in graphs for step in graph.before if step.op == "embedding"]
    mine = {step.inputs for step in embeddings if f"{step.weight}.weight" == unit.name}
    return {step.options.get("first", 0) for step in embeddings if step.inputs in mine}


def _rotation(key: str, unit: _Unit, sides: tuple[Side, Side]) -> str:
    """Which of the two has the pairs of a head as they shouldn't be."""
    turned = " and ".join(part.name.rpartition(".")[2] for part in unit.parts if part.rotated)
    told = [side.pieces[keys[0]].parameter for side, keys in zip(sides, unit.keys, strict=True)]
    odd = [bool(side.kind == "gguf" and p is not None and p.interleaved) for side, p in zip(sides, told, strict=True)]
    if odd[0] != odd[1] and all(side.kind != "free" for side in sides):
        letter = "AB"[odd.index(True)]
        as_they_lie = (key == "halves") == odd[1]  # the reader made halves of what were halves
        if as_they_lie:
            where = f"are in halves in {letter}, as in Hugging Face's files, and must lie side by side there"
            return f"{turned}: the rotated pairs {where}"
        return f"{turned}: the rotated pairs of {letter} were laid side by side twice"
    if key == "pairs":
        return f"{turned}: B has the rotated pairs of each head side by side, A in halves"
    return f"{turned}: B has the rotated pairs of each head in halves, A side by side"


def _difference(a: Values, b: Values, straight: Fit | None) -> str:
    """How much, and where first."""
    for letter, values in (("A", a), ("B", b)):
        if not values.finite:
            count = int((~np.isfinite(values.x)).sum())
            return f"{letter} has {count:,} of {values.x.size:,} values that aren't finite" + _first(straight)
        if values.x.size and not values.x.any():
            return f"{letter} has zeros alone"
    if straight is None:
        return f"shape {a.x.shape} in A, {b.x.shape} in B"
    share = f"{straight.wrong:,} of {straight.size:,} values" + _first(straight)
    return f"{share}; at most {straight.largest:.1e} apart, relative L2 {straight.relative:.1e}"


def _first(found: Fit | None) -> str:
    if found is None or not found.wrong:
        return ""
    return f", the first at {list(found.first)}: {found.theirs[0]:.6g}, B has {found.theirs[1]:.6g}"


# ---- what one tensor alone doesn't tell ----------------------------------------------------------------------------


def _placed(
    row: Row,
    unit: _Unit,
    sides: tuple[Side, Side],
    samples: tuple[dict[str, _Sample], dict[str, _Sample]],
    units: Sequence[_Unit],
) -> Row:
    """A tensor of B that is another one of A's."""
    if row.verdict != "different" or unit.name not in samples[1]:
        return row
    mine = samples[1][unit.name]
    others = {other.name: other for other in units}
    for name, sample in samples[0].items():
        if name == unit.name or sample.shape != mine.shape or not _like(sample, mine):
            continue
        try:
            a = files.read_joined(sides[0], others[name].keys[0])
            b = files.read_joined(sides[1], unit.keys[1])
        except Unreadable:
            continue
        found = fit(a, b)
        if found.holds:
            return replace(row, verdict="another's", says=f"it is A's {name}", fit=found, found={"tensor": name})
    return row


def _like(a: _Sample, b: _Sample) -> bool:
    x, y = a.values - a.values.mean(), b.values - b.values.mean()
    size = float(np.sqrt(np.sum(x * x) * np.sum(y * y)))
    return bool(size > 0 and np.sum(x * y) > LIKE * size)


def _consistent(rows: list[Row], sides: tuple[Side, Side]) -> list[Row]:
    """Another engine may lay out its weights as it likes, but all blocks alike: what most of them have is its way."""
    if all(side.kind != "free" for side in sides):
        return rows

    def way(row: Row) -> tuple[str, str] | None:
        if row.verdict in ("same bits", "same values", "rounded", "quantised"):
            return "", ""
        move = str(row.found.get("move", ""))
        if row.verdict in ("permuted", "transposed", "repeated") and "order" not in row.found:
            return row.verdict, move
        if row.verdict == "shifted" and abs(row.found["offset"]) == 1.0:
            return row.verdict, str(row.found["offset"])
        return None

    ways: dict[str, Counter[tuple[str, str]]] = {}
    for row in rows:
        if (found := way(row)) is not None:
            ways.setdefault(row.kind, Counter())[found] += 1
    changed = []
    for row in rows:
        found = way(row)
        if found is None:
            changed.append(row)
            continue
        counts = ways[row.kind]
        most = max(counts, key=lambda one: (counts[one], one == ("", "")))
        if found == most:
            changed.append(replace(row, alike=True))
        else:
            unlike = "unlike the other blocks" if row.says else "not laid out as in the other blocks"
            changed.append(replace(row, alike=False, says=f"{row.says}, {unlike}" if row.says else unlike))
    return changed


def _settings(a: Side, b: Side) -> Iterator[str]:
    """What the two files say besides their weights, where that makes another computation."""
    if a.graph is None or b.graph is None:
        return
    names = {"E": "width", "V": "vocabulary", "H": "heads", "G": "heads of keys", "D": "width of a head"}
    names |= {"F": "width of the feed-forward layer"}
    for letter, name in names.items():
        one, other = a.graph.sizes.get(letter), b.graph.sizes.get(letter)
        if one != other:
            yield f"beside the weights: {name} is {one} in A, {other} in B"
    if len(a.graph.blocks) != len(b.graph.blocks):
        yield f"beside the weights: {len(a.graph.blocks)} blocks in A, {len(b.graph.blocks)} in B"
    if len(a.graph.ropes) == len(b.graph.ropes):
        for one_rope, other_rope in zip(a.graph.ropes.values(), b.graph.ropes.values(), strict=True):
            if np.float32(one_rope.base) != np.float32(other_rope.base):
                yield f"beside the weights: the rotation's base is {one_rope.base:g} in A, {other_rope.base:g} in B"
            if one_rope.width != other_rope.width:
                yield f"beside the weights: {one_rope.width} values of a head are rotated in A, {other_rope.width} in B"
    told = set()
    for one_steps, other_steps in zip(a.graph.blocks, b.graph.blocks, strict=False):
        others = {step.name: step for step in other_steps}
        for step in one_steps:
            mine, theirs = step.options, others[step.name].options if step.name in others else {}
            for option in ("eps", "window", "softcap", "function"):
                x, y = mine.get(option), theirs.get(option)
                if option in mine and option in theirs and not _same(x, y) and (step.name, option) not in told:
                    told.add((step.name, option))
                    yield f"beside the weights: {option} of {step.name} is {shown(x)} in A, {shown(y)} in B"


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, float) and isinstance(y, float):
        return bool(np.float32(x) == np.float32(y))
    return bool(x == y)
