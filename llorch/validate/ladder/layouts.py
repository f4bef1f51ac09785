"""Lines their tensors up with llorch's: names, parts of a fused tensor, order of axes, room for more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llorch._text import shown
from llorch.models.graph import Graph
from llorch.validate.ladder import rungs
from llorch.validate.ladder.distance import Aligned, Array, comparable, relative, same_bits
from llorch.validate.ladder.dumps import Dump, names_of
from llorch.validate.ladder.names import FUSED, Names, canonical
from llorch.validate.ladder.rungs import Tensor, block_name


def align(theirs: Dump, ours: Dump, names: Mapping[str, str] | None = None) -> tuple[dict[str, Aligned], list[str]]:
    """Their tensors by the ladder's names, and their names that are none of the ladder's.

    names: theirs to the ladder's, before anything is guessed. ValueError for one that isn't there, isn't the ladder's,
    or is given twice.
    """
    layers, T = len(ours.graph.blocks), len(ours.ids)
    wanted = {tensor.name: tensor for tensor in rungs.tensors(ours, T)}
    given = dict(names or {})
    known = {*wanted, *(block_name(i, FUSED) for i in range(layers))}
    theirs_to_ours = Names.of(ours.graph)
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
        found: str | None = given.get(source) or canonical(source, theirs_to_ours)
        shape = theirs.shape(source)
        if found is None or (found.startswith("*.") and shape[:1] != (layers,)):
            unknown.append(source)
        else:
            pieces.append(_Piece(0 if source in given else 1 if source == found else 2, found, source, shape))
    _check_count(pieces, theirs.name)
    result: dict[str, Aligned] = {}
    for piece in sorted(pieces, key=lambda piece: piece.rank):
        for name, read in _read(piece, theirs, ours, wanted):
            chosen = result.setdefault(name, read)
            if chosen is not read and chosen.source not in given and not _alike(read, chosen):
                chosen.passed.append(piece.source)
    return result, unknown


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


def _cached(tensor: Tensor) -> bool:
    return tensor.rung.name == "cache"


def _read(piece: _Piece, theirs: Dump, ours: Dump, wanted: Mapping[str, Tensor]) -> Iterator[tuple[str, Aligned]]:
    """The ladder's tensors of a piece, in llorch's shape; not read if they can't be."""
    graph, stacked = ours.graph, piece.name.startswith("*.")
    kind = piece.name[2:]
    whole = [block_name(i, kind) for i in range(len(graph.blocks))] if stacked else [piece.name]
    fused = piece.name.endswith(FUSED)
    parts = [[name[:-3] + letter for letter in "qkv"] if fused else [name] for name in whole]
    size = math.prod(piece.shape) // len(whole)
    if size > sum(most_values(wanted[name], ours.config.context) for name in parts[0]):
        shape = piece.shape[1:] if stacked else piece.shape
        empty = np.empty((0,) * 9)  # a shape that no tensor of the ladder has
        yield from ((n, Aligned(empty, piece.source, fits=False, unread=shape)) for names in parts for n in names)
        return
    values = theirs.arrays[piece.source]
    for i, name in enumerate(whole):
        array = values[i] if stacked else values
        split = _thirds(name, array, graph, ours.arrays, wanted) if fused else [(name, array)]
        for found, part in split:
            if found == "logits" and ours.shape("ids") != (1,) and part.ndim and part.size == part.shape[-1]:
                found = "last_logits"
            yield found, _line_up(part, wanted[found], ours.arrays[found], graph, piece.source)


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
        if s.transpose(order).shape == lean:
            straight = order == tuple(range(s.ndim))
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


def _slots(s: Array, T: int, E: int, H: int, D: int) -> Iterator[tuple[Array, str]]:
    """A cache, and the first T slots of one that has room for more."""
    yield s, ""
    if s.ndim == 3 and s.shape[1] > T and (s.shape[0], s.shape[2]) == (H, D):
        yield s[:, :T], f"the first {T} of {s.shape[1]} slots, "
    if s.ndim == 3 and s.shape[0] > T and s.shape[1:] == (H, D):
        yield s[:T], f"the first {T} of {s.shape[0]} slots, "
    if s.ndim == 2 and s.shape[0] > T and s.shape[1] == E:
        yield s[:T], f"the first {T} of {s.shape[0]} slots, "


def _line_up(values: Array, tensor: Tensor, ours: Array, graph: Graph, source: str) -> Aligned:
    """The reading that stands first, unless another is much nearer to ours."""
    best: tuple[float, Aligned] | None = None
    for array, note, last in _readings(values, tensor, graph):
        read = Aligned(array, source, note, last)
        distance = relative(*comparable(read, tensor, ours)[:2])
        if best is None or distance < 0.5 * best[0]:
            best = distance, read
    if best is None:
        return Aligned(values, source, fits=False)
    return best[1]
