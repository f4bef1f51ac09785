"""Times of llorch.attention and llorch.KVCache next to PyTorch, as shares of the machine's own peaks.

    python benchmarks/bench_attention.py             # writes docs/benchmarks/attention.json, attention.md and .png
    python benchmarks/bench_attention.py --quick     # fewer repetitions, prints only

Causal, 16 heads of 64 as in GPT-2 medium: T positions at once (prefill), and one query against T (decoding).
"""

import functools

import common
import numpy as np
from common import check_bits, check_near, interleaved, section, set_threads, torch

import llorch

HEADS, WIDTH = 16, 64
LLORCH, CACHE, TORCH = "llorch.attention", "llorch.KVCache", "PyTorch"
LENGTHS = (128, 512, 1024)


def cache_of(k, v):
    """A cache that holds k and v (heads, T, width), with room for one more; called with the queries."""
    cache = llorch.KVCache(k.shape[0], k.shape[2], k.shape[1] + 1)
    cache.append(k, v)
    return cache.attention


def check_attention(what, y, q, k, v):
    """The last head's first and last queries against the oracle."""
    few, ahead = min(4, q.shape[1]), k.shape[1] - q.shape[1]
    q, k, v, y = (np.ascontiguousarray(array[-1:]) for array in (q, k, v, y))
    check_bits(what, y[:, -few:], llorch.reference.attention(np.ascontiguousarray(q[:, -few:]), k, v))
    seen = np.s_[:, : ahead + few]
    first = (np.ascontiguousarray(array) for array in (q[:, :few], k[seen], v[seen]))
    check_bits(what, np.ascontiguousarray(y[:, :few]), llorch.reference.attention(*first))


def bench(queries, length, threads, quick):
    """queries: `length` of them, or 1."""
    set_threads(threads)
    rng = np.random.default_rng(0)
    q = rng.standard_normal((HEADS, queries, WIDTH), np.float32)
    k, v = (rng.standard_normal((HEADS, length, WIDTH), np.float32) for _ in range(2))
    out = np.zeros_like(q)
    contenders = {LLORCH: ("f(q, k, v, out=out)", {"f": llorch.attention, "q": q, "k": k, "v": v, "out": out})}
    llorch.attention(q, k, v, out=out)
    check_attention(LLORCH, out, q, k, v)
    if queries == 1:
        cached = cache_of(k, v)
        contenders[CACHE] = ("f(q)", {"f": cached, "q": q})
        check_bits(CACHE, cached(q), out)
    if torch:
        function = torch.nn.functional.scaled_dot_product_attention
        env = dict(zip("qkv", (torch.from_numpy(array)[None] for array in (q, k, v)), strict=True))
        causal = queries == length
        contenders[TORCH] = ("f(q, k, v, is_causal=causal)", env | {"f": function, "causal": causal})
        check_near(TORCH, function(*env.values(), is_causal=causal)[0].numpy(), out)
    samples = interleaved(contenders, 5 if quick else 51, 0.01, rest=0.1 if threads > 1 else 0.0)
    plural = "s" if threads > 1 else ""
    what = "1 query" if queries == 1 else f"{queries} queries"
    title = f"{HEADS} heads of {WIDTH}, {what}, {length} positions, {threads} thread{plural}"
    label = f"{what}\n{length} positions\n{threads} thread{plural}"
    pairs = length if queries == 1 else length * (length + 1) // 2
    traffic = dict.fromkeys(samples, q.nbytes + k.nbytes + v.nbytes)
    work = {"flops": 4 * HEADS * WIDTH * pairs, "traffic": traffic, "threads": threads, "limit": "fma"}
    return section(f"{queries}x{length}x{threads}", title, TORCH, samples, label=label, work=work)


def targets(parts):
    found = []
    for part in parts:
        for row in part["rows"]:
            if row["name"] != TORCH:
                what = f"{row['name']}, {part['title'].split(', ', 1)[1]}, beside PyTorch"
                found.append(common.at_least(what, common.faster(parts, part["key"], row["name"]), 1.0))
    return found


def plot(result, path):
    common.share_plot(result, path, {LLORCH: common.BLUE, CACHE: common.SKY, TORCH: common.RED}, limit=3)


if __name__ == "__main__":
    shapes = [(t if prefill else 1, t, threads) for prefill in (True, False) for t in LENGTHS for threads in (1, 2)]
    common.run_with_peaks(
        __doc__,
        "attention",
        {
            f"{q} x {t} positions, threads: {threads}": functools.partial(bench, q, t, threads)
            for q, t, threads in shapes
        },
        "GFLOP/s count the two products over the positions that a query sees. K and V lie in the cache here, so GB/s "
        "may be more than the peak of reading from memory.",
        plot,
        targets,
    )
