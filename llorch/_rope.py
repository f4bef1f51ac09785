"""rope_table: cosines and sines of rotary positions, each the float32 nearest to the real number.

Frequencies are made here in DIGITS decimal digits and handed over as double-doubles; csrc/rope_table.c says which
values those can't decide, and those few are done here again.
"""

from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, localcontext
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llorch import _core

Array = NDArray[Any]

DIGITS = 120
# A frequency is off by some 1e-118 of itself, an angle up to 2**24 FASTEST by 1e-100; cosines by no more.
DOUBT = Decimal("1e-100")
FASTEST = Decimal("1e10")
LIMIT = 2**24  # positions, as long as a row may be
PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798214808651328"
    "230664709384460955058223172535940812848111745"
)
NAMES = (
    "rope_type", "type", "factor", "original_max_position_embeddings", "max_position_embeddings", "low_freq_factor",
    "high_freq_factor", "attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate",
    "short_factor", "long_factor", "rope_freqs",
)  # fmt: skip
TYPES = ("default", "linear", "llama3", "yarn", "longrope", "gguf")


class Frequencies(NamedTuple):
    """Of each pair f, of all the factor of cosine and sine: in DIGITS digits, and as double-doubles."""

    f: tuple[Decimal, ...]
    factor: Decimal
    high: Array
    low: Array
    factor_high: float
    factor_low: float


def rope_table(
    R: int, positions: Any, *, base: float = 10000.0, scaling: Mapping[str, Any] | None = None
) -> tuple[Array, Array]:
    """``cos(p f_i)`` and ``sin(p f_i)`` of positions p, i = 0 .. R/2 - 1, each correctly rounded: what `rope` takes.

    Parameters
    ----------
    R : int
        Rotated values of a head, even, at least 2.
    positions : int, or integers (P,)
        A count, for positions 0 .. count - 1, or the positions, each in [0, 2**24).
    base : float
        Above 0. f_i is ``base**(-2 i / R)``, changed by scaling.
    scaling : dict, optional
        As in a Hugging Face config, `rope_scaling` or `rope_parameters`. `rope_type` (or `type`): "default", "linear",
        "llama3", "yarn", "longrope"; or "gguf" with `rope_freqs`, R/2 numbers that the frequencies are divided by.
        `max_position_embeddings`, the model's context length, may be added: it stands for a missing
        `original_max_position_embeddings`, yarn and longrope without a `factor` take the quotient of the two, and
        longrope takes its long list where it is the larger one (without it: where factor > 1). `rope_theta` and
        `partial_rotary_factor` aren't read: base and R say that.

    Returns
    -------
    cos, sin : arrays (P, R/2) of float32
        With yarn and longrope times the attention factor, before the rounding.

    Raises
    ------
    TypeError
        An R or positions that aren't integers, numbers that aren't, a scaling that is no mapping.
    ValueError
        A number that is missing or out of range; a frequency above 1e10; an unknown rope_type; "dynamic": its angles
        depend on how long the sequence has become, so that what is computed in chunks would have other bits.

    Notes
    -----
    Every number is the float64 that was given, the rule is real arithmetic. `llorch.reference.rope_table` defines the
    bits. Su et al., arXiv:2104.09864; YaRN: Peng et al., arXiv:2309.00071; LongRoPE: Ding et al., arXiv:2402.13753.
    """
    return _core._in_fpenv(_rope_table, R, positions, base, scaling)


def _rope_table(R: int, positions: Any, base: float, scaling: Mapping[str, Any] | None) -> tuple[Array, Array]:
    R = _integer(R, "R")
    if R < 2 or R % 2:
        raise ValueError(f"R is {R}, it must be even and at least 2")
    given = np.asarray(positions)
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"positions must be a count or integers (P,), got {given.dtype.name}")
    if given.ndim > 1:
        raise ValueError(f"positions has shape {given.shape}, it must be a count or (P,)")
    if given.ndim == 0 and not 0 <= given <= LIMIT:
        raise ValueError(f"positions is {positions}, a count must be in [0, 2**24]")
    places = np.arange(int(given), dtype=np.int64) if given.ndim == 0 else np.array(given, np.int64)
    outside = np.argwhere((places < 0) | (places >= LIMIT))
    if len(outside):
        at = int(outside[0, 0])
        raise ValueError(f"positions[{at}] is {given[at]}, positions must be in [0, 2**24)")
    f = frequencies(R, _float(base, "base"), scaling)
    cos, sin = np.empty((len(places), R // 2), np.float32), np.empty((len(places), R // 2), np.float32)
    if _core._rope_rows(f.high, f.low, f.factor_high, f.factor_low, places, cos, sin):
        decide(cos, sin, places, f.f, f.factor)
    return cos, sin


# ---- what comes in -------------------------------------------------------------------------------------


def _integer(value: Any, name: str) -> int:
    try:
        return int(value.__index__())
    except AttributeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None


def _float(value: Any, name: str) -> float:
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {value!r}, it must be a finite number above 0") from None
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} is {value!r}, it must be a finite number above 0")
    return number


class _Rule:
    """The numbers of a scaling rule, exactly."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.entries = entries
        self.kind = entries.get("rope_type", entries.get("type", "default"))

    def has(self, name: str) -> bool:
        return self.entries.get(name) is not None

    def number(self, name: str, default: float | None = None) -> Decimal:
        value = self.entries.get(name)
        if value is None and default is not None:
            value = default
        if value is None:
            raise ValueError(f"scaling has no {name}, which rope_type {self.kind!r} needs")
        return Decimal(_float(value, f"scaling's {name}"))

    def numbers(self, name: str, count: int) -> list[Decimal]:
        values = self.entries.get(name)
        if values is None:
            raise ValueError(f"scaling has no {name}, which rope_type {self.kind!r} needs")
        if len(values) != count:
            raise ValueError(f"scaling's {name} has {len(values)} numbers, it must have {count}, one for each pair")
        return [Decimal(_float(value, f"scaling's {name}")) for value in values]

    def original(self) -> Decimal:
        """The context that the model was made for."""
        name = "original_max_position_embeddings"
        return self.number(name if self.has(name) or not self.has("max_position_embeddings") else name[9:])

    def factor(self) -> Decimal:
        if self.has("factor"):
            return self.number("factor")
        return self.number("max_position_embeddings") / self.original()


# ---- frequencies ---------------------------------------------------------------------------------------


def frequencies(R: int, base: float, scaling: Mapping[str, Any] | None) -> Frequencies:
    """The frequencies of a head's pairs by a model's rule, and the factor of its cosines and sines."""
    if not isinstance(scaling, Mapping | None):
        raise TypeError(f"scaling must be a mapping or None, got {type(scaling).__name__}")
    entries = {} if scaling is None else {name: scaling[name] for name in NAMES if scaling.get(name) is not None}
    return _frequencies(
        R, base, tuple((k, tuple(v) if isinstance(v, list | tuple | np.ndarray) else v) for k, v in entries.items())
    )


@lru_cache(maxsize=16)
def _frequencies(R: int, base: float, entries: tuple[tuple[str, Any], ...]) -> Frequencies:
    rule = _Rule(dict(entries))
    if rule.kind == "dynamic":
        raise ValueError(
            "scaling's rope_type is 'dynamic': its angles depend on how long the sequence has become, so that a prefix "
            "computed before would have other bits than one computed now; it is not supported"
        )
    if rule.kind not in TYPES:
        raise ValueError(f"scaling's rope_type is {rule.kind!r}, it must be one of {', '.join(TYPES)}")
    with localcontext(Context(prec=DIGITS, Emax=999999, Emin=-999999)):
        log = Decimal(base).ln()
        plain = [(log * -2 * i / R).exp() for i in range(R // 2)]
        factor = Decimal(1)
        if rule.kind == "linear":
            f = [each / rule.number("factor") for each in plain]
        elif rule.kind == "llama3":
            f = _llama3(plain, rule)
        elif rule.kind == "yarn":
            f, factor = _yarn(plain, R, log, rule)
        elif rule.kind == "longrope":
            f, factor = _longrope(plain, rule)
        elif rule.kind == "gguf":
            f = [a / b for a, b in zip(plain, rule.numbers("rope_freqs", R // 2), strict=True)]
        else:
            f = plain
        if max(f) > FASTEST:
            raise ValueError(
                f"base {base!r} and scaling make a frequency of {max(f):.3g}, it must be at most {FASTEST:.0e}"
            )
        pairs = [_double_double(each) for each in f]
        return Frequencies(tuple(f), factor, np.array([h for h, _ in pairs]), np.array([low for _, low in pairs]),
                           *_double_double(factor))  # fmt: skip


def _double_double(value: Decimal) -> tuple[float, float]:
    high = float(value)
    return high, float(value - Decimal(high))


def _llama3(plain: list[Decimal], rule: _Rule) -> list[Decimal]:
    factor, low, high = (rule.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = rule.original()
    if high <= low:
        raise ValueError(f"scaling's high_freq_factor is {high}, it must be above its low_freq_factor, {low}")
    f = []
    for each in plain:
        turns = original * each / (2 * PI)  # of this pair in the original context
        if turns < low:
            f.append(each / factor)
        elif turns > high:
            f.append(each)
        else:
            smooth = (turns - low) / (high - low)
            f.append((1 - smooth) * each / factor + smooth * each)
    return f


def _yarn(plain: list[Decimal], R: int, log: Decimal, rule: _Rule) -> tuple[list[Decimal], Decimal]:
    factor, original = rule.factor(), rule.original()
    if log == 0:
        raise ValueError("base is 1: yarn divides by its logarithm")

    def mscale(weight: Decimal) -> Decimal:
        return 1 + weight * factor.ln() / 10 if factor > 1 else Decimal(1)

    if rule.has("attention_factor"):
        attention = rule.number("attention_factor")
    elif rule.entries.get("mscale") and rule.entries.get("mscale_all_dim"):
        attention = mscale(rule.number("mscale")) / mscale(rule.number("mscale_all_dim"))
    else:
        attention = mscale(Decimal(1))

    def correction(turns: Decimal) -> Decimal:
        """The pair that turns so often in the original context."""
        return R * (original / (turns * 2 * PI)).ln() / (2 * log)

    low = correction(rule.number("beta_fast") if rule.entries.get("beta_fast") else Decimal(32))
    high = correction(rule.number("beta_slow") if rule.entries.get("beta_slow") else Decimal(1))
    if rule.entries.get("truncate", True):
        low, high = low.to_integral_value(ROUND_FLOOR), high.to_integral_value(ROUND_CEILING)
    low, high = max(low, Decimal(0)), min(high, Decimal(R - 1))
    if low == high:
        high += Decimal("0.001")
    f = []
    for i, each in enumerate(plain):
        ramp = min(max((i - low) / (high - low), Decimal(0)), Decimal(1))
        f.append(each / factor * ramp + each * (1 - ramp))
    return f, attention


def _longrope(plain: list[Decimal], rule: _Rule) -> tuple[list[Decimal], Decimal]:
    factor, original = rule.factor(), rule.original()
    longer = factor > 1
    if rule.has("max_position_embeddings"):
        longer = rule.number("max_position_embeddings") > original
    if rule.has("attention_factor"):
        attention = rule.number("attention_factor")
    else:
        attention = (1 + factor.ln() / original.ln()).sqrt() if factor > 1 else Decimal(1)
    divisors = rule.numbers("long_factor" if longer else "short_factor", len(plain))
    return [a / b for a, b in zip(plain, divisors, strict=True)], attention


# ---- what a double-double doesn't decide ---------------------------------------------------------------


def decide(cos: Array, sin: Array, places: Array, f: Sequence[Decimal] | Array, factor: Decimal) -> None:
    """Writes what is NaN in tables (P, R/2) of these positions and frequencies: what a double-double can't decide."""
    for table, exact in ((cos, _cosine), (sin, _sine)):
        for row, i in np.argwhere(np.isnan(table)):
            table[row, i] = _decided(exact, int(places[row]), Decimal(f[i]), factor)


def _decided(function: Callable[[Decimal], Decimal], p: int, f: Decimal, factor: Decimal) -> np.float32:
    with localcontext(Context(prec=DIGITS, Emax=999999, Emin=-999999)):
        if p == 0:
            value, doubt = factor, factor * DOUBT if factor != Decimal(float(factor)) else Decimal(0)
        else:
            value = factor * function(p * f)
            doubt = factor * DOUBT
        low, high = _nearest(value - doubt), _nearest(value + doubt)
        if low != high:
            raise ArithmeticError(f"{DIGITS} digits don't decide the rounding at position {p}")
        return low


def _nearest(value: Decimal) -> np.float32:
    """The float32 next to value, ties to even, by exact comparisons."""
    middle = np.float32(float(value))
    near = [np.nextafter(middle, np.float32(-np.inf)), middle, np.nextafter(middle, np.float32(np.inf))]
    return min(near, key=lambda y: (abs(Decimal(float(y)) - value), int(y.view(np.int32)) & 1))


def _reduced(angle: Decimal) -> tuple[int, Decimal]:
    quarter = (angle * 2 / PI).to_integral_value()
    return int(quarter) % 4, angle - quarter * PI / 2


def _cosine(angle: Decimal) -> Decimal:
    quarter, rest = _reduced(angle)
    return (_even(rest), -_odd(rest), -_even(rest), _odd(rest))[quarter]


def _sine(angle: Decimal) -> Decimal:
    quarter, rest = _reduced(angle)
    return (_odd(rest), _even(rest), -_odd(rest), -_even(rest))[quarter]


def _even(r: Decimal) -> Decimal:
    return _series(Decimal(1), r * r, 1)


def _odd(r: Decimal) -> Decimal:
    return _series(r, r * r, 2)


def _series(term: Decimal, square: Decimal, n: int) -> Decimal:
    total, least = term, abs(term).scaleb(-DIGITS)
    while abs(term) > least:
        term = -term * square / (n * (n + 1))
        total += term
        n += 2
    return total
