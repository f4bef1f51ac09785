"""Attention and the feed-forward layer by themselves: the oracle, float64 and PyTorch, and their determinism.

Beside the tolerance, llorch's largest error from float64 must not be more than twice PyTorch's own on the same input.
That is not asked of the checkpoint's q, k and v: two positions in 16 heads are 16 sums whose scores go up to some
hundreds, where the last bit of a score is worth 1e-5 of a weight and chance says whose is better; it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

import llorch
import llorch.reference
from llorch.validate.kernels import Array, Check, at_most, determinism, mutations_qkv, peers, sha256, status
from llorch.validate.kernels.common import bit_check, error_check, hash_checks, normal

ATTENTION = "Attention, causal: oracle, float64 and PyTorch"
ATTENTION_DETERMINISM = "Determinism of attention: one SHA-256 of the output"
FEED_FORWARD = "Feed-forward, 1024 -> 4096 -> 1024 with gelu (tanh): oracle, float64 and PyTorch"
FEED_FORWARD_DETERMINISM = "Determinism of feed-forward: one SHA-256 of the output"
LARGEST_ERROR = 2e-6  # of llorch from float64, of outputs up to 5
TOLERANCE = 1e-4  # between llorch and PyTorch
RATIO = 2.0  # llorch's largest error to PyTorch's
PLAN = determinism.Plan(runs=20, processes=4, threaded=16, batches=(2, 3, 7))
CHUNKS = (1, 7, 64, 128, 150)


@dataclass(frozen=True)
class Case:
    name: str
    what: str
    arrays: tuple[Array, ...]
    ratio: bool = True  # whether llorch's error is held against PyTorch's


def checks(
    group: str,
    operation: str,
    cases: Sequence[Case],
    results: Sequence[Array],
    exact: Sequence[Array],
    wanted: tuple[str, ...] | None,
) -> Iterator[Check]:
    """The rows of llorch's results: their errors from the exact ones (float64), and every library's beside them."""
    for case, y, right in zip(cases, results, exact, strict=True):
        what = f"{case.what} Against float64."
        yield error_check(f"float64, {case.name}", what, np.abs(y - right), right, LARGEST_ERROR, group)

    def compare(peer: peers.Peer) -> Iterator[Check]:
        got = peers.compute(peer, [(operation, case.arrays) for case in cases])
        for case, theirs, y, right in zip(cases, got, results, exact, strict=True):
            difference = peers.largest_difference(theirs, y)
            errors = peers.largest_difference(y, right), peers.largest_difference(theirs, right)
            yield Check(
                group,
                f"{peer.name} {peer.version()}, {case.name}",
                status(difference <= TOLERANCE and (errors[0] <= RATIO * errors[1] or not case.ratio)),
                f"{case.what} {peer.operations[operation].what}",
                f"{difference:.1e}; errors {errors[0]:.1e}, {errors[1]:.1e}",
                "1e-4; 2 x its error" if case.ratio else at_most(TOLERANCE),
                "The largest difference; then llorch's largest error from float64, and the library's.",
                data={
                    "version": peer.version(),
                    "largest_difference": difference,
                    "llorch_error": errors[0],
                    "library_error": errors[1],
                },
            )

    yield from peers.each(operation, compare, wanted, group)


# ---- attention -------------------------------------------------------------------------------------------------


def attention_cases(checkpoint: tuple[Array, Array, Array]) -> list[Case]:
    """checkpoint: its q, k and v, [16 heads, 2 positions, 64]."""
    random = np.random.default_rng(20251012)
    q, k, v = (normal(random, 4, 300, 64) for _ in range(3))
    one, cache = normal(random, 4, 1, 64), tuple(normal(random, 4, 1000, 64) for _ in range(2))
    return [
        Case("checkpoint", "The checkpoint's q, k and v: 16 heads of 64, 2 positions.", checkpoint, ratio=False),
        Case("300 positions", "Random, 4 heads of 64, 300 positions: three blocks.", (q, k, v)),
        Case("1 against 1,000", "Random, 4 heads of 64, one query against 1,000 positions.", (one, *cache)),
    ]


def float64_attention(q: Array, k: Array, v: Array) -> Array:
    wide = (array.astype(np.float64) for array in (q, k, v))
    return mutations_qkv.numpy_attention(*wide)


def attention_checks(checkpoint: tuple[Array, Array, Array], wanted: tuple[str, ...] | None) -> Iterator[Check]:
    cases = attention_cases(checkpoint)
    small = Case("150 positions", "The input of the mutations: 2 heads of 32, random.", mutations_qkv.attention_input())
    for case in (small, *cases):
        got, want = llorch.attention(*case.arrays), llorch.reference.attention(*case.arrays)
        yield bit_check(ATTENTION, f"oracle, {case.name}", f"{case.what} Against the oracle.", got, want)
    results = [llorch.attention(*case.arrays) for case in cases]
    yield from hash_checks("checkpoint_02_qkv", {"attention": results[0]}, ATTENTION)
    exact = [float64_attention(*case.arrays) for case in cases]
    yield from checks(ATTENTION, "attention", cases, results, exact, wanted)


def attention_subject() -> determinism.Subject:
    """2 sequences of 200 positions in 2 heads of 64."""
    random = np.random.default_rng(20251013)
    return determinism.Subject(
        llorch.attention, tuple(normal(random, 2, 2, 200, 64) for _ in range(3)), (), entry="sequence"
    )


def attention_hash() -> str:
    return sha256(attention_subject().run())


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


def attention_determinism() -> Iterator[Check]:
    subject = attention_subject()
    fresh = "from llorch.validate.kernels import blocks as blocks; print(blocks.attention_hash())"
    yield from determinism.checks(subject, PLAN, fresh, ATTENTION_DETERMINISM)
    want = sha256(subject.run())
    yield determinism.hash_check(
        ATTENTION_DETERMINISM,
        f"chunks of {', '.join(map(str, CHUNKS))}",
        "The 200 positions in chunks, as a prompt is taken in, and one by one, as decoding does.",
        want,
        lambda: chunk_hashes(subject, CHUNKS),
    )
    heads = list(zip(*(member.reshape(-1, *member.shape[-2:]) for member in subject.members), strict=True))
    yield determinism.hash_check(
        ATTENTION_DETERMINISM,
        "heads alone",
        "Every head of every sequence by itself.",
        want,
        lambda: [sha256(np.stack([subject.on(head) for head in heads]))],
    )
    for name, kernel in (("", mutations_qkv.ordinary_attention), ("NumPy's matmul", mutations_qkv.numpy_attention)):
        hashes = chunk_hashes(replace(subject, call=kernel), (64, 200))
        yield determinism.control_check(ATTENTION_DETERMINISM, hashes, name)


# ---- feed-forward ----------------------------------------------------------------------------------------------


def feed_forward(x: Array, weight: Array, bias: Array, weight2: Array, bias2: Array, out: Array | None = None) -> Array:
    hidden = llorch.gelu(llorch.linear(x, weight, bias), approximate="tanh")
    y: Array = llorch.linear(hidden, weight2, bias2, out=out)
    return y


def float64_feed_forward(x: Array, weight: Array, bias: Array, weight2: Array, bias2: Array) -> Array:
    x, weight, bias, weight2, bias2 = (array.astype(np.float64) for array in (x, weight, bias, weight2, bias2))
    h = x @ weight + bias
    h = h / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    y: Array = h @ weight2 + bias2
    return y


def feed_forward_input() -> tuple[Array, ...]:
    return mutations_qkv.feed_forward_input(4, 1024, 4096, 20251014)


def feed_forward_subject() -> determinism.Subject:
    x, *weights = feed_forward_input()
    return determinism.Subject(feed_forward, (x[:2],), tuple(weights))


def feed_forward_hash() -> str:
    return sha256(feed_forward_subject().run())


def feed_forward_checks(wanted: tuple[str, ...] | None) -> Iterator[Check]:
    case = Case("4 rows", "Random, 4 rows.", feed_forward_input())
    small = Case("small", "The input of the mutations: 160 to 320 to 160.", mutations_qkv.feed_forward_input())
    for each in (small, case):
        got, want = feed_forward(*each.arrays), mutations_qkv.reference_feed_forward(*each.arrays)
        yield bit_check(FEED_FORWARD, f"oracle, {each.name}", f"{each.what} Against the oracle.", got, want)
    exact = float64_feed_forward(*case.arrays)
    yield from checks(FEED_FORWARD, "feed_forward", [case], [feed_forward(*case.arrays)], [exact], wanted)


def feed_forward_determinism() -> Iterator[Check]:
    subject = feed_forward_subject()
    fresh = "from llorch.validate.kernels import blocks as blocks; print(blocks.feed_forward_hash())"
    yield from determinism.checks(subject, PLAN, fresh, FEED_FORWARD_DETERMINISM)
    one = replace(subject, call=mutations_qkv.ordinary_feed_forward, members=(subject.members[0][:1],))
    yield determinism.control_check(FEED_FORWARD_DETERMINISM, determinism.batch_hashes(one, (2,)))
