"""LayerNorm of x[i, j] = sin((i * 1024 + j) * 0.001) * 0.5, shape [2, 1024], which has published values.

Candle appears twice. Its Python package computes LayerNorm from tensor operations, in two passes. Its Rust kernel,
which Mistral.rs runs, sums x and x*x in one pass, each in one float32 chain, and takes the difference for the
variance; `one_pass` is that formula. Where a row's mean is large beside its spread the difference cancels: the
second row (mean 0.48, standard deviation 0.02) loses four digits there. So Mistral.rs is compared on the
first row, on the second with 0.48 subtracted (exact in float32, and LayerNorm does not see a constant), and for the
second as it stands the difference is shown for information, beside the one that `one_pass` predicts: it is far
outside the tolerance, and Mistral.rs's own error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np

import llorch
import llorch.reference
from llorch.reference import fma
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
    load,
    published_check,
    sha256,
    status,
    wave,
)
from llorch.validate.kernels.mutations import Mutation, strided_sum
from llorch.validate.kernels.peers import Peer, largest_difference

TITLE = "LayerNorm"
INPUT = "x[i, j] = sin((i * 1024 + j) * 0.001) * 0.5, float32 [2, 1024]; weight ones, bias zeros, eps 1e-5"
SHAPE = (2, 1024)
EPS = 1e-5
TOLERANCE = 1e-5  # between libraries
SHIFT = np.float32(0.48)  # near the mean of the second row
PLAN = determinism.Plan()
LARGEST_ERROR = 1e-6  # of llorch from the exact result; outputs go up to 2.5, where half an ULP is 1.2e-7


@functools.cache
def inputs() -> tuple[Array, Array, Array]:
    """x float32 [2, 1024], weight and bias float32 [1024]."""
    x = wave(range(SHAPE[0] * SHAPE[1]), 0.001, 0.5).reshape(SHAPE)
    return x, np.ones(SHAPE[1], np.float32), np.zeros(SHAPE[1], np.float32)


def output_hash() -> str:
    """SHA-256 of llorch's output."""
    return sha256(llorch.layer_norm(*inputs(), eps=EPS))


@functools.cache
def exact_result() -> list[list[Decimal]]:
    """The result without weight and bias (ones, zeros): sums as exact fractions, the rest to 40 digits."""
    eps = Fraction(float(np.float32(EPS)))
    rows = []
    with localcontext(Context(prec=40)):

        def decimal(value: Fraction) -> Decimal:
            return Decimal(value.numerator) / Decimal(value.denominator)

        for row in inputs()[0]:
            values = [Fraction(float(v)) for v in row]
            mean = sum(values, Fraction(0)) / len(values)
            variance = sum(((v - mean) ** 2 for v in values), Fraction(0)) / len(values)
            root = decimal(variance + eps).sqrt()
            rows.append([decimal(v - mean) / root for v in values])
    return rows


def long_double_result() -> Array | None:
    """The same in two passes of long double, or None where that is no wider than float64."""
    if np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant:
        return None
    x = inputs()[0].astype(np.longdouble)
    d = x - x.mean(axis=1, keepdims=True)
    y: Array = d / np.sqrt((d * d).mean(axis=1, keepdims=True) + np.longdouble(np.float32(EPS)))
    return y


def parts(wanted: tuple[str, ...] | None = None) -> list[Part]:
    """wanted: the keys of the libraries to run (peers.PEERS), None for all that are installed."""
    return [
        Part(ORACLE, "LayerNorm against the oracle", oracle_checks),
        Part(EXACT, "LayerNorm against the exact result", exact_checks),
        Part(PUBLISHED, "LayerNorm against the published values", published_checks),
        Part(peers.GROUP, "LayerNorm against the real libraries", lambda: library_checks(wanted)),
        Part(determinism.GROUP, "determinism of LayerNorm", determinism_checks),
        Part(mutations.GROUP, "mutations of LayerNorm", mutation_checks),
    ]


def oracle_checks() -> Iterator[Check]:
    cases = (
        ("published input", "The input of the published values.", inputs()),
        (
            "weight, bias, odd length",
            "The input of the mutations: [8, 1000], rows of 100 + noise among them, weight and bias not trivial.",
            mutation_input(),
        ),
    )
    for name, what, arrays in cases:
        got = llorch.layer_norm(*arrays, eps=EPS)
        yield bit_check(ORACLE, name, what, got, llorch.reference.layer_norm(*arrays, eps=EPS))
    found = {"input": inputs()[0], "output": llorch.layer_norm(*inputs(), eps=EPS)}
    yield from hash_checks("layer_norm", found)


def exact_checks() -> Iterator[Check]:
    y = llorch.layer_norm(*inputs(), eps=EPS)
    exact = np.array(exact_result(), np.float64)
    wide = long_double_result()
    digits = np.finfo(np.longdouble).nmant + 1
    what = f"Two passes of long double ({digits} bits)."
    if wide is None:
        yield Check(EXACT, "long double", "skip", what, "no wider than float64 here", at_most(LARGEST_ERROR))
    else:
        yield error_check("long double", what, np.abs(y - wide).astype(np.float64), exact, LARGEST_ERROR)
    with localcontext(Context(prec=40)):
        error = [
            [float(abs(Decimal(float(a)) - b)) if math.isfinite(a) else math.inf for a, b in zip(*pair, strict=True)]
            for pair in zip(y, exact_result(), strict=True)
        ]
    what = "Exact fractions and 40-digit decimals, on any machine."
    yield error_check("40 decimal digits", what, np.array(error), exact, LARGEST_ERROR)


def published_checks() -> Iterator[Check]:
    published = load("layer_norm.json")
    tolerance = published["tolerance"]
    y = llorch.layer_norm(*inputs(), eps=EPS).astype(np.float64)
    exact = np.array(exact_result(), np.float64)
    distance = {}
    for name in ("llorch-cpud", "candle"):
        values = np.array(published[name])
        what = f"The first outputs as the llama-orch project published them for {name}."
        places = np.s_[0, : len(values)]
        row = published_check(f"{name}, {len(values)} values", what, y[places], values, exact[places], tolerance)
        distance[name] = row.data["published_from_exact"]
        yield row

    differences = []
    for row, statistics in zip(y, published["row_statistics_llorch-cpud"], strict=True):
        ours = {"mean": row.mean(), "std": row.std(), "variance": row.var(), "min": row.min(), "max": row.max()}
        differences += [abs(ours[key] - value) for key, value in statistics.items()]
    worst = float(np.max(differences))  # NaN if one is
    yield Check(
        PUBLISHED,
        "statistics of both rows",
        status(worst <= tolerance),
        "Mean, standard deviation, variance, least and largest of each output row.",
        f"largest difference {worst:.1e}",
        at_most(tolerance),
        data={"largest_difference": worst},
    )

    values = np.array(published["candle"], np.float32)
    same = int(np.count_nonzero(one_pass(*inputs(), EPS)[0, : len(values)] == values))
    own = float(np.max(np.abs(exact[0, : len(values)] - y[0, : len(values)])))
    nearer = min(distance, key=lambda name: distance[name])
    yield Check(
        PUBLISHED,
        f"nearer to exact: {nearer}",
        status(own <= min(distance.values())),
        "How far the two published rows, and llorch, are from the exact result.",
        "; ".join(f"{name} {value:.1e}" for name, value in distance.items()),
        f"llorch {own:.1e}",
        f"{same} of Candle's {len(values)} published values are, bit for bit, those of its one-pass variance "
        "in float32: the difference between the two rows is Candle's rounding.",
        data={"from_exact": distance | {"llorch": own}, "nearer": nearer, "candle_values_equal_to_one_pass": same},
    )


def determinism_checks() -> Iterator[Check]:
    x, weight, bias = inputs()
    subject = determinism.Subject(functools.partial(llorch.layer_norm, eps=EPS), (x,), (weight, bias))
    fresh = "from llorch.validate.kernels import layer_norm; print(layer_norm.output_hash())"
    yield from determinism.every_way(subject, PLAN, fresh)
    control = replace(subject, call=functools.partial(ordinary_layer_norm, eps=EPS))
    yield determinism.control_check(determinism.GROUP, determinism.batch_hashes(control, PLAN.batches))


# ---- libraries -------------------------------------------------------------------------------------------------


def one_pass(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """float32 [rows, n]: the formula of Candle's Rust kernel, candle_nn::ops::layer_norm, on the CPU."""
    n = np.float32(x.shape[-1])
    total, squares = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
    for column in x.T:
        total = total + column
        squares = squares + column * column
    mean = total / n
    scale = np.float32(1) / np.sqrt(squares / n - mean * mean + np.float32(eps))
    y: Array = (x - mean[:, None]) * scale[:, None] * weight + bias
    return y


def log_softmax(y: Array) -> Array:
    wide: Array = y.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


Arguments = tuple[Array, Array, Array]  # x [rows, n], weight [n], bias [n]


def layer_norms(peer: Peer, cases: Sequence[Arguments], eps: float) -> list[Array]:
    return peers.compute(peer, [("layer_norm", (*case, np.array(eps))) for case in cases])


def second_case(x: Array) -> Arguments:
    """The published input again, with a weight about 1 and a bias about 0 in place of ones and zeros."""
    random = np.random.default_rng(2)
    n = x.shape[-1]
    weight, bias = random.standard_normal((2, n))
    return x, (1 + 0.25 * weight).astype(np.float32), (0.5 * bias).astype(np.float32)


def library_checks(wanted: tuple[str, ...] | None = None) -> Iterator[Check]:
    """LayerNorm of every library: on the published input, and with another weight and bias."""
    x, weight, bias = inputs()
    exact = np.array(exact_result(), np.float64)  # without weight and bias; it tells whose error a difference is
    cases = [(x, weight, bias), second_case(x)]

    def compare(peer: Peer) -> Iterator[Check]:
        rows = mistral_checks if peer.operations["layer_norm"].compute is peers.mistral_rs else layer_norm_checks
        return rows(peer, cases, EPS, exact)

    yield from peers.each("layer_norm", compare, wanted, peers.GROUP)


def tolerance_check(peer: Peer, label: str, what: str, worst: Sequence[float], cases: Sequence[Arguments]) -> Check:
    """worst: the largest difference in each of the cases; the tolerance grows with the largest weight, as y does."""
    bounds = [TOLERANCE * max(1.0, float(np.abs(weight).max())) for _, weight, _ in cases]
    values = cases[0][0].shape[-1] * (1 if label else len(cases[0][0]))
    return Check(
        peers.GROUP,
        f"{peer.name} {peer.version()}{label}",
        status(all(difference <= bound for difference, bound in zip(worst, bounds, strict=True))),
        what,
        f"{worst[0]:.1e} over {values:,} values",
        at_most(TOLERANCE),
        f"With another weight and bias: {worst[1]:.1e} (bound: {bounds[1]:.1e}, times the largest weight).",
        data={
            "version": peer.version(),
            "values": values,
            "largest_difference": worst[0],
            "largest_difference_with_weight_and_bias": worst[1],
        },
    )


def layer_norm_checks(peer: Peer, cases: Sequence[Arguments], eps: float, exact: Array) -> Iterator[Check]:
    """One check of a library that returns the LayerNorm itself."""
    got = layer_norms(peer, cases, eps)
    worst = [largest_difference(y, llorch.layer_norm(*case, eps=eps)) for y, case in zip(got, cases, strict=True)]
    yield tolerance_check(peer, "", peer.operations["layer_norm"].what, worst, cases)


def mistral_checks(peer: Peer, cases: Sequence[Arguments], eps: float, exact: Array) -> Iterator[Check]:
    """Three checks, see the top of this file. What is compared are log-probabilities, ours in float64."""
    x = cases[0][0]
    centred = x[1] - SHIFT
    if not np.array_equal(centred.astype(np.float64) + float(SHIFT), x[1]):
        raise peers.PeerError("the shift of the second row is not exact")
    rows = np.stack([x[0], centred, x[1]])
    got = layer_norms(peer, [(rows, weight, bias) for _, weight, bias in cases], eps)
    ours = [llorch.layer_norm(*case, eps=eps) for case in cases]
    want = [log_softmax(y) for y in ours]

    moved = f" The row is shifted by {SHIFT:g}, exactly in float32, before Mistral.rs sees it."
    for i, label, how in ((0, ", row 0", ""), (1, ", row 1, centred", moved)):
        worst = [largest_difference(g[i], w[i]) for g, w in zip(got, want, strict=True)]
        yield tolerance_check(peer, label, peer.operations["layer_norm"].what + how, worst, cases)

    difference = largest_difference(got[0][2], want[0][1])
    formula = largest_difference(got[0][2], log_softmax(one_pass(*cases[0], eps))[1])
    theirs = largest_difference(got[0][2], log_softmax(exact)[1])
    own = largest_difference(want[0][1], log_softmax(exact)[1])
    agrees = difference <= TOLERANCE
    yield Check(
        peers.GROUP,
        f"{peer.name} {peer.version()}, row 1 as it is",
        "pass" if agrees else "info",
        "The second row unshifted. Mistral.rs computes its variance in one pass and loses it to cancellation; "
        "the detail says whose error the difference is.",
        f"{difference:.1e}; llorch's share: {own:.1e}",
        at_most(TOLERANCE) if agrees else "none: its own error",
        ""
        if agrees
        else f"Mistral.rs is off by {theirs:.1e} from the exact result, llorch by {own:.1e}. "
        f"Candle's one-pass formula in float32 gives Mistral.rs's answer within {formula:.1e}.",
        data={
            "version": peer.version(),
            "values": x.shape[1],
            "largest_difference": difference,
            "from_one_pass": formula,
            "from_exact": theirs,
            "llorch_from_exact": own,
        },
    )


# ---- mutations -------------------------------------------------------------------------------------------------


def mutable_layer_norm(
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


MUTATIONS = (
    Mutation(
        "wrong eps",
        "eps 1e-6 in place of 1e-5.",
        lambda x, w, b, eps: mutable_layer_norm(x, w, b, eps=eps / 10),
    ),
    Mutation(
        "N-1 in the variance",
        "The sample's variance in place of the population's.",
        lambda x, w, b, eps: mutable_layer_norm(x, w, b, eps=eps, ddof=1),
    ),
    Mutation(
        "swapped weight and bias",
        "t * bias + weight.",
        lambda x, w, b, eps: mutable_layer_norm(x, b, w, eps=eps),
    ),
    Mutation(
        "scaled weight",
        "Every weight multiplied by 1.00001.",
        lambda x, w, b, eps: mutable_layer_norm(x, w * np.float32(1.00001), b, eps=eps),
    ),
    Mutation(
        "zeroed bias",
        "t * weight + 0.",
        lambda x, w, b, eps: mutable_layer_norm(x, w, np.zeros_like(b), eps=eps),
    ),
    Mutation(
        "wrong axis",
        "Mean and variance of the columns in place of the rows.",
        lambda x, w, b, eps: mutable_layer_norm(x, w, b, eps=eps, axis=0),
    ),
    Mutation(
        "uncorrected mean",
        "What rounding left in the mean (c in the contract) is not taken out.",
        lambda x, w, b, eps: mutable_layer_norm(x, w, b, eps=eps, correct=False),
    ),
    Mutation(
        "reduction order: 32 lanes",
        "The same sums in 32 lanes in place of 64.",
        lambda x, w, b, eps: mutable_layer_norm(x, w, b, eps=eps, lanes=32),
    ),
    Mutation(
        "reduction order: one loop",
        "The same sums from left to right.",
        lambda x, w, b, eps: mutable_layer_norm(x, w, b, eps=eps, lanes=1),
    ),
    Mutation(
        "reduction order: pairwise",
        "The same sums as one binary tree.",
        lambda x, w, b, eps: mutable_layer_norm(x, w, b, eps=eps, lanes=1024),
    ),
)


def mutation_input() -> tuple[Array, Array, Array]:
    """An input on which every mutation matters: x [8, 1000], weight [1000] about 1, bias [1000] about 0.

    Two rows of the published input (cut to 1000 values, so that the last block is a part of one), three of normal noise
    and three of 100 + noise, where the mean's rounding shows.
    """
    random = np.random.default_rng(20251008)
    x = random.standard_normal((8, 1000)).astype(np.float32)
    x[:2] = inputs()[0][:, :1000]
    x[5:] += np.float32(100)
    weight = np.float32(1) + np.float32(0.25) * random.standard_normal(1000).astype(np.float32)
    bias = np.float32(0.5) * random.standard_normal(1000).astype(np.float32)
    return x, weight, bias


def mutation_checks() -> Iterator[Check]:
    arrays = mutation_input()
    want = llorch.reference.layer_norm(*arrays, eps=EPS)
    yield from mutations.caught(mutable_layer_norm, MUTATIONS, arrays, want, eps=EPS)


def ordinary_layer_norm(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    """The negative control of the determinism checks: the same formula, with a plan that depends on the batch.

    A row alone is summed in 8 lanes, rows in a batch from left to right, as ordinary libraries do such things.
    """
    return mutable_layer_norm(x, weight, bias, eps=eps, lanes=8 if len(x) == 1 else 1)
