"""attention and KVCache: bit for bit the oracle, whatever comes together, in whatever order, at whatever place."""

import functools
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import (
    SPECIALS,
    Guarded,
    assert_same_bits,
    at_offset,
    in_threads,
    normal,
    num_threads,
    online_attention,
    rng,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import llorch
from llorch import KVCache, reference
from llorch.testing import use_isa

VECTORS = np.load(Path(__file__).parent.parent / "data" / "attention_vectors.npz")
VECTOR_SHAPES = sorted({name.split("/")[1] for name in VECTORS.files if name.startswith("attention/")})
BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), BF16)

# heads, queries, positions, values: on and around the seams of tiles (6), panels (16), lanes (64), chunks (128)
SHAPES = (
    [(2, T, T, 8) for T in (1, 2, 5, 6, 7, 13, 16, 17, 31, 63, 64, 65, 127, 128, 129)]
    + [(3, Tq, Tk, 16) for Tq, Tk in ((1, 2), (1, 16), (1, 63), (1, 129), (1, 300), (2, 64), (3, 130), (4, 257), (5, 128),  # noqa: E501
                                      (24, 150), (25, 129), (50, 51), (1, 257), (130, 260))]
    + [(2, Tq, Tk, D) for D in (1, 3, 15, 17, 40, 64, 80, 128, 129, 140, 257) for Tq, Tk in ((1, 40), (9, 20), (30, 30))]  # noqa: E501
    + [(1, 300, 300, 64)]
)  # fmt: skip


@functools.cache
def case(heads, Tq, Tk, D, dtype=np.float32):
    q, k, v = (normal(heads, T, D, seed=i).astype(dtype) for i, T in enumerate((Tq, Tk, Tk)))
    return q, k, v, reference.attention(q, k, v)


def cache_of(k, v, steps=None, **keywords):
    cache = KVCache(k.shape[0], k.shape[2], max(k.shape[1], 1), **keywords)
    start = 0
    for step in steps or (k.shape[1],):
        cache.append(k[:, start : start + step], v[:, start : start + step])
        start += step
    assert start == k.shape[1] == len(cache)
    return cache


@pytest.mark.parametrize("shape", VECTOR_SHAPES)
def test_vectors_of_an_independent_oracle(isa, shape):
    q, k, v, y = (VECTORS[f"attention/{shape}/{name}"] for name in "qkvy")
    assert_same_bits(reference.attention(q, k, v), y, "oracle")
    assert_same_bits(llorch.attention(q, k, v), y, "arrays")
    assert_same_bits(cache_of(k, v).attention(q), y, "cache")


def test_the_vectors_reach_second_blocks():
    """Of positions, and of the values of a head."""
    sizes = [[int(n) for n in shape.split("x")] for shape in VECTOR_SHAPES]
    assert any(T > 128 for _, T, _ in sizes) and any(D > 128 for _, _, D in sizes)


def text(q, k, v, scale):
    """The definition in docs/numerics.md for one query, value by value."""
    T, D = k.shape
    zero = np.float32([0])

    def dot128(a, b):
        y = zero
        for first in range(0, len(a), 128):
            p = zero
            for i in range(first, min(first + 128, len(a))):
                p = reference.fma(a[i : i + 1], b[i : i + 1], p)
            y = y + p
        return y

    s = np.concatenate([dot128(q, k[t]) for t in range(T)]) * scale
    e = reference.exp(s - max(s))
    Z = reference.sum64(e[None])[0]
    return np.concatenate([dot128(e, np.ascontiguousarray(v[:, d])) / Z for d in range(D)])


@pytest.mark.parametrize("T, D", ((1, 1), (3, 2), (140, 3), (5, 130)))
def test_the_oracle_is_the_text(T, D):
    q, k, v, y = case(1, T, T, D)
    scale = np.float32(1 / np.sqrt(np.float64(D)))
    for i in {0, T // 2, T - 1}:
        assert_same_bits(y[0, i], text(q[0, i], k[0, : i + 1], v[0, : i + 1], scale))


def test_oracle(isa):
    for shape in SHAPES:
        q, k, v, y = case(*shape)
        assert_same_bits(llorch.attention(q, k, v), y, f"arrays {shape}")
        assert_same_bits(cache_of(k, v).attention(q), y, f"cache {shape}")


@pytest.mark.parametrize("dtype", (np.dtype(np.float16), BF16), ids=str)
def test_oracle_of_16_bits(isa, dtype):
    for shape in ((2, 1, 1, 8), (2, 1, 130, 64), (2, 30, 150, 64), (1, 7, 20, 3), (3, 40, 40, 17)):
        q, k, v, y = case(*shape, dtype)
        assert_same_bits(llorch.attention(q, k, v), y, f"arrays {shape}")
        assert_same_bits(cache_of(k, v).attention(q), y, f"cache {shape}")


def test_scale(isa):
    q, k, v, _ = case(2, 20, 33, 40)
    for scale in (1.0, 0.1, -0.3, 0.0, np.float32(0.7), 3, 1e-46, 1 / 3):
        assert_same_bits(llorch.attention(q, k, v, scale=scale), reference.attention(q, k, v, scale=scale), f"{scale}")
        assert_same_bits(cache_of(k, v).attention(q, scale=scale), reference.attention(q, k, v, scale=scale))
    assert_same_bits(llorch.attention(q, k, v, scale=1 / np.sqrt(40)), llorch.attention(q, k, v))


def test_all_instruction_sets_agree():
    q, k, v, _ = case(1, 300, 300, 64)
    results = {}
    for name in llorch.available_isas():
        with use_isa(name):
            results[name] = llorch.attention(q, k, v)
    assert "generic" in results and len(results) >= 2
    for name, y in results.items():
        assert_same_bits(y, results["generic"], name)


# ---- grouped queries, windows, softcaps, encoders ------------------------------------------------------

# heads, heads of keys, queries, positions, values; the mask
MASKS = (
    (6, 2, 1, 1, 8, {}),
    (6, 2, 1, 200, 16, {}),
    (9, 3, 7, 140, 64, {}),
    (8, 1, 30, 30, 5, {}),
    (14, 2, 40, 300, 16, {}),
    (2, 2, 1, 300, 16, {"window": 1}),
    (2, 2, 1, 300, 16, {"window": 64}),
    (2, 1, 1, 400, 16, {"window": 129}),
    (1, 1, 33, 33, 8, {"window": 5}),
    (4, 2, 150, 400, 16, {"window": 100}),
    (3, 3, 300, 300, 8, {"window": 128}),
    (3, 1, 13, 300, 17, {"window": 1000}),
    (2, 2, 20, 150, 16, {"softcap": 50.0}),
    (2, 1, 1, 150, 16, {"softcap": 0.3, "scale": 4.0}),
    (4, 2, 70, 290, 24, {"softcap": 30, "window": 90}),
    (2, 2, 20, 20, 16, {"causal": False}),
    (4, 2, 1, 200, 16, {"causal": False}),
    (6, 2, 130, 130, 12, {"causal": False, "softcap": 2.0}),
    (2, 1, 30, 9, 8, {"causal": False}),
    (2, 2, 33, 33, 8, {"causal": False, "window": 5}),
    (4, 2, 300, 300, 16, {"causal": False, "window": 64}),
    (4, 1, 70, 400, 17, {"causal": False, "window": 129}),
    (2, 2, 1, 300, 16, {"causal": False, "window": 1}),
    (12, 12, 62, 62, 32, {"causal": False, "reach": 20}),
    (4, 2, 140, 200, 16, {"reach": 7, "window": 90, "softcap": 1.5}),
    (3, 3, 150, 150, 8, {"causal": False, "window": 30, "reach": 128}),
    (2, 1, 1, 150, 8, {"reach": 0}),
)
BOTH_SIDES = tuple(i for i, (*_, mask) in enumerate(MASKS) if not mask.get("causal", True) and "window" in mask)
BIASES = tuple(i for i, (*_, mask) in enumerate(MASKS) if "reach" in mask)


def masked(number, dtype=np.float32):
    """q, k, v, the mask and what is right."""
    return *_masked_arguments(number, dtype), _masked_wanted(number, dtype)


def _masked_arguments(number, dtype):
    H, H_kv, Tq, Tk, D, mask = MASKS[number]
    q, k, v = normal(H, Tq, D), normal(H_kv, Tk, D, seed=1), normal(H_kv, Tk, D, seed=2)
    if "reach" in mask:
        mask = {name: value for name, value in mask.items() if name != "reach"}
        mask["position_bias"] = normal(H, 2 * MASKS[number][-1]["reach"] + 1, seed=3).astype(dtype)
    return *(x.astype(dtype) for x in (q, k, v)), mask


@functools.cache
def _masked_wanted(number, dtype):
    *arrays, mask = _masked_arguments(number, dtype)
    return reference.attention(*arrays, **mask)


@pytest.mark.parametrize("number", range(len(MASKS)))
def test_masks(isa, number):
    q, k, v, mask, wanted = masked(number)
    for threads in (1, 3):
        with num_threads(threads):
            assert_same_bits(llorch.attention(q, k, v, **mask), wanted, f"arrays, {MASKS[number]}")
            if q.shape[1] <= k.shape[1]:
                assert_same_bits(cache_of(k, v).attention(q, **mask), wanted, f"cache, {MASKS[number]}")


@pytest.mark.parametrize("dtype", (np.dtype(np.float16), BF16), ids=str)
def test_masks_of_16_bits(isa, dtype):
    for number in (1, 4, 9, 14, 16, 19, 21, 23, 24):
        q, k, v, mask, wanted = masked(number, dtype)
        assert_same_bits(llorch.attention(q, k, v, **mask), wanted, f"arrays, {mask}")
        assert_same_bits(cache_of(k, v).attention(q, **mask), wanted, f"cache, {mask}")


def test_the_oracle_of_masks_is_the_text():
    """Value by value, over the positions that a query sees. The sums of a window keep their lanes and blocks."""
    D, T, cap = 3, 150, np.float32(1.5)
    q, k, v = normal(2, T, D), normal(1, T, D, seed=1), normal(1, T, D, seed=2)
    scale = np.float32(1 / np.sqrt(np.float64(D)))
    zero = np.float32([0])
    for window in (70, 3):
        y = llorch.attention(q, k, v, window=window, softcap=1.5)
        for head, i in ((0, 0), (0, 140), (1, 149), (1, 69)):
            seen = range(max(0, i - window + 1), i + 1)
            s = {}
            for t in seen:
                p = zero
                for d in range(D):
                    p = reference.fma(q[head, i, d : d + 1], k[0, t, d : d + 1], p)
                s[t] = cap * reference.tanh((zero + p) * scale / cap)
            m = max(s.values())
            e = {t: reference.exp(s[t] - m) for t in seen}
            lanes = np.zeros((1, 64), np.float32)
            for t in seen:
                lanes[0, t % 64] += e[t][0]
            Z = reference.sum64(lanes)[0]
            for d in range(D):
                o = zero
                for block in sorted({t // 128 for t in seen}):
                    p = zero
                    for t in seen:
                        if t // 128 == block:
                            p = reference.fma(e[t], v[0, t, d : d + 1], p)
                    o = o + p
                assert_same_bits(y[head, i, d : d + 1], o / Z, f"window {window}, query {i}")


def test_sums_of_a_window_that_begin_with_it_would_be_seen():
    """Negative control: lanes and blocks counted from the window's first position have other bits."""
    q, k, v = normal(1, 1, 16), normal(1, 400, 16, seed=1), normal(1, 400, 16, seed=2)
    y = llorch.attention(q, k, v, window=200)
    assert not same_bits(llorch.attention(q, k[:, 200:], v[:, 200:]), y)
    aligned = llorch.attention(q, k, v, window=400 - 128)  # this one begins with a block
    assert_same_bits(llorch.attention(q, k[:, 128:], v[:, 128:]), aligned)


def test_shared_heads_are_the_heads_repeated(isa):
    q, k, v, wanted = masked(4)[0], *masked(4)[1:3], masked(4)[4]
    repeated = [np.repeat(x, 7, 0) for x in (k, v)]
    assert_same_bits(llorch.attention(q, *repeated), wanted)
    for h in range(14):
        assert_same_bits(llorch.attention(q[h], k[h // 7], v[h // 7]), wanted[h], f"head {h} alone")
    assert not same_bits(llorch.attention(q, *(np.tile(x, (7, 1, 1)) for x in (k, v))), wanted), "control: other heads"
    batch = [np.stack([x, x[::-1]]) for x in (q, k, v)]
    y = llorch.attention(*batch)
    assert_same_bits(y[0], wanted)
    assert_same_bits(y[1], wanted[::-1])


@settings(max_examples=100)
@given(
    st.integers(1, 280),
    st.sampled_from(((1, 1), (3, 1), (4, 2))),
    st.sampled_from((1, 2, 60, 64, 100, 128, 129, 200, None)),
    st.sampled_from((None, 1.5)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
)
def test_chunk_invariant_with_masks(T, heads, window, softcap, seed, threads):
    """Prefill at once, in chunks of any sizes, token by token, by arrays and by the cache; any threads."""
    (H, H_kv), D, mask = heads, 8, {"window": window, "softcap": softcap}
    q, k, v = (normal(h, T, D, seed=seed % 1000 + i) for i, h in enumerate((H, H_kv, H_kv)))
    with num_threads(1):
        wanted = llorch.attention(q, k, v, **mask)
    cache, end = KVCache(H_kv, D, T), 0
    with num_threads(threads):
        for step in cut(T, seed):
            start, end = end, end + step
            cache.append(k[:, start:end], v[:, start:end])
            assert_same_bits(cache.attention(q[:, start:end], **mask), wanted[:, start:end], f"cache, {start} .. {end}")
            part = llorch.attention(q[:, start:end], k[:, :end], v[:, :end], **mask)
            assert_same_bits(part, wanted[:, start:end], f"arrays, {start} .. {end}")


def test_encoders_are_batch_and_query_invariant(isa):
    q, k, v, mask, wanted = masked(17)
    for some in (slice(0, 1), slice(5, 9), slice(129, 130), slice(0, 77)):
        assert_same_bits(llorch.attention(q[:, some], k, v, **mask), wanted[:, some], f"queries {some}")
    assert not same_bits(llorch.attention(q, k, v, softcap=2.0)[:, :-1], wanted[:, :-1]), "control: causal"
    assert_same_bits(llorch.attention(q, k, v, softcap=2.0)[:, -1], wanted[:, -1])
    for number in BOTH_SIDES + BIASES:  # queries that have a position: the last ones
        q, k, v, mask, wanted = masked(number)
        for last in {1, 2, 7, 50} & set(range(q.shape[1])):
            assert_same_bits(llorch.attention(q[:, -last:], k, v, **mask), wanted[:, -last:], f"{MASKS[number]}")
        batch = [np.stack([x, x[:, ::-1]]) for x in (q, k, v)]
        assert_same_bits(llorch.attention(*batch, **mask)[0], wanted, f"beside another, {MASKS[number]}")


def test_another_window_or_bias_would_be_seen():
    """Negative controls: a window one wider or narrower, a bias whose sign, distances or heads are exchanged."""
    for number in BOTH_SIDES:
        q, k, v, mask, wanted = masked(number)
        for window in {mask["window"] - 1, mask["window"] + 1} - {0}:
            assert not same_bits(llorch.attention(q, k, v, **{**mask, "window": window}), wanted), f"{MASKS[number]}"
        assert not same_bits(llorch.attention(q, k, v, **{**mask, "causal": True}), wanted), "one side alone"
    for number in BIASES:
        q, k, v, mask, wanted = masked(number)
        bias = mask["position_bias"]
        others = [-bias, bias[:, ::-1], bias[::-1]] if bias.shape[1] > 1 else []  # one value for all changes no weight
        for other in others:
            assert not same_bits(llorch.attention(q, k, v, **{**mask, "position_bias": other}), wanted)
            assert_same_bits(
                llorch.attention(q, k, v, **{**mask, "position_bias": other}),
                llorch.attention(q, k, v, **{**mask, "position_bias": other.copy()}),
                "strides",
            )
        placed = llorch.attention(q, k, v, **{**mask, "position_bias": at_offset(bias, 1)})
        assert_same_bits(placed, wanted, "not at whole floats, which the sanitizers tell")


def test_what_a_bias_makes_infinite_or_nan(isa):
    """A score of -infinity weighs nothing, a NaN is the row's, and both where the distance is seen alone."""
    q, k, v = normal(2, 40, 8), normal(2, 40, 8, seed=1), normal(2, 40, 8, seed=2)
    bias = normal(2, 21, seed=3)
    bias[0, 12] = -np.inf
    bias[1, 0] = np.nan
    for how in ({"causal": False}, {}, {"causal": False, "window": 9}):
        y = llorch.attention(q, k, v, position_bias=bias, **how)
        assert_same_bits(y, reference.attention(q, k, v, position_bias=bias, **how))
        assert not np.isnan(y[0]).any()
        assert np.isnan(y[1]).all(axis=1).tolist() == [i >= 10 and "window" not in how for i in range(40)]


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 3.4e38))
def test_positions_outside_the_window_do_not_exist(isa, value):
    for T, D, window in ((40, 8, 7), (300, 16, 100), (300, 16, 128), (140, 3, 1)):
        q, k, v = (normal(2, T, D, seed=i) for i in range(3))
        wanted = llorch.attention(q, k, v, window=window)
        for t in {0, 5, window, T // 2, 127 % T, 128 % T, T - 1}:
            for which in (k, v):
                spoilt = which.copy()
                spoilt[0, t] = value
                arguments = (spoilt, v) if which is k else (k, spoilt)
                y = llorch.attention(q, *arguments, window=window)
                assert_same_bits(y[:, :t], wanted[:, :t], f"T={T}, window {window}, {value} at {t}, before")
                assert_same_bits(y[:, t + window :], wanted[:, t + window :], f"T={T}, window {window}, {value} at {t}")
                assert_same_bits(cache_of(*arguments).attention(q, window=window), y, "cache")
                if np.isnan(value):
                    assert np.isnan(y[0, t : t + window]).all(), "control: who sees it is NaN"


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_positions_outside_a_window_of_both_sides_do_not_exist(isa, value):
    for T, window in ((40, 7), (300, 64), (300, 1)):
        q, k, v = (normal(2, T, 8, seed=i) for i in range(3))
        wanted = llorch.attention(q, k, v, window=window, causal=False)
        for t in {0, window, T // 2, 127 % T, 128 % T, T - 1}:
            for spoilt in (0, 1):
                arrays = [k.copy(), v.copy()]
                arrays[spoilt][0, t] = value
                y = llorch.attention(q, *arrays, window=window, causal=False)
                seen = slice(max(t - window, 0), t + window + 1)
                apart = np.ones(T, bool)
                apart[seen] = False
                assert_same_bits(y[:, apart], wanted[:, apart], f"T={T}, window {window}, {value} at {t}")
                if np.isnan(value):
                    assert np.isnan(y[0, seen]).all(), "control: who sees it is NaN"


def test_special_values_with_masks(isa):
    for number in (1, 4, 8, 9, 12, 14, 17, 19, 21, 23, 24):
        for seed in range(4):
            *arrays, mask, wanted = spoilt(number, seed)
            assert_same_bits(llorch.attention(*arrays, **mask), wanted, f"{number}, {seed}")


@functools.cache
def spoilt(number, seed):
    """As `masked`, with some special values among q, k and v."""
    *arrays, mask = _masked_arguments(number, np.float32)
    r = rng(seed, number)
    for a in arrays:
        for _ in range(3):
            a[tuple(r.integers(n) for n in a.shape)] = SPECIALS[r.integers(len(SPECIALS))]
    return *arrays, mask, reference.attention(*arrays, **mask)


def test_the_cost_of_a_window_is_that_of_the_window():
    """Chunks before it aren't read: they may be memory that can't be."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux's mmap")
    window, D = 256, 16
    q, k, v = normal(2, 40, D), normal(2, 128 * 20, D, seed=1), normal(2, 128 * 20, D, seed=2)
    wanted = llorch.attention(q, k, v, window=window)
    with Guarded() as guarded:
        for x in (k, v):
            x[:, : 2560 - 40 - window + 1] = 0
        # the same keys where all before a block of the first window is memory that may not be touched
        first = (2560 - 40 - window + 1) // 128 * 128 * D * 4
        places = []
        for x in (k, v):
            parts = [guarded.unreadable_before(x[h], first) for h in range(2)]
            places.append(parts)
        for h in range(2):
            assert_same_bits(
                llorch.attention(q[h], places[0][h], places[1][h], window=window), wanted[h], "many queries"
            )
            one = llorch.attention(q[h, -1:], places[0][h], places[1][h], window=window)
            assert_same_bits(one, wanted[h, -1:], "one query")


def test_time_grows_with_the_window_of_both_sides():
    """Not with the sequence: 4,096 positions, of which a query sees 129, take a fraction of the time that all take."""
    q = normal(1, 4096, 16)
    seconds = {}
    with num_threads(1):
        for window in (64, None) * 3:
            start = time.thread_time()
            llorch.attention(q, q, q, causal=False, window=window)
            seconds[window] = min(time.thread_time() - start, seconds.get(window, np.inf))
    assert seconds[64] * 4 < seconds[None], f"{seconds}"


# ---- a query's bits depend on what it sees -----------------------------------------------------------


def cut(total, seed):
    """Random positive steps that add up to total; many are 1."""
    r, steps = rng(seed), []
    while total:
        step = int(min(total, 1 if r.random() < 0.4 else r.integers(1, 150)))
        steps.append(step)
        total -= step
    return steps


@settings(max_examples=100)
@given(st.integers(1, 280), st.sampled_from((1, 8, 16, 40)), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_chunk_invariant(T, D, seed, heads):
    """Prefill at once, in chunks of any sizes, token by token, by arrays and by the cache."""
    q, k, v = (normal(heads, T, D, seed=seed % 1000 + i) for i in range(3))
    wanted = llorch.attention(q, k, v)
    cache, end = KVCache(heads, D, T), 0
    for step in cut(T, seed):
        start, end = end, end + step
        cache.append(k[:, start:end], v[:, start:end])
        assert_same_bits(cache.attention(q[:, start:end]), wanted[:, start:end], f"cache, {start} .. {end}")
        part = llorch.attention(q[:, start:end], k[:, :end], v[:, :end])
        assert_same_bits(part, wanted[:, start:end], f"arrays, {start} .. {end}")


def test_token_by_token(isa):
    q, k, v, wanted = case(2, 140, 140, 16) if llorch.isa() != "generic" else case(1, 70, 70, 8)
    cache = KVCache(k.shape[0], k.shape[2], 140)
    for t in range(k.shape[1]):
        cache.append(k[:, t : t + 1], v[:, t : t + 1])
        assert_same_bits(cache.attention(q[:, t : t + 1]), wanted[:, t : t + 1], f"token {t}")


def test_chunk_invariance_check_can_fail():
    q, k, v, _ = case(1, 129, 129, 16)
    results = [online_attention(q[0, -1], k[0], v[0], first) for first in (3, 7, 20)]
    assert not same_bits(results[0], results[1]) or not same_bits(results[1], results[2])


def test_the_order_of_positions_shows():
    """Negative control: the same sums with blocks that begin elsewhere have other bits, so a wrong order would be seen."""  # noqa: E501
    q, k, v, wanted = case(1, 1, 300, 16)
    s = np.zeros((1, 300), np.float32)
    for d in range(16):
        s = reference.fma(np.broadcast_to(q[0, :, d : d + 1], s.shape), np.ascontiguousarray(k[0, :, d][None]), s)
    s = s * np.float32(0.25)
    e = reference.exp(s - s.max())

    def weighted(shift):
        o = np.zeros((1, 16), np.float32)
        bounds = [0, *range(128 - shift, 300, 128), 300]
        for start, end in zip(bounds, bounds[1:], strict=False):  # noqa: RUF007
            o = o + reference.dot128(e[:, start:end], v[0, start:end], np.zeros((1, 16), np.float32))
        return o / reference.sum64(e)

    assert_same_bits(weighted(0), wanted[0])
    assert not same_bits(weighted(28), wanted[0])


def test_batch_and_head_invariant(isa):
    q, k, v = (normal(2, 3, 20, 16, seed=i) for i in range(3))
    wanted = llorch.attention(q, k, v)
    for b in range(2):
        assert_same_bits(llorch.attention(q[b], k[b], v[b]), wanted[b], f"sequence {b} alone")
        for h in range(3):
            assert_same_bits(llorch.attention(q[b, h], k[b, h], v[b, h]), wanted[b, h], f"head {h} alone")
    # a needle among other sequences
    others = [np.concatenate([normal(4, 3, 20, 16, seed=9 + i), x[:1]]) for i, x in enumerate((q, k, v))]
    assert_same_bits(llorch.attention(*others)[4], wanted[0])
    assert_same_bits(llorch.attention(*(x[:, ::-1] for x in (q, k, v))), wanted[:, ::-1])


@pytest.mark.parametrize("threads", (1, 2, 3, 8))
def test_thread_invariant(threads):
    for shape in ((4, 300, 300, 64), (16, 1, 700, 64), (1, 257, 400, 40), (3, 20, 1500, 64)):
        q, k, v = (normal(shape[0], T, shape[3], seed=i) for i, T in enumerate((shape[1], shape[2], shape[2])))
        with num_threads(1):
            wanted = llorch.attention(q, k, v)
        with num_threads(threads):
            assert_same_bits(llorch.attention(q, k, v), wanted, f"{threads} threads, {shape}")
            assert_same_bits(cache_of(k, v).attention(q), wanted, f"{threads} threads, cache, {shape}")


@pytest.mark.parametrize("threads", (1, 2, 3, 8))
def test_thread_invariant_side_by_side(threads):
    """Heads that lie side by side in their rows, as a model has them: threads take parts of the rows."""
    for H, H_kv, Tq, Tk, mask in (
        (6, 2, 300, 400, {}),
        (3, 3, 130, 130, {"window": 50}),
        (4, 1, 515, 520, {"softcap": 5.0}),
    ):
        k, v = normal(H_kv, Tk, 48), normal(H_kv, Tk, 48, seed=1)
        q = normal(Tq, H * 48, seed=2).reshape(Tq, H, 48).transpose(1, 0, 2)
        with num_threads(1):
            wanted = llorch.attention(np.ascontiguousarray(q), k, v, **mask)
        with num_threads(threads):
            assert_same_bits(cache_of(k, v).attention(q, **mask), wanted, f"{threads} threads, {H, H_kv, Tq, Tk}")


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 60), st.integers(0, 250), st.sampled_from((3, 16, 40)),
       st.sampled_from(DTYPES), st.integers(1, 3), st.randoms(use_true_random=False))  # fmt: skip
def test_a_head_and_a_query_know_no_other(heads, Tq, more, D, dtype, threads, random):
    """Heads in another order and in any batches, queries in any chunks, on any threads, from arrays and a cache."""
    q, k, v = (normal(heads, T, D, seed=i).astype(dtype) for i, T in enumerate((Tq, Tq + more, Tq + more)))
    wanted = llorch.attention(q, k, v)
    order = list(range(heads))
    random.shuffle(order)
    with num_threads(threads):
        assert_same_bits(llorch.attention(q[order], k[order], v[order]), wanted[order])
        head = random.randrange(heads)
        assert_same_bits(llorch.attention(q[head], k[head], v[head]), wanted[head])
        first, end = sorted((random.randrange(Tq + 1), random.randrange(Tq + 1)))
        seen = more + end
        part = llorch.attention(q[:, first:end], k[:, :seen], v[:, :seen])
        assert_same_bits(part, wanted[:, first:end], f"queries {first} .. {end}")
        cache = cache_of(k, v)
        assert_same_bits(cache.attention(q), wanted)
        cache.truncate(seen)
        assert_same_bits(cache.attention(q[:, first:end]), wanted[:, first:end], f"cache, queries {first} .. {end}")


def test_threads_sharing_their_cache():
    q, k, v, wanted = case(3, 130, 260, 16)
    cache = cache_of(k, v)
    wrong = []

    def work():
        for _ in range(60):
            if not same_bits(cache.attention(q), wanted) or not same_bits(llorch.attention(q, k, v), wanted):
                wrong.append(1)

    in_threads(work)
    assert not wrong


def test_many_heads_are_packed_in_groups():
    """More keys than are packed at a time: heads of the first and the last group are right."""
    q, k, v = (normal(30, T, 64, seed=i) for i, T in enumerate((40, 700, 700)))
    y = llorch.attention(q, k, v)
    for head in (0, 4, 5, 17, 29):
        assert_same_bits(y[head], cache_of(k[head : head + 1], v[head : head + 1]).attention(q[head : head + 1])[0])


@settings(max_examples=200)
@given(
    st.integers(1, 30),
    st.integers(0, 140),
    st.sampled_from((1, 5, 16, 64)),
    st.integers(0, 63),
    st.sampled_from(DTYPES),
)
def test_place_invariant(Tq, more, D, offset, dtype):
    q, k, v = (normal(2, T, D, seed=i).astype(dtype)
               for i, T in enumerate((Tq, Tq + more, Tq + more)))  # fmt: skip
    wanted = llorch.attention(q, k, v)
    placed = [at_offset(x, (offset * f) % 64) for f, x in ((1, q), (3, k), (7, v))]
    out = at_offset(np.zeros_like(q), (offset * 5) % 64)
    assert llorch.attention(*placed, out=out) is out
    assert_same_bits(out, wanted)
    cache = KVCache(2, D, Tq + more)
    cache.append(*placed[1:])
    assert_same_bits(cache.attention(placed[0]), wanted)


def test_strides(isa):
    """GPT-2's views of one array of q, k and v, and worse ones."""
    qkv = normal(2, 30, 3, 4, 16, seed=3)
    for b in (slice(None), 0):
        views = [np.moveaxis(qkv[b][..., i, :, :], -2, -3) for i in range(3)]
        wanted = llorch.attention(*(x.copy() for x in views))
        assert_same_bits(llorch.attention(*views), wanted, "GPT-2")
        out = np.zeros_like(views[0]) if b == 0 else np.moveaxis(np.zeros((2, 30, 4, 16), np.float32), 2, 1)
        assert_same_bits(llorch.attention(*views, out=out), wanted, "GPT-2, out")
        few = [views[0][..., 21:, :], *views[1:]]
        assert_same_bits(llorch.attention(*few), wanted[..., 21:, :], "few queries")
    base = normal(3, 40, 70, seed=4)
    for view in (base[:, :, ::2], base[::-1, ::-1, ::-1], base[:, ::3, :9], base.transpose(0, 2, 1), base[:, :, 1:65],
                 np.broadcast_to(base[:1, :, :20], (5, 40, 20)), np.broadcast_to(base[:, :1, :20], (3, 9, 20)),
                 np.frombuffer(bytes(1) + base.tobytes(), np.uint8)[1:].view(np.float32).reshape(base.shape)):  # fmt: skip  # noqa: E501
        wanted = llorch.attention(view.copy(), view.copy(), view.copy())
        assert_same_bits(llorch.attention(view, view, view), wanted, f"strides {view.strides}")
        assert_same_bits(llorch.attention(view[:, -2:], view, view), wanted[:, -2:], f"strides {view.strides}")
        cache = KVCache(view.shape[0], view.shape[2], view.shape[1])
        cache.append(view, view)
        assert_same_bits(cache.attention(view), wanted, f"cache, strides {view.strides}")
    out = np.zeros((3, 40, 140), np.float32)[:, :, ::2]
    wanted = llorch.attention(base, base, base)
    assert llorch.attention(base, base, base, out=out) is out
    assert_same_bits(out.copy(), wanted)
    assert np.count_nonzero(out.base) == np.count_nonzero(out), "wrote between the elements of out"


def test_out_may_be_q(isa):
    for shape in ((2, 40, 60, 16), (2, 1, 20, 5), (1, 7, 7, 3)):
        q, k, v, wanted = case(*shape)
        for dtype in (np.float32, np.float16):
            y = q.astype(dtype)
            wanted = reference.attention(y, k.astype(dtype), v.astype(dtype))
            assert llorch.attention(y, k.astype(dtype), v.astype(dtype), out=y) is y
            assert_same_bits(y, wanted)
        y = q.copy()
        cache_of(k, v).attention(y, out=y)
        assert_same_bits(y, case(*shape)[3])


def test_nothing_outside_out_is_written(isa):
    for shape in ((2, 3, 9, 5), (1, 1, 30, 17), (3, 30, 30, 3), (2, 7, 140, 16)):
        q, k, v, _wanted = case(*shape)
        for dtype in (np.float32, np.float16):
            room = np.full(q.size + 96, 7, dtype)
            out = room[48:-48].reshape(q.shape)
            llorch.attention(q.astype(dtype), k.astype(dtype), v.astype(dtype), out=out)
            assert (room[:48] == 7).all() and (room[-48:] == 7).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's mmap")
def test_nothing_outside_the_inputs_is_read(isa):
    for shape in ((1, 1, 9, 5), (1, 3, 20, 16), (1, 1, 130, 64), (2, 30, 30, 3), (1, 33, 33, 64), (1, 1, 1, 1)):
        for dtype in (np.dtype(np.float32), np.dtype(np.float16), BF16):
            q, k, v, wanted = case(*shape, dtype)
            with Guarded() as guarded:
                q, k, v = (guarded.copy(x) for x in (q, k, v))
                assert_same_bits(llorch.attention(q, k, v, out=guarded.copy(q)).copy(), wanted)
                assert_same_bits(cache_of(k, v).attention(q), wanted)


# ---- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 3.4e38))
def test_masked_positions_do_not_exist(isa, value):
    for T, D in ((12, 8), (150, 16), (33, 3)):
        q, k, v, wanted = case(1, T, T, D)
        for t in {1, 5, 6, T // 2, T - 2, T - 1, min(128, T - 1)}:
            for which in (k, v):
                spoilt = which.copy()
                spoilt[0, t] = value
                arguments = (spoilt, v) if which is k else (k, spoilt)
                y = llorch.attention(q, *arguments)
                assert_same_bits(y[:, :t], wanted[:, :t], f"T={T}, {value} at {t}")
                assert_same_bits(y, reference.attention(q, *arguments), f"T={T}, {value} at {t}")
                assert_same_bits(cache_of(*arguments).attention(q), y, f"cache, T={T}, {value} at {t}")
                if np.isnan(value):
                    assert np.isnan(y[:, t:]).all()


def test_the_zero_weight_alone_would_be_seen():
    """Negative control: weighing masked values with 0 lets their NaN through."""
    weights = np.tril(np.ones((3, 3), np.float32))
    v = np.float32([[1], [2], [np.nan]])
    assert np.isnan(reference.dot128(weights, v, np.zeros((3, 1), np.float32))[:2]).all()
    y = llorch.attention(np.zeros((3, 1), np.float32), np.zeros((3, 1), np.float32), v)
    assert_same_bits(y, np.float32([[1], [1.5], [np.nan]]))


def test_rows_that_are_nan(isa):
    """A score of NaN or +infinity, or none but -infinity, makes a row NaN; a single -infinity weighs nothing."""
    one = np.ones((1, 3, 1), np.float32)
    v = np.float32([[[1], [2], [3]]])
    for k, wanted in (
        ([np.inf, 0, 0], [np.nan, np.nan, np.nan]),
        ([0, np.inf, 0], [1, np.nan, np.nan]),
        ([-np.inf, 0, 0], [np.nan, 2, 2.5]),
        ([-np.inf, -np.inf, 0], [np.nan, np.nan, 3]),
        ([0, np.nan, 0], [1, np.nan, np.nan]),
        ([0, -np.inf, 0], [1, 1, 2]),
    ):
        keys = np.float32(k).reshape(1, 3, 1)
        assert_same_bits(llorch.attention(one, keys, v)[0, :, 0], np.float32(wanted), f"{k}")
        assert_same_bits(reference.attention(one, keys, v)[0, :, 0], np.float32(wanted), f"{k}")


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 20), st.sampled_from((1e-38, 1e-20, 1, 30, 1e19)))
def test_any_values(seed, T, D, scale):
    r = rng(seed)
    q, k, v = ((r.standard_normal((1, T, D)) * scale).astype(np.float32) for _ in range(3))
    if seed % 3 == 0:
        for x in (q, k, v):
            x[0, r.integers(T), r.integers(D)] = SPECIALS[r.integers(len(SPECIALS))]
    wanted = reference.attention(q, k, v)
    for name in llorch.available_isas():
        with use_isa(name):
            assert_same_bits(llorch.attention(q, k, v), wanted, name)


def test_shapes():
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0), (2, 0, 3, 4), (3, 4), (1, 1, 1, 1, 2)):
        x = normal(*shape)
        assert_same_bits(llorch.attention(x, x, x), reference.attention(x, x, x), f"shape {shape}")
    assert llorch.attention(normal(2, 0, 4), normal(2, 5, 4), normal(2, 5, 4)).shape == (2, 0, 4)


# ---- errors ---------------------------------------------------------------------------------------------

Q, K, B = normal(2, 4, 8), normal(2, 6, 8), normal(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: llorch.attention(Q.astype(np.float64), K, K), TypeError, "q is float64"),
        (lambda: llorch.attention(Q, K.astype(np.float16), K), TypeError, "k is float16.*the type of q, float32"),
        (lambda: llorch.attention(Q, K, K.astype(np.float16)), TypeError, "v is float16.*the type of q, float32"),
        (lambda: llorch.attention(Q[0, 0], K, K), ValueError, r"q has shape \(8,\), it must be \(..., H, Tq, D\)"),
        (lambda: llorch.attention(K, np.repeat(K, 2, 0), np.repeat(K, 2, 0)), ValueError, "k has 4 heads, q has 2: they must"),  # noqa: E501
        (lambda: llorch.attention(np.repeat(Q, 2, 0)[:3], K, K), ValueError, "k has 2 heads, q has 3: they must be as many, or q's a multiple"),  # noqa: E501
        (lambda: llorch.attention(Q, K[:0], K[:0]), ValueError, "k has 0 heads, q has 2"),
        (lambda: llorch.attention(Q, K, K, causal=None), TypeError, "causal must be True or False, got None"),
        (lambda: llorch.attention(Q, K, K, causal=1), TypeError, "causal must be True or False, got 1"),
        (lambda: llorch.attention(Q, K, K, window=0), ValueError, "window must be at least 1 .*got 0"),
        (lambda: llorch.attention(Q, K, K, window=-3), ValueError, "window must be at least 1 .*got -3"),
        (lambda: llorch.attention(Q, K, K, window=2.0), TypeError, "window must be an int, got float"),
        (lambda: llorch.attention(K, Q, Q, window=2, causal=False), ValueError, "k has 4 positions, fewer than the 6 queries"),  # noqa: E501
        (lambda: llorch.attention(K, Q, Q, position_bias=B, causal=False), ValueError, "k has 4 positions, fewer than the 6"),  # noqa: E501
        (lambda: llorch.attention(Q, K, K, position_bias=B[:, 1:]), ValueError, r"position_bias has shape \(2, 2\), it must be \(2, 2 R \+ 1\)"),  # noqa: E501
        (lambda: llorch.attention(Q, K, K, position_bias=B[:1]), ValueError, r"position_bias has shape \(1, 3\), it must be \(2, "),  # noqa: E501
        (lambda: llorch.attention(Q, K, K, position_bias=B[0]), ValueError, r"position_bias has shape \(3,\)"),
        (lambda: llorch.attention(Q, K, K, position_bias=B.astype(np.float64)), TypeError, "position_bias is float64"),
        (lambda: llorch.attention(Q, K, K, position_bias=0.5), TypeError, "position_bias must be an array"),
        (lambda: cache_of(K, K).attention(Q, position_bias=B[:, :0]), ValueError, r"position_bias has shape \(2, 0\)"),
        (lambda: llorch.attention(Q, K, K, softcap=0), ValueError, "softcap must be positive and finite in float32, got 0"),  # noqa: E501
        (lambda: llorch.attention(Q, K, K, softcap=-1.0), ValueError, "softcap must be positive .*got -1.0"),
        (lambda: llorch.attention(Q, K, K, softcap=1e-46), ValueError, "softcap must be positive .*got 1e-46"),
        (lambda: llorch.attention(Q, K, K, softcap=float("inf")), ValueError, "softcap must be positive .*got inf"),
        (lambda: llorch.attention(Q, K, K, softcap=float("nan")), ValueError, "softcap must be positive .*got nan"),
        (lambda: llorch.attention(Q, K, K, softcap="1"), TypeError, "softcap must be a number, got str"),
        (lambda: llorch.attention(Q, K[:, :0], K[:, :0], causal=False), ValueError, "k has no positions for the 4 queries"),  # noqa: E501
        (lambda: cache_of(K, K).attention(Q, window=0), ValueError, "window must be at least 1"),
        (lambda: cache_of(K, K).attention(Q, softcap=0.0), ValueError, "softcap must be positive"),
        (lambda: cache_of(K, K).attention(Q, causal="no"), TypeError, "causal must be True or False, got 'no'"),
        (lambda: cache_of(K, K).attention(np.repeat(Q, 2, 0)[:3]), ValueError, r"q has shape \(3, 4, 8\).*multiple of 2"),  # noqa: E501
        (lambda: llorch.attention(Q[None], K, K), ValueError, r"k has shape \(2, 6, 8\), its leading axes.*\(1, 2\)"),
        (lambda: llorch.attention(Q, K[..., :7], K), ValueError, "k has 7 values in a head, q has 8"),
        (lambda: llorch.attention(Q, K, K[:, :5]), ValueError, r"v has shape \(2, 5, 8\), it must be \(2, 6, 8\)"),
        (lambda: llorch.attention(K, Q, Q), ValueError, "k has 4 positions, fewer than the 6 queries"),
        (lambda: llorch.attention(Q, K, K, scale=float("nan")), ValueError, "scale must be finite.*nan"),
        (lambda: llorch.attention(Q, K, K, scale=1e39), ValueError, r"scale must be finite.*1e\+39"),
        (lambda: llorch.attention(Q, K, K, scale="1"), TypeError, "scale must be a number, got str"),
        (lambda: llorch.attention(Q, K, K, out=np.empty((2, 4, 7), np.float32)), ValueError, "out has shape"),
        (lambda: llorch.attention(Q, K, K, out=np.empty((2, 4, 8), np.float16)), TypeError, "out is float16.*of q"),
        (lambda: llorch.attention(Q, K, K, out=np.broadcast_to(np.float32(0), (2, 4, 8))), ValueError, "read-only"),
        (lambda: llorch.attention(np.broadcast_to(np.float32(1), (1, 2**24 + 1)), K, K), ValueError, r"2\*\*24"),
        (lambda: KVCache(0, 8, 4), ValueError, "heads must be at least 1"),
        (lambda: KVCache(2, 0, 4), ValueError, "head_dim must be at least 1"),
        (lambda: KVCache(2, 8, -1), ValueError, "capacity must be at least 0"),
        (lambda: KVCache(2, 8, 2**24 + 1), ValueError, "capacity must be .*at most 16777216"),
        (lambda: KVCache(2, 8.0, 4), TypeError, "head_dim must be an int, got float"),
        (lambda: KVCache(2, True, 4), TypeError, "head_dim must be an int, got bool"),
        (lambda: llorch.attention(Q, K, K, window=True), TypeError, "window must be an int, got bool"),
        (lambda: KVCache(), TypeError, r"^__init__\(\) takes exactly 3 positional arguments \(0 given\)"),
        (lambda: cache_of(K, K).__init__(2, 8, 4), TypeError, "a KVCache is made once"),
        (lambda: cache_of(K, K).fork().__init__(2, 8, 4), TypeError, "a KVCache is made once"),
        (lambda: KVCache(2, 8, 4, dtype="int8"), ValueError, "dtype must be 'float32', got 'int8'"),
        (lambda: KVCache(2, 8, 9).append(K[:1], K), ValueError, r"k has shape \(1, 6, 8\), it must be \(2, T, 8\)"),
        (lambda: KVCache(2, 8, 9).append(K[0], K[0]), ValueError, r"k has shape \(6, 8\), it must be \(2, T, 8\)"),
        (lambda: KVCache(2, 8, 9).append(K, K[:, 1:]), ValueError, r"v has shape \(2, 5, 8\).*\(2, 6, 8\)"),
        (lambda: KVCache(2, 8, 9).append(K, K.astype(np.float64)), TypeError, "v is float64"),
        (lambda: KVCache(2, 8, 9).attention(Q), ValueError, "the cache holds 0 positions, fewer than the 4 queries"),
        (lambda: cache_of(K, K).attention(Q[:1]), ValueError, r"q has shape \(1, 4, 8\), it must be \(2, Tq, 8\)"),
        (lambda: cache_of(K, K).truncate(7), ValueError, "length is 7, the cache holds 6"),
        (lambda: cache_of(K, K).truncate(-1), ValueError, "length must be at least 0"),
        (lambda: __import__("copy").copy(KVCache(2, 8, 4)), TypeError, r"use fork\(\)"),
    ],
)  # fmt: skip
def test_message(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_overlaps_are_refused_and_nothing_is_written():
    base = normal(400)
    before = base.copy()
    q, k, v = base[:64].reshape(2, 4, 8), base[100:196].reshape(2, 6, 8), base[200:296].reshape(2, 6, 8)
    for out, message in (
        (base[8:72].reshape(2, 4, 8), "out overlaps q in part"),
        (base[:64].reshape(2, 4, 8)[::-1], "out overlaps q in part"),
        (base[150:214].reshape(2, 4, 8), "out overlaps k"),
        (base[250:314].reshape(2, 4, 8), "out overlaps v"),
        (np.lib.stride_tricks.as_strided(base[300:], (2, 4, 8), (32, 16, 4)), "out overlaps itself"),
    ):
        with pytest.raises(ValueError, match=message):
            llorch.attention(q, k, v, out=out)
    with pytest.raises(ValueError, match="out overlaps position_bias"):
        llorch.attention(q, k, v, position_bias=base[320:326].reshape(2, 3), out=base[300:364].reshape(2, 4, 8))
    assert (base == before).all()


def test_out_may_be_queries_that_lie_between_keys_and_values(isa):
    """q, k and v as views of one projection [T][3][heads][D], of one sequence and of several: they share no memory."""
    for batch in ((), (3,)):
        projection = normal(*batch, 20, 3, 4, 16)
        q, k, v = (projection[..., i, :, :].swapaxes(-3, -2) for i in range(3))
        wanted, others = reference.attention(q, k, v), projection[..., 1:, :, :].copy()
        assert_same_bits(llorch.attention(q, k, v, out=q), wanted)
        assert_same_bits(q, wanted)
        assert_same_bits(projection[..., 1:, :, :], others)
        shifted = projection.reshape(*batch, 20, 192)[..., 16:80].reshape(*batch, 20, 4, 16).swapaxes(-3, -2)
        with pytest.raises(ValueError, match="out overlaps k"):  # three heads of q, and one of k
            llorch.attention(q.copy(), k, v, out=shifted)


# ---- the cache ------------------------------------------------------------------------------------------


def test_a_full_cache_refuses_and_changes_nothing():
    q, k, v, wanted = case(2, 1, 140, 8)
    cache = cache_of(k, v)
    used = cache.nbytes
    with pytest.raises(ValueError, match=r"full: it holds 140 of at most 140 positions, 3 more don't fit"):
        cache.append(k[:, :3], v[:, :3])
    for bad in (k[:, :1].astype(np.float64), k[:1, :1]):
        with pytest.raises((TypeError, ValueError)):
            cache.append(bad, v[:, :1])
    assert (len(cache), cache.capacity, cache.nbytes) == (140, 140, used)
    assert_same_bits(cache.attention(q), wanted)
    cache.append(k[:, :0], v[:, :0])
    assert len(cache) == 140
    empty = KVCache(2, 8, 0)
    with pytest.raises(ValueError, match="holds 0 of at most 0 positions, 1 more don't fit"):
        empty.append(k[:, :1], v[:, :1])


def test_what_a_cache_says():
    cache = KVCache(3, 17, 300)
    assert (cache.heads, cache.head_dim, cache.capacity, len(cache), cache.nbytes) == (3, 17, 300, 0, 0)
    assert cache.dtype == "float32" and "KVCache(3, 17, 300), 0 positions" in repr(cache)
    k, v = normal(3, 200, 17), normal(3, 200, 17, seed=1)
    cache.append(k, v)
    assert_same_bits(cache.keys, k)
    assert_same_bits(cache.values, v)
    assert not cache.keys.flags.writeable and not cache.values.flags.writeable
    assert cache.nbytes >= k.nbytes + v.nbytes
    one = cache.nbytes // 2
    cache.truncate(128)
    assert cache.nbytes == one
    cache.truncate(0)
    assert cache.nbytes == 0 and cache.keys.shape == (3, 0, 17)


def test_mixed_types_are_widened():
    k, v = normal(2, 9, 8).astype(np.float16), normal(2, 9, 8, seed=1).astype(BF16)
    cache = KVCache(2, 8, 9)
    cache.append(k, v)
    assert_same_bits(cache.keys, reference.widen(k))
    assert_same_bits(cache.values, reference.widen(v))
    assert_same_bits(cache.attention(Q), reference.attention(Q, reference.widen(k), reference.widen(v)))


@pytest.mark.parametrize("length", (1, 127, 128, 129, 200, 256))
def test_what_was_taken_back_is_as_if_it_never_was(isa, length):
    """Truncate and append again: the bits of a cache that never held anything else; the fork keeps the old ones."""
    k, v, q = normal(2, 300, 8), normal(2, 300, 8, seed=1), normal(2, 3, 8, seed=2)
    cache = cache_of(k, v)
    old = cache.attention(q)
    fork = cache.fork()
    cache.truncate(length)
    cache.append(k[:, :7] * 3, np.full_like(v[:, :7], np.nan))
    cache.truncate(length)
    assert_same_bits(cache.keys, k[:, :length])
    cache.append(k[:, length:], v[:, length:])
    assert_same_bits(cache.attention(q), old)
    assert_same_bits(fork.attention(q), old)
    cache.truncate(length)
    again = np.concatenate([k[:, :length], v[:, length:]], 1), np.concatenate([v[:, :length], k[:, length:]], 1)
    cache.append(v[:, length:], k[:, length:])
    assert_same_bits(cache.attention(q), cache_of(*again).attention(q))
    assert_same_bits(fork.attention(q), old)


@pytest.mark.parametrize("capacity", (1, 127, 128, 129, 256))
def test_the_edge_of_the_capacity(capacity):
    k, v, q = normal(2, capacity + 1, 5), normal(2, capacity + 1, 5, seed=1), normal(2, 1, 5, seed=2)
    cache = KVCache(2, 5, capacity)
    with pytest.raises(
        ValueError, match=f"full: it holds 0 of at most {capacity} positions, {capacity + 1} more don't"
    ):
        cache.append(k, v)
    assert len(cache) == 0 and cache.nbytes == 0
    cache.append(k[:, :-1], v[:, :-1])
    fork = cache.fork()
    for full in (cache, fork):
        with pytest.raises(
            ValueError, match=f"full: it holds {capacity} of at most {capacity} positions, 1 more don't"
        ):
            full.append(k[:, -1:], v[:, -1:])
        assert full.capacity == len(full) == capacity
        assert_same_bits(full.attention(q), reference.attention(q, k[:, :-1], v[:, :-1]))
    cache.truncate(capacity - 1)
    cache.append(k[:, -1:], v[:, -1:])
    kept = [*range(capacity - 1), capacity]
    assert_same_bits(cache.attention(q), reference.attention(q, k[:, kept], v[:, kept]))
    assert_same_bits(fork.keys, k[:, :-1])


class Model:
    """What a cache should be: arrays."""

    def __init__(self, k, v):
        self.k, self.v = k, v


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("aaaatffd"), st.integers(0, 2**20)), min_size=3, max_size=25))
def test_forks_and_truncations_never_touch_each_other(steps):
    """Caches and arrays side by side through any sequence of append, truncate, fork and drop."""
    H, D, capacity = 2, 3, 400
    nothing = np.zeros((H, 0, D), np.float32)
    pairs = [(KVCache(H, D, capacity), Model(nothing, nothing))]
    for number, (step, value) in enumerate(steps):
        cache, model = pairs[value % len(pairs)]
        if step == "a":
            T = value % 190 if value % 3 else 1
            k, v = normal(H, T, D, seed=number), normal(H, T, D, seed=number + 1000)
            if len(cache) + T > capacity:
                with pytest.raises(ValueError, match="full"):
                    cache.append(k, v)
            else:
                cache.append(k, v)
                model.k, model.v = np.concatenate([model.k, k], 1), np.concatenate([model.v, v], 1)
        elif step == "t":
            length = value % (len(cache) + 1)
            cache.truncate(length)
            model.k, model.v = model.k[:, :length], model.v[:, :length]
        elif step == "f":
            pairs.append((cache.fork(), Model(model.k, model.v)))
        elif len(pairs) > 1:
            pairs.remove((cache, model))
        for other, wanted in pairs:
            assert len(other) == wanted.k.shape[1]
            assert_same_bits(other.keys, wanted.k)
            assert_same_bits(other.values, wanted.v)
    q = normal(H, 1, D)
    for cache, model in pairs:
        if len(cache):
            assert_same_bits(cache.attention(q), llorch.attention(q, model.k, model.v))


def test_a_fork_is_cheap_and_goes_its_own_way():
    q, k, v, wanted = case(2, 1, 200, 8)
    cache = KVCache(2, 8, 400)
    cache.append(k, v)
    forks = [cache.fork() for _ in range(50)]
    for i, fork in enumerate(forks):
        fork.append(normal(2, 2, 8, seed=i), normal(2, 2, 8, seed=i))
    assert_same_bits(cache.attention(q), wanted)
    del cache
    for i, fork in enumerate(forks):
        more = normal(2, 2, 8, seed=i)
        assert_same_bits(fork.keys, np.concatenate([k, more], 1))
        fork.truncate(200)
        assert_same_bits(fork.attention(q), wanted)


def test_attention_while_another_thread_appends():
    """What attention reads is what was there when it began."""
    q, k, v, wanted = case(2, 1, 200, 8)
    cache = KVCache(2, 8, 2000)
    cache.append(k, v)
    wrong = []

    def read():
        for _ in range(300):
            if not same_bits(snapshot.attention(q), wanted):
                wrong.append(1)

    snapshot = cache.fork()
    threads = [threading.Thread(target=read) for _ in range(2)]
    for t in threads:
        t.start()
    for i in range(300):
        cache.append(k[:, :5], v[:, :5])
        if i % 7 == 0:
            cache.truncate(200)
    for t in threads:
        t.join()
    assert not wrong


def test_forks_and_changes_while_another_thread_appends():
    """A fork made meanwhile holds what was there before, its appends touch nobody; other changes are refused."""
    k, v = normal(4, 2048, 64), normal(4, 2048, 64, seed=1)
    cache = KVCache(4, 64, 128 + 2048 + 100)
    cache.append(k[:, :128], v[:, :128])
    wrong, refused, done = [], [], threading.Event()

    def meddle():
        while not done.is_set():
            fork = cache.fork()
            before = len(fork)
            fork.append(v[:, :100], k[:, :100])  # where the other thread is writing, were the block shared
            if before not in (128, 2176) or not same_bits(fork.keys[:, before:], v[:, :100]):
                wrong.append(f"a fork of {before} positions")
            try:
                cache.append(k[:, :0], v[:, :0])
            except RuntimeError as error:
                refused.append(str(error))

    meddler = threading.Thread(target=meddle)
    with num_threads(1):
        meddler.start()
        for _ in range(200):
            cache.append(k, v)
            if not (same_bits(cache.keys[:, 128:], k) and same_bits(cache.values[:, 128:], v)):
                wrong.append("the cache")
            cache.truncate(128)
        done.set()
        meddler.join()
    assert not wrong, f"{wrong[:3]} changed"
    assert set(refused) <= {"another thread is appending to this cache"}
