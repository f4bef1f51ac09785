"""Faults before the blocks and after them: embeddings, positions, the head, and what is made of logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from llorch.models.graph import Step
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.faults.attention import softmax16, solve_cap
from llorch.validate.ladder.faults.change import (
    ROUNDED,
    Change,
    Evidence,
    Fault,
    Part,
    Solved,
    earlier,
    options,
    rounded,
    tap,
    weight,
)
from llorch.validate.ladder.faults.linear import read_transposed
from llorch.validate.ladder.network import Network, State, Tap

FRESH = "head-fresh"


def of(part: Part) -> Iterator[Fault]:
    if part.where == "before":
        yield from _embeddings(part)
    if part.where == "after":
        yield from _head(part)


# ---- before ------------------------------------------------------------------------------------------------------


def _embeddings(part: Part) -> Iterator[Fault]:
    for step in part.of_op("embedding"):
        name, chosen = step.weight, step.inputs[0]
        table = name.rpartition(".")[2]
        if chosen == "positions":
            says = f"positions begin at 1: {table} is read one row too far"
            yield from _outside(part, "position-plus-1", says, step, _rows(step, lambda p: p + 1))
            if first := step.options.get("first"):
                says = f"positions begin at row 0 of {table}, not at {first}"
                yield from _outside(part, "position-first", says, step, _rows(step, _less(first)))
            yield from _outside(part, "position-0", "every token has position 0", step, _rows(step, lambda p: p * 0))
            yield from _outside(part, f"no-{table}", f"{table} is not added", step, lambda y, state: np.zeros_like(y))
        if chosen == "token_types":
            says = f"{table} is not added: token types are missing"
            yield from _outside(part, "no-token-types", says, step, lambda y, state: np.zeros_like(y))
            if part.network.graph.sizes["Y"] > 1:
                says = "tokens are of type 1, not 0"
                yield from _outside(part, "token-type-1", says, step, _rows(step, lambda p: p + 1))
        if chosen == "ids":
            factor = step.options.get("factor", 1.0)
            root = math.sqrt(part.network.graph.sizes["E"])
            if factor != 1.0:
                says = f"token embeddings are not multiplied by {factor:.6g}"
                change = options(part, step.name, factor=1.0)
                yield from part.fault("embed-not-scaled", says, step.name, change)
            if abs(factor - root) > 0.01:
                says = "token embeddings are multiplied by sqrt(n_embd)"
                change = options(part, step.name, factor=root)
                yield from part.fault(f"{table}-scaled", says, step.name, change)


def _less(first: int) -> Callable[[Array], Array]:
    return lambda places: places - first


def _outside(part: Part, key: str, says: str, step: Step, change: Tap) -> Iterator[Fault]:
    yield from part.fault(key, says, step.name, tap(part, step.name, change))


def _rows(step: Step, places: Callable[[Array], Array]) -> Tap:
    """Other rows of a table."""

    def change(y: Array, state: State) -> Array:
        table = state.network.weights[f"{step.weight}.weight"]
        at = state.tensors[step.inputs[0]] + step.options.get("first", 0)
        found: Array = table[np.clip(places(at), 0, len(table) - 1)].astype(y.dtype)
        return found

    return change


# ---- after -------------------------------------------------------------------------------------------------------


def _head(part: Part) -> Iterator[Fault]:
    if not part.network.graph.decodes:
        return
    graph = part.network.graph
    head = part.of_op("linear")[-1]
    name = f"{head.weight}.weight"
    parameter = part.parameter(name)
    tied = parameter.optional if parameter is not None and parameter.optional else ""
    table = next(step.weight for step in graph.before if step.op == "embedding" and step.inputs == ("ids",))

    def outside(key: str, says: str, shows: str, change: Change) -> Fault:
        return Fault(key, says, shows, change, in_block=False)

    if tied:
        says = f"the head is not tied to {table}: a matrix that was never loaded, independent values of one spread"
        yield outside(FRESH, says, head.name, weight(part, name, _fresh))
        says = f"the head is zero: it was not tied to {table}"
        yield outside("head-zero", says, head.name, weight(part, name, np.zeros_like))
    says = f"{head.weight if not tied else table} is read as (n_embd, vocab_size) for the head, instead of transposed"
    yield outside("head-not-transposed", says, head.name, weight(part, name, read_transposed))

    def tie(network: Network, layer: int) -> None:
        network.weights[name] = network.weights[f"{table}.weight"]

    if not np.shares_memory(part.network.weights[name], part.network.weights[f"{table}.weight"]):
        says = f"the head is {table}, the file has its own {name}"
        yield outside("head-tied", says, head.name, tie)
    for kind, rounding in ROUNDED.items():
        says = f"the head's weights were rounded to {kind}"
        yield Fault(f"head-weights-{kind}", says, head.name, weight(part, name, rounding), in_block=False, faint=True)
    for step in part.of_op("softcap"):
        says = f"{step.name} has no softcap, of {step.options['cap']:g}"
        change = tap(part, step.name, earlier(step.inputs[0]))
        yield from part.fault(f"no-{step.name}-softcap", says, step.name, change)
    for place, which in ((0, "first"), (-2, "last but one")):
        says = f"the row of the {which} position is taken for the last"
        yield outside(f"row-{place}", says, "last_logits", tap(part, "last_logits", _row(place)))
    yield outside("argmin", "the smallest logit's id is taken", "argmax", tap(part, "argmax", _argmin))
    says = "the softmax is in float16 and doesn't subtract the maximum"
    yield outside("probs-softmax-float16", says, "probs", tap(part, "probs", _probabilities16))
    for kind, rounding in ROUNDED.items():
        says = f"probabilities are rounded to {kind}"
        change = tap(part, "probs", rounded(kind))
        yield Fault(f"probs-{kind}", says, "probs", change, in_block=False, grid=rounding)

    def later(by: int) -> Change:
        def put(network: Network, layer: int) -> None:
            network.later = by

        return put

    for by, which in ((1, "are one too far"), (-1, "are one too near: the first new token has the prompt's last")):
        says = f"positions of new tokens {which}"
        yield Fault(f"decode-position{by:+d}", says, "generated", later(by), in_block=False, decoding=True, faint=True)


def _fresh(w: Array) -> Array:
    """A matrix that was never loaded: as transformers initialises it."""
    random = np.random.default_rng(20261125)
    return random.standard_normal(w.shape).astype(np.float32) * np.float32(0.02)


def _probabilities16(p: Array, state: State) -> Array:
    with np.errstate(all="ignore"):
        return softmax16(False)(state.tensors["last_logits"].astype(np.float64)).astype(p.dtype)


def _row(place: int) -> Tap:
    def change(last: Array, state: State) -> Array:
        logits = state.tensors["logits"]
        y: Array = logits[max(place, -len(logits))]
        return y

    return change


def _argmin(best: Array, state: State) -> Array:
    return np.array(np.argmin(state.tensors["last_logits"]), np.int64)


# ---- numbers -----------------------------------------------------------------------------------------------------


def solvable(part: Part) -> Iterator[Solved]:
    for step in part.of_op("softcap"):
        cap = step.options["cap"]

        def solve(evidence: Evidence, cap: float = cap) -> Iterable[float]:
            return solve_cap(evidence, cap)

        def says(value: float, cap: float = cap) -> str:
            return f"the softcap of logits is {value:.6g}, not {cap:g}"

        def change(value: float, step: Step = step) -> Change:
            return options(part, step.name, cap=value)

        samples = cap * 1.6, cap * 0.8
        yield from part.solved(f"{step.name}-softcap", step.name, says, change, solve, samples, near=cap)
