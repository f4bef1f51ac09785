"""The feed-forward layer by itself: the oracle, float64 and PyTorch, its determinism, mutations.

Beside the tolerance, llorch's largest error from float64 must not be more than twice PyTorch's own on the same input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import llorch
import llorch.reference
from llorch.validate.kernels import determinism, mutations
from llorch.validate.kernels.common import Array, Check, Part, bit_check, normal, sha256
from llorch.validate.kernels.mutations import BLOCK, Mutation, halved
from llorch.validate.kernels.peers import Input, beside_float64
from llorch.validate.kernels.qkv import mutable_linear

TITLE = "Feed-forward"
INPUT = "random of fixed seeds, 4 rows: 1024 -> 4096 -> 1024 and 160 -> 320 -> 160"
GROUP = "Feed-forward, 1024 -> 4096 -> 1024 with gelu (tanh): oracle, float64 and PyTorch"
PLAN = determinism.Plan(runs=20, processes=4, threaded=16, batches=(2, 3, 7))


def parts(wanted: tuple[str, ...] | None = None) -> list[Part]:
    """wanted: the keys of the libraries to run (peers.PEERS), None for all that are installed."""
    return [
        Part(GROUP, "feed-forward", lambda: oracle_checks(wanted)),
        Part(determinism.GROUP, "determinism of feed-forward", determinism_checks),
        Part(mutations.GROUP, "mutations of feed-forward", mutation_checks),
    ]


def feed_forward(x: Array, weight: Array, bias: Array, weight2: Array, bias2: Array, out: Array | None = None) -> Array:
    hidden = llorch.gelu(llorch.linear(x, weight, bias), approximate="tanh")
    y: Array = llorch.linear(hidden, weight2, bias2, out=out)
    return y


def in_float64(x: Array, weight: Array, bias: Array, weight2: Array, bias2: Array) -> Array:
    x, weight, bias, weight2, bias2 = (array.astype(np.float64) for array in (x, weight, bias, weight2, bias2))
    h = x @ weight + bias
    h = h / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    y: Array = h @ weight2 + bias2
    return y


def large_input() -> tuple[Array, ...]:
    return random_input(4, 1024, 4096, 20251014)


def fixed_subject() -> determinism.Subject:
    x, *weights = large_input()
    return determinism.Subject(feed_forward, (x[:2],), tuple(weights))


def output_hash() -> str:
    return sha256(fixed_subject().run())


def oracle_checks(wanted: tuple[str, ...] | None) -> Iterator[Check]:
    case = Input("4 rows", "Random, 4 rows.", large_input())
    small = Input("small", "The input of the mutations: 160 to 320 to 160.", random_input())
    for each in (small, case):
        got, want = feed_forward(*each.arrays), reference_feed_forward(*each.arrays)
        yield bit_check(GROUP, f"oracle, {each.name}", f"{each.what} Against the oracle.", got, want)
    exact = in_float64(*case.arrays)
    yield from beside_float64(GROUP, "feed_forward", [case], [feed_forward(*case.arrays)], [exact], wanted)


def determinism_checks() -> Iterator[Check]:
    subject = fixed_subject()
    fresh = "from llorch.validate.kernels import feed_forward; print(feed_forward.output_hash())"
    yield from determinism.every_way(subject, PLAN, fresh)
    one = replace(subject, call=ordinary_feed_forward, members=(subject.members[0][:1],))
    yield determinism.control_check(determinism.GROUP, determinism.batch_hashes(one, (2,)))


# ---- mutations -------------------------------------------------------------------------------------------------


def gelu64(x: Array, *, tanh: bool = True) -> Array:
    """x / (1 + exp(-2 u)), which is x / 2 * (1 + tanh(u)) without the cancellation, in float64 and rounded once."""
    wide = x.astype(np.float64)
    if not tanh:
        return llorch.reference.gelu(x, approximate="none")
    u = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    y: Array = (wide / (1 + np.exp(-2 * u))).astype(np.float32)
    return y


def mutable_feed_forward(
    x: Array,
    weight: Array,
    bias: Array,
    weight2: Array,
    bias2: Array | None,
    *,
    block: int = BLOCK,
    tanh: bool = True,
    active: bool = True,
    half: bool = False,
) -> Array:
    """x [rows, n], weight [n, m], bias [m], weight2 [m, n], bias2 [n]; all that follows are the switches."""
    hidden = mutable_linear(x, weight, bias, block=block)
    if active:
        hidden = gelu64(hidden, tanh=tanh)
    return mutable_linear(halved(hidden) if half else hidden, weight2, bias2, block=block)


def reference_feed_forward(x: Array, weight: Array, bias: Array, weight2: Array, bias2: Array) -> Array:
    """The oracle."""
    hidden = llorch.reference.gelu(llorch.reference.linear(x, weight, bias), approximate="tanh")
    return llorch.reference.linear(hidden, weight2, bias2)


MUTATIONS = (
    Mutation("gelu by erf", "gelu's erf form in place of tanh.", lambda *a: mutable_feed_forward(*a, tanh=False)),
    Mutation("missing gelu", "The two products alone.", lambda *a: mutable_feed_forward(*a, active=False)),
    Mutation(
        "missing second bias", "No bias at the end.", lambda x, w, b, w2, b2: mutable_feed_forward(x, w, b, w2, None)
    ),
    Mutation(
        "one chain", "One chain of fma in place of blocks of 128.", lambda *a: mutable_feed_forward(*a, block=1 << 24)
    ),
    Mutation("float16 between", "What gelu returns in float16.", lambda *a: mutable_feed_forward(*a, half=True)),
)


def random_input(rows: int = 4, n: int = 160, m: int = 320, seed: int = 20251011) -> tuple[Array, ...]:
    """x [rows, n], weight [n, m], bias [m], weight2 [m, n], bias2 [n], outputs about 1."""
    random = np.random.default_rng(seed)
    return (
        normal(random, rows, n),
        normal(random, n, m, scale=n**-0.5),
        normal(random, m, scale=0.1),
        normal(random, m, n, scale=m**-0.5),
        normal(random, n, scale=0.1),
    )


def ordinary_feed_forward(x: Array, *weights: Array) -> Array:
    """The negative control: a row alone through chains, rows in a batch through blocks."""
    return mutable_feed_forward(x, *weights, block=1 << 24 if len(x) == 1 else BLOCK)


def mutation_checks() -> Iterator[Check]:
    layers = random_input()
    yield from mutations.caught(mutable_feed_forward, MUTATIONS, layers, reference_feed_forward(*layers))
