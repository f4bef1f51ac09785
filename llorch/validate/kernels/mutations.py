"""Mistakes put in on purpose: the bit comparison has to catch every one of them.

Each suite has a third writing of its contract (beside the C kernel and the oracle), with a switch for each mistake,
made of the sums here. With no switch thrown it equals the oracle bit for bit, which is checked first: otherwise a
mutation would be caught for the wrong reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llorch.reference import fma
from llorch.testing import differing_bits
from llorch.validate.kernels.common import Array, Check, bit_check, largest, status

GROUP = "Mutations: mistakes put in on purpose must be caught (right: by a tolerance of 1e-4?)"
OLD_TOLERANCE = 1e-4  # what the published harness allowed
BLOCK = 128  # of dot128


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


@dataclass(frozen=True)
class Mutation:
    name: str
    what: str
    kernel: Callable[..., Array]  # of the same arguments as the right one


def product(a: Array, b: Array, init: Array, *, block: int = BLOCK, fused: bool = True) -> Array:
    """init + a @ b in float32: a chain of fma over each block of k, the blocks added in order. a [m, k], b [k, n]."""
    y = init
    for k in range(a.shape[1]):
        if k % block == 0:
            part = np.zeros(init.shape, np.float32)
        left, right = a[:, k, None], b[k]
        part = fma(left, right, part) if fused else part + left * right
        if k % block == block - 1 or k == a.shape[1] - 1:
            y = y + part
    return y


def halved(values: Array) -> Array:
    """Through float16 and back."""
    return values.astype(np.float16).astype(np.float32)


def caught(
    right: Callable[..., Array],
    mutations: Sequence[Mutation],
    arrays: Sequence[Array],
    want: Array,
    **settings: float,
) -> Iterator[Check]:
    """Each mutation through the comparison of the oracle check; `right` is the code they were made from."""
    what = "The code that is mutated below, unmutated, equals the oracle in every bit."
    yield bit_check(GROUP, "control: no mutation", what, right(*arrays, **settings), want)
    for mutation in mutations:
        got = mutation.kernel(*arrays, **settings)
        differ = differing_bits(got, want)
        worst = largest(np.abs(got.astype(np.float64) - want))
        seen = worst > OLD_TOLERANCE
        yield Check(
            GROUP,
            mutation.name,
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
