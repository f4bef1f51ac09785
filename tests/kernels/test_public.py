"""Every public name with every element type reaches its kernel: what it gives is all written, and is the oracle's."""

import inspect
import itertools
import re

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, normal

import llorch
from llorch import _core, reference

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

# What computes nothing: versions, threads, instruction sets; and what has tests of its own.
NO_KERNEL = {
    "CausalLM", "CrossEncoder", "GPT2", "TextEncoder", "__version__", "available_isas",
    "config", "get_num_threads", "isa", "reference", "set_num_threads", "show_config",
    "testing", "validate",
}  # fmt: skip

ROWS = normal(5, 256, seed=4)
X, R, B = normal(3, 40), normal(3, 40, seed=1), normal(40, seed=2)
W = normal(40, 40, seed=3)
TABLE, BLOCKS = reference.rope_table(16, 5), np.tile(np.arange(70, dtype=np.uint8), 4)
Q, K, V = normal(2, 5, 16), normal(2, 9, 16, seed=1), normal(2, 9, 16, seed=2)


def cache_of(d):
    cache = llorch.KVCache(2, 16, 9)
    cache.append(K.astype(d), V.astype(d))
    return cache


def elementwise(name, **more):
    return lambda d, **out: getattr(llorch, name)(X.astype(d), **more, **out), lambda d: getattr(reference, name)(
        X.astype(d), **more
    )


# Of each name: a call that takes out (or of an object whose results are new arrays), and what it should give.
CALLS = {
    "layer_norm": (
        lambda d, **out: llorch.layer_norm(X.astype(d), B, B, **out),
        lambda d: reference.layer_norm(X.astype(d), B, B),
    ),
    "rms_norm": (lambda d, **out: llorch.rms_norm(X.astype(d), B, **out), lambda d: reference.rms_norm(X.astype(d), B)),
    "add_layer_norm": (
        lambda d, **out: llorch.add_layer_norm(X.astype(d), R.astype(d), B, B, **out)[0],
        lambda d: reference.add_layer_norm(X.astype(d), R.astype(d), B, B)[0],
    ),
    "add_rms_norm": (
        lambda d, **out: llorch.add_rms_norm(X.astype(d), R.astype(d), B, **out)[0],
        lambda d: reference.add_rms_norm(X.astype(d), R.astype(d), B)[0],
    ),
    "linear": (
        lambda d, **out: llorch.linear(X.astype(d), W.astype(d), B.astype(d), residual=R.astype(d), **out),
        lambda d: reference.linear(X.astype(d), W.astype(d), B.astype(d), residual=R.astype(d)),
    ),
    "PackedLinear": (
        lambda d, **out: llorch.PackedLinear(W.astype(d), B, dtype=d.name)(X.astype(d), **out),
        lambda d: reference.linear(X.astype(d), W.astype(d), B),
    ),
    "softmax": elementwise("softmax"),
    "attention": (
        lambda d, **out: llorch.attention(*(a.astype(d) for a in (Q, K, V)), **out),
        lambda d: reference.attention(*(a.astype(d) for a in (Q, K, V))),
    ),
    "KVCache": (
        lambda d, **out: cache_of(d).attention(Q.astype(d), **out),
        lambda d: reference.attention(*(a.astype(d) for a in (Q, K, V))),
    ),
    "embedding": (lambda d: llorch.embedding(W.astype(d), [7, 3]), lambda d: reference.embedding(W.astype(d), [7, 3])),
    "argmax": (lambda d: llorch.argmax(X.astype(d)), lambda d: reference.argmax(X.astype(d))),
    **{name: elementwise(name) for name in ("exp", "tanh", "erf", "sigmoid", "silu", "relu")},
    "gate": (
        lambda d, **out: llorch.gate(X.astype(d), R.astype(d), activation="silu", **out),
        lambda d: reference.gate(X.astype(d), R.astype(d), activation="silu"),
    ),
    "cast": (
        lambda d, **out: llorch.cast(X.astype(np.float16), d, **out),
        lambda d: reference.cast(X.astype(np.float16), d),
    ),
    "mean_pool": (
        lambda d, **out: llorch.mean_pool(X.astype(d), [1, 2], **out),
        lambda d: reference.mean_pool(X.astype(d), [1, 2]),
    ),
    "normalize": elementwise("normalize"),
    "rope": (
        lambda d, **out: llorch.rope(Q.astype(d), *TABLE, **out),
        lambda d: reference.rope(Q.astype(d), *TABLE),
    ),
    "dequantize": (
        lambda d: llorch.dequantize(BLOCKS, "Q4_1", (7, 64)),
        lambda d: reference.dequantize(BLOCKS, "Q4_1", (7, 64)),
    ),
    "quantize": (
        lambda d: llorch.quantize(ROWS.astype(d), "Q4_K"),
        lambda d: reference.quantize(ROWS.astype(d), "Q4_K"),
    ),
    "rope_table": (lambda d: llorch.rope_table(16, 5)[1], lambda d: TABLE[1]),
    "gelu": elementwise("gelu"),
    "gelu, tanh": elementwise("gelu", approximate="tanh"),
    "linear, gelu": (
        lambda d, **out: llorch.linear(X.astype(d), W, activation="gelu", **out),
        lambda d: reference.linear(X.astype(d), W, activation="gelu"),
    ),
}
NEW_RESULTS = {"embedding", "argmax", "dequantize", "quantize", "rope_table"}


def check(call, wanted, dtype, name):
    y = wanted(dtype)
    assert_same_bits(call(dtype), y, f"{name}, {dtype}")
    if name in NEW_RESULTS:
        return
    for fill in (np.nan, 0, 7):
        out = np.full(y.shape, fill, dtype)
        assert call(dtype, out=out) is out, f"{name} returned something else than out"
        assert_same_bits(out, y, f"{name}, {dtype}, out was full of {fill}")


def test_no_public_name_is_left_out():
    assert set(llorch.__all__) == {name.partition(",")[0] for name in CALLS} | NO_KERNEL
    for name in llorch.__all__:
        assert hasattr(llorch, name), name
    public = {name for name in vars(_core) if not name.startswith("_") and callable(getattr(_core, name))}
    public -= {"Plan", "SequenceCache"}  # llorch.models makes them
    assert public <= set(llorch.__all__), f"{public - set(llorch.__all__)} of the core is in no list"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_every_name_reaches_its_kernel(isa, name, dtype):
    check(*CALLS[name], dtype, name)


@pytest.mark.parametrize("name", sorted(NEW_RESULTS))
def test_new_results_are_not_what_lay_in_memory(isa, name):
    """NumPy hands freed memory out again: calls in turn have other results each."""
    for dtype in DTYPES:
        for seed in range(20):
            table = normal(30, 40, seed=seed).astype(dtype)
            if name == "embedding":
                assert_same_bits(llorch.embedding(table, [seed, 3]), reference.embedding(table, [seed, 3]))
            elif name == "argmax":
                assert_same_bits(llorch.argmax(table), reference.argmax(table))
            elif name == "dequantize":
                data = table.view(np.uint8).ravel()[:2200]
                assert_same_bits(
                    llorch.dequantize(data, "Q5_0", (100, 32)), reference.dequantize(data, "Q5_0", (100, 32))
                )
            elif name == "quantize":
                assert (llorch.quantize(table[:, :32], "Q5_1") == reference.quantize(table[:, :32], "Q5_1")).all()
            else:
                assert_same_bits(llorch.rope_table(80, [seed])[0], reference.rope_table(80, [seed])[0])


def test_a_function_without_its_kernel_would_be_seen():
    """Negative control: one that returns out as it came, or new memory as it is."""

    def nothing(d, out=None):
        return np.empty(X.shape, d) if out is None else out

    dtype = DTYPES[0]
    with pytest.raises(AssertionError, match="differ"):
        check(nothing, CALLS["exp"][1], dtype, "exp")

    def returns_only(d, out=None):
        return reference.exp(X.astype(d)) if out is None else out

    with pytest.raises(AssertionError, match="out was full of nan"):
        check(returns_only, CALLS["exp"][1], dtype, "exp")


def test_the_oracle_has_the_same_signatures():
    for name in reference.__all__:
        if inspect.isroutine(getattr(llorch, name, None)):
            ours = inspect.signature(getattr(llorch, name)).parameters
            theirs = inspect.signature(getattr(reference, name)).parameters
            assert [(p.name, p.kind, p.default) for p in ours.values()] == [
                (p.name, p.kind, p.default) for p in theirs.values()
            ], name


def sections(text):
    """A docstring's sections by their titles; what stands before the first is ""."""
    title, found = "", {"": []}
    for line, under in itertools.pairwise([*text.splitlines(), "", ""]):
        if under and not under.strip("-") and len(under) == len(line):
            title = line
            found[title] = []
        else:
            found[title].append(line)
    return found


def complaints(name, text, parameters):
    """What a function's docstring leaves out: a parameter, what is raised. It may refer to another function's for both,
    and names the parameters that the other one doesn't have."""
    parts = sections(text)
    other = re.search(r"(?i)parameters, result, errors and notes are those of `(\w+)`", text)
    if other:
        theirs = inspect.signature(getattr(llorch, other[1])).parameters
        missing = [p for p in parameters if p not in theirs and f"``{p}=" not in text]
        missing += complaints(other[1], inspect.getdoc(getattr(llorch, other[1])), theirs)
    else:
        entries = [line.partition(":")[0] for line in parts.get("Parameters", ()) if line[:1].strip()]
        listed = {p.strip() for entry in entries for p in entry.split(",")}
        missing = [p for p in parameters if p not in listed]
        said = " ".join(parts.get("Raises", ()))
        if not re.search(r"\w+Error\b|[Aa]s `\w+`", said):
            missing.append("Raises")
    return [f"{name}: {what}" for what in missing]


def test_every_public_docstring_says_what_it_takes_and_raises():
    found = []
    for name in set(llorch.__all__) - {"__version__", "reference", "testing"}:
        public = getattr(llorch, name)
        assert inspect.getdoc(public), name
        if inspect.isclass(public):
            for method, f in vars(public).items():
                if not method.startswith("_") and callable(f):
                    assert inspect.getdoc(f), f"{name}.{method}"
        elif name in CALLS:
            found += complaints(name, inspect.getdoc(public), inspect.signature(public).parameters)
    assert found == []


@pytest.mark.parametrize(
    "cut, complaint",
    [
        ("eps : float", "eps"),
        ("weight, bias : array (n,), optional", "weight"),
        (
            "TypeError\n    An argument of another element type; float64 is never narrowed silently.\nValueError",
            "Raises",
        ),
    ],
)
def test_a_docstring_that_leaves_something_out_is_seen(cut, complaint):
    """Negative control."""
    text = inspect.getdoc(llorch.layer_norm)
    parameters = inspect.signature(llorch.layer_norm).parameters
    assert cut in text and complaints("layer_norm", text, parameters) == []
    assert f"layer_norm: {complaint}" in complaints("layer_norm", text.replace(cut, "x"), parameters)
