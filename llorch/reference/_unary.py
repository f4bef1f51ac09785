"""exp, tanh, erf, sigmoid, silu and gelu, correctly rounded: the float32 next to the true real value, ties to even.

The definition is mathematics, so it is computed twice. First for all values in float64, by Taylor's series and a
continued fraction; MARGIN is far more than that is ever off. Where MARGIN more or less would give another float32, that
one value is computed again, in integers that stand for multiples of 2^-PLACES, and rounded by integer division.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import narrow, widen

Array = NDArray[Any]
Exact = Callable[[float], float]

MARGIN = 2.0**-38

# ---- one value, in integers: v stands for v / ONE -----------------------------------------------------

PLACES = 384  # every float32 is a multiple of 2^-149; the worst cancellation (gelu at -14.5) takes 160 more
ONE = 1 << PLACES


def _root(n: int) -> int:
    """The integer below the square root of n (Newton, from above)."""
    r = 1 << (n.bit_length() // 2 + 1)
    while True:
        s = (r + n // r) // 2
        if s >= r:
            return r
        r = s


def _arctan_inverse(n: int) -> int:
    """arctan(1 / n)."""
    power, total, k = ONE // n, 0, 0
    while power:
        total += (power if k % 2 == 0 else -power) // (2 * k + 1)
        power //= n * n
        k += 1
    return total


def _log_2() -> int:
    """The sum of 1 / (k 2^k)."""
    total = 0
    for k in range(1, PLACES):
        total += (ONE >> k) // k
    return total


LOG_2 = _log_2()
PI = 16 * _arctan_inverse(5) - 4 * _arctan_inverse(239)  # Machin


def _of(x: float) -> int:
    """A float32's value, exactly."""
    numerator, denominator = x.as_integer_ratio()
    return numerator * ONE // denominator


def _times(a: int, b: int) -> int:
    return a * b // ONE


def _exp(a: int) -> tuple[int, int]:
    """e^a as a fraction of two integers."""
    k = a // LOG_2
    r = a - k * LOG_2
    term, total, n = ONE, ONE, 1
    while term:
        term = _times(term, r) // n
        total += term
        n += 1
    return (total << k, ONE) if k >= 0 else (total, ONE << -k)


def _log(numerator: int, denominator: int) -> int:
    """The logarithm of the quotient of two positive integers."""
    k = numerator.bit_length() - denominator.bit_length()
    if numerator << max(0, -k) < denominator << max(0, k):
        k -= 1
    numerator, denominator = numerator << max(0, -k), denominator << max(0, k)  # the quotient is in [1, 2)
    ratio = (numerator - denominator) * ONE // (numerator + denominator)
    power, total, n = ratio, 0, 1
    while power:  # the logarithm of the quotient is 2 artanh(ratio)
        total += power // n
        power = _times(_times(power, ratio), ratio)
        n += 2
    return 2 * total + k * LOG_2


def _odd_series(w: int) -> int:
    """The sum of w^n / (1 3 5 .. (2n+1))."""
    term, total, n = ONE, ONE, 1
    while term:
        term = _times(term, w) // (2 * n + 1)
        total += term
        n += 1
    return total


def _nearest(numerator: int, denominator: int) -> float:
    """The float32 nearest to the quotient, ties to even; denominator > 0. Infinity comes as 2^128."""
    sign = -1.0 if numerator < 0 else 1.0
    numerator = abs(numerator)
    exponent = numerator.bit_length() - denominator.bit_length()  # the quotient is in (2^(exponent-1), 2^(exponent+1))
    if numerator << max(0, -exponent) < denominator << max(0, exponent):
        exponent -= 1
    unit = max(exponent, -126) - 23
    numerator, denominator = numerator << max(0, -unit), denominator << max(0, unit)
    whole, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and whole % 2):
        whole += 1
    return sign * (float(whole << unit) if unit >= 0 else float(whole) / float(1 << -unit))


def _exact_exp(x: float) -> float:
    return _nearest(*_exp(_of(x)))


def _exact_tanh(x: float) -> float:
    numerator, denominator = _exp(2 * _of(x))
    return _nearest(numerator - denominator, numerator + denominator)


def _exact_sigmoid(x: float) -> float:
    numerator, denominator = _exp(-_of(x))
    return _nearest(denominator, numerator + denominator)


def _exact_silu(x: float) -> float:
    numerator, denominator = _exp(-_of(x))
    return _nearest(_of(x) * denominator, (numerator + denominator) * ONE)


def _exact_gelu_tanh(x: float) -> float:
    v = _of(x)
    u = v + _times(_times(v, v), v) * 44715 // 1000000
    numerator, denominator = _exp(_times(-u, _root(8 * ONE * ONE // PI * ONE)))  # 2 sqrt(2 / pi) = sqrt(8 / pi)
    return _nearest(v * denominator, (numerator + denominator) * ONE)


def _exact_erf(x: float) -> float:
    v = _of(x)
    w = _times(v, v)
    numerator, denominator = _exp(-w)
    series = _times(v, _odd_series(2 * w)) * 2
    return _nearest(series * numerator, denominator * _root(PI * ONE))


def _exact_gelu(x: float) -> float:
    """x Phi(x), Phi(x) = 1/2 + x phi(x) series(x^2)."""
    v = _of(x)
    w = _times(v, v)
    numerator, denominator = _exp(-w // 2)
    above = _times(v, _odd_series(w)) * numerator * ONE // (denominator * _root(2 * PI * ONE))
    return _nearest(v * (ONE // 2 + above), ONE * ONE)


# ---- all values, in float64 ---------------------------------------------------------------------------

BLOCK = 16384
WHOLE = np.float64(1.5 * 2.0**52)  # adding and subtracting it rounds to an integer


def _over_factorials(r: Array, first: int) -> Array:
    """The sum of r^n (first-1)! / (first-1+n)!, n = 0 .. : (e^r - 1) / r for first = 2; |r| <= 0.7 or so."""
    total = np.zeros(r.shape, np.float64) + 1.0
    for n in range(first + 15, first - 1, -1):
        total = total * (r / np.float64(n)) + 1.0
    return total


def _exp64(a: Array) -> Array:
    """e^a, |a| < 700: 2^k e^r with r = a - k ln 2."""
    k = (a * 1.4426950408889634 + WHOLE) - WHOLE
    r = (a - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10  # ln 2: 32 bits, and the rest
    power = ((k.astype(np.int64) + np.int64(1023)) << np.int64(52)).view(np.float64)
    return _over_factorials(r, 1) * power


def _series64(w: Array) -> Array:
    """The sum of w^n / (1 3 5 .. (2n+1)), 0 <= w <= 32."""
    total = np.zeros(w.shape, np.float64) + 1.0
    for n in range(120, 0, -1):
        total = total * (w / np.float64(2 * n + 1)) + 1.0
    return total


def _tail64(t: Array) -> Array:
    """(1 - Phi(t)) / phi(t) = 1 / (t + 1/(t + 2/(t + 3/(t + ..)))), t >= 2."""
    f = t
    for n in range(100, 0, -1):
        f = t + np.float64(n) / f
    return 1.0 / f


def _clamped(x: Array, low: float, high: float) -> Array:
    """x in float64, between low and high; a NaN stays."""
    x = np.where(x < np.float32(low), np.float32(low), x)
    return np.where(x > np.float32(high), np.float32(high), x).astype(np.float64)


def _rounded(x: Array, y: Array, exact: Exact) -> Array:
    """y, which is nearly f(x), as the float32 nearest to f(x); exact is f for one value."""
    low: Array = (y * (1.0 - MARGIN)).astype(np.float32)
    high: Array = (y * (1.0 + MARGIN)).astype(np.float32)
    undecided = (low != high) & (x == x)
    values = x[undecided]
    for i in range(values.size):
        values[i] = exact(float(values[i]))
    low[undecided] = values
    return np.where(x == 0, np.where(low == 0, x, low), low)  # a zero keeps its sign


def _gated(x: Array, exponent: Array, exact: Exact) -> Array:
    """x / (1 + e^exponent); exact is the same function of one value."""
    y = np.where(x < -150, np.float32(-150), x).astype(np.float64) / (1.0 + _exp64(exponent))
    return _near_half(x, y, exact)


def _near_half(x: Array, y: Array, exact: Exact) -> Array:
    """y rounded, where for the tiniest x it is x/2 and a trifle more: x/2 may be the middle of two float32."""
    half = x.astype(np.float64) * 0.5
    beside = (half.view(np.int64) + np.where(x > 0, np.int64(1), np.int64(-1))).view(np.float64)
    tiny = (x < np.float32(2.0**-40)) & (x > np.float32(-(2.0**-40))) & (x != 0)
    result = _rounded(np.where(tiny, np.float32(1), x), np.where(tiny, 1.0, y), exact)
    return np.where(tiny, beside.astype(np.float32), result)


def _apply(function: Callable[[Array], Array], x: Array, out: Array | None) -> Array:
    """function of the float32 values of x, in blocks that stay in the caches, rounded to the type of x."""
    v = widen(x).reshape(x.size)
    y = np.zeros(x.size, np.float32)
    with np.errstate(all="ignore"):
        for first in range(0, x.size, BLOCK):
            y[first : first + BLOCK] = function(v[first : first + BLOCK])
    result: Array = narrow(y, x.dtype).reshape(x.shape)
    if out is None:
        return result
    out[...] = result
    return out


def exp(x: Array, *, out: Array | None = None) -> Array:
    """e^x. See `llorch.exp`."""
    return _apply(lambda v: _rounded(v, _exp64(_clamped(v, -110, 100)), _exact_exp), x, out)


def _tanh(v: Array) -> Array:
    y = _clamped(v, -20, 20) * 2.0
    small = (y < 0.5) & (y > -0.5)
    r = np.where(small, y, 0.0)
    e = np.where(small, r * _over_factorials(r, 2), _exp64(y) - 1.0)  # e^y - 1
    return _rounded(v, e / (e + 2.0), _exact_tanh)


def tanh(x: Array, *, out: Array | None = None) -> Array:
    """See `llorch.tanh`."""
    return _apply(_tanh, x, out)


def _erf(v: Array) -> Array:
    z = _clamped(v, -4, 4)
    y = z * _exp64(-z * z) * _series64(2.0 * z * z) * 1.1283791670955126  # 2 / sqrt(pi)
    return _rounded(v, y, _exact_erf)


def erf(x: Array, *, out: Array | None = None) -> Array:
    """See `llorch.erf`."""
    return _apply(_erf, x, out)


def sigmoid(x: Array, *, out: Array | None = None) -> Array:
    """1 / (1 + e^-x). See `llorch.sigmoid`."""
    return _apply(lambda v: _rounded(v, 1.0 / (1.0 + _exp64(-_clamped(v, -110, 110))), _exact_sigmoid), x, out)


def silu(x: Array, *, out: Array | None = None) -> Array:
    """x / (1 + e^-x). See `llorch.silu`."""
    return _apply(lambda v: _gated(v, -_clamped(v, -150, 150), _exact_silu), x, out)


def _gelu_tanh(v: Array) -> Array:
    z = _clamped(v, -13, 13)
    return _gated(v, z * (1.0 + 0.044715 * z * z) * -1.5957691216057308, _exact_gelu_tanh)  # 2 sqrt(2 / pi)


def _gelu(v: Array) -> Array:
    z = _clamped(v, -16, 16)
    t = np.where(z < 0, -z, z)
    density = _exp64(t * t * -0.5) * 0.3989422804014327  # 1 / sqrt(2 pi)
    inner = t < 2
    near, far = np.where(inner, t, 1.0), np.where(inner, 2.0, t)
    tail = np.where(inner, 0.5 - density * near * _series64(near * near), density * _tail64(far))
    y = np.where(v < -16, np.float32(-16), v).astype(np.float64) * np.where(z < 0, tail, 1.0 - tail)
    return _near_half(v, y, _exact_gelu)


def gelu(x: Array, *, approximate: str = "none", out: Array | None = None) -> Array:
    """x Phi(x), or for approximate="tanh" x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). See `llorch.gelu`."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f'approximate must be "none" or "tanh", got {approximate!r}')
    return _apply(_gelu if approximate == "none" else _gelu_tanh, x, out)
