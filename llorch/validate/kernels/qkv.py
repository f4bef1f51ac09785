"""The projection to Q, K and V, of waves that have published values.

The published inputs are waves whose bits are settled here: every product is rounded to float32 and every sine once
(`common.wave`). Candle's own binding run on them, on a machine with AVX2, gives 276 of its 300 published values
bit for bit and the others within 1e-6; evaluated in any other order (angles or amplitudes in float64, NumPy's float32
sine) it gives fewer. The count is in the detail of Candle's row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import llorch
import llorch.reference
from llorch.testing import differing_bits
from llorch.validate.kernels import determinism, mutations, peers
from llorch.validate.kernels.common import (
    EXACT,
    ORACLE,
    PUBLISHED,
    Array,
    Check,
    Part,
    at_most,
    bit_check,
    error_check,
    hash_checks,
    largest,
    load,
    normal,
    published_check,
    sha256,
    status,
    wave,
)
from llorch.validate.kernels.mutations import BLOCK, Mutation, halved, product

TITLE = "Q, K and V"
INPUT = (
    "x[i, j] = sin((i * 1024 + j) * 0.001) * 0.5, [2, 1024]; weight[r, c] = sin((r + c) * 0.01) * 0.1, [3072, 1024]; "
    "bias[r] = cos(r * 0.01) * 0.1; all float32"
)
ROWS, WIDTH, HEADS = 2, 1024, 16
STORAGE = ("float32", "float16", "bfloat16")
LARGEST_ERROR = 1e-5  # of llorch from the exact result: 1024 terms of one sign, outputs up to 8.4
TOLERANCE = 1e-4  # between libraries, as they were published
PLAN = determinism.Plan(runs=20, processes=4, threaded=64, batches=(2, 3, 7, 64))


@functools.cache
def inputs() -> tuple[Array, Array, Array]:
    """x float32 [2, 1024], weight [3072, 1024] (out, in), bias [3072]."""
    x = wave(range(ROWS * WIDTH), 0.001, 0.5).reshape(ROWS, WIDTH)
    diagonals = wave(range(4 * WIDTH - 1), 0.01, 0.1)
    row, column = np.ogrid[: 3 * WIDTH, :WIDTH]
    return x, diagonals[row + column], wave(range(3 * WIDTH), 0.01, 0.1, math.cos)


@functools.cache
def linear_inputs() -> tuple[Array, Array, Array]:
    """The same with the weight as [1024, 3072] (in, out), as llorch.linear and GPT-2's files have it."""
    x, weight, bias = inputs()
    return x, np.ascontiguousarray(weight.T), bias


def output() -> Array:
    """llorch's q, k and v side by side: float32 [2, 3072]."""
    y: Array = llorch.linear(*linear_inputs())
    return y


def output_hash() -> str:
    return sha256(output())


def heads(y: Array) -> tuple[Array, Array, Array]:
    """q, k and v as [16 heads, 2 positions, 64], of y [2, 3072]."""
    q, k, v = np.ascontiguousarray(y.reshape(ROWS, 3, HEADS, WIDTH // HEADS).transpose(1, 2, 0, 3))
    return q, k, v


@functools.cache
def exact_result() -> Array:
    """float64 [2, 3072]: the exact sums, each rounded once. A product of two float32 is exact in float64."""
    x, weight, bias = (array.astype(np.float64) for array in inputs())
    return np.array([[math.fsum([*terms, b]) for terms, b in zip(row * weight, bias, strict=True)] for row in x])


def parts(wanted: tuple[str, ...] | None = None) -> list[Part]:
    """wanted: the keys of the libraries to run (peers.PEERS), None for all that are installed."""
    return [
        Part(ORACLE, "Q, K, V against the oracle", oracle_checks),
        Part(EXACT, "Q, K, V against the exact result", exact_checks),
        Part(PUBLISHED, "Q, K, V against the published values", published_checks),
        Part(peers.GROUP, "Q, K, V against the real libraries", lambda: library_checks(wanted)),
        Part(determinism.GROUP, "determinism of Q, K, V", determinism_checks),
        Part(mutations.GROUP, "mutations of Q, K, V", mutation_checks),
    ]


def stored(weight: Array, dtype: str) -> Array:
    """float32 weight, each value rounded once to dtype and widened again: what a PackedLinear of it computes with."""
    if dtype == "bfloat16":  # a type NumPy does not have: the upper half of the float32
        upper = llorch.reference.narrow(weight, np.dtype(np.uint16))
        return (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return llorch.reference.widen(llorch.reference.narrow(weight, np.dtype(dtype)))


def oracle_checks() -> Iterator[Check]:
    x, weight, bias = linear_inputs()
    right = llorch.reference.linear(x, weight, bias)
    yield bit_check(ORACLE, "linear, published input", "The input of the published values.", output(), right)
    small = mutation_input()
    what = "The input of the mutations: [5, 192] to [5, 576], random, with a weight that is not symmetric."
    yield bit_check(ORACLE, "linear, random", what, llorch.linear(*small), llorch.reference.linear(*small))
    for dtype in STORAGE:
        want = llorch.reference.linear(x, stored(weight, dtype), bias)
        packed = llorch.PackedLinear(weight, bias, dtype=dtype)(x)
        what = f"PackedLinear against the oracle on the weight rounded to {dtype} and widened again."
        yield bit_check(ORACLE, f"PackedLinear, {dtype}", what, packed, want)
    packed = llorch.PackedLinear(inputs()[1], bias, transposed=True)(x)
    yield bit_check(ORACLE, "PackedLinear, transposed", "Packed from the weight as [out, in].", packed, right)
    names = ("input", "weight", "bias")
    yield from hash_checks("qkv", dict(zip(names, inputs(), strict=True)) | {"output": output()})


def exact_checks() -> Iterator[Check]:
    exact = exact_result()
    what = "Exact products, summed without rounding and rounded once to float64, on any machine."
    yield error_check("exact sums", what, np.abs(output() - exact), exact, LARGEST_ERROR)


def published_checks() -> Iterator[Check]:
    published = load("qkv.json")
    count = len(published["candle"]["q"])
    ours, exact = (y[0].reshape(3, WIDTH)[:, :count] for y in (output(), exact_result()))
    libraries = ("llorch-cpud", "candle", "mistralrs")
    values = {name: np.array([published[name][part] for part in "qkv"]) for name in libraries}
    distance = {"llorch": float(np.max(np.abs(ours - exact)))}
    for name, theirs in values.items():
        what = f"The first {count} values each of q, k and v as the llama-orch project published them for {name}."
        row = published_check(f"{name}, 3 x {count} values", what, ours, theirs, exact, published["tolerance"])
        distance[name] = row.data["published_from_exact"]
        if name == "mistralrs" and np.array_equal(theirs, values["candle"]):
            row = replace(row, detail="They are Candle's, to the last digit: Mistral.rs runs Candle's product.")
        yield row
    nearest = min(distance, key=lambda name: distance[name])
    yield Check(
        PUBLISHED,
        f"nearest to exact: {nearest}",
        status(nearest == "llorch"),
        "How far the published values, and llorch in their places, are from the exact result.",
        f"llorch {distance['llorch']:.1e}, candle {distance['candle']:.1e}",
        f"cpud {distance['llorch-cpud']:.1e}",
        data={"from_exact": distance},
    )


def library_checks(wanted: tuple[str, ...] | None) -> Iterator[Check]:
    x, weight, bias = inputs()
    ours, exact = output(), exact_result()
    own, published = largest(np.abs(ours - exact)), load("qkv.json")

    def compare(peer: peers.Peer) -> Iterator[Check]:
        names = [name for name in ("linear", "addmm") if name in peer.operations]
        calls = [(name, (rows, weight, bias)) for name in names for rows in (x, x[:1])]
        results = iter(peers.compute(peer, calls))
        for name in names:
            both, alone = next(results), next(results)
            title = f"{peer.name} {peer.version()}, {name}"
            difference = peers.largest_difference(both, ours)
            detail = (
                f"From the exact result it is off by {peers.largest_difference(both, exact):.1e}, llorch by {own:.1e}."
            )
            if peer.key in published:
                values = np.array([published[peer.key][part] for part in "qkv"], np.float32)
                same = values.size - differing_bits(both[0].reshape(3, WIDTH)[:, : values.shape[1]], values)
                detail += f" {same} of the {values.size} values that were published for it have these very bits."
            yield Check(
                peers.GROUP,
                title,
                status(difference <= TOLERANCE),
                peer.operations[name].what,
                f"{difference:.1e} over {both.size:,} values",
                at_most(TOLERANCE),
                detail,
                data={"version": peer.version(), "largest_difference": difference},
            )
            moved = differing_bits(both[:1], alone)
            yield Check(
                peers.GROUP,
                f"{title}, 1 row",
                "info",
                "The bits of the first row by itself, against those it has with the second row beside it.",
                f"{moved:,} of {alone.size:,} values change",
                "none: its own rule",
                data={"version": peer.version(), "changed": moved},
            )

    yield from peers.each("linear", compare, wanted, peers.GROUP)


def determinism_checks() -> Iterator[Check]:
    x, weight, bias = linear_inputs()
    subject = determinism.Subject(llorch.linear, (x,), (weight, bias))
    fresh = "from llorch.validate.kernels import qkv; print(qkv.output_hash())"
    yield from determinism.every_way(subject, PLAN, fresh)

    def pack_and_call(rows: Array, w: Array, b: Array) -> Array:
        y: Array = llorch.PackedLinear(w, b)(rows)
        return y

    packed = replace(subject, call=pack_and_call)
    want = sha256(subject.run())
    what = "A PackedLinear made and called on every instruction-set path: the bits of linear."
    yield determinism.hash_check(
        determinism.GROUP, "PackedLinear, every ISA", what, want, lambda: list(determinism.isa_hashes(packed).values())
    )
    kept = llorch.PackedLinear(weight, bias)
    called = replace(subject, call=lambda rows: kept(rows), shared=())
    what = "One PackedLinear, each row alone and in batches: the bits of linear."
    yield determinism.hash_check(
        determinism.GROUP, "PackedLinear, batches", what, want, lambda: determinism.batch_hashes(called, PLAN.batches)
    )
    for name, kernel in (("", ordinary_linear), ("NumPy's matmul", numpy_linear)):
        hashes = determinism.batch_hashes(replace(subject, call=kernel), (2,))
        yield determinism.control_check(determinism.GROUP, hashes, name)


# ---- mutations: on random input, as the published weight depends on row + column alone, so that its q, k and v blocks
# are symmetric and could not tell a transposed one


def mutable_linear(x: Array, weight: Array, bias: Array | None, *, block: int = BLOCK, fused: bool = True) -> Array:
    """x [rows, k], weight [k, n], bias [n]; `block` and `fused` are the switches."""
    init = np.zeros((len(x), weight.shape[1]), np.float32)
    return product(x, weight, init if bias is None else init + bias, block=block, fused=fused)


def thirds(y: Array) -> list[Array]:
    """q, k and v, or their weights: thirds of the last axis."""
    return np.split(y, 3, axis=-1)


def transposed(weight: Array) -> Array:
    """[k, 3 k] with each of the three square blocks transposed."""
    return np.concatenate([part.T for part in thirds(weight)], axis=-1)


def interleaved(y: Array, head: int = 64) -> Array:
    """[rows, 3 k] of a projection that was split head by head, q, k, v, q, k, v, ..."""
    rows, n = y.shape
    turned: Array = y.reshape(rows, n // (3 * head), 3, head).transpose(0, 2, 1, 3).reshape(rows, n)
    return turned


MUTATIONS = (
    Mutation("transposed weight", "Each square block transposed.", lambda x, w, b: mutable_linear(x, transposed(w), b)),
    Mutation(
        "k before q",
        "Split in the order k, q, v.",
        lambda x, w, b: np.concatenate([thirds(mutable_linear(x, w, b))[i] for i in (1, 0, 2)], axis=-1),
    ),
    Mutation("split by heads", "Split head by head.", lambda x, w, b: interleaved(mutable_linear(x, w, b))),
    Mutation("missing bias", "x @ weight.", lambda x, w, b: mutable_linear(x, w, None)),
    Mutation(
        "bias last",
        "The bias added to the sum, in place of begun with.",
        lambda x, w, b: mutable_linear(x, w, None) + b,
    ),
    Mutation(
        "one chain",
        "One chain of fma in place of blocks of 128.",
        lambda x, w, b: mutable_linear(x, w, b, block=len(w)),
    ),
    Mutation("blocks of 64", "Blocks of 64 in place of 128.", lambda x, w, b: mutable_linear(x, w, b, block=64)),
    Mutation(
        "no fma", "Every product rounded before it is added.", lambda x, w, b: mutable_linear(x, w, b, fused=False)
    ),
    Mutation("float16 weight", "The weight rounded to float16.", lambda x, w, b: mutable_linear(x, halved(w), b)),
    Mutation("float16 output", "The result rounded to float16.", lambda x, w, b: halved(mutable_linear(x, w, b))),
)


def mutation_input() -> tuple[Array, Array, Array]:
    """x [5, 192], weight [192, 576], bias [576]: three square blocks, and a second block of k that is a short one."""
    random = np.random.default_rng(20251009)
    return normal(random, 5, 192), normal(random, 192, 576, scale=0.1), normal(random, 576, scale=0.1)


def ordinary_linear(x: Array, weight: Array, bias: Array) -> Array:
    """The negative control: a row alone goes through one chain, rows in a batch through blocks."""
    return mutable_linear(x, weight, bias, block=len(weight) if len(x) == 1 else BLOCK)


def numpy_linear(x: Array, weight: Array, bias: Array) -> Array:
    y: Array = x @ weight + bias
    return y


def mutation_checks() -> Iterator[Check]:
    small = mutation_input()
    yield from mutations.caught(mutable_linear, MUTATIONS, small, llorch.reference.linear(*small))
