"""Rotary positions: the table of cosines and sines, exactly rounded, and the rotation by halves.

The angle of position p and pair i is p f_i. A frequency f_i is computed in integers that stand for multiples of
2^-PLACES, the angle is reduced by pi / 2 there, and cosine and sine are computed twice, as in _unary.py: in float64 for
all, and in integers where MARGIN more or less would give another float32.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import fma, narrow, widen
from llorch.reference._unary import MARGIN, ONE, PI, PLACES, _exp, _log, _nearest, _root

Array = NDArray[Any]

DOUBT = PLACES - 350  # an angle at p is off by less than (p + 1) 2^-350: p roundings of 2^-384 each, and pi's own
TYPES = ("default", "linear", "llama3", "yarn", "longrope", "gguf")


# ---- frequencies, in integers: v stands for v / ONE ---------------------------------------------------


def _number(value: Any, name: str) -> int:
    """A positive number of the file's, as float64, exactly."""
    numerator, denominator = _ratio(value, name)
    return numerator * ONE // denominator


def _ratio(value: Any, name: str) -> tuple[int, int]:
    number = np.float64(value)
    if not (np.isfinite(number) and number > 0):
        raise ValueError(f"{name} is {value!r}, it must be a finite number above 0")
    return float(number).as_integer_ratio()


def _over(a: int, b: int) -> int:
    return a * ONE // b


def _power(log_base: int, numerator: int, denominator: int) -> int:
    """base^(numerator / denominator), by the logarithm of base."""
    above, below = _exp(log_base * numerator // denominator)
    return _over(above, below)


def _frequencies(R: int, base: Any, scaling: Any) -> tuple[list[int], int]:
    """f_0 .. f_(R/2 - 1), and the factor of cosine and sine."""
    log_base = _log(*_ratio(base, "base"))
    plain = [_power(log_base, -2 * i, R) for i in range(R // 2)]
    rule: dict[str, Any] = {} if scaling is None else scaling
    kind = rule.get("rope_type", rule.get("type", "default"))
    if kind == "dynamic":
        raise ValueError(
            "scaling's rope_type is dynamic: its angles depend on how long the sequence has become, so that a prefix "
            "computed before would have other bits than one computed now; it is not supported"
        )
    if kind not in TYPES:
        raise ValueError(f"scaling's rope_type is {kind!r}, it must be one of {', '.join(TYPES)}")

    if kind == "linear":
        factor = _number(_given(rule, "factor"), "factor")
        return [_over(f, factor) for f in plain], ONE
    if kind == "llama3":
        return _llama3(plain, rule), ONE
    if kind == "yarn":
        return _yarn(plain, R, log_base, rule)
    if kind == "longrope":
        return _longrope(plain, rule)
    if kind == "gguf":
        return _divided(plain, rule, "rope_freqs"), ONE
    return plain, ONE


def _given(rule: dict[str, Any], name: str) -> Any:
    if name == "original_max_position_embeddings" and rule.get(name) is None:
        name = "max_position_embeddings"
    if rule.get(name) is None:
        raise ValueError(f"scaling has no {name}, which its rope_type needs")
    return rule[name]


def _divided(plain: list[int], rule: dict[str, Any], name: str) -> list[int]:
    """Each frequency by its own number of a list."""
    factors = [_number(value, name) for value in _given(rule, name)]
    if len(factors) != len(plain):
        raise ValueError(f"scaling's {name} has {len(factors)} numbers, it must have {len(plain)}, one for each pair")
    return [_over(f, factor) for f, factor in zip(plain, factors, strict=True)]


def _llama3(plain: list[int], rule: dict[str, Any]) -> list[int]:
    factor, low, high, original = (
        _number(_given(rule, name), name)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    if high <= low:
        raise ValueError("scaling's high_freq_factor must be above its low_freq_factor")
    frequencies = []
    for f in plain:
        turns = original * f // (2 * PI)  # of this pair in the original context
        if turns < low:
            f = _over(f, factor)
        elif turns <= high:
            smooth = _over(turns - low, high - low)
            f = ((ONE - smooth) * _over(f, factor) + smooth * f) // ONE
        frequencies.append(f)
    return frequencies


def _stretch(rule: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rule's factor and the original context, as fractions; the factor may be left to the two contexts."""
    original = _ratio(_given(rule, "original_max_position_embeddings"), "original_max_position_embeddings")
    if rule.get("factor") is not None:
        return _ratio(rule["factor"], "factor"), original
    now = _ratio(_given(rule, "max_position_embeddings"), "max_position_embeddings")
    return (now[0] * original[1], now[1] * original[0]), original


def _yarn(plain: list[int], R: int, log_base: int, rule: dict[str, Any]) -> tuple[list[int], int]:
    stretch, original = _stretch(rule)
    if log_base == 0:
        raise ValueError("base is 1: yarn divides by its logarithm")

    def mscale(weight: int) -> int:
        """1 + weight ln(factor) / 10"""
        return ONE if stretch[0] <= stretch[1] else ONE + weight * _log(*stretch) // (10 * ONE)

    if rule.get("attention_factor") is not None:
        attention = _number(rule["attention_factor"], "attention_factor")
    elif rule.get("mscale") and rule.get("mscale_all_dim"):
        of_one, of_all = (_number(rule[name], name) for name in ("mscale", "mscale_all_dim"))
        attention = _over(mscale(of_one), mscale(of_all))
    else:
        attention = mscale(ONE)

    def correction(turns: Any, name: str) -> int:
        """The pair that turns so often in the original context, R ln(original / (2 pi turns)) / (2 ln base)."""
        numerator = original[0] * ONE * ONE
        denominator = original[1] * 2 * PI * _number(turns, name)
        return R * _log(numerator, denominator) * ONE // (2 * log_base)

    low = correction(rule.get("beta_fast") or 32, "beta_fast")
    high = correction(rule.get("beta_slow") or 1, "beta_slow")
    if rule.get("truncate", True):
        low, high = low // ONE * ONE, -(-high // ONE) * ONE
    low, high = max(low, 0), min(high, (R - 1) * ONE)
    if low == high:
        high += ONE // 1000

    factor = _over(*stretch)
    frequencies = []
    for i, f in zip(range(R // 2), plain, strict=True):
        ramp = min(max(_over(i * ONE - low, high - low), 0), ONE)
        frequencies.append((_over(f, factor) * ramp + f * (ONE - ramp)) // ONE)
    return frequencies, attention


def _longrope(plain: list[int], rule: dict[str, Any]) -> tuple[list[int], int]:
    stretch, original = _stretch(rule)
    longer = stretch[0] > stretch[1]  # the model's context than the original one, whatever the sequence's length
    if rule.get("max_position_embeddings") is not None:
        now = _ratio(rule["max_position_embeddings"], "max_position_embeddings")
        longer = now[0] * original[1] > original[0] * now[1]
    if rule.get("attention_factor") is not None:
        attention = _number(rule["attention_factor"], "attention_factor")
    elif stretch[0] <= stretch[1]:
        attention = ONE
    else:
        attention = _root((ONE + _over(_log(*stretch), _log(*original))) * ONE)
    return _divided(plain, rule, "long_factor" if longer else "short_factor"), attention


# ---- the table ----------------------------------------------------------------------------------------


def rope_table(
    R: int, positions: Any, *, base: float = 10000.0, scaling: dict[str, Any] | None = None
) -> tuple[Array, Array]:
    """cos(p f_i) and sin(p f_i) for positions p and i = 0 .. R/2 - 1: two float32 arrays (positions, R/2).

    R is the rotated width of a head, an even number. positions is a count, for 0 .. count - 1, or integers >= 0 (P,).
    f_i = base^(-2i / R), changed by scaling: None, or Hugging Face's dict with `rope_type`: default, linear, llama3,
    yarn or longrope, whose `rope_theta` and `partial_rotary_factor` aren't read here, as base and R say it. The
    model's context length may stand in it too, as `max_position_embeddings`: it is `original_max_position_embeddings`
    where that is missing, yarn and longrope without a `factor` take the quotient of the two, and longrope takes the
    long list if it is the larger one (without it: if factor > 1). {"rope_type": "gguf", "rope_freqs": [..]}: a number
    for each f_i to be divided by.

    Every number is the float64 that was given; all further is real arithmetic up to the one rounding to float32. Where
    a rule has an attention factor, cosine and sine are multiplied by it before that. ValueError for rope_type dynamic
    (its angles depend on the length of the sequence), an unknown one, and a number that is missing or out of range.
    """
    if R < 2 or R % 2:
        raise ValueError(f"R is {R}, it must be even and at least 2")
    given = np.asarray(positions)
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"positions has elements of type {given.dtype}, it must be a count or integers (P,)")
    places = [int(p) for p in (range(int(given)) if given.ndim == 0 else given)]
    for p in places:
        if p < 0:
            raise ValueError(f"positions has {p}, it must have none below 0")
    frequencies, factor = _frequencies(R, base, scaling)

    # the angle is quarters pi / 2 + rest, rest in [-pi/4, pi/4)
    angles = [p * f for p in places for f in frequencies]
    quarters = [(2 * angle + PI // 2) // PI for angle in angles]
    rests = [angle - quarter * PI // 2 for angle, quarter in zip(angles, quarters, strict=True)]

    shape = (len(places), len(frequencies))
    near = np.asarray([rest / ONE for rest in rests], np.float64)
    turned = np.asarray([quarter % 4 for quarter in quarters], np.int64)
    with np.errstate(all="ignore"):
        cosine, sine = _cosine64(near), _sine64(near)
        odd = turned % 2 == 1
        c = np.where(odd, sine, cosine) * np.where((turned == 1) | (turned == 2), -1.0, 1.0)
        s = np.where(odd, cosine, sine) * np.where(turned >= 2, -1.0, 1.0)
        wide = np.float64(factor / ONE)
        low, high = ([(y * wide * (1.0 + m)).astype(np.float32) for y in (c, s)] for m in (-MARGIN, MARGIN))
    tables = []
    for which, below, above in zip((0, 1), low, high, strict=True):
        undecided = (below != above) | ((near < 2.0**-100) & (near > -(2.0**-100)))
        for at in range(undecided.size):
            if undecided[at]:
                p = places[at // len(frequencies)]
                below[at] = _exact(p, quarters[at] + (0 if which == 0 else 3), rests[at], factor)
        tables.append(below.reshape(shape))
    return tables[0], tables[1]


def _exact(p: int, quarter: int, rest: int, factor: int) -> float:
    """factor cos(quarter pi / 2 + rest) as the nearest float32; rest is known to (p + 1) 2^-350."""
    if p == 0:  # exact: the factor, or zero
        return _nearest(factor, ONE) if quarter % 4 == 0 else 0.0
    turned = _cosine(rest) if quarter % 2 == 0 else _sine(rest)
    value = (-turned if quarter % 4 in (1, 2) else turned) * factor // ONE
    doubt = ((p + 1) << DOUBT) * (factor // ONE + 1)
    low, high = _nearest(value - doubt, ONE), _nearest(value + doubt, ONE)
    if low != high:
        raise ArithmeticError(f"{PLACES} binary places don't decide the rounding at position {p}")
    return high


def _cosine(r: int) -> int:
    """1 - r^2 / 2! + r^4 / 4! - ..."""
    return _alternating(ONE, r, 1)


def _sine(r: int) -> int:
    """r - r^3 / 3! + r^5 / 5! - ..."""
    return _alternating(r, r, 2)


def _alternating(term: int, r: int, n: int) -> int:
    total, square = term, r * r // ONE
    while term not in (0, -1):  # a negative one is rounded down, to -1 at last
        term = -term * square // (ONE * n * (n + 1))
        total += term
        n += 2
    return total


def _cosine64(r: Array) -> Array:
    return _alternating64(r * r, 1)


def _sine64(r: Array) -> Array:
    return r * _alternating64(r * r, 2)


def _alternating64(square: Array, first: int) -> Array:
    """1 - square / (first (first+1)) (1 - square / ((first+2) (first+3)) (1 - ..)), |square| < 0.7."""
    total = np.zeros(square.shape, np.float64) + 1.0
    for n in range(first + 20, first - 1, -2):
        total = 1.0 - total * (square / np.float64(n * (n + 1)))
    return total


# ---- the rotation -------------------------------------------------------------------------------------


def rope(x: Array, cos: Array, sin: Array, positions: Any = None, *, out: Array | None = None) -> Array:
    """The first R values of each head of x (..., T, D) rotated by halves, the rest copied; the type of x.

    cos and sin (P, R/2), float32, are a table's rows; positions (T,) says which row a token takes, 0 .. T - 1 where
    it is None. See `llorch.rope`.
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}, it must be (..., T, D)")
    T, D = x.shape[-2:]
    if cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > D:
        raise ValueError(f"cos has shape {cos.shape} and sin {sin.shape}, both must be (P, R/2) with R at most {D}")
    if cos.dtype != np.float32 or sin.dtype != np.float32:
        raise TypeError(f"cos is {cos.dtype} and sin is {sin.dtype}, they must be float32")
    rows = np.asarray(range(T) if positions is None else positions)
    if rows.shape != (T,):
        raise ValueError(f"positions has shape {rows.shape}, it must be {(T,)}, one for each token of x")
    if rows.size and rows.dtype.kind not in "iu":
        raise TypeError(f"positions has elements of type {rows.dtype}, it must be integers (T,)")
    if ((rows < 0) | (rows >= cos.shape[0])).any():
        raise IndexError(f"positions must be in [0, {cos.shape[0]}), the rows of cos and sin")
    half = cos.shape[1]
    c, s = (table[rows.astype(np.int64)] for table in (cos, sin))
    v = widen(x)
    a, b = v[..., :half], v[..., half : 2 * half]
    y = np.zeros(x.shape, np.float32)
    with np.errstate(all="ignore"):
        y[..., :half] = fma(a, c, -(b * s))
        y[..., half : 2 * half] = fma(b, c, a * s)
    y[..., 2 * half :] = v[..., 2 * half :]
    y = narrow(y, x.dtype)
    if out is None:
        return y
    out[...] = y
    return out
