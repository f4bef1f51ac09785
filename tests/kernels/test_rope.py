"""rope and rope_table: the bits of the oracle and of published vectors, what they refuse, and controls that differ."""

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import Guarded, assert_same_bits, at_offset, normal, num_threads, refusals, rng, same_bits

import llorch
from llorch import _core, _rope, reference
from llorch.testing import use_isa

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
DATA = Path(__file__).parent.parent / "data" / "rope_vectors.json"

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def scalings(half):
    """Every rule, as configs write it."""
    factors = [float(x) for x in 1 + rng(half).random(half) * 3]
    longrope = {"rope_type": "longrope", "short_factor": [1.0 + i / 64 for i in range(half)], "long_factor": factors}
    return {
        "none": None,
        "default": {"rope_type": "default", "rope_theta": 5.0},
        "linear": {"type": "linear", "factor": 2.5},
        "llama3": LLAMA3,
        "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
        "yarn, contexts": {
            "rope_type": "yarn", "original_max_position_embeddings": 2048, "max_position_embeddings": 65536,
            "beta_fast": 16, "beta_slow": 2, "truncate": False,
        },
        "yarn, mscale": {
            "rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 0.9,
            "mscale_all_dim": 1.1,
        },
        "yarn, factor given": {
            "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 512, "attention_factor": 1.2345,
        },
        "longrope, short": longrope | {"original_max_position_embeddings": 4096, "max_position_embeddings": 4096},
        "longrope, long": longrope | {"original_max_position_embeddings": 4096, "max_position_embeddings": 131072},
        "longrope, factor": longrope | {"original_max_position_embeddings": 4096, "factor": 8.0},
        "gguf": {"rope_type": "gguf", "rope_freqs": np.float32(factors)},
    }  # fmt: skip


# ---- the table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("R", (64, 80, 128))
@pytest.mark.parametrize("base", (10000.0, 500000.0, 1e6))
def test_the_table_is_the_oracle(base, R):
    positions = np.concatenate([np.arange(201), rng(R).integers(201, 131072, 100), [131071]])
    for got, wanted in zip(
        llorch.rope_table(R, positions, base=base), reference.rope_table(R, positions, base=base), strict=True
    ):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("rule", scalings(32))
def test_every_scaling_rule_is_the_oracle(rule):
    scaling = scalings(32)[rule]
    positions = [0, 1, 2, 3, 77, 4095, 4096, 50000, 131071]
    got = llorch.rope_table(64, positions, base=10000.0, scaling=scaling)
    wanted = reference.rope_table(64, positions, base=10000.0, scaling=scaling)
    for g, w in zip(got, wanted, strict=True):
        assert_same_bits(g, w, rule)
    if rule not in ("none", "default"):  # control: the rule changes something
        assert not same_bits(got[0], llorch.rope_table(64, positions)[0])


def test_the_published_vectors():
    data = json.loads(DATA.read_text())
    for each in data["tables"]:
        cos, sin = llorch.rope_table(each["R"], each["positions"], base=each["base"])
        for name, got in (("cos", cos), ("sin", sin)):
            wanted = np.float32([[float.fromhex(v) for v in row] for row in each[name]])
            assert_same_bits(got[:, each["pairs"]], wanted, f"{name}, base {each['base']}")
    assert {each["base"] for each in data["tables"]} == {10000.0, 500000.0, 1e6}
    assert max(max(each["positions"]) for each in data["tables"]) == 131071


def test_a_table_in_float64_would_be_seen():
    """Negative control: what NumPy's cosine of a float64 angle rounds to, and of a float32 one."""
    positions = np.arange(2048)
    f = 10000.0 ** (-np.arange(0, 128, 2) / 128)
    cos, _ = llorch.rope_table(128, 2048)
    rounded = np.cos(np.float32(positions[:, None] * f.astype(np.float32))).astype(np.float32)
    assert not same_bits(cos, rounded)
    assert np.abs(cos - rounded).max() < 1e-3
    assert np.abs(cos - np.cos(positions[:, None] * f)).max() < 1e-7


def test_the_table_is_the_same_by_rows_counts_and_threads():
    cos, sin = llorch.rope_table(80, 3000, base=500000.0, scaling=LLAMA3)
    with num_threads(3):
        again = llorch.rope_table(80, 3000, base=500000.0, scaling=LLAMA3)
    for some in (np.arange(3000)[::-7], [5, 6, 7, 2000, 3, 4, 5], np.array([2999], np.uint16), []):
        part = llorch.rope_table(80, some, base=500000.0, scaling=LLAMA3)
        assert_same_bits(part[0], cos[np.asarray(some, int)])
        assert_same_bits(part[1], sin[np.asarray(some, int)])
    assert_same_bits(again[0], cos)
    assert_same_bits(again[1], sin)
    assert llorch.rope_table(2, 0)[0].shape == (0, 1)


def test_far_positions_and_odd_rules_are_the_oracle():
    positions = [2**20 + 1, 2**23, 2**24 - 1]
    for scaling in (None, {"rope_type": "linear", "factor": 0.001}, {"rope_type": "linear", "factor": 1e40}):
        got = llorch.rope_table(8, positions, base=3.0, scaling=scaling)
        wanted = reference.rope_table(8, positions, base=3.0, scaling=scaling)
        for g, w in zip(got, wanted, strict=True):
            assert_same_bits(g, w, f"{scaling}")


def test_what_a_double_double_leaves_open_is_decided_by_digits(monkeypatch):
    """The kernel marks everything as open: the digits alone give the same table."""
    scaling = scalings(8)["yarn, contexts"]
    wanted = llorch.rope_table(16, [0, 1, 5000, 131071], scaling=scaling)

    def undecided(high, low, factor_high, factor_low, places, cos, sin):
        cos[...] = sin[...] = np.nan
        sin[places == 0] = 0.0
        return 2 * cos.size

    monkeypatch.setattr(_core, "_rope_rows", undecided)
    got = llorch.rope_table(16, [0, 1, 5000, 131071], scaling=scaling)
    for g, w in zip(got, wanted, strict=True):
        assert_same_bits(g, w)


def test_the_kernel_says_what_it_leaves_open():
    """An angle past its bounds, and a factor halfway between two float32 whose cosine is a trifle below 1."""
    cos, sin = np.empty((1, 1), np.float32), np.empty((1, 1), np.float32)
    place = np.array([2**20])
    assert _core._rope_rows(np.array([1e3]), np.array([0.0]), 1.0, 0.0, place, cos, sin) == 2
    assert np.isnan(cos).all() and np.isnan(sin).all()
    halfway = 1 + 2.0**-24
    assert _core._rope_rows(np.array([1e-28]), np.array([0.0]), halfway, 0.0, np.array([1]), cos, sin) == 1
    assert np.isnan(cos).all() and sin == np.float32(1e-28 * halfway)
    scaling = {"rope_type": "yarn", "factor": 1e28, "original_max_position_embeddings": 1, "attention_factor": halfway}
    for g, w in zip(llorch.rope_table(4, [0, 1, 2], scaling=scaling),
                    reference.rope_table(4, [0, 1, 2], scaling=scaling), strict=True):  # fmt: skip
        assert_same_bits(g, w)


def test_frequencies_are_double_doubles():
    f = _rope.frequencies(64, 10000.0, None)
    with _rope.localcontext(_rope.Context(prec=_rope.DIGITS)):
        for exact, high, low in zip(f.f, f.high, f.low, strict=True):
            rest = exact - _rope.Decimal(float(high)) - _rope.Decimal(float(low))
            assert abs(rest) < exact * _rope.Decimal(2) ** -106
    assert any(f.low)


REFUSED = [
    (lambda: llorch.rope_table(3, 1), ValueError, "R is 3, it must be even"),
    (lambda: llorch.rope_table(0, 1), ValueError, "R is 0"),
    (lambda: llorch.rope_table(64.0, 1), TypeError, "R must be an int, got float"),
    (lambda: llorch.rope_table(64, 1.5), TypeError, "positions must be a count or integers"),
    (lambda: llorch.rope_table(64, -1), ValueError, "a count must be in"),
    (lambda: llorch.rope_table(64, [3, -1]), ValueError, r"positions\[1\] is -1"),
    (lambda: llorch.rope_table(64, [2**24]), ValueError, r"positions\[0\] is 16777216"),
    (lambda: llorch.rope_table(64, [[1]]), ValueError, r"positions has shape \(1, 1\)"),
    (lambda: llorch.rope_table(64, 1, base=0), ValueError, "base is 0, it must be a finite number above 0"),
    (lambda: llorch.rope_table(64, 1, base="10000"), TypeError, "base must be a number, got str"),
    (lambda: llorch.rope_table(64, 1, base=float("nan")), ValueError, "base is nan"),
    (lambda: llorch.rope_table(64, 1, scaling={"rope_type": "dynamic", "factor": 2}), ValueError, "how long"),
    (lambda: llorch.rope_table(64, 1, scaling={"rope_type": "su"}), ValueError, "'su', it must be one of default"),
    (lambda: llorch.rope_table(64, 1, scaling={"rope_type": "linear"}), ValueError, "scaling has no factor"),
    (lambda: llorch.rope_table(64, 1, scaling={"rope_type": "linear", "factor": 0}), ValueError, "factor is 0"),
    (lambda: llorch.rope_table(64, 1, scaling={"rope_type": "gguf", "rope_freqs": [1.0]}), ValueError, "has 1 numbers"),
    (lambda: llorch.rope_table(64, 1, scaling=LLAMA3 | {"high_freq_factor": 1}), ValueError, "high_freq_factor is 1"),
    (lambda: llorch.rope_table(64, 1, base=1, scaling=scalings(32)["yarn"]), ValueError, "base is 1"),
]  # fmt: skip

test_refused_tables = refusals(REFUSED)


# ---- beside transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("default", "linear", "llama3", "yarn", "longrope"))
def test_beside_transformers(kind):
    """Its tables hold angles in float32: few positions, with a tolerance."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = scalings(32)[{"longrope": "longrope, long"}.get(kind, kind)]
    context = scaling.get("max_position_embeddings", 8192)
    parameters = {k: v for k, v in scaling.items() if k not in ("max_position_embeddings", "type", "rope_theta")}
    parameters |= {"rope_type": kind, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=context, rope_parameters=parameters
    )
    if kind == "default":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        f, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        f, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=context)
    angles = torch.outer(torch.arange(9.0), f)
    cos, sin = llorch.rope_table(64, 9, scaling=scaling)
    np.testing.assert_allclose(cos, (angles.cos() * factor).numpy(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(sin, (angles.sin() * factor).numpy(), rtol=0, atol=2e-6)


# ---- the rotation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_is_the_oracle(isa, dtype):
    for H, T, D, R in ((1, 1, 2, 2), (3, 5, 64, 64), (2, 7, 80, 32), (4, 1, 34, 34), (2, 3, 10, 6), (1, 130, 128, 128),
                       (2, 2, 7, 4), (2, 3, 5, 0)):  # fmt: skip
        x = normal(H, T, D, seed=R, scale=3).astype(dtype)
        cos, sin = (np.zeros((T + 9, 0), np.float32),) * 2 if R == 0 else llorch.rope_table(R, T + 9)
        positions = rng(H, T).integers(0, T + 9, T)
        assert_same_bits(llorch.rope(x, cos, sin), reference.rope(x, cos, sin), f"{x.shape}, R {R}")
        wanted = reference.rope(x, cos, sin, positions)
        assert_same_bits(llorch.rope(x, cos, sin, positions), wanted, f"{x.shape}, R {R}, positions")
        own = x.copy()
        assert llorch.rope(own, cos, sin, positions, out=own) is own
        assert_same_bits(own, wanted, "in place")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_of_special_values(isa, dtype):
    """Signed zeros: -(b * s) is not 0 - b * s; infinities and NaN stay in their pair."""
    values = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -3e-42, 3e38], np.float32)
    with np.errstate(over="ignore"):
        pairs = np.array(np.meshgrid(values, values)).reshape(2, -1).astype(dtype)
    x = np.concatenate([pairs[0], pairs[1]])[None, None]
    for c in (0.0, -0.0, 1.0, 0.5):
        for s in (0.0, -0.0, -1.0, 0.25):
            cos, sin = (np.full((1, x.shape[-1] // 2), v, np.float32) for v in (c, s))
            assert_same_bits(llorch.rope(x, cos, sin), reference.rope(x, cos, sin), f"cos {c}, sin {s}")


def test_rope_of_any_layout_threads_and_address():
    cos, sin = llorch.rope_table(48, 500)
    base = normal(2, 3, 40, 64)
    qkv = normal(2, 40, 9 * 64, seed=1)
    views = {
        "heads": base,
        "every other token": base[:, :, ::2],
        "backwards": base[:, ::-1, ::-1],
        "last axis": base[..., ::-1],
        "of a row of q, k, v": qkv.reshape(2, 40, 9, 64)[0].transpose(1, 0, 2)[3:6],
        "batches of them": qkv.reshape(2, 40, 9, 64).transpose(0, 2, 1, 3)[:, 3:6],
        "one head": base[0, 0],
    }
    for name, x in views.items():
        wanted = reference.rope(np.ascontiguousarray(x), cos, sin)
        assert_same_bits(llorch.rope(x, cos, sin), wanted, name)
        room = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), np.float32)[..., ::2]
        llorch.rope(x, cos, sin, out=room)
        assert_same_bits(room, wanted, f"{name}, out has gaps")
    for table in (cos[::1, ::-1], np.asfortranarray(cos)):
        assert_same_bits(llorch.rope(base, table, sin), reference.rope(base, table.copy(), sin))
    large = normal(8, 400, 64)
    with num_threads(1):
        wanted = llorch.rope(large, cos, sin)
    for threads in (2, 3):
        with num_threads(threads):
            assert_same_bits(llorch.rope(large, cos, sin), wanted, f"{threads} threads")
    small = normal(2, 3, 52)
    for offset in range(0, 64, 4):
        got = llorch.rope(at_offset(small, offset), at_offset(cos[:3], offset), at_offset(sin[:3], offset))
        assert_same_bits(got, reference.rope(small, cos, sin))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_rope_touches_nothing_past_the_end(isa):
    for R in (2, 10, 34, 64):
        x, (cos, sin) = normal(2, 3, R), llorch.rope_table(R, 3)
        with Guarded() as g:
            got = llorch.rope(g.copy(x), g.copy(cos), g.copy(sin), out=g.copy(x))
            assert_same_bits(got.copy(), reference.rope(x, cos, sin))


def test_rope_is_batch_and_chunk_invariant():
    cos, sin = llorch.rope_table(64, 300)
    x = normal(4, 250, 64)
    whole = llorch.rope(x, cos, sin)
    for begin, end in ((0, 1), (1, 2), (100, 163), (249, 250)):
        part = llorch.rope(x[:, begin:end], cos, sin, np.arange(begin, end))
        assert_same_bits(part, whole[:, begin:end])
    assert_same_bits(llorch.rope(x[2:3], cos, sin), whole[2:3])


def test_other_arithmetic_would_be_seen():
    """Negative control: two products rounded each, without fma; and pairs side by side instead of halves."""
    cos, sin = llorch.rope_table(64, 30)
    x = normal(2, 30, 64)
    a, b = x[..., :32], x[..., 32:]
    plain = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    assert not same_bits(llorch.rope(x, cos, sin), plain)
    np.testing.assert_allclose(llorch.rope(x, cos, sin), plain, atol=1e-6)
    order = np.arange(64).reshape(32, 2).T.ravel()
    assert not same_bits(llorch.rope(x, cos, sin), llorch.rope(x[..., order], cos, sin)[..., np.argsort(order)])


def test_sets_agree():
    cos, sin = llorch.rope_table(128, 64)
    x = normal(3, 64, 128)
    results = {}
    for name in llorch.available_isas():
        with use_isa(name):
            results[name] = llorch.rope(x, cos, sin)
    for name, y in results.items():
        assert_same_bits(y, results["generic"], name)


COS, SIN = reference.rope_table(8, 4)
X = normal(2, 3, 10)
REFUSED_ROPES = [
    (lambda: llorch.rope(X[0, 0], COS, SIN), ValueError, r"x has shape \(10,\), it must be \(..., T, D\)"),
    (lambda: llorch.rope(X.astype(np.float64), COS, SIN), TypeError, "x is float64"),
    (lambda: llorch.rope(X, COS.astype(np.float16), SIN), TypeError, "cos is float16, it must be float32"),
    (lambda: llorch.rope(X, COS, SIN[:2]), ValueError, r"cos has shape \(4, 4\) and sin \(2, 4\)"),
    (lambda: llorch.rope(X[..., :6], COS, SIN), ValueError, "R at most 6"),
    (lambda: llorch.rope(X, COS[0], SIN), ValueError, r"cos has shape \(4,\), it must be \(P, R/2\)"),
    (lambda: llorch.rope(X, COS[:2], SIN[:2]), IndexError, r"positions\[2\] is 2, cos and sin have 2 rows"),
    (lambda: llorch.rope(X, COS, SIN, [0, 1, 4]), IndexError, r"positions\[2\] is 4"),
    (lambda: llorch.rope(X, COS, SIN, [0, -1, 1]), IndexError, r"positions\[1\] is -1"),
    (lambda: llorch.rope(X, COS, SIN, [0, 1]), ValueError, r"positions has shape \(2,\), it must be \(3,\)"),
    (lambda: llorch.rope(X, COS, SIN, [0.0, 1, 2]), TypeError, "positions must be integers, got float64"),
    (lambda: llorch.rope(X, COS, SIN, out=X[:1]), ValueError, r"out has shape \(1, 3, 10\)"),
    (lambda: llorch.rope(COS, COS, SIN, out=COS), ValueError, "R at most 4"),
]  # fmt: skip

test_refused_ropes = refusals(REFUSED_ROPES)


def test_out_may_not_be_the_table_or_part_of_x():
    table = np.ones((8, 8), np.float32)
    with pytest.raises(ValueError, match="out overlaps cos"):
        llorch.rope(normal(8, 8), table[:, :4], np.ones((8, 4), np.float32), out=table)
    room = np.zeros((9, 8), np.float32)
    with pytest.raises(ValueError, match="out overlaps x in part"):
        llorch.rope(room[1:], np.ones((8, 4), np.float32), np.ones((8, 4), np.float32), out=room[:-1])


@pytest.mark.parametrize("base", [1e-11, 1e-150, 1e-300])
def test_frequencies_that_need_more_digits_are_refused(base):
    """At 1e-150 the bits would be wrong: some 100 digits of the angle are whole turns."""
    with pytest.raises(ValueError, match=r"make a frequency of .*, it must be at most 1e"):
        llorch.rope_table(64, 3, base=base)


def test_frequencies_near_the_limit():
    for base in (1e-10, 1e-3):
        for table, wanted in zip(
            llorch.rope_table(8, [0, 1, 77, 2**24 - 1], base=base),
            reference.rope_table(8, [0, 1, 77, 2**24 - 1], base=base),
            strict=True,
        ):
            assert_same_bits(table, wanted)
