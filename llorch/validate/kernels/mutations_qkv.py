"""Wrong projections, attentions and feed-forward layers, put in on purpose, and the ordinary kernels of the controls.

`linear`, `attention` and `feed_forward` are third writings of the contract, as mutations.layer_norm is, with a switch
for each mistake; with no switch thrown they equal the oracle bit for bit, which is checked first. Their inputs are
random: the checkpoint's own weight depends on row + column alone, so that its q, k and v blocks are symmetric and the
published values could not tell a transposed one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import llorch.reference
from llorch.reference import fma
from llorch.validate.kernels import Array, Check
from llorch.validate.kernels.common import normal
from llorch.validate.kernels.mutations import Mutation, caught, strided_sum

BLOCK = 128


def product(a: Array, b: Array, init: Array, *, block: int = BLOCK, fused: bool = True) -> Array:
    """init + a @ b in float32: a chain of fma over each block of k, the blocks added in order. a [m, k], b [k, n]."""
    y = init
    for k in range(a.shape[1]):
        if k % block == 0:
            part = np.zeros(init.shape, np.float32)
        left, right = np.broadcast_arrays(a[:, k, None], b[k])
        part = fma(left, right, part) if fused else part + left * right
        if k % block == block - 1 or k == a.shape[1] - 1:
            y = y + part
    return y


def halved(values: Array) -> Array:
    """Through float16 and back."""
    return values.astype(np.float16).astype(np.float32)


# ---- the projection --------------------------------------------------------------------------------------------


def linear(x: Array, weight: Array, bias: Array | None, *, block: int = BLOCK, fused: bool = True) -> Array:
    """x [rows, k], weight [k, n], bias [n]; `block` and `fused` are the switches."""
    init = np.zeros((len(x), weight.shape[1]), np.float32)
    return product(x, weight, init if bias is None else init + bias, block=block, fused=fused)


def parts(y: Array) -> list[Array]:
    """q, k and v, or their weights: thirds of the last axis."""
    return np.split(y, 3, axis=-1)


def transposed(weight: Array) -> Array:
    """[k, 3 k] with each of the three square blocks transposed."""
    return np.concatenate([part.T for part in parts(weight)], axis=-1)


def interleaved(y: Array, head: int = 64) -> Array:
    """[rows, 3 k] of a projection that was split head by head, q, k, v, q, k, v, ..."""
    rows, n = y.shape
    turned: Array = y.reshape(rows, n // (3 * head), 3, head).transpose(0, 2, 1, 3).reshape(rows, n)
    return turned


LINEAR = (
    Mutation("transposed weight", "Each square block transposed.", lambda x, w, b: linear(x, transposed(w), b)),
    Mutation(
        "k before q",
        "Split in the order k, q, v.",
        lambda x, w, b: np.concatenate([parts(linear(x, w, b))[i] for i in (1, 0, 2)], axis=-1),
    ),
    Mutation("split by heads", "Split head by head.", lambda x, w, b: interleaved(linear(x, w, b))),
    Mutation("missing bias", "x @ weight.", lambda x, w, b: linear(x, w, None)),
    Mutation("bias last", "The bias added to the sum, in place of begun with.", lambda x, w, b: linear(x, w, None) + b),
    Mutation("one chain", "One chain of fma in place of blocks of 128.", lambda x, w, b: linear(x, w, b, block=len(w))),
    Mutation("blocks of 64", "Blocks of 64 in place of 128.", lambda x, w, b: linear(x, w, b, block=64)),
    Mutation("no fma", "Every product rounded before it is added.", lambda x, w, b: linear(x, w, b, fused=False)),
    Mutation("float16 weight", "The weight rounded to float16.", lambda x, w, b: linear(x, halved(w), b)),
    Mutation("float16 output", "The result rounded to float16.", lambda x, w, b: halved(linear(x, w, b))),
)


def linear_input() -> tuple[Array, Array, Array]:
    """x [5, 192], weight [192, 576], bias [576]: three square blocks, and a second block of k that is a short one."""
    random = np.random.default_rng(20251009)
    return normal(random, 5, 192), normal(random, 192, 576, scale=0.1), normal(random, 576, scale=0.1)


def ordinary_linear(x: Array, weight: Array, bias: Array) -> Array:
    """The negative control: a row alone goes through one chain, rows in a batch through blocks."""
    return linear(x, weight, bias, block=len(weight) if len(x) == 1 else BLOCK)


def numpy_linear(x: Array, weight: Array, bias: Array) -> Array:
    y: Array = x @ weight + bias
    return y


# ---- attention -------------------------------------------------------------------------------------------------


def attention(
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


ATTENTION = (
    Mutation("missing scale", "Scores not divided by sqrt(d).", lambda q, k, v: attention(q, k, v, scaled=False)),
    Mutation("mask one too far", "Every query sees the next position.", lambda q, k, v: attention(q, k, v, ahead=1)),
    Mutation("mask one short", "No query sees its own position.", lambda q, k, v: attention(q, k, v, ahead=-1)),
    Mutation("no mask", "Every query sees all.", lambda q, k, v: attention(q, k, v, ahead=len(q[0]))),
    Mutation("k and v swapped", "Scores from v, the sum over k.", lambda q, k, v: attention(q, v, k)),
    Mutation(
        "one chain", "All positions in one chain, not blocks of 128.", lambda q, k, v: attention(q, k, v, block=1 << 24)
    ),
    Mutation("sum in one loop", "The weights summed from left to right.", lambda q, k, v: attention(q, k, v, lanes=1)),
    Mutation("divided early", "Weights divided before the product.", lambda q, k, v: attention(q, k, v, late=False)),
    Mutation(
        "float16 weights", "The weights of the positions in float16.", lambda q, k, v: attention(q, k, v, half=True)
    ),
)


def attention_input() -> tuple[Array, Array, Array]:
    """q, k, v [2 heads, 150 positions, 32]: a second block of positions, and a scale that is not a power of two."""
    random = np.random.default_rng(20251010)
    q, k, v = (normal(random, 2, 150, 32) for _ in range(3))
    return q, k, v


def ordinary_attention(q: Array, k: Array, v: Array) -> Array:
    """The negative control: blocks as long as the chunk of queries, as a tiled kernel's often are. [..., t, d]."""
    shape = q.shape
    q, k, v = (array.reshape(-1, *array.shape[-2:]) for array in (q, k, v))
    return attention(q, k, v, block=q.shape[1]).reshape(shape)


def numpy_attention(q: Array, k: Array, v: Array) -> Array:
    """As it is written in a textbook. [..., t, d]."""
    tq, tk = q.shape[-2], k.shape[-2]
    scores = q @ np.swapaxes(k, -1, -2) * np.float32(1 / np.sqrt(q.shape[-1]))
    scores = np.where(np.arange(tk) <= np.arange(tk - tq, tk)[:, None], scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    y: Array = weights / weights.sum(axis=-1, keepdims=True) @ v
    return y


# ---- feed-forward ----------------------------------------------------------------------------------------------


def gelu(x: Array, *, tanh: bool = True) -> Array:
    """x / (1 + exp(-2 u)), which is x / 2 * (1 + tanh(u)) without the cancellation, in float64 and rounded once."""
    wide = x.astype(np.float64)
    if not tanh:
        return llorch.reference.gelu(x, approximate="none")
    u = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    y: Array = (wide / (1 + np.exp(-2 * u))).astype(np.float32)
    return y


def feed_forward(
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
    hidden = linear(x, weight, bias, block=block)
    if active:
        hidden = gelu(hidden, tanh=tanh)
    return linear(halved(hidden) if half else hidden, weight2, bias2, block=block)


def reference_feed_forward(x: Array, weight: Array, bias: Array, weight2: Array, bias2: Array) -> Array:
    """The oracle."""
    hidden = llorch.reference.gelu(llorch.reference.linear(x, weight, bias), approximate="tanh")
    return llorch.reference.linear(hidden, weight2, bias2)


FEED_FORWARD = (
    Mutation("gelu by erf", "gelu's erf form in place of tanh.", lambda *a: feed_forward(*a, tanh=False)),
    Mutation("missing gelu", "The two products alone.", lambda *a: feed_forward(*a, active=False)),
    Mutation("missing second bias", "No bias at the end.", lambda x, w, b, w2, b2: feed_forward(x, w, b, w2, None)),
    Mutation("one chain", "One chain of fma in place of blocks of 128.", lambda *a: feed_forward(*a, block=1 << 24)),
    Mutation("float16 between", "What gelu returns in float16.", lambda *a: feed_forward(*a, half=True)),
)


def feed_forward_input(rows: int = 4, n: int = 160, m: int = 320, seed: int = 20251011) -> tuple[Array, ...]:
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
    return feed_forward(x, *weights, block=1 << 24 if len(x) == 1 else BLOCK)


def checks() -> Iterator[Check]:
    """Every mutation above, and the code they are made from unmutated, against the oracle."""
    small = linear_input()
    yield from caught(linear, LINEAR, small, llorch.reference.linear(*small), "linear: ")
    qkv = attention_input()
    yield from caught(attention, ATTENTION, qkv, llorch.reference.attention(*qkv), "attention: ")
    layers = feed_forward_input()
    yield from caught(feed_forward, FEED_FORWARD, layers, reference_feed_forward(*layers), "feed-forward: ")
