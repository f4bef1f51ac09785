"""How likely a model finds a text: `llorch.CausalLM.score`; and what goes on with another: `score_continuations`.

Many continuations are scored as one tree of tokens: a node is what several have in common, up to where they part or a
context ends. It is computed once, and its keys and values are forked for each that goes on from there. As a token's
logits depend on it and on what stands before it alone, these are the bits of each by itself.
"""

import dataclasses
import decimal
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch import _core
from llorch._text import counted
from llorch.text.batch import CHUNK, SEQUENCES, Prompt, encode
from llorch.text.protocol import Ids, Model, context_of
from llorch.text.sampling import EXACT, find, log_probabilities, whole

Progress = Callable[[int, int], object]  # done, of how many

SCORED = 64  # positions whose logits are looked at together


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """How likely a model finds a text.

    ids : list of int
        Its n tokens.
    log_probabilities : float64 array (n - 1,)
        Natural logarithms: of each token from the second on, by those before it. The first has nothing before it.
    """

    ids: list[int]
    log_probabilities: NDArray[np.float64]

    @cached_property
    def log_likelihood(self) -> float:
        """Their exact sum, rounded once to float64."""
        return exact_sum([self.log_probabilities])

    @cached_property
    def perplexity(self) -> float:
        """exp(-log_likelihood / (n - 1)): the quotient in float64, and the float64 nearest to its exponential."""
        return _core._in_fpenv(_perplexity, self.log_likelihood, len(self.log_probabilities))


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """How likely a model finds what goes on with a text.

    log_probabilities : float64 array (n,)
        Natural logarithms: of each of its n tokens by all before it, those of the context too.
    greedy : bool
        Whether each of them is the likeliest there; of equals that is the one with the lowest id.
    """

    log_probabilities: NDArray[np.float64]
    greedy: bool

    @cached_property
    def log_likelihood(self) -> float:
        """Their exact sum, rounded once to float64."""
        return exact_sum([self.log_probabilities])


def exact_sum(parts: Iterable[NDArray[np.float64]]) -> float:
    """The sum of all their values, rounded once to float64."""
    return _core._in_fpenv(math.fsum, [value for part in parts for value in part.tolist()])


def _perplexity(log_likelihood: float, count: int) -> float:
    return float(EXACT.exp(decimal.Decimal(-log_likelihood / count)))


def score(model: Model, text: Prompt, *, stride: int | None = None, progress: Progress | None = None) -> Score:
    """See `llorch.CausalLM.score`."""
    ids = encode(model, text, "text")
    context, count = context_of(model), len(ids)
    if stride is not None and whole(stride, "stride", 1) >= context:
        raise ValueError(f"stride is {stride}, it must be less than {context}, the context")
    if count < 2:
        raise ValueError("text has 1 token, it must have at least 2: the first has nothing before it")
    if stride is None and count > context:
        raise ValueError(
            f"text has {count} tokens, the context only {context}: give stride, and it is scored in windows, each of "
            "which begins so many tokens later"
        )
    cache = model.new_cache(min(count, context))
    parts = []
    scored = 1  # tokens that have their log-probability, and the first
    for begin in range(0, count, stride or count):
        end = min(begin + context, count)
        cache.truncate(0)
        for first in range(begin, scored - 1, CHUNK):  # what the window has of tokens that others scored
            model.step([ids[first : min(first + CHUNK, scored - 1)]], [cache])
        for first in range(scored - 1, end - 1, SCORED):
            last = min(first + SCORED, end - 1)
            logits = model.forward(ids[first:last], cache)
            parts.append(_core._in_fpenv(log_probabilities, logits, ids[first + 1 : last + 1]))
            if progress is not None:
                progress(last, count - 1)
        scored = end
        if end == count:
            break
    return Score(ids, np.concatenate(parts))


# ---- many continuations -------------------------------------------------------------------------------------


def continuations(
    model: Model, pairs: Iterable[tuple[Ids, Ids]], batch_size: int = SEQUENCES
) -> Iterator[tuple[int, Continuation]]:
    """As `llorch.CausalLM.score_continuations`, each as soon as it is known: its place in pairs, and what was found.

    Bad arguments raise at once, not with the first result.
    """
    most = whole(batch_size, "batch_size", 1)
    items = [_Item(model, pair, f"pairs[{i}]", i) for i, pair in enumerate(pairs)]
    return _walk(model, sorted(items, key=lambda item: item.ids.astype(">u4").tobytes()), most)


class _Item:
    """A pair. ids : of both. begin : where the continuation begins. read : what the model reads, all but the last."""

    __slots__ = ("begin", "greedy", "ids", "left", "logs", "place", "read")

    def __init__(self, model: Model, pair: tuple[Ids, Ids], name: str, place: int) -> None:
        try:
            context, continuation = pair
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be a context and a continuation, both of ids") from None
        before = model._ids(context, f"{name}'s context")
        after = model._ids(continuation, f"{name}'s continuation")
        self.ids = np.concatenate([before, after], dtype=np.int32, casting="unsafe")
        self.begin, self.place = len(before), place
        self.read = len(self.ids) - 1
        if self.read > context_of(model):
            raise ValueError(
                f"{name} has {counted(len(self.ids), 'token')}: without the last, which isn't read, the model has room "
                f"for {context_of(model)}"
            )
        self.logs = np.empty(len(after), np.float64)
        self.greedy, self.left = True, len(after)


class _Node:
    """The tokens [start, end) that all its items have. scored : every one of its logits is somebody's; else none, but
    perhaps the last's. at : how far it has been read. heirs : nodes that go on from it and have not begun."""

    __slots__ = ("at", "cache", "end", "heirs", "items", "parent", "scored", "start")

    def __init__(self, items: list[_Item], start: int, parent: "_Node | None") -> None:
        self.items, self.start, self.at, self.parent = items, start, start, parent
        ends = [item.begin if item.begin > start else item.read for item in items]
        self.end = _alike(items[0].ids[: min(ends)], items[-1].ids)  # sorted: these two have the least in common
        self.scored = any(item.begin <= start for item in items)
        self.cache: Any = None
        self.heirs = 0

    def open(self, model: Model, capacity: int) -> None:
        """Its cache: a new one, or what its parent has read. The last heir gets the parent's own."""
        if self.parent is None:
            self.cache = model.new_cache(capacity)
            return
        parent, self.parent = self.parent, None
        parent.heirs -= 1
        self.cache = parent.cache.fork() if parent.heirs else parent.cache

    def wanted(self, start: int, end: int) -> Iterator[tuple[int, _Item]]:
        """Of what the tokens [start, end) of it give, the positions that are looked at, and for whom."""
        for item in self.items:
            for at in range(max(start, item.begin - 1), min(end, item.read)):
                yield at, item


def _alike(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """How many tokens of the first, which is not the longer one, the other begins with."""
    differ = one != other[: len(one)]
    return int(differ.argmax()) if differ.any() else len(one)


def _parted(items: list[_Item], depth: int, parent: _Node | None) -> list[_Node]:
    """The nodes that begin after `depth` tokens, which all items have."""
    groups: dict[int, list[_Item]] = {}
    for item in items:
        if item.read > depth:
            groups.setdefault(int(item.ids[depth]), []).append(item)
    return [_Node(group, depth, parent) for group in groups.values()]


def _walk(model: Model, items: list[_Item], most: int) -> Iterator[tuple[int, Continuation]]:
    """Reads the tree, deepest first, so that few caches are held: at most `most` nodes in one call of the model."""
    capacity = max((item.read for item in items), default=0)
    ready: dict[bool, list[_Node]] = {False: [], True: []}  # by whether they are scored; the next is the last

    def put(nodes: list[_Node]) -> None:
        for node in reversed(nodes):
            ready[node.scored].append(node)

    put(_parted(items, 0, None))
    while ready[False] or ready[True]:
        rows = sum(node.end - node.at for node in ready[True][-most:])
        scored = not ready[False] or rows >= SCORED or len(ready[True]) >= most
        stack, room = ready[scored], SCORED if scored else CHUNK
        taken: list[tuple[_Node, list[int]]] = []
        while stack and room and len(taken) < most:
            node = stack.pop()
            if node.cache is None:
                node.open(model, capacity)
            ids = node.items[0].ids[node.at : min(node.end, node.at + room)].tolist()
            taken.append((node, ids))
            room -= len(ids)
        run = model.forward_batch if scored else model.step
        logits = run([ids for _, ids in taken], [node.cache for node, _ in taken])
        rows_of, found = [], []
        row = 0
        for node, ids in taken:
            begin, node.at = node.at, node.at + len(ids)
            first = begin if scored else node.at - 1  # the position of the first row that is there
            for at, item in node.wanted(first, node.at):
                rows_of.append(row + at - first)
                found.append((item, at + 1))
            row += node.at - first
        yield from _note(logits, rows_of, found)
        for node, _ in reversed(taken):
            if node.at < node.end:
                stack.append(node)
                continue
            heirs = _parted(node.items, node.end, node)
            node.heirs, node.items = len(heirs), []
            put(heirs)


def _note(
    logits: NDArray[np.float32], rows: list[int], found: list[tuple[_Item, int]]
) -> Iterator[tuple[int, Continuation]]:
    """Keeps the log-probabilities of the ids at places of items, by rows of logits; gives those that are complete."""
    if not found:
        return
    used = sorted(set(rows))
    if len(used) < len(logits):
        logits, rows = logits[used], np.searchsorted(used, rows).tolist()
    logs, greedy = _core._in_fpenv(find, logits, np.array(rows), np.array([item.ids[at] for item, at in found]))
    for (item, at), log, likeliest in zip(found, logs.tolist(), greedy.tolist(), strict=True):
        item.logs[at - item.begin] = log
        item.greedy &= likeliest
        item.left -= 1
        if not item.left:
            yield item.place, Continuation(item.logs, item.greedy)
