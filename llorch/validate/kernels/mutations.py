"""Mistakes put in on purpose: the bit comparison has to catch every one of them. And those of LayerNorm.

`layer_norm` here is a third writing of the contract (beside the C kernel and the oracle), with a switch for each
mistake. With no switch thrown it equals the oracle bit for bit, which is checked first: otherwise a mutation would
be caught for the wrong reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

import llorch.reference
from llorch.reference import fma
from llorch.testing import differing_bits
from llorch.validate.kernels import Array, Check, status
from llorch.validate.kernels.common import bit_check, largest

GROUP = "Mutations: mistakes put in on purpose must be caught (right: by a tolerance of 1e-4?)"
OLD_TOLERANCE = 1e-4  # what the published harness allowed


def strided_sum(values: Array, lanes: int, squares: bool = False) -> Array:
    """[rows, n] -> [rows, 1]: element i goes to lane i mod lanes, then a halving tree. The contract has 64 lanes."""
    rows, n = values.shape
    blocks = np.zeros((rows, -(-n // lanes), lanes), np.float32)
    blocks.reshape(rows, -1)[:, :n] = values
    part = np.zeros((rows, lanes), np.float32)
    for i in range(blocks.shape[1]):
        v = blocks[:, i]
        part = fma(v, v, part) if squares else part + v
    while part.shape[1] > 1:
        half = part.shape[1] // 2
        part = part[:, :half] + part[:, half:]
    return part


def layer_norm(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    eps: float = 1e-5,
    lanes: int = 64,
    ddof: int = 0,
    correct: bool = True,
    axis: int = -1,
) -> Array:
    """The contract's LayerNorm for finite rows of ordinary size; the last four arguments are the switches.

    Args:
        x: float32 [rows, n].
        weight, bias: float32 [n].
        lanes: partial sums of a reduction; 1 is a plain loop, n or more (a power of two) a pairwise tree.
        ddof: the variance is divided by n - ddof.
        correct: subtract what rounding left in the mean.
        axis: -1 normalises the rows, 0 the columns.
    """
    rows = x if axis == -1 else np.ascontiguousarray(x.T)
    n = rows.shape[1]
    mean = strided_sum(rows, lanes) / np.float32(n)
    d = rows - mean
    c = strided_sum(d, lanes).astype(np.float64) / n
    if not correct:
        c = np.zeros_like(c)
    square = strided_sum(d, lanes, squares=True).astype(np.float64) / (n - ddof)
    r = 1.0 / np.sqrt(np.maximum(square - c * c, 0.0) + np.float64(np.float32(eps)))
    s = -(c * r)
    t = fma(d, r.astype(np.float32), s.astype(np.float32))
    return fma(t if axis == -1 else np.ascontiguousarray(t.T), weight, bias)


@dataclass(frozen=True)
class Mutation:
    name: str
    what: str
    kernel: Callable[..., Array]  # of the same arguments as the right one


MUTATIONS = (
    Mutation(
        "wrong eps",
        "eps 1e-6 in place of 1e-5.",
        lambda x, w, b, eps: layer_norm(x, w, b, eps=eps / 10),
    ),
    Mutation(
        "N-1 in the variance",
        "The sample's variance in place of the population's.",
        lambda x, w, b, eps: layer_norm(x, w, b, eps=eps, ddof=1),
    ),
    Mutation(
        "swapped weight and bias",
        "t * bias + weight.",
        lambda x, w, b, eps: layer_norm(x, b, w, eps=eps),
    ),
    Mutation(
        "scaled weight",
        "Every weight multiplied by 1.00001.",
        lambda x, w, b, eps: layer_norm(x, w * np.float32(1.00001), b, eps=eps),
    ),
    Mutation(
        "zeroed bias",
        "t * weight + 0.",
        lambda x, w, b, eps: layer_norm(x, w, np.zeros_like(b), eps=eps),
    ),
    Mutation(
        "wrong axis",
        "Mean and variance of the columns in place of the rows.",
        lambda x, w, b, eps: layer_norm(x, w, b, eps=eps, axis=0),
    ),
    Mutation(
        "uncorrected mean",
        "What rounding left in the mean (c in the contract) is not taken out.",
        lambda x, w, b, eps: layer_norm(x, w, b, eps=eps, correct=False),
    ),
    Mutation(
        "reduction order: 32 lanes",
        "The same sums in 32 lanes in place of 64.",
        lambda x, w, b, eps: layer_norm(x, w, b, eps=eps, lanes=32),
    ),
    Mutation(
        "reduction order: one loop",
        "The same sums from left to right.",
        lambda x, w, b, eps: layer_norm(x, w, b, eps=eps, lanes=1),
    ),
    Mutation(
        "reduction order: pairwise",
        "The same sums as one binary tree.",
        lambda x, w, b, eps: layer_norm(x, w, b, eps=eps, lanes=1024),
    ),
)


def mutation_input(rows: Array) -> tuple[Array, Array, Array]:
    """An input on which every mutation matters: x [8, 1000], weight [1000] about 1, bias [1000] about 0.

    Two rows of the checkpoint (cut to 1000 values, so that the last block is a part of one), three of normal noise
    and three of 100 + noise, where the mean's rounding shows.
    """
    random = np.random.default_rng(20251008)
    x = random.standard_normal((8, 1000)).astype(np.float32)
    x[:2] = rows[:, :1000]
    x[5:] += np.float32(100)
    weight = np.float32(1) + np.float32(0.25) * random.standard_normal(1000).astype(np.float32)
    bias = np.float32(0.5) * random.standard_normal(1000).astype(np.float32)
    return x, weight, bias


def checks(rows: Array, eps: float) -> Iterator[Check]:
    """The LayerNorms above; `rows` float32 [2, 1024] is the checkpoint's input."""
    arrays = mutation_input(rows)
    want = llorch.reference.layer_norm(*arrays, eps=eps)
    yield from caught(layer_norm, MUTATIONS, arrays, want, eps=eps)


def caught(
    right: Callable[..., Array],
    mutations: Sequence[Mutation],
    arrays: Sequence[Array],
    want: Array,
    label: str = "",
    **settings: float,
) -> Iterator[Check]:
    """Each mutation through the comparison of the oracle check; `right` is the code they were made from."""
    what = "The code that is mutated below, unmutated, equals the oracle in every bit."
    yield bit_check(GROUP, f"{label}control: no mutation", what, right(*arrays, **settings), want)
    for mutation in mutations:
        got = mutation.kernel(*arrays, **settings)
        differ = differing_bits(got, want)
        worst = largest(np.abs(got.astype(np.float64) - want))
        seen = worst > OLD_TOLERANCE
        yield Check(
            GROUP,
            label + mutation.name,
            status(differ > 0),
            mutation.what,
            f"{'caught' if differ else 'MISSED'}: {differ:,} of {want.size:,} differ",
            f"1e-4 {'catches' if seen else 'misses'} ({worst:.0e})",
            f"A tolerance of {OLD_TOLERANCE:g} would {'also have caught' if seen else 'have missed'} it: "
            f"the largest difference is {worst:.1e}.",
            data={
                "differing": differ,
                "values": want.size,
                "largest_difference": worst,
                "caught_by_1e-4": seen,
            },
        )


def ordinary_kernel(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    """The negative control of the determinism checks: the same formula, with a plan that depends on the batch.

    A row alone is summed in 8 lanes, rows in a batch from left to right, as ordinary libraries do such things.
    """
    return layer_norm(x, weight, bias, eps=eps, lanes=8 if len(x) == 1 else 1)
