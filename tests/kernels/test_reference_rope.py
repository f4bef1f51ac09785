"""The oracle's rotary table beside exact arithmetic of another kind, beside transformers' rules, and the rotation."""

import decimal
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import SPECIALS, assert_same_bits, normal, same_bits

from llorch import reference
from llorch.reference import _rope
from llorch.reference._unary import ONE

VECTORS = np.load(Path(__file__).parent.parent / "data" / "rope_vectors.npz")
DIGITS = 80
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LONG = {"rope_type": "longrope", "short_factor": [1 + i / 100 for i in range(8)],
        "long_factor": [1 + i * 1.7 for i in range(8)], "original_max_position_embeddings": 4096}  # fmt: skip
RULES = {
    "default": (None, 10000.0),
    "base": (None, 500000.0),
    "linear": ({"rope_type": "linear", "factor": 2.5}, 10000.0),
    "llama3": (LLAMA3, 500000.0),
    "llama3, an old name": (LLAMA3 | {"type": "llama3"}, 10000.0),
    "yarn": (YARN, 10000.0),
    "yarn, not truncated": (YARN | {"truncate": False, "beta_fast": 24, "beta_slow": 2.5}, 1e6),
    "yarn, attention_factor": (YARN | {"attention_factor": 1.37}, 10000.0),
    "yarn, mscale": (YARN | {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.1}, 10000.0),
    "yarn, shrunk": (YARN | {"factor": 0.5}, 10000.0),
    "yarn, no factor": (YARN | {"factor": None, "max_position_embeddings": 32768}, 10000.0),
    "yarn, one pair": (YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "original_max_position_embeddings": 6}, 10000.0),
    "longrope": (LONG | {"factor": 32.0}, 10000.0),
    "longrope, the short list": (LONG | {"factor": 32.0, "max_position_embeddings": 4096}, 10000.0),
    "longrope, no factor": (LONG | {"max_position_embeddings": 131072}, 10000.0),
    "longrope, attention_factor": (LONG | {"factor": 32.0, "attention_factor": 1.19}, 10000.0),
}
R = 16


# ---- another exact way: decimal numbers ------------------------------------------------------------------


@pytest.fixture(autouse=True)
def digits():
    with decimal.localcontext() as context:
        context.prec = DIGITS
        yield


def exact(value):
    """A float64, exactly."""
    ratio = Fraction(float(value))
    return Decimal(ratio.numerator) / Decimal(ratio.denominator)


def pi():
    """Gauss, Legendre."""
    a, b, t, p = Decimal(1), 1 / Decimal(2).sqrt(), Decimal("0.25"), Decimal(1)
    for _ in range(8):
        a, b, t, p, before = (a + b) / 2, (a * b).sqrt(), t, 2 * p, a
        t -= p / 2 * (before - a) ** 2
    return (a + b) ** 2 / (4 * t)


def cosine_and_sine(x):
    """By the angle's 2^-20, squared as a complex number."""
    x = x % (2 * pi()) / 2**20
    term, c, s = Decimal(1), Decimal(0), Decimal(0)
    for n in range(16):  # x^n / n!
        c += (1, 0, -1, 0)[n % 4] * term
        s += (0, 1, 0, -1)[n % 4] * term
        term = term * x / (n + 1)
    for _ in range(20):
        c, s = c * c - s * s, 2 * c * s
    return c, s


def nearest(x):
    """The float32 nearest to a decimal number."""
    guess = np.float32(float(x))
    near = (guess, np.nextafter(guess, np.float32(9)), np.nextafter(guess, np.float32(-9)))
    return min(near, key=lambda y: abs(exact(y) - x))


def frequencies_and_factor(scaling, base):
    """Section 7, in decimal numbers; transformers' modeling_rope_utils.py has the same rules in float32."""
    e, one = (lambda name: exact(scaling[name])), Decimal(1)
    plain = [(-exact(base).ln() * 2 * i / R).exp() for i in range(R // 2)]
    kind = scaling and scaling["rope_type"]
    if kind is None:
        return plain, one
    if kind == "linear":
        return [f / e("factor") for f in plain], one
    original = e("original_max_position_embeddings")
    if kind == "llama3":
        factor, low, high = e("factor"), e("low_freq_factor"), e("high_freq_factor")
        result = []
        for f in plain:
            wavelength = 2 * pi() / f
            if wavelength < original / high:
                result.append(f)
            elif wavelength > original / low:
                result.append(f / factor)
            else:
                smooth = (original / wavelength - low) / (high - low)
                result.append((1 - smooth) * f / factor + smooth * f)
        return result, one
    now = scaling.get("max_position_embeddings")
    factor = exact(now) / original if scaling.get("factor") is None else e("factor")
    if kind == "longrope":
        longer = now > scaling["original_max_position_embeddings"] if now else factor > 1
        list_of = scaling["long_factor" if longer else "short_factor"]
        attention = (1 + factor.ln() / original.ln()).sqrt() if factor > 1 else one
        result = [f / exact(by) for f, by in zip(plain, list_of, strict=True)]
    else:
        mscale = lambda weight: one if factor <= 1 else weight * factor.ln() / 10 + 1  # noqa: E731
        attention = mscale(e("mscale")) / mscale(e("mscale_all_dim")) if "mscale" in scaling else mscale(one)
        turns = [exact(scaling.get("beta_fast", 32)), exact(scaling.get("beta_slow", 1))]
        low, high = (R * (original / (n * 2 * pi())).ln() / (2 * exact(base).ln()) for n in turns)
        if scaling.get("truncate", True):
            low, high = low.to_integral_value(decimal.ROUND_FLOOR), high.to_integral_value(decimal.ROUND_CEILING)
        low, high = max(low, Decimal(0)), min(high, Decimal(R - 1))
        if low == high:
            high += Decimal("0.001")
        ramps = [min(max((i - low) / (high - low), Decimal(0)), one) for i in range(R // 2)]
        result = [f / factor * ramp + f * (1 - ramp) for f, ramp in zip(plain, ramps, strict=True)]
    return result, e("attention_factor") if "attention_factor" in scaling else attention


POSITIONS = (0, 1, 2, 5, 100, 4095, 4096, 131071, 10**7 + 1, 2**40 + 12345)


@pytest.mark.parametrize("rule", RULES)
def test_every_number_is_the_nearest(rule):
    scaling, base = RULES[rule]
    cos, sin = reference.rope_table(R, POSITIONS, base=base, scaling=scaling)
    frequencies, factor = frequencies_and_factor(scaling, base)
    for a, p in enumerate(POSITIONS):
        for i, f in enumerate(frequencies):
            c, s = cosine_and_sine(p * f)
            assert cos[a, i] == nearest(c * factor), f"cos, position {p}, pair {i}"
            assert sin[a, i] == nearest(s * factor), f"sin, position {p}, pair {i}"


@pytest.mark.parametrize("base", VECTORS["bases"])
def test_published_tables(base):
    """What mpmath gave, kept: see tests/data/make_vectors.py. Positions up to 131,071."""
    cos, sin = reference.rope_table(64, VECTORS["positions"], base=base)
    assert_same_bits(cos, VECTORS[f"{base:.0f}/cos"])
    assert_same_bits(sin, VECTORS[f"{base:.0f}/sin"])


def test_float64_would_be_seen():
    """Negative control: float64's own cosine of float64's angle, and that of a float32 angle, are not right."""
    positions = np.arange(100000, 131072, 8)
    cos, _ = reference.rope_table(64, positions)
    f = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    in_float64 = np.cos(positions[:, None] * f).astype(np.float32)
    assert np.count_nonzero(in_float64 != cos) > 0
    assert np.abs(in_float64 - cos).max() < 1e-6
    in_float32 = np.cos(positions[:, None].astype(np.float32) * f.astype(np.float32))
    assert np.abs(in_float32 - cos).max() > 1e-3


def test_the_exact_way_and_the_fast_one_agree(monkeypatch):
    """MARGIN decides which of the two computes a value, and no bit."""
    for scaling, base in (RULES["default"], RULES["yarn, mscale"]):
        fast = reference.rope_table(R, POSITIONS, base=base, scaling=scaling)
        monkeypatch.setattr(_rope, "MARGIN", 1.0)
        exactly = reference.rope_table(R, POSITIONS, base=base, scaling=scaling)
        monkeypatch.setattr(_rope, "_exact", lambda *_: 7.0)  # every value did take the exact way
        assert all((table == 7).all() for table in reference.rope_table(R, POSITIONS, base=base, scaling=scaling))
        monkeypatch.undo()
        for a, b in zip(fast, exactly, strict=True):
            assert_same_bits(a, b)


def test_a_count_and_positions():
    for table, chosen in zip(reference.rope_table(8, 40), reference.rope_table(8, [39, 0, 7]), strict=True):
        assert table.shape == (40, 4) and table.dtype == np.float32
        assert_same_bits(chosen, table[[39, 0, 7]])
    assert [t.shape for t in reference.rope_table(8, 0)] == [(0, 4)] * 2
    assert_same_bits(reference.rope_table(8, np.int64(3))[0], reference.rope_table(8, np.arange(3))[0])


def test_ends():
    """Position 0 is exact, a tiny frequency's sine vanishes, and R = 2 turns by whole radians."""
    cos, sin = reference.rope_table(4, 1)
    assert_same_bits(cos, np.ones((1, 2), np.float32))
    assert_same_bits(sin, np.zeros((1, 2), np.float32))
    halfway = 1 + 2.0**-24  # between two float32: the even one
    cos, _ = reference.rope_table(4, 1, scaling=YARN | {"attention_factor": halfway})
    assert_same_bits(cos, np.ones((1, 2), np.float32))
    cos, sin = reference.rope_table(64, 2, base=1.7e308)
    assert sin[1, 1] > 0 and sin[1, 31] == 0 and cos[1, 31] == 1
    assert reference.rope_table(2, 2)[1][1, 0] == np.float32(0.8414709848078965)


def test_gguf_factors():
    """rope_freqs of a GGUF file: those of llama3 give llama3's frequencies, nearly, as they are rounded to float32."""
    scaling, base = RULES["llama3"]
    plain, _ = frequencies_and_factor(None, base)
    scaled, _ = frequencies_and_factor(scaling, base)
    factors = [float(np.float32(float(a / b))) for a, b in zip(plain, scaled, strict=True)]
    assert max(factors) == 8 and min(factors) == 1
    got, _ = reference.rope_table(R, 50, base=base, scaling={"rope_type": "gguf", "rope_freqs": factors})
    assert np.abs(got - reference.rope_table(R, 50, base=base, scaling=scaling)[0]).max() < 1e-5
    assert not same_bits(got, reference.rope_table(R, 50, base=base)[0])
    for i, (f, by) in enumerate(zip(plain, factors, strict=True)):
        assert got[49, i] == nearest(cosine_and_sine(49 * f / exact(by))[0])


@pytest.mark.parametrize("rule", RULES)
def test_frequencies_are_transformers(rule):
    """To the last bits of float32, in which transformers computes them."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, base = RULES[rule]
    if scaling is None:
        return
    limit = scaling.get("max_position_embeddings", 131072)
    given = {name: value for name, value in scaling.items() if name != "max_position_embeddings"}
    if rule != "longrope, the short list":
        limit = max(limit, 2 * given.get("original_max_position_embeddings", 1))
    config = transformers.LlamaConfig(
        hidden_size=R, num_attention_heads=1, max_position_embeddings=limit,
        rope_parameters={"rope_theta": base, "factor": None} | given,
    )  # fmt: skip
    length = limit if given["rope_type"] == "longrope" else None
    wanted, attention = ROPE_INIT_FUNCTIONS[given["rope_type"]](config, "cpu", seq_len=length)
    frequencies, factor = _rope._frequencies(R, base, scaling)
    got = np.array([f / ONE for f in frequencies])
    assert np.abs(got / wanted.numpy().astype(np.float64) - 1).max() < 2e-6
    assert abs(factor / ONE / attention - 1) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "how", "error", "message"),
    [
        ((7, 3), {}, ValueError, "R is 7, it must be even"),
        ((0, 3), {}, ValueError, "R is 0"),
        ((8, [1, -1]), {}, ValueError, "positions has -1"),
        ((8, [0.5]), {}, TypeError, "positions has elements of type float64"),
        ((8, 3), {"base": 0.0}, ValueError, "base is 0.0"),
        ((8, 3), {"base": np.inf}, ValueError, "base is inf"),
        ((8, 3), {"scaling": {"rope_type": "dynamic", "factor": 2.0}}, ValueError, "dynamic: its angles depend on how"),
        (
            (8, 3),
            {"scaling": {"rope_type": "ntk"}},
            ValueError,
            "rope_type is 'ntk', it must be one of default, linear",
        ),
        ((8, 3), {"scaling": {"rope_type": "linear"}}, ValueError, "scaling has no factor"),
        ((8, 3), {"scaling": {"rope_type": "linear", "factor": -1}}, ValueError, "factor is -1"),
        ((8, 3), {"scaling": LLAMA3 | {"high_freq_factor": 1.0}}, ValueError, "high_freq_factor must be above"),
        ((8, 3), {"scaling": YARN, "base": 1.0}, ValueError, "base is 1"),
        ((8, 3), {"scaling": LONG}, ValueError, "scaling has no max_position_embeddings"),
        ((8, 3), {"scaling": LONG | {"factor": 2}}, ValueError, "long_factor has 8 numbers, it must have 4"),
    ],
)
def test_table_refuses(arguments, how, error, message):
    with pytest.raises(error, match=message):
        reference.rope_table(*arguments, **how)


# ---- the rotation ----------------------------------------------------------------------------------------

TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def by_hand(x, cos, sin, rows):
    """One value after the other."""
    y = x.astype(np.float32)
    half = cos.shape[1]
    for at in np.ndindex(x.shape[:-1]):
        p = rows[at[-1]]
        for i in range(half):
            a, b = y[at][i], y[at][i + half]
            c, s = cos[p, i : i + 1], sin[p, i : i + 1]
            y[(*at, i)] = reference.fma(np.float32([a]), c, -(np.float32([b]) * s))[0]
            y[(*at, i + half)] = reference.fma(np.float32([b]), c, np.float32([a]) * s)[0]
    return y.astype(x.dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rotation_is_the_text(dtype):
    cos, sin = reference.rope_table(6, 20)
    for shape in ((4, 6), (2, 5, 6), (2, 3, 5, 9), (0, 6), (1, 1, 7)):
        x = normal(*shape, scale=2).astype(dtype)
        T = shape[-2]
        assert_same_bits(reference.rope(x, cos, sin), by_hand(x, cos, sin, range(T)), str(shape))
        rows = (np.arange(T) * 7 + 3) % 20
        got = reference.rope(x, cos, sin, rows)
        assert_same_bits(got, by_hand(x, cos, sin, rows), str(shape))
        assert_same_bits(got[..., 6:], x[..., 6:])
        out = np.zeros_like(x)
        assert reference.rope(x, cos, sin, rows, out=out) is out
        assert_same_bits(out, got)


def test_rotation_of_special_values():
    cos, sin = reference.rope_table(4, 3)
    pairs = np.array([[a, 1.5, b, -2] for a in SPECIALS for b in SPECIALS], np.float32)
    with np.errstate(all="ignore"):
        wanted = by_hand(pairs[:, None], cos, sin, [2])
    assert_same_bits(reference.rope(pairs[:, None], cos, sin, [2]), wanted)


def test_rounding_both_products_would_be_seen():
    """Negative control: a c - b s with both products rounded is something else, and so is the other fma."""
    cos, sin = reference.rope_table(64, 50, base=500000.0)
    x = normal(50, 64)
    got = reference.rope(x, cos, sin)
    a, b = x[:, :32], x[:, 32:]
    assert not same_bits(got[:, :32], a * cos - b * sin)
    assert not same_bits(got[:, :32], reference.fma(-b, sin, a * cos))
    assert np.allclose(got[:, :32], a * cos - b * sin, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "positions", "error", "message"),
    [
        (normal(6), None, ValueError, r"x has shape \(6,\)"),
        (normal(3, 5), None, ValueError, "R at most 5"),
        (normal(9, 6), None, IndexError, r"positions must be in \[0, 8\)"),
        (normal(2, 6), [0, 8], IndexError, "positions must be in"),
        (normal(2, 6), [0, -1], IndexError, "positions must be in"),
        (normal(2, 6), [0], ValueError, r"positions has shape \(1,\), it must be \(2,\)"),
        (normal(2, 6), [0.0, 1.0], TypeError, "positions has elements of type float64"),
        (normal(2, 6).astype(np.float64), None, TypeError, "x is float64"),
    ],
)
def test_rotation_refuses(x, positions, error, message):
    with pytest.raises(error, match=message):
        reference.rope(x, *reference.rope_table(6, 8), positions)
