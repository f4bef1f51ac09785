"""Lines their tensors up with llorch's: names, parts of a fused tensor, order of axes, room for more."""

from __future__ import annotations

import itertools
import math
import re
from collections import ChainMap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from llorch._text import shown
from llorch.models.graph import Graph
from llorch.validate.ladder import rungs
from llorch.validate.ladder.distance import Aligned, Array, comparable, relative, same_bits
from llorch.validate.ladder.dumps import Dump, names_of
from llorch.validate.ladder.eval_callback import Shown
from llorch.validate.ladder.names import FUSED, GATE_UP, PRODUCT, WEIGHTS, canonical
from llorch.validate.ladder.network import Float64
from llorch.validate.ladder.rows import measure
from llorch.validate.ladder.rungs import Tensor, block_name


def align(theirs: Dump, ours: Dump, names: Mapping[str, str] | None = None) -> tuple[dict[str, Aligned], list[str]]:
    """Their tensors by the ladder's names, and their names that are none of the ladder's.

    names: theirs to the ladder's, before anything is guessed. ValueError for one that isn't there, isn't the ladder's,
    or is given twice.
    """
    layers = len(ours.graph.blocks)
    wanted = {tensor.name: tensor for tensor in ours.tensors}
    given = dict(names or {})
    known = {*wanted, *(block_name(i, kind) for i in range(layers) for kind in (FUSED, GATE_UP))}
    named = {source: canonical(source, ours.names) for source in theirs.arrays}
    certain = {*given.values(), *(name for name in named.values() if name is not None and "|" not in name)}
    first: dict[str, str] = {}
    for source, name in given.items():
        if source not in theirs.arrays:
            raise ValueError(f"the map names {shown(source)}, {theirs.name} doesn't have it")
        if name not in known:
            raise ValueError(f"the map gives {shown(source)} the name {shown(name)}, which is not the ladder's")
        if first.setdefault(name, source) != source:
            raise ValueError(f"the map gives both {shown(first[name])} and {shown(source)} the name {name}")
    pieces: list[_Piece] = []
    unknown = []
    for source in theirs.arrays:
        found: str | None = given.get(source) or named[source]
        shape = theirs.shape(source)
        if found is not None and "|" in found:
            found = _which(found.split("|"), source, theirs, ours, wanted, certain)
        if found is not None and source not in given and _shadowed(source, theirs):
            found = None
        if found is not None and found.endswith(WEIGHTS) and found not in wanted:
            found = None
        if source in theirs.shown and not theirs.shown[source].at:
            found = None  # of which nothing can be compared
        if found is None or (found.startswith("*.") and shape[:1] != (layers,)):
            unknown.append(source)
        else:
            pieces.append(_Piece(0 if source in given else 1 if source == found else 2, found, source, shape))
    _check_count(pieces, theirs.name)
    result: dict[str, Aligned] = {}
    for piece in sorted(pieces, key=lambda piece: piece.rank):
        for name, read in _read(piece, theirs, ours, wanted):
            chosen = result.setdefault(name, read)
            if chosen is not read and chosen.source not in given and not (read.partial or _alike(read, chosen)):
                chosen.passed.append(piece.source)
    _take_pairs(result, ours, wanted)
    return result, unknown


def with_weights(theirs: Dump, ours: Dump) -> Dump:
    """Ours with the attention weights that theirs has, the softmax of our scores."""
    asked = {canonical(source, ours.names) for source in theirs.arrays}
    tensors, more = [], {}
    for tensor in ours.tensors:
        tensors.append(tensor)
        name = block_name(tensor.layer or 0, WEIGHTS)
        if tensor.axes == "HTS" and name in asked and name not in ours.arrays:
            more[name] = Float64().softmax(ours.arrays[tensor.name].astype(np.float64))
            tensors.append(rungs.weights_of(tensor, name))
    return replace(ours, arrays=ChainMap(more, ours.arrays), ladder=tensors) if more else ours  # type: ignore[arg-type]


def _shadowed(source: str, theirs: Dump) -> bool:
    """Whether llama.cpp has the same with its bias, its scale or its weight in the dump too."""
    match = BIASED.fullmatch(source)
    other = "" if match is None else f"{match[1]}_b-{match[2]}"
    return (other or FINISHED.get(source)) in theirs.arrays


FINISHED = {"embd": "inp_scaled", "inp_embd": "inp_scaled", "norm": "result_norm"}
BIASED = re.compile(r"(\w{1,40})-([0-9]{1,5})", re.ASCII)


def _which(
    names: Sequence[str], source: str, theirs: Dump, ours: Dump, wanted: Mapping[str, Tensor], certain: Collection[str]
) -> str | None:
    """Which of several tensors theirs is: the first that it agrees with. Where it agrees with none it is wrong,
    whichever it is, and taken for the context, or for what was computed last: a dump by names has that."""
    names = [name for name in names if name in wanted]
    # Of queries and keys what has a name of its own in the dump isn't meant by the other.
    names = [name for name in names if name not in certain or wanted[name].kind == "attn.context"] or names
    fallback = next((name for name in names if wanted[name].kind == "attn.context"), names[-1] if names else None)
    most = [most_values(wanted[name], ours.config.context) * _times(wanted[name], ours) for name in names]
    size = max(most, default=0)
    if math.prod(theirs.shape(source)) > size:
        return fallback
    values = theirs.arrays[source]
    for name in names:
        tensor, mine = wanted[name], ours.arrays[name]
        read = _line_up(values, tensor, mine, ours.graph, source, theirs.shown.get(source))
        if read.fits and (_agrees(read, tensor, mine) or _agrees(_in_halves(read, tensor, ours.graph), tensor, mine)):
            return name
    return fallback


def _agrees(read: Aligned, tensor: Tensor, ours: Array) -> bool:
    return measure(tensor, read, ours, tensor.tolerance or tensor.loose).status == "ok"


NEARER = 0.1  # of the distance: that much nearer must another order of a head's values be


def _take_pairs(result: dict[str, Aligned], ours: Dump, wanted: Mapping[str, Tensor]) -> None:
    """Queries and keys whose rotated pairs lie side by side, as llama.cpp has those of a Llama, in halves.

    They are taken for such where what was rotated is much nearer to ours then, or without it where the scores agree:
    pairs that were left so by mistake are rotated as if they were halves, and are near to nothing. Where most blocks
    have them so, all have.
    """
    found: list[tuple[list[dict[str, Aligned]], list[bool]]] = []
    for i, steps in enumerate(ours.graph.blocks):
        makers, turned, proofs = {step.name: step for step in steps}, [], []
        for step in steps:
            if step.op != "rope":
                continue
            before = [step.inputs[0]]
            while makers[before[-1]].op in ("rms_norm", "layer_norm"):
                before.append(makers[before[-1]].inputs[0])
            behind = [one.name for one in steps if one.op == "cache" and one.inputs == (step.name,)]
            names = [block_name(i, kind) for kind in (*before, step.name, *behind)]
            others = {
                name: _in_halves(result[name], wanted[name], ours.graph)
                for name in names
                if name in result and result[name].fits and "D" in wanted[name].axes
            }
            near = {name: _apart_from(read, name, ours, wanted) for name, read in others.items()}
            nearer = [name for name in others if near[name] < NEARER * _apart_from(result[name], name, ours, wanted)]
            rotated = [name for name in names[len(before) :] if name in others]
            scores = next(block_name(i, one.name) for one in steps if one.op == "scores")
            read = result.get(scores)
            agree = read is not None and read.fits and _agrees(read, wanted[scores], ours.arrays[scores])
            turned.append(others)
            proofs.append(bool(nearer) and (all(name in nearer for name in rotated) if rotated else agree))
        found.append((turned, proofs))
    votes = [proof for _, proofs in found for proof in proofs]
    most = 2 * sum(votes) > len(votes)
    for turned, proofs in found:
        for others, proof in zip(turned, proofs, strict=True):
            if proof or most:
                result |= others


def _apart_from(read: Aligned, name: str, ours: Dump, wanted: Mapping[str, Tensor]) -> float:
    return relative(*comparable(read, wanted[name], ours.arrays[name])[:2])


def _in_halves(read: Aligned, tensor: Tensor, graph: Graph) -> Aligned:
    """The rotated values of each head, if they lie in pairs."""
    ropes = [graph.ropes[s.options["table"]].width for s in graph.fullest if s.op == "rope" and s.options["table"]]
    if not ropes or "D" not in tensor.axes:
        return read
    width = ropes[0]
    values = read.values.copy()
    pairs = read.values[..., :width]
    values[..., :width] = np.concatenate([pairs[..., ::2], pairs[..., 1::2]], axis=-1)
    note = f"{read.note}, " if read.note else ""
    return replace(read, values=values, note=f"{note}rotated pairs lay side by side")


MOST_SOURCES = 16  # tensors of theirs for one of the ladder's: hooks on a module and all that it holds are five or six


class _Piece(NamedTuple):
    """A tensor of theirs that is one of the ladder's, q, k and v in one, or a kind of every block in one."""

    rank: int  # of preference
    name: str  # h.3.ln_1, h.3.attn.qkv, *.ln_1
    source: str
    shape: tuple[int, ...]


def _check_count(pieces: Sequence[_Piece], dump: str) -> None:
    """Many names mean the same tensor, and each is read: a dump must not make that endless."""
    sources: dict[str, list[str]] = {}
    for piece in pieces:
        sources.setdefault(piece.name, []).append(piece.source)
    for name, found in sources.items():
        if len(found) > MOST_SOURCES:
            raise ValueError(f"{dump} has {len(found)} tensors for {name}, at most {MOST_SOURCES}: {names_of(found)}")


def _alike(a: Aligned, b: Aligned) -> bool:
    return a.unread is None and b.unread is None and same_bits(a.values, b.values)


def most_values(tensor: Tensor, context: int) -> int:
    """The most values that their array for a tensor can have: room in a cache and for scores up to the context, a
    padded vocabulary, new tokens behind the prompt. Any other axis is as long as llorch's, or 1."""
    size = math.prod(tensor.shape)
    if tensor.axes == "HTS" or _cached(tensor):
        return size // tensor.shape[1] * max(context, tensor.shape[1])
    if tensor.axes in ("V", "TV"):
        return size // tensor.shape[-1] * (tensor.shape[-1] + max(tensor.shape[-1], 1024))
    return max(size, context + rungs.NEW_TOKENS) if tensor.axes == "N" else size


def _times(tensor: Tensor, ours: Dump) -> int:
    """How many times its heads may be there: once for each query of a group. Of an encoder, how many times as long its
    text may be with padding."""
    sizes = ours.graph.sizes
    if not ours.graph.decodes and "T" in tensor.axes:
        return -(-ours.config.context // len(ours.ids))
    return sizes["H"] // sizes["G"] if tensor.axes == "GTD" else 1


def _cached(tensor: Tensor) -> bool:
    return tensor.rung.name == "cache"


def _read(piece: _Piece, theirs: Dump, ours: Dump, wanted: Mapping[str, Tensor]) -> Iterator[tuple[str, Aligned]]:
    """The ladder's tensors of a piece, in llorch's shape; not read if they can't be."""
    graph, stacked = ours.graph, piece.name.startswith("*.")
    kind = piece.name[2:]
    whole = [block_name(i, kind) for i in range(len(graph.blocks))] if stacked else [piece.name]
    fused = piece.name.endswith(FUSED)
    parts = [_parts(name) for name in whole]
    size = math.prod(piece.shape) // len(whole)
    if size > sum(most_values(wanted[name], ours.config.context) * _times(wanted[name], ours) for name in parts[0]):
        shape = piece.shape[1:] if stacked else piece.shape
        empty = np.empty((0,) * 9)  # a shape that no tensor of the ladder has
        yield from ((n, Aligned(empty, piece.source, fits=False, unread=shape)) for names in parts for n in names)
        return
    values, shown = theirs.arrays[piece.source], theirs.shown.get(piece.source)
    for i, name in enumerate(whole):
        array = values[i] if stacked else values
        if name.endswith(PRODUCT):
            name = name.removesuffix(PRODUCT) + "attn.scores"
            yield name, _scores(array, wanted[name], ours.arrays[name], graph, piece.source, shown is not None)
            continue
        split: Iterable[tuple[str, Array]] = [(name, array)]
        if fused:
            split = _thirds(name, array, graph, ours.arrays, wanted)
        elif name.endswith(GATE_UP):
            split = _gate_up(name, array, graph, ours.arrays, wanted)
        for found, part in split:
            if found == "logits" and ours.shape("ids") != (1,) and part.ndim and part.size == part.shape[-1]:
                found = "last_logits"
            yield found, _line_up(part, wanted[found], ours.arrays[found], graph, piece.source, shown)


def _parts(name: str) -> list[str]:
    """The ladder's tensors of a name."""
    if name.endswith(FUSED):
        return [name.removesuffix("qkv") + letter for letter in "qkv"]
    if name.endswith(GATE_UP):
        return [name.removesuffix("gate_up") + part for part in ("gate", "up")]
    return [name.removesuffix(PRODUCT) + "attn.scores" if name.endswith(PRODUCT) else name]


def _gate_up(
    name: str, values: Array, graph: Graph, ours: Mapping[str, Array], wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, Array]]:
    """Gate and up of one array: (T, 2 F), first the one and then the other, or in turns, which is much nearer then."""
    gate, up = _parts(name)
    T, F = wanted[gate].shape
    s = values.reshape([n for n in values.shape if n != 1] or [1])
    if not graph.decodes and s.ndim == 2 and s.shape[0] > T and s.shape[1] == 2 * F:
        s = s[:T]  # without padding
    if s.size != 2 * T * F or (s.ndim == 2 and s.shape not in ((T, 2 * F), (2 * F, T))):
        yield gate, values  # no reading: two tensors of a shape that doesn't fit
        yield up, values
        return
    s = s.T if s.shape == (2 * F, T) and T != 2 * F else s.reshape(T, 2 * F)
    cuts = [(s[:, :F], s[:, F:]), (s[:, ::2], s[:, 1::2])]
    apart = [relative(one[0].astype(np.float64), ours[gate].astype(np.float64)) for one in cuts]
    first, second = cuts[1] if apart[1] < 0.5 * apart[0] else cuts[0]
    yield gate, first
    yield up, second


def _scores(values: Array, tensor: Tensor, ours: Array, graph: Graph, source: str, partial: bool) -> Aligned:
    """llama.cpp's kq, (H, T, room for positions): before the mask, and the scale, unless that is in the queries."""
    H, T, _ = tensor.shape
    s = values.reshape(values.shape[1:]) if values.ndim == 4 and values.shape[0] == 1 else values
    if s.ndim != 3 or s.shape[:2] != (H, T) or s.shape[2] < T:
        return Aligned(values, source, fits=False, partial=partial)
    step = next(step for step in graph.fullest if step.op == "scores")
    scale = step.options["scale"] or 1 / math.sqrt(graph.sizes["D"])
    masked = ~np.isfinite(ours)
    found = None
    for factor, note in ((scale, "scaled and masked here"), (1.0, "masked here")):
        scaled = np.where(masked, -np.inf, s[..., :T].astype(np.float64) * factor)
        read = Aligned(scaled, source, note, partial=partial)
        distance = relative(*comparable(read, tensor, ours)[:2])
        if found is None or distance < 0.5 * found[0]:
            found = distance, read
    assert found is not None
    return found[1]


def _thirds(
    name: str, values: Array, graph: Graph, ours: Mapping[str, Array], wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, Array]]:
    """q, k and v of one array: (T, W), and where they have as many heads each (3, T, E), (3, H, T, D), (T, 3, H, D);
    with a batch axis or flat."""
    prefix, T = name.removesuffix("qkv"), len(ours["ids"])
    widths = [math.prod(wanted[prefix + letter].shape) // T for letter in "qkv"]
    W, alike = sum(widths), len({*widths}) == 1
    s: Array = values.reshape([n for n in values.shape if n != 1] or [1])
    if s.shape == (W, T) and T != W:
        s = s.T
    if not graph.decodes and s.ndim == 2 and s.shape[0] > T and s.shape[1] == W:
        s = s[:T]  # without padding
    parts: Sequence[Array]
    if s.size == W:
        parts = np.split(s.reshape(W), np.cumsum(widths)[:-1])
    elif s.size != T * W:
        parts = [values] * 3  # no reading: three tensors of a shape that doesn't fit
    elif alike and s.shape[0] == 3 and s.ndim > 1 and s.shape[-1] != W:
        parts = list(s)
        if T == s.shape[1] == 3:  # either may be the positions: what is much nearer to ours is
            near, other = (_apart(order, prefix, graph, ours, wanted) for order in (s, s.swapaxes(0, 1)))
            parts = list(s.swapaxes(0, 1) if other < 0.5 * near else s)
    else:
        parts = np.split(s.reshape(T, W), np.cumsum(widths)[:-1], axis=1)
        if alike and any(parameter.by_head for parameter in graph.block_parameters):  # as their weights may lie
            H, D = graph.sizes["H"], graph.sizes["D"]
            by_head = s.reshape(T, H, 3, D).transpose(2, 0, 1, 3).reshape(3, T, H * D)
            near, other = (_apart(order, prefix, graph, ours, wanted) for order in (np.stack(parts), by_head))
            parts = list(by_head) if other < 0.5 * near else parts
    for letter, part in zip("qkv", parts, strict=True):
        yield prefix + letter, part


def _apart(parts: Array, prefix: str, graph: Graph, ours: Mapping[str, Array], wanted: Mapping[str, Tensor]) -> float:
    """The distance of q, k and v from ours."""
    found = 0.0
    for letter, part in zip("qkv", parts, strict=True):
        tensor, right = wanted[prefix + letter], ours[prefix + letter]
        found += relative(*comparable(_line_up(part, tensor, right, graph, ""), tensor, right)[:2])
    return found


def _readings(values: Array, tensor: Tensor, graph: Graph) -> Iterator[tuple[Array, str, bool]]:
    """Ways to see an array as the tensor: (array in its shape, what was done, whether it is the last row alone)."""
    shape, axes = tensor.shape, tensor.axes
    in_heads = axes in ("HTD", "GTD")
    H, D = shape[0] if in_heads else graph.sizes["H"], graph.sizes["D"]
    E = H * D  # the heads side by side
    lean = tuple(n for n in shape if n != 1)
    s = values.reshape([n for n in values.shape if n != 1])
    if values.shape == shape:
        yield values, "", False
    if axes in ("", "T", "N"):
        flat = values.reshape(-1)
        if flat.size == int(np.prod(shape)):
            yield flat.reshape(shape), "", False
        if axes == "N" and flat.size > shape[0]:
            yield flat[: shape[0]], f"the first {shape[0]} of {flat.size}", False
            yield flat[-shape[0] :] if shape[0] else flat[:0], f"the last {shape[0]} of {flat.size}", False
        return
    for order in itertools.permutations(range(s.ndim)) if s.ndim == len(lean) else ():
        if axes == "HTS" and order[-2:] != tuple(sorted(order[-2:])):
            continue  # queries and positions are as many: exchanged, they would be another's fault
        straight = order == tuple(range(s.ndim))
        if s.transpose(order).shape == lean and not (straight and values.shape == shape):
            yield s.transpose(order).reshape(shape), "" if straight else f"axes taken in the order {order}", False
    if axes == "V" or axes == "TV":
        V = shape[-1]
        if s.ndim in (1, 2) and s.shape[-1] > V and s.shape[:-1] == tuple(n for n in shape[:-1] if n != 1):
            yield s[..., :V].reshape(shape), f"the first {V} of a padded vocabulary of {s.shape[-1]}", False
    if in_heads:
        T = shape[1]
        for part, what in _slots(s, T, E, H, D) if _cached(tensor) else ((s, ""),):
            if part.shape == (T, E) or (T == 1 and part.shape == (E,)):
                yield part.reshape(T, H, D).transpose(1, 0, 2), f"{what}the heads were side by side", False
            elif part.shape == (E, T):
                yield part.T.reshape(T, H, D).transpose(1, 0, 2), f"{what}transposed, heads side by side", False
            elif what and part.shape == shape:
                yield part, what.removesuffix(", "), False
            elif what and part.shape == (T, H, D):
                yield part.transpose(1, 0, 2), f"{what}heads second", False
        if s.ndim == 3 and s.shape[1] == T and s.shape[0] != H and s.shape[0] * s.shape[2] == E:
            whole = s.transpose(1, 0, 2).reshape(T, H, D).transpose(1, 0, 2)
            yield whole, f"there are {s.shape[0]} heads, the model has {H}", False
        yield from _once(s, T, H, D, graph)
        if T > 1 and s.size == E:
            yield s.reshape(H, 1, D), "the last position alone", True
    if axes == "HTS":
        T = shape[1]
        t = values.reshape(values.shape[1:]) if values.ndim == 4 and values.shape[0] == 1 else values
        if t.ndim == 3 and t.shape[:2] == (H, T) and t.shape[2] > T:
            yield t[..., :T], f"the first {T} of {t.shape[2]} positions", False
        if T > 1 and s.size == H * T:
            yield s.reshape(H, 1, T), "the last position alone", True
    if len(axes) == 2 and axes[0] == "T":
        T, W = shape
        if W == E and axes != "TV" and s.ndim == 3 and s.size == T * E:
            if s.shape == (H, T, D):
                yield s.transpose(1, 0, 2).reshape(shape), "the heads were apart", False
            if s.shape == (T, H, D):
                yield s.reshape(shape), "the heads were apart", False
        if T > 1 and s.shape == (W,):
            yield s.reshape(1, W), "the last position alone", True
    if s.ndim == 1 and s.size == int(np.prod(shape)):
        yield s.reshape(shape), "flat, row by row", False


def _padded(values: Array, tensor: Tensor, graph: Graph) -> Iterator[tuple[Array, str, bool, int]]:
    """Of an encoder, whose positions see what comes behind them: the readings of a text with padding, without that;
    and how much there was."""
    if graph.decodes or not {*"TS"} & {*tensor.axes}:
        return
    T = tensor.shape[tensor.axes.index("T")]
    for longer in sorted({n for n in values.shape if n > T}):
        shape = tuple(longer if axis in "TS" else n for axis, n in zip(tensor.axes, tensor.shape, strict=True))
        if math.prod(shape) != values.size:
            continue
        for array, note, last in _readings(values, replace(tensor, shape=shape), graph):
            if not last:
                cut = array[tuple(slice(T) if axis in "TS" else slice(None) for axis in tensor.axes)]
                words = f"the first {T} of {longer} positions: the others are padding"
                yield cut, f"{note}, {words}" if note else words, False, longer - T


def _once(s: Array, T: int, G: int, D: int, graph: Graph) -> Iterator[tuple[Array, str, bool]]:
    """Heads of keys or values that are there once for each query of their group, with the same bits."""
    H = graph.sizes["H"]
    if G == H or s.size != H * T * D:
        return
    heads = s
    if s.shape in ((T, H * D), (T, H, D)) and s.shape != (H, T, D):
        heads = s.reshape(T, H, D).transpose(1, 0, 2)
    if heads.shape != (H, T, D):
        return
    for whole, order in ((heads.reshape(G, H // G, T, D), "behind it"), (heads.reshape(H // G, G, T, D), "in turns")):
        groups = whole if order == "behind it" else whole.swapaxes(0, 1)
        if all(same_bits(groups[:, 0], groups[:, i]) for i in range(H // G)):
            yield groups[:, 0], f"each head {H // G} times, {order}", False


def _slots(s: Array, T: int, E: int, H: int, D: int) -> Iterator[tuple[Array, str]]:
    """A cache, and the first T slots of one that has room for more."""
    yield s, ""
    if s.ndim == 3 and s.shape[1] > T and (s.shape[0], s.shape[2]) == (H, D):
        yield s[:, :T], f"the first {T} of {s.shape[1]} slots, "
    if s.ndim == 3 and s.shape[0] > T and s.shape[1:] == (H, D):
        yield s[:T], f"the first {T} of {s.shape[0]} slots, "
    if s.ndim == 2 and s.shape[0] > T and s.shape[1] == E:
        yield s[:T], f"the first {T} of {s.shape[0]} slots, "


def _line_up(
    values: Array, tensor: Tensor, ours: Array, graph: Graph, source: str, shown: Shown | None = None
) -> Aligned:
    """The reading that stands first, unless another is much nearer to ours."""
    best: tuple[float, Aligned] | None = None
    readings = [(*found, 0) for found in _readings(values, tensor, graph)] + [*_padded(values, tensor, graph)]
    for array, note, last, more in readings:
        read = Aligned(array, source, note, last, partial=shown is not None, padded=more)
        if shown is not None and array.size == math.prod(shown.shape):
            read.total = shown.total
        if len(readings) == 1:
            return read
        distance = relative(*comparable(read, tensor, ours)[:2])
        if best is None or distance < 0.5 * best[0]:
            best = distance, read
        if distance == 0:
            break
    if best is None:
        return Aligned(values, source, fits=False, partial=shown is not None)
    return best[1]
