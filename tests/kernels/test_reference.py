"""The oracle itself: its fma against exact arithmetic, its sum against the text, and what it may not use."""

import ast
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers import SPECIALS, assert_same_bits, normal, rng, same_bits
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llorch
from llorch import reference
from llorch.reference import _arithmetic as arithmetic

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def round_to_float32(exact: Fraction) -> np.float32:
    """Nearest even, by integers alone."""
    if exact == 0:
        return np.float32(0)
    sign, magnitude = (-1, -exact) if exact < 0 else (1, exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    whole, rest = divmod(magnitude, unit)
    if rest * 2 > unit or (rest * 2 == unit and whole % 2):
        whole += 1
    value = whole * unit
    return np.float32(sign * np.inf) if value >= 2**128 else np.float32(sign * float(value))


@settings(max_examples=3000)
@given(finite, finite, finite)
@example(1 + 2.0**-23, 1 - 2.0**-23, 2.0**-60)
@example(2.0**-75, 2.0**-75, 2.0**-149)
@example(3.0, 2.0**-149, 2.0**-126)
@example(3.4028234663852886e38, 1.0, 2.0**103)
@example(1.0, 1 + 2.0**-23, 2.0**-24)
@example(2.0**-75, 1.5 * 2.0**-74, 2.0**-149)
@example(1 + 2.0**-12, 1 + 2.0**-12, 2.0**-100)
@example(1 + 2.0**-12, 1 + 2.0**-12, -(2.0**-100))
def test_fma_is_exact_arithmetic_rounded_once(a, b, c):
    got = reference.fma(*(np.float32([v]) for v in (a, b, c)))[0]
    wanted = round_to_float32(Fraction(a) * Fraction(b) + Fraction(c))
    if wanted == 0:  # the sign of an exact zero is the sum's own
        assert got == 0
    else:
        assert got.tobytes() == wanted.tobytes(), f"fma({a.hex()}, {b.hex()}, {c.hex()}) = {got}, wanted {wanted}"


def test_fma_near_ties():
    """Random operands whose product cancels most of c, where a second rounding would show."""
    r = rng(1)
    a, b = (r.integers(2**23, 2**24, 20000).astype(np.float32) for _ in range(2))
    c = np.float32(-1) * (a * b) + r.integers(-3, 4, 20000).astype(np.float32) * np.spacing(a * b) * np.float32(0.5)
    got = reference.fma(a, b, c)
    for i in range(len(a)):
        wanted = round_to_float32(Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i])))
        assert got[i] == wanted


def test_rounding_twice_would_be_seen():
    """Negative control: float32(float64(a * b + c)) differs from the fma on a known case."""
    a = np.float32([1 + 2.0**-12])
    c = np.float32([2.0**-100])
    plain = (a.astype(np.float64) * a.astype(np.float64) + c.astype(np.float64)).astype(np.float32)
    assert plain[0] != reference.fma(a, a, c)[0]
    assert plain[0] != round_to_float32(Fraction(float(a[0])) ** 2 + Fraction(float(c[0])))


def test_where_rounding_twice_is_wrong(isa):
    """Sums that float64 takes to the middle between two float32, normal and subnormal. Of two products the second is
    added to the first, which is the term."""
    normal = [
        ((1 + 2.0**-12 + k * 2.0**-11) * 2.0**e, sign * 2.0 ** (e - 90))
        for k in range(5)
        for e in range(-50, 60)
        for sign in (-1, 1)
    ]
    subnormal = [((1 - 2.0**-15) * 2.0**-75, sign * (2.0**-127 + j * 2.0**-149)) for j in range(8) for sign in (-1, 1)]
    for a, of in ((1 + 2.0**-12, normal), ((1 + 2.0**-15) * 2.0**-75, subnormal)):
        w, term = np.float32(of).T
        wanted = np.array([round_to_float32(Fraction(a) * Fraction(b) + Fraction(c)) for b, c in of])
        assert_same_bits(reference.fma(np.float32([a]), w, term), wanted)
        assert_same_bits(llorch.linear(np.float32([[1, a]]), np.stack([term, w]))[0], wanted)
        assert_same_bits(reference.linear(np.float32([[1, a]]), np.stack([term, w]))[0], wanted)
        twice = (a * w.astype(np.float64) + term.astype(np.float64)).astype(np.float32)
        assert (twice != wanted).mean() > 0.2  # the control


STEPS = 40
TINY = np.where(np.arange(STEPS) % 8, 1.0, 2.0**-50).reshape(-1, 1, 1, 1)
CHAINS = {  # factors, of which many sums end halfway, are subnormal, or are -0.0 in float32 alone
    "halfway": lambda r, shape: (
        (1 + r.choice([-5, -3, -1, 1, 3, 5], shape) * 2.0**-12) * r.choice([-1, 1], shape) * TINY
    ),
    "subnormal": lambda r, shape: r.standard_normal(shape) * 2.0 ** r.choice([-70, -75, -80, -149], shape),
    "zeros": lambda r, shape: r.choice([2.0**-100, -(2.0**-100), 0.0], shape),
    "any": lambda r, shape: r.choice([0.0, -0.0, 1.0, -1.5, 1e30, np.inf, np.nan, 2.0**-149, -(2.0**-100)], shape),
}


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (70, 64)])
def test_a_chain_is_fma_step_by_step(kind, rows, columns, monkeypatch):
    """Many steps of short chains that are looked at together, and long ones, whose steps are taken one by one."""
    r = rng(rows, columns)
    shapes = (STEPS, 1, rows, 1), (STEPS, 1, 1, columns)
    left, right = (CHAINS[kind](r, shape).astype(np.float32).astype(np.float64) for shape in shapes)
    for seen in (None, [slice(max(0, k % (rows + 2) - 2), k % (rows + 2)) for k in range(STEPS)]):

        def chain(seen=seen):
            with np.errstate(all="ignore"):
                return arithmetic.chain(left, right, seen)

        p = np.zeros((1, rows, columns), np.float32)
        for k in range(STEPS):
            i = slice(None) if seen is None else seen[k]
            p[:, i] = reference.fma(left[k][:, i].astype(np.float32), right[k].astype(np.float32), p[:, i])
        assert_same_bits(chain(), p)
        if kind == "halfway" and (rows, columns) == (3, 5) and seen is None:  # the control
            with monkeypatch.context() as never:
                never.setattr(arithmetic, "_doubtful", lambda s: None)
                assert not same_bits(chain(), p)


def test_kernels_fma(isa):
    """The kernel's fma through y = fma(t, w, b) with t = +-1: all of the weights' and biases' bits, specials too."""
    n = 4096
    x = np.resize(np.float32([1, -1]), n)
    bits = rng(2).integers(0, 2**32, (2, 40, n), dtype=np.uint32).view(np.float32)
    for w, b in zip(*bits, strict=True):
        w[: len(SPECIALS)] = SPECIALS
        assert_same_bits(llorch.layer_norm(x, w, b, eps=0.0), reference.fma(x, w, b))
        with np.errstate(all="ignore"):
            near = -w * np.float32(1 + 2.0**-23)
        assert_same_bits(llorch.layer_norm(x, w, near, eps=0.3), reference.layer_norm(x, w, near, eps=0.3))


def test_sum64_is_the_text():
    """The definition in docs/numerics.md, value by value."""
    for n in (0, 1, 5, 63, 64, 65, 200):
        v = rng(3, n).standard_normal(n).astype(np.float32)
        p = [np.float32(0)] * 64
        for i in range(n):
            p[i % 64] = p[i % 64] + v[i]
        for h in (32, 16, 8, 4, 2, 1):
            for j in range(h):
                p[j] = p[j] + p[j + h]
        assert_same_bits(reference.sum64(v[None])[0], np.float32([p[0]]))


def attention_of_one(q, k, v, p, *, scale=None, causal=True, window=None, softcap=None, bias=None):
    """Sections 5 and 8 of docs/numerics.md for the query q (D,) at position p: the text, each chain step by step, for
    all of its values at once (of the scores one for each key, of the result D)."""
    D = q.size
    factor = np.float32(1 / np.sqrt(np.float64(D)) if scale is None else scale)
    last = p + 1 if causal else len(k)
    seen = [t for t in range(last) if window is None or (t > p - window if causal else abs(t - p) <= window)]

    def chain(steps, values):
        """dot128 of what is there: (index, number, array of values) in order; a block is what has index div 128."""
        y = np.zeros(values, np.float32)
        for block in sorted({i // 128 for i, _, _ in steps}):
            total = np.zeros(values, np.float32)
            for i, a, b in steps:
                if i // 128 == block:
                    total = reference.fma(np.full(values, a), b, total)
            y = y + total
        return y

    s = chain([(d, q[d], k[seen, d]) for d in range(D)], len(seen)) * factor
    if softcap is not None:
        s = np.float32(softcap) * reference.tanh(s / np.float32(softcap))
    if bias is not None:
        R = len(bias) // 2
        s = s + bias[[R + min(max(t - p, -R), R) for t in seen]]
    e = dict(zip(seen, reference.exp(s - max(s)), strict=True))
    lanes = [np.float32(0)] * 64
    for t in seen:
        lanes[t % 64] += e[t]
    for h in (32, 16, 8, 4, 2, 1):
        lanes = [lanes[j] + lanes[j + h] for j in range(h)]
    return chain([(t, e[t], v[t]) for t in seen], D) / lanes[0]


VARIANTS = (
    {},
    {"causal": False},
    {"window": 1},
    {"window": 7},
    {"window": 130},
    {"window": 10**6},
    {"softcap": 0.5},
    {"softcap": 30.0, "scale": 0.3},
    {"window": 64, "softcap": 2.0},
    {"causal": False, "softcap": 1.5, "scale": 0.1},
    {"causal": False, "window": 3},
    {"causal": False, "window": 100, "reach": 4},
    {"causal": False, "reach": 70},
    {"reach": 2, "softcap": 2.0},
)


@pytest.mark.parametrize("how", VARIANTS, ids=str)
def test_attention_is_the_text(how):
    """Grouped queries, windows, softcaps and encoders; lanes and blocks are those of the absolute position."""
    for H, H_kv, Tq, Tk, D in (
        (4, 2, 5, 5, 3),
        (3, 1, 2, 70, 2),
        (2, 2, 3, 262, 1),
        (6, 3, 1, 135, 4),
        (1, 1, 1, 9, 130),
    ):
        q, k, v = normal(H, Tq, D, scale=3), normal(H_kv, Tk, D, seed=1), normal(H_kv, Tk, D, seed=2)
        mask = {name: value for name, value in how.items() if name != "reach"}
        bias = normal(H, 2 * how["reach"] + 1, seed=3) if "reach" in how else None
        got = reference.attention(q, k, v, **mask, position_bias=bias)
        for h in range(H):
            for i in range(Tq):
                g, own = h // (H // H_kv), None if bias is None else bias[h]
                wanted = attention_of_one(q[h, i], k[g], v[g], Tk - Tq + i, **mask, bias=own)
                assert_same_bits(got[h, i], wanted, f"head {h}, query {i} of {(H, H_kv, Tq, Tk, D)}")


def test_attention_order_is_seen():
    """Negative control: the window's keys counted from its own beginning give other bits, and so does another group."""
    q, k, v = normal(4, 1, 8), normal(2, 150, 8, seed=1), normal(2, 150, 8, seed=2)
    wanted = reference.attention(q, k, v, window=90)
    assert not same_bits(wanted, reference.attention(q, k[:, -90:], v[:, -90:]))
    assert not same_bits(wanted, reference.attention(q, k[::-1], v[::-1], window=90))
    assert np.allclose(wanted, reference.attention(q, k[:, -90:], v[:, -90:]), rtol=1e-4, atol=1e-6)


def test_attention_never_looks_at_what_does_not_exist():
    """A NaN before the window, or after a query's position, shows nowhere; where it exists it shows."""
    q, k, v = normal(4, 6, 5), normal(2, 20, 5, seed=1), normal(2, 20, 5, seed=2)
    for how, t in (({"window": 8}, 6), ({}, 19)):  # queries are at 14 .. 19
        wanted = reference.attention(q, k, v, **how)
        unseen = slice(0, 5) if t == 19 else slice(0, 6)
        for value in (np.nan, np.inf, -np.inf):
            for spoilt in (0, 1):
                x = [k.copy(), v.copy()]
                x[spoilt][:, t] = value
                got = reference.attention(q, *x, **how)
                assert_same_bits(got[:, unseen], wanted[:, unseen], f"{value} at {t}, {how}")
                assert not same_bits(
                    reference.attention(q, *x, causal=False), reference.attention(q, k, v, causal=False)
                )


@pytest.mark.parametrize(
    ("heads", "how", "message"),
    [
        ((4, 3), {}, "q has 4 heads, k and v have 3"),
        ((4, 0), {}, "q has 4 heads, k and v have 0"),
        ((2, 2), {"window": 0}, "window is 0"),
        (
            (2, 2),
            {"position_bias": np.zeros((2, 4), np.float32)},
            r"position_bias has shape \(2, 4\), it must be \(2, 2 R",
        ),
        ((2, 2), {"softcap": 0.0}, "softcap is 0.0"),
        ((2, 2), {"softcap": np.nan}, "softcap is nan"),
    ],
)
def test_attention_refuses(heads, how, message):
    q, k = normal(heads[0], 3, 8), normal(heads[1], 5, 8)
    with pytest.raises(ValueError, match=message):
        reference.attention(q, k, k, **how)


ALLOWED = {
    "astype", "view", "reshape", "where", "zeros", "sqrt", "isfinite", "all", "errstate", "float32", "float64",
    "float16", "transpose",
    "int32", "int64", "uint8", "uint16", "uint32", "broadcast_arrays", "broadcast_shapes",
    "ascontiguousarray", "asarray", "any", "dtype", "atleast_1d", "nonzero",
}  # fmt: skip


# Python's own, on integers and for errors
BUILTIN = {"range", "enumerate", "min", "max", "len", "get", "join", "upper", "append", "slice", "isinstance", "globals", "ArithmeticError", "abs", "divmod", "getattr", "super", "float", "as_integer_ratio", "bit_length", "zip", "int", "ValueError",  # noqa: E501
           "TypeError", "IndexError"}  # fmt: skip


def refused_call(node, own):
    """The name a call goes by, if it is on no list. What is called on np must be on NumPy's, whatever ours are."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "?")
    of_numpy = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "np"
    return None if name in (ALLOWED if of_numpy else ALLOWED | own | BUILTIN) else name


def test_the_list_of_calls_is_looked_at():
    """Negative control: NumPy's exp is refused though the oracle has an exp of its own, whose calls are not."""
    calls = [
        ast.parse(text).body[0].value for text in ("np.exp(x)", "x.sum()", "np.add.reduce(x)", "exp(x)", "x.view(t)")
    ]
    assert [refused_call(call, {"exp"}) for call in calls] == ["exp", "sum", "reduce", None, None]


def test_only_plain_operations():
    """No sum, mean, dot, matmul, exp or anything else whose last bit is NumPy's choice: every call is on a list."""
    sources = sorted(Path(reference.__file__).parent.glob("*.py"))
    assert len(sources) >= 3
    own = {"fma", "sum64", "widen", "narrow"}
    for source in sources:
        tree = ast.parse(source.read_text())
        own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        own |= {"exact", "function"}  # parameters of _unary.py: functions of its own
    for source in sources:
        if source.name == "_environment.py":
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            where = f"{source.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                assert not refused_call(node, own), f"{where}: call of {refused_call(node, own)}"
            assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult | ast.Pow)) or (
                isinstance(node.right, ast.UnaryOp | ast.Constant)  # the constant 2.0**-100
            ), where
            if isinstance(node, ast.ImportFrom | ast.Import):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert module in {"numpy", "numpy.typing", "typing", "collections.abc"} or module.startswith(
                    "llorch.reference"
                ), where


def test_only_the_environment_is_compiled():
    """_environment.py, which alone may import from the compiled core, takes one name from it and computes nothing."""
    tree = ast.parse(Path(reference.__file__).with_name("_environment.py").read_text())
    imports = {
        f"{node.module}.{n.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for n in node.names
    }
    assert imports == {"collections.abc.Callable", "functools.wraps", "llorch._core._in_fpenv", "typing.ParamSpec",
                       "typing.TypeVar"}  # fmt: skip
    assert not any(isinstance(node, ast.Import | ast.BinOp | ast.AugAssign) for node in ast.walk(tree))
    for name in reference.__all__:
        public = getattr(reference, name)
        methods = (
            [m for n, m in vars(public).items() if n != "__doc__" and callable(m)] if isinstance(public, type) else []
        )
        assert all(hasattr(function, "__wrapped__") for function in methods or [public]), name
