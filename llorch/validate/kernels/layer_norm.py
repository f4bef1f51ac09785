"""Checkpoint 1 of GPT-2 inference: LayerNorm of x[i, j] = sin((i * 1024 + j) * 0.001) * 0.5, shape [2, 1024]."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np

import llorch
import llorch.reference
from llorch.validate.kernels import Array, Check, Step, at_most, determinism, mutations, peers, sha256, status
from llorch.validate.kernels.common import (
    EXACT,
    ORACLE,
    PUBLISHED,
    bit_check,
    error_check,
    hash_checks,
    load,
    published_check,
    wave,
)

TITLE = "Checkpoint 1: LayerNorm"
INPUT = "x[i, j] = sin((i * 1024 + j) * 0.001) * 0.5, float32 [2, 1024]; weight ones, bias zeros, eps 1e-5"
SHAPE = (2, 1024)
EPS = 1e-5
LARGEST_ERROR = 1e-6  # of llorch from the exact result; outputs go up to 2.5, where half an ULP is 1.2e-7


@functools.cache
def inputs() -> tuple[Array, Array, Array]:
    """x float32 [2, 1024], weight and bias float32 [1024]."""
    x = wave(range(SHAPE[0] * SHAPE[1]), 0.001, 0.5).reshape(SHAPE)
    return x, np.ones(SHAPE[1], np.float32), np.zeros(SHAPE[1], np.float32)


def output_hash() -> str:
    """SHA-256 of llorch's output for the checkpoint."""
    return sha256(llorch.layer_norm(*inputs(), eps=EPS))


@functools.cache
def exact_result() -> list[list[Decimal]]:
    """The checkpoint's result without weight and bias (ones, zeros): sums as exact fractions, the rest to 40 digits."""
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


def steps(wanted_peers: tuple[str, ...] | None = None) -> list[Step]:
    """wanted_peers: the keys of the libraries to run (peers.PEERS), None for all that are installed."""
    x, weight, bias = inputs()
    return [
        Step(ORACLE, "against the oracle", oracle_checks),
        Step(EXACT, "against the exact result", exact_checks),
        Step(PUBLISHED, "against the published values", published_checks),
        Step(
            peers.GROUP,
            "against the real libraries",
            lambda: peers.checks(x, weight, bias, EPS, np.array(exact_result(), np.float64), wanted_peers),
        ),
        Step(determinism.GROUP, "determinism", determinism_checks),
        Step(mutations.GROUP, "mutations", lambda: mutations.checks(x, EPS)),
    ]


def oracle_checks() -> Iterator[Check]:
    cases = (
        ("checkpoint input", "The checkpoint's input.", inputs()),
        (
            "weight, bias, odd length",
            "The input of the mutations: [8, 1000], rows of 100 + noise among them, weight and bias not trivial.",
            mutations.mutation_input(inputs()[0]),
        ),
    )
    for name, what, arrays in cases:
        got = llorch.layer_norm(*arrays, eps=EPS)
        yield bit_check(ORACLE, name, what, got, llorch.reference.layer_norm(*arrays, eps=EPS))
    found = {"input": inputs()[0], "output": llorch.layer_norm(*inputs(), eps=EPS)}
    yield from hash_checks("checkpoint_01_layer_norm", found)


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
    published = load("checkpoint_01_layer_norm.json")
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
    one_pass = peers.one_pass(*inputs(), EPS)[0, : len(values)]
    same = int(np.count_nonzero(one_pass == values))
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
    plan = determinism.Plan()
    fresh = "from llorch.validate.kernels import layer_norm as checkpoint_01; print(checkpoint_01.output_hash())"
    yield from determinism.checks(subject, plan, fresh)
    control = replace(subject, call=functools.partial(mutations.ordinary_kernel, eps=EPS))
    yield determinism.control_check(determinism.GROUP, determinism.batch_hashes(control, plan.batches))
