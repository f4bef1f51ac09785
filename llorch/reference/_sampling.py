"""The choice of the next token, and log-probabilities, as specified.

The next token is a pure function of (logits, parameters, seed, position, the ids before). `position` is the new
token's place in its own sequence: the number of tokens before it. l are the V logits in float32.

    missing                ids that have no token: l = -infinity; where no other l is more than that, an error
    repetition penalty r   of every id that came before: l = l / r where l > 0, else l * r             float32
    frequency penalty f    of every id that the new text has c times: l = l - c f, the product rounded  float32
    presence penalty g     of every id that the new text has: l = l - g                                float32
    best                   the lowest id of the largest l; a NaN is an error
    temperature T = 0      the result is best. Otherwise, where l[best] must be finite:
    rank                   by falling l, of equals the lower id first
    top_k                  keeps the ids of rank < top_k
    z = (l - l[best]) / T                                                                              float32
    p = softmax(z)         of the ids that were kept, in order of id; 0 for the others                 float32
    top_p < 1              sums p in order of rank; once the sum is >= top_p, p of all further ids is 0
    u = w 2^-53            w: the upper 53 bits of the first of the four words of Philox4x64-10
                           with the counter (position, 0, 0, 0) and the key (seed, 0)
    total = sum p          in order of id
    result                 the first id at which the sum, in order of id, is > u total

The three sums are plain running sums in float64, begun at +0.0, of p widened. r, f, g, T and top_p are given as
float64; r, f, g and T are rounded to float32 first. u total < total always, so there is a result, and never one whose
p is 0.

The log-probability of the token i that came, by the logits before it, m their maximum:

    Z = sum exp(l - m)     l - m and exp in float32; a running sum in float64, in order of id
    (l_i - m) - ln(Z)      float64; ln is the float64 nearest to the logarithm of the float64 Z
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import widen
from llorch.reference._attention import argmax, softmax
from llorch.reference._unary import ONE, _log, exp

Array = NDArray[Any]

WORD = (1 << 64) - 1


def philox(key: int, counter: int) -> tuple[int, int, int, int]:
    """The four 64-bit words of Philox4x64-10 with the key (key, 0) and the counter (counter, 0, 0, 0).

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    k0, k1 = key, 0
    c0, c1, c2, c3 = counter, 0, 0, 0
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (high >> 64) ^ c1 ^ k0, high & WORD, (low >> 64) ^ c3 ^ k1, low & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return c0, c1, c2, c3


def _uniform(seed: int, position: int) -> np.float64:
    """u in [0, 1), a multiple of 2^-53."""
    return np.float64(philox(seed, position)[0] >> 11) * np.float64(2.0**-53)


def next_token(
    logits: Array,
    position: int,
    seen: Any = (),
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
    missing: Any = (),
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    begin: int = 0,
) -> int:
    """The id that follows, by logits (V,) and the ids seen before. See `llorch.text.sampling.next_token`."""
    l = widen(logits, "logits")
    V = l.size
    ids = np.asarray(range(V))
    with np.errstate(all="ignore"):
        for i in missing:
            l = np.where(ids == i, np.float32(-np.inf), l)
        if repetition_penalty is not None:
            r = np.float32(repetition_penalty)
            penalised = np.where(l > 0, l / r, l * r)
            for i in seen:
                l = np.where(ids == i, penalised, l)
        counts = np.zeros(V, np.float32)
        for i in seen[begin:]:
            counts = np.where(ids == i, counts + np.float32(1), counts)
        if frequency_penalty is not None:
            l = np.where(counts > 0, l - counts * np.float32(frequency_penalty), l)
        if presence_penalty is not None:
            l = np.where(counts > 0, l - np.float32(presence_penalty), l)
        best = int(argmax(l))
        if temperature == 0:
            if len(missing) and l[best] == -np.inf:
                raise ValueError("logits is -infinity for every id that can come")
            return best
        if not np.isfinite(l[best]):
            raise ValueError(f"logits[{best}], the largest, is {l[best]}: it must be finite")

        # order[rank] = id
        rank = np.zeros(V, np.int64)
        for i in range(V):
            rank = rank + ((l[i] > l) | ((l[i] == l) & (i < ids)))
        order = np.zeros(V, np.int64)
        order[rank] = ids

        kept = rank < (V if top_k is None else top_k)
        p = np.zeros(V, np.float64)
        p[kept] = softmax((l[kept] - l[best]) / np.float32(temperature)).astype(np.float64)

        if top_p is not None and top_p < 1:
            running = np.float64(0)
            for i in order:
                if running >= top_p:
                    p[i] = 0
                running = running + p[i]

        total = np.float64(0)
        for i in ids:
            total = total + p[i]
        bound = _uniform(seed, position) * total
        running, i = p[0], 0
        while not running > bound:
            i += 1
            running = running + p[i]
        return i


def log(z: float) -> float:
    """The float64 nearest to the logarithm of z >= 1."""
    return _log(*float(z).as_integer_ratio()) / ONE


def log_probabilities(logits: Array, ids: Any) -> Array:
    """Of the token ids[t] by logits[t]: logits (T, V), ids (T,); float64 (T,). See `llorch.CausalLM.score`."""
    l = widen(logits, "logits")
    result = np.zeros(l.shape[0], np.float64)
    with np.errstate(all="ignore"):
        for t in range(l.shape[0]):
            m = l[t, argmax(l[t])]
            Z = np.float64(0)
            for e in exp(l[t] - m).astype(np.float64):
                Z = Z + e
            result[t] = (l[t, ids[t]].astype(np.float64) - m.astype(np.float64)) - log(Z)
    return result
