"""Attention by itself: the oracle, float64 and PyTorch, its determinism, mutations.

Beside the tolerance, llorch's largest error from float64 must not be more than twice PyTorch's own on the same input.
That is not asked of the published q, k and v: two positions in 16 heads are 16 sums whose scores go up to some
hundreds, where the last bit of a score is worth 1e-5 of a weight and chance says whose is better; it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

import llorch
import llorch.reference
from llorch.validate.kernels import determinism, mutations, qkv
from llorch.validate.kernels.common import Array, Check, Part, bit_check, hash_checks, normal, sha256
from llorch.validate.kernels.mutations import BLOCK, Mutation, halved, product, strided_sum
from llorch.validate.kernels.peers import Input, beside_float64

TITLE = "Attention"
INPUT = (
    "q, k and v of the published projection, [16, 2, 64]; random ones of fixed seeds, [4, 300, 64] and 1 against 1,000"
)
GROUP = "Attention, causal: oracle, float64 and PyTorch"
PLAN = determinism.Plan(runs=20, processes=4, threaded=16, batches=(2, 3, 7))
CHUNKS = (1, 7, 64, 128, 150)


def parts(wanted: tuple[str, ...] | None = None) -> list[Part]:
    """wanted: the keys of the libraries to run (peers.PEERS), None for all that are installed."""
    return [
        Part(GROUP, "attention", lambda: oracle_checks(wanted)),
        Part(determinism.GROUP, "determinism of attention", determinism_checks),
        Part(mutations.GROUP, "mutations of attention", mutation_checks),
    ]


def published() -> tuple[Array, Array, Array]:
    """q, k and v of the published projection: [16 heads, 2 positions, 64]."""
    return qkv.heads(qkv.output())


def inputs() -> list[Input]:
    random = np.random.default_rng(20251012)
    q, k, v = (normal(random, 4, 300, 64) for _ in range(3))
    one, cache = normal(random, 4, 1, 64), tuple(normal(random, 4, 1000, 64) for _ in range(2))
    return [
        Input(
            "published",
            "Q, K and V of the published projection: 16 heads of 64, 2 positions.",
            published(),
            ratio=False,
        ),
        Input("300 positions", "Random, 4 heads of 64, 300 positions: three blocks.", (q, k, v)),
        Input("1 against 1,000", "Random, 4 heads of 64, one query against 1,000 positions.", (one, *cache)),
    ]


def in_float64(q: Array, k: Array, v: Array) -> Array:
    wide = (array.astype(np.float64) for array in (q, k, v))
    return numpy_attention(*wide)


def oracle_checks(wanted: tuple[str, ...] | None) -> Iterator[Check]:
    cases = inputs()
    small = Input("150 positions", "The input of the mutations: 2 heads of 32, random.", mutation_input())
    for case in (small, *cases):
        got, want = llorch.attention(*case.arrays), llorch.reference.attention(*case.arrays)
        yield bit_check(GROUP, f"oracle, {case.name}", f"{case.what} Against the oracle.", got, want)
    results = [llorch.attention(*case.arrays) for case in cases]
    yield from hash_checks("attention", {"output": results[0]}, GROUP)
    exact = [in_float64(*case.arrays) for case in cases]
    yield from beside_float64(GROUP, "attention", cases, results, exact, wanted)


def fixed_subject() -> determinism.Subject:
    """2 sequences of 200 positions in 2 heads of 64."""
    random = np.random.default_rng(20251013)
    return determinism.Subject(
        llorch.attention, tuple(normal(random, 2, 2, 200, 64) for _ in range(3)), (), entry="sequence"
    )


def output_hash() -> str:
    return sha256(fixed_subject().run())


def chunk_hashes(subject: determinism.Subject, chunks: Sequence[int]) -> list[str]:
    """The queries in chunks of so many positions, each against the positions up to its own last one."""
    q, k, v = subject.members
    length, hashes = q.shape[-2], []
    for size in chunks:
        ends = [min(start + size, length) for start in range(0, length, size)]
        part = [
            subject.call(*(np.ascontiguousarray(a) for a in (q[..., start:end, :], k[..., :end, :], v[..., :end, :])))
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        hashes.append(sha256(np.concatenate(part, axis=-2)))
    return hashes


def determinism_checks() -> Iterator[Check]:
    subject = fixed_subject()
    fresh = "from llorch.validate.kernels import attention; print(attention.output_hash())"
    yield from determinism.every_way(subject, PLAN, fresh)
    want = sha256(subject.run())
    yield determinism.hash_check(
        determinism.GROUP,
        f"chunks of {', '.join(map(str, CHUNKS))}",
        "The 200 positions in chunks, as a prompt is taken in, and one by one, as decoding does.",
        want,
        lambda: chunk_hashes(subject, CHUNKS),
    )
    heads = list(zip(*(member.reshape(-1, *member.shape[-2:]) for member in subject.members), strict=True))
    yield determinism.hash_check(
        determinism.GROUP,
        "heads alone",
        "Every head of every sequence by itself.",
        want,
        lambda: [sha256(np.stack([subject.on(head) for head in heads]))],
    )
    for name, kernel in (("", ordinary_attention), ("NumPy's matmul", numpy_attention)):
        hashes = chunk_hashes(replace(subject, call=kernel), (64, 200))
        yield determinism.control_check(determinism.GROUP, hashes, name)


# ---- mutations -------------------------------------------------------------------------------------------------


def mutable_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scaled: bool = True,
    ahead: int = 0,
    block: int = BLOCK,
    lanes: int = 64,
    late: bool = True,
    half: bool = False,
) -> Array:
    """q [heads, tq, d], k and v [heads, tk, d]; finite. All that follows are the switches.

    Args:
        scaled: scores times float32(1 / sqrt(d)).
        ahead: positions a query sees beyond its own; negative: that many too few.
        block, lanes: of the sums over positions.
        late: divide by the sum of the weights after the product with v, not before.
        half: the weights through float16.
    """
    (_, tq, d), tk = q.shape, k.shape[1]
    seen = np.arange(tk) <= np.maximum(np.arange(tk - tq, tk) + ahead, 0)[:, None]
    heads = []
    for queries, keys, values in zip(q, k, v, strict=True):
        scores = product(queries, np.ascontiguousarray(keys.T), np.zeros((tq, tk), np.float32))
        if scaled:
            scores = scores * np.float32(1 / np.sqrt(np.float64(d)))
        scores = np.where(seen, scores, np.float32(-np.inf))
        # float64's exp, rounded once: correctly rounded but for a chance of one in some 2^28
        weights = np.exp((scores - scores.max(axis=1, keepdims=True)).astype(np.float64)).astype(np.float32)
        if half:
            weights = halved(weights)
        total = strided_sum(weights, lanes)
        if not late:
            weights = weights / total
        # a position that is not seen has weight +0.0, which changes no bit of the sums
        y = product(weights, values, np.zeros((tq, values.shape[1]), np.float32), block=block)
        heads.append(y / total if late else y)
    return np.stack(heads)


MUTATIONS = (
    Mutation(
        "missing scale", "Scores not divided by sqrt(d).", lambda q, k, v: mutable_attention(q, k, v, scaled=False)
    ),
    Mutation(
        "mask one too far", "Every query sees the next position.", lambda q, k, v: mutable_attention(q, k, v, ahead=1)
    ),
    Mutation("mask one short", "No query sees its own position.", lambda q, k, v: mutable_attention(q, k, v, ahead=-1)),
    Mutation("no mask", "Every query sees all.", lambda q, k, v: mutable_attention(q, k, v, ahead=len(q[0]))),
    Mutation("k and v swapped", "Scores from v, the sum over k.", lambda q, k, v: mutable_attention(q, v, k)),
    Mutation(
        "one chain",
        "All positions in one chain, not blocks of 128.",
        lambda q, k, v: mutable_attention(q, k, v, block=1 << 24),
    ),
    Mutation(
        "sum in one loop", "The weights summed from left to right.", lambda q, k, v: mutable_attention(q, k, v, lanes=1)
    ),
    Mutation(
        "divided early", "Weights divided before the product.", lambda q, k, v: mutable_attention(q, k, v, late=False)
    ),
    Mutation(
        "float16 weights",
        "The weights of the positions in float16.",
        lambda q, k, v: mutable_attention(q, k, v, half=True),
    ),
)


def mutation_input() -> tuple[Array, Array, Array]:
    """q, k, v [2 heads, 150 positions, 32]: a second block of positions, and a scale that is not a power of two."""
    random = np.random.default_rng(20251010)
    q, k, v = (normal(random, 2, 150, 32) for _ in range(3))
    return q, k, v


def ordinary_attention(q: Array, k: Array, v: Array) -> Array:
    """The negative control: blocks as long as the chunk of queries, as a tiled kernel's often are. [..., t, d]."""
    shape = q.shape
    q, k, v = (array.reshape(-1, *array.shape[-2:]) for array in (q, k, v))
    return mutable_attention(q, k, v, block=q.shape[1]).reshape(shape)


def numpy_attention(q: Array, k: Array, v: Array) -> Array:
    """As it is written in a textbook. [..., t, d]."""
    tq, tk = q.shape[-2], k.shape[-2]
    scores = q @ np.swapaxes(k, -1, -2) * np.float32(1 / np.sqrt(q.shape[-1]))
    scores = np.where(np.arange(tk) <= np.arange(tk - tq, tk)[:, None], scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    y: Array = weights / weights.sum(axis=-1, keepdims=True) @ v
    return y


def mutation_checks() -> Iterator[Check]:
    arrays = mutation_input()
    yield from mutations.caught(mutable_attention, MUTATIONS, arrays, llorch.reference.attention(*arrays))
