"""Faults of the feed-forward layer, of sums and of the numbers that tensors are multiplied by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llorch.models.graph import FUNCTIONS, Step
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.faults.change import Fault, Part, earlier, options, tap
from llorch.validate.ladder.network import State, Tap

NAMES = {"gelu": "gelu (erf)", "gelu_tanh": "gelu_new (tanh)"}
KEYS = {"gelu_tanh": "gelu_new"}


def of(part: Part) -> Iterator[Fault]:
    for step in part.of_op("activation"):
        yield from _activations(part, step)
    for step in part.of_op("multiply"):
        yield from _product(part, step)
    if part.where == "block":
        for step in part.of_op("add"):
            yield from _sum(part, step)
    for step in part.of_op("scale", "divide"):
        (number,) = step.options.values()
        what = "multiplied" if step.op == "scale" else "divided"
        says = f"{step.inputs[0]} is not {what} by {number:.6g}"
        yield from part.fault(f"{step.name}-not-scaled", says, step.name, tap(part, step.name, earlier(step.inputs[0])))
        says = f"{step.inputs[0]} is {'divided' if step.op == 'scale' else 'multiplied'} by {number:.6g}, not {what}"
        change = tap(part, step.name, _inverse(step, number))
        yield from part.fault(f"{step.name}-inverse", says, step.name, change)


def _inverse(step: Step, number: float) -> Tap:
    def change(y: Array, state: State) -> Array:
        x = state.tensors[step.inputs[0]]
        found: Array = (x / number if step.op == "scale" else x * number).astype(y.dtype)
        return found

    return change


def _activations(part: Part, step: Step) -> Iterator[Fault]:
    own = step.options["function"]
    shown = NAMES.get(own, own)
    before = "" if part.where == "block" else f"{step.name}-"
    for other in FUNCTIONS:
        if other != own:
            says = f"the activation is {NAMES.get(other, other)}, not {shown}"
            key = f"{before}activation-{KEYS.get(other, other)}"
            yield from part.fault(key, says, step.name, options(part, step.name, function=other))
    says = f"the activation is x sigmoid(1.702 x), not {shown}"
    yield from part.fault(f"{before}activation-quick-gelu", says, step.name, tap(part, step.name, _quick_gelu(step)))
    says = f"there is no activation, of {shown}"
    yield from part.fault(f"{before}activation-none", says, step.name, tap(part, step.name, earlier(step.inputs[0])))


def _quick_gelu(step: Step) -> Tap:
    def change(y: Array, state: State) -> Array:
        x = state.tensors[step.inputs[0]]
        with np.errstate(over="ignore"):
            gated: Array = (x / (1 + np.exp(-1.702 * x.astype(np.float64)))).astype(x.dtype)
        return gated

    return change


def _product(part: Part, step: Step) -> Iterator[Fault]:
    a, b = step.inputs
    yield from part.fault("product-no-up", f"{a} is not multiplied by {b}", step.name, tap(part, step.name, earlier(a)))
    says = f"{b} is not multiplied by {a}"
    yield from part.fault("product-no-gate", says, step.name, tap(part, step.name, earlier(b)))
    made = part.named(a)
    if made.op == "activation":
        says = f"the activation is of {b}, not of {made.inputs[0]}"
        gate, function = made.inputs[0], made.options["function"]

        def change(y: Array, state: State) -> Array:
            return state.tensors[gate] * state.arithmetic.activation(state.tensors[b], function)

        yield from part.fault("activation-of-up", says, step.name, tap(part, step.name, change))


def _sum(part: Part, step: Step) -> Iterator[Fault]:
    """One of two that are added is left out; the block's input for what came after it."""
    came, made = _came_and_made(part, step)
    name, key = step.name, step.name or "output"
    if came == "x":
        says = f"the sum with the block's input is missing in {name or 'the output'}"
        yield from part.fault(f"{key}-no-input", says, name, tap(part, name, earlier(made)))
    else:
        says = f"{came} is not added to {made}"
        yield from part.fault(f"{key}-no-{came}", says, name, tap(part, name, earlier(made)))
    yield from part.fault(f"{key}-no-{made}", f"{made} is not added to {came}", name, tap(part, name, earlier(came)))
    if came not in ("x", made) and part.named(came).op in ("add", "layer_norm", "rms_norm") and made != "x":

        def from_input(y: Array, state: State) -> Array:
            found: Array = state.tensors["x"] + state.tensors[made]
            return found

        says = f"{made} is added to the block's input, not to {came}"
        yield from part.fault(f"{key}-from-input", says, name, tap(part, name, from_input))


def _came_and_made(part: Part, step: Step) -> tuple[str, str]:
    """Of a sum what came in, and what the layer made."""
    a, b = step.inputs
    order = ["x", *(one.name for one in part.steps)]
    return (a, b) if order.index(a) < order.index(b) else (b, a)
