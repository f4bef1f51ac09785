"""Faults that ports really have, each a small change to the traced oracle's settings, derived from a family's graph.

`compare` tries them on what diverges, `self_test` injects them to see that they are found. A fault says what it is,
and in which tensor it first shows. Those with a number or an order are solved for, not listed.

    change           what a fault is, and how one is made
    norms, linear, rotation, attention, feed_forward, outside    faults, by the operation that they change
    pooling          padding, and the embedding of a text
    rounding         fewer bits, anywhere
    numbers          a constant factor or offset, another order, of any tensor
"""

from collections.abc import Iterator

from llorch.validate.ladder.faults import (
    attention,
    feed_forward,
    linear,
    norms,
    numbers,
    outside,
    pooling,
    rotation,
    rounding,
)
from llorch.validate.ladder.faults.change import OUTSIDE, Evidence, Fault, Part, Solved, bfloat16, float16
from llorch.validate.ladder.faults.outside import FRESH
from llorch.validate.ladder.network import Network

__all__ = [
    "FRESH",
    "OUTSIDE",
    "Evidence",
    "Fault",
    "Solved",
    "bfloat16",
    "by_key",
    "float16",
    "injected",
    "of",
    "solvable",
]


def _parts(network: Network) -> Iterator[Part]:
    yield Part(network, "before")
    yield Part(network, "block")
    yield Part(network, "after")


def of(network: Network) -> list[Fault]:
    """The faults that a model of this configuration can have, but for those that are solved for."""
    if "faults" not in network.listed:
        makers = (outside.of, norms.of, rounding.of, linear.of, rotation.of, attention.of, feed_forward.of, pooling.of)
        network.listed["faults"] = [fault for part in _parts(network) for make in makers for fault in make(part)]
    found: list[Fault] = network.listed["faults"]
    return found


def solvable(network: Network) -> list[Solved]:
    """The faults that have a number or an order."""
    if "solvable" not in network.listed:
        makers = (
            norms.solvable,
            linear.solvable,
            rotation.solvable,
            attention.solvable,
            outside.solvable,
            pooling.solvable,
            numbers.solvable,
        )
        network.listed["solvable"] = [one for part in _parts(network) for make in makers for one in make(part)]
    found: list[Solved] = network.listed["solvable"]
    return found


def injected(network: Network) -> list[Fault]:
    """All that the self-test injects: the faults, and those with a number, of some values."""
    return [*of(network), *(one.of(value) for one in solvable(network) for value in one.samples)]


def by_key(network: Network) -> dict[str, Fault]:
    """By their keys; of those that are solved for the first value."""
    found: dict[str, Fault] = {}
    for fault in injected(network):
        found.setdefault(fault.key, fault)
    return found
