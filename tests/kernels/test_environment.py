"""A host with flush-to-zero or another rounding mode changes nothing, and finds its own setting back."""

import ctypes
import ctypes.util
import functools
import os
import platform
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path
from types import SimpleNamespace

import encoders
import ml_dtypes
import numpy as np
import pytest
import sentence_models
import weight_blocks
from families import CASES as families
from families import made
from gpt2_models import TINY, random_tensors, save
from helpers import assert_same_bits, normal, num_threads, rng, same_bits
from random_models import llama_tensors

import llorch
from llorch import _core, reference
from llorch.models.gpt2 import GPT2Config

SOURCE = """
#include <stdint.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
uint64_t get_env(void) { return _mm_getcsr(); }
void set_env(uint64_t v) { _mm_setcsr((unsigned)v); }
#else
uint64_t get_env(void) { uint64_t v; __asm__ volatile("mrs %0, fpcr" : "=r"(v)); return v; }
void set_env(uint64_t v) { __asm__ volatile("msr fpcr, %0" : : "r"(v)); }
#endif
float halve(volatile float *x) { return x[0] * 0.5f; }
"""
# flush to zero and denormals are zero; the other rounding modes
SETTINGS = (
    {"flush": 0x9FC0, "up": 0x5F80, "down": 0x3F80, "towards zero": 0x7F80}
    if platform.machine() == "x86_64"
    else {"flush": 1 << 24, "up": 1 << 22, "down": 2 << 22, "towards zero": 3 << 22}
)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    directory = tmp_path_factory.mktemp("host")
    (directory / "host.c").write_text(SOURCE)
    try:
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", directory / "host.so", directory / "host.c"], check=True
        )
    except FileNotFoundError:
        pytest.skip(f"no C compiler ({compiler}) to build a host that changes its environment")
    host = ctypes.CDLL(str(directory / "host.so"))
    host.get_env.restype = ctypes.c_uint64
    host.set_env.argtypes = [ctypes.c_uint64]
    host.halve.restype = ctypes.c_float
    return host


@pytest.mark.parametrize("setting", SETTINGS)
def test_environment(host, isa, setting):
    small = normal(3, 700, scale=1e-39)
    cases = [(x, np.full(x.shape[1], w, np.float32), np.full(x.shape[1], b, np.float32), eps)
             for x in (normal(3, 700), small, normal(600, 1024), normal(5, 70, scale=1e20))
             for w, b, eps in ((1, 0, 1e-5), (1e-39, 1e-41, 1e-42))]  # fmt: skip
    wanted = [reference.layer_norm(x, w, b, eps=eps) for x, w, b, eps in cases]
    before = host.get_env()
    with num_threads(2):
        try:
            host.set_env(SETTINGS[setting])
            got, after = [], []
            for x, w, b, eps in cases:
                got.append(llorch.layer_norm(x, w, b, eps=eps))
                after.append(host.get_env())
        finally:
            host.set_env(before)
    mode = ~0x3F if platform.machine() == "x86_64" else ~0  # without the sticky flags
    assert all(a & mode == SETTINGS[setting] & mode for a in after)
    for g, v, (x, *_rest) in zip(got, wanted, cases, strict=True):
        assert_same_bits(g, v, f"{setting}, shape {x.shape}")


@pytest.mark.parametrize("setting", SETTINGS)
def test_environment_of_functions(host, isa, setting):
    """Subnormal inputs and results, and values whose results need the slow path, in the hosts' environments."""
    rows = (Path(__file__).parent.parent / "data" / "unary_hard" / "exp.txt").read_text().split()
    x = np.concatenate([normal(3000, scale=3), normal(500, scale=1e-39), normal(500, scale=5, shift=-95),
                        np.array([float.fromhex(v) for v in rows[::2]], np.float32)])  # fmt: skip
    names = ("exp", "tanh", "erf", "sigmoid", "silu", "gelu")
    wanted = [getattr(reference, name)(x) for name in names]
    before = host.get_env()
    with num_threads(2):
        try:
            host.set_env(SETTINGS[setting])
            got = [getattr(llorch, name)(x) for name in names]
        finally:
            host.set_env(before)
    for name, g, v in zip(names, got, wanted, strict=True):
        assert_same_bits(g, v, f"{setting}, {name}")


# Results are subnormal, or hang on the rounding of the last bit: what another environment would change. Everything is
# made here: in the host's environment NumPy's own arithmetic gives other values.
BF16 = np.dtype(ml_dtypes.bfloat16)
# 400 rows: a plain weight is packed for them, and they are work for eight threads
FEW, ROWS, MANY = normal(2, 200), normal(13, 200), normal(400, 200)
LARGE, VANISHING = FEW * np.float32(3e37), normal(200, 90, scale=1e-40)
W, B, H = normal(200, 90, seed=1), normal(90, seed=2, scale=1e-39), normal(400, 90, seed=3)
W_SMALL = W * np.float32(1e-5)
Q, K, V = normal(3, 150, 16), normal(3, 150, 16, seed=1), normal(3, 150, 16, seed=2, scale=1e-39)
DISTANCES = normal(3, 81, seed=3)
HALF = {
    name: a.astype(np.float16) for name, a in {"x": ROWS, "w": W, "q": Q, "k": K, "v": V * np.float32(1e33)}.items()
}
S = normal(400, 300, scale=20)
S_LOW, S_VANISHING, S_BACK, S_BF16 = S - np.float32(60), S * np.float32(1e-40), S[::-1].copy(), S.astype(BF16)
TABLE, IDS = np.arange(1024, dtype=np.uint16).view(np.float16)[:, None], np.arange(1024)
LOGITS = np.float32([[0, 1e-45, 3e-45, 2e-45], [-1e-45, -2e-45, -0.0, 0]])
B_BF16, W_BF16 = B.astype(BF16), W.astype(BF16)

S_SMALL = S * np.float32(1e-7)
ROPE = reference.rope_table(300, 400, base=500000.0)
PARTS, X_LOW = weight_blocks.blocks("Q5_1", 90 * 8, scale=2.0**-20), normal(13, 256, scale=2.0**-93)
PARTS_K, X_PARTS = weight_blocks.blocks("Q3_K", 90), normal(13, 256)
# scales so small that they are subnormal in float16 and float32; sums that are rounded
TINY_PARTS, SUMS = weight_blocks.blocks("Q4_K", 90, scale=1e-6), weight_blocks.blocks("Q4_1", 90 * 8, scale=1e-6)
SUMS[:, 2:4] = np.float16([8]).view(np.uint8)


def column_and_row(m, parts, format):
    """Column 7 and row 9 of a weight (256, 90), one behind the other."""
    if m is reference:
        values = reference.dequantize(parts, format, (90, 256))
        return np.concatenate([values[7], values[:, 9]])
    packed = llorch.PackedLinear.from_blocks(parts, format, 256, 90)
    return np.concatenate([packed.column(7), packed.row(9)])


CASES = {  # what the host calls, and what it should get
    "linear, few rows": lambda m: m.linear(FEW, VANISHING, B),
    "linear": lambda m: m.linear(ROWS, VANISHING, B),
    "linear, packed first": lambda m: m.linear(MANY, VANISHING, B),
    "linear, overflow": lambda m: m.linear(LARGE, W),
    "linear, 16 bits": lambda m: m.linear(HALF["x"], HALF["w"], B_BF16),
    "linear, fused": lambda m: m.linear(MANY, W, B, activation="gelu", residual=H),
    "softmax": lambda m: m.softmax(S_LOW),
    "softmax, 16 bits": lambda m: m.softmax(S_BF16),
    "attention": lambda m: m.attention(Q, K, V),
    "attention, 16 bits": lambda m: m.attention(HALF["q"], HALF["k"], HALF["v"]),
    "attention, one query": lambda m: m.attention(Q[:, -1:], K, V),
    "attention, biased": lambda m: m.attention(Q, K, V, causal=False, window=70, position_bias=DISTANCES),
    "gelu_tanh": lambda m: m.gelu(S, approximate="tanh"),
    "rms_norm": lambda m: m.rms_norm(S_VANISHING, eps=1e-42),
    "add_layer_norm": lambda m: m.add_layer_norm(S_VANISHING, S_BACK, eps=0.0)[0],
    "add_rms_norm": lambda m: m.add_rms_norm(S_VANISHING, S_VANISHING, eps=1e-42)[0],
    "gate": lambda m: m.gate(S, S_VANISHING, activation="silu"),
    "gate, 16 bits": lambda m: m.gate(S_BF16, S_BF16, activation="gelu"),
    "relu": lambda m: m.relu(S_VANISHING),
    "rope": lambda m: m.rope(S_VANISHING, *ROPE),
    "rope_table": lambda m: m.rope_table(16, 300, scaling={"rope_type": "linear", "factor": 3e38})[1],
    "cast": lambda m: m.cast(S_SMALL, np.float16),
    "cast, wider": lambda m: m.cast(TABLE, np.float32),
    "embedding": lambda m: m.embedding(TABLE, IDS),
    "mean_pool": lambda m: m.mean_pool(S_VANISHING, [1, 300, 99]),
    "normalize": lambda m: m.normalize(S_VANISHING),
    "normalize, ordinary rows": lambda m: m.normalize(S),
    "argmax": lambda m: m.argmax(LOGITS),
    "packed": lambda m: m.linear(ROWS, VANISHING, B) if m is reference else llorch.PackedLinear(VANISHING, B)(ROWS),
    "packed as bfloat16": lambda m: (
        m.linear(MANY, W_BF16, B) if m is reference else llorch.PackedLinear(W, B, dtype="bfloat16")(MANY)
    ),
    "packed as float16, a row": lambda m: (
        W_SMALL.astype(np.float16)[3].astype(np.float32)
        if m is reference
        else llorch.PackedLinear(W_SMALL, dtype="float16").row(3)
    ),
    "packed as float16, in parts": lambda m: (
        W_SMALL.astype(np.float16)[101].astype(np.float32) if m is reference else in_parts(W_SMALL, "float16").row(101)
    ),
    "packed from float16, a column": lambda m: (
        TABLE[:, 0].astype(np.float32) if m is reference else llorch.PackedLinear(TABLE, dtype="float16").column(0)
    ),
    "blocks": lambda m: in_blocks(m, X_LOW, PARTS, "Q5_1", "float32"),
    "blocks, a row": lambda m: in_blocks(m, X_LOW[:1], PARTS, "Q5_1", "float32"),
    "blocks, int16": lambda m: in_blocks(m, X_LOW, PARTS, "Q5_1", "int16"),
    "blocks, int16, a row": lambda m: in_blocks(m, X_PARTS[:1], PARTS_K, "Q3_K", "int16"),
    "blocks, int16, ordinary rows": lambda m: in_blocks(m, X_PARTS, PARTS_K, "Q3_K", "int16"),
    "blocks, a column": lambda m: column_and_row(m, TINY_PARTS, "Q4_K"),
    "blocks, a column of sums": lambda m: column_and_row(m, SUMS, "Q4_1"),
    "cache": lambda m: m.attention(Q, K, V) if m is reference else cached(Q, K, V),
}


# ---- the oracle as it is inside, without the environment around it, and its own cases
def unguarded(public):
    if not isinstance(public, type):
        return getattr(public, "__wrapped__", public)
    classes = reversed(public.__mro__)  # what a family inherits, too
    methods = {n: m.__wrapped__ for made in classes for n, m in vars(made).items() if hasattr(m, "__wrapped__")}
    return type(public.__name__, (public,), methods)


UNGUARDED = SimpleNamespace(**{name: unguarded(getattr(reference, name)) for name in reference.__all__})
SMALL, SMALL_TENSORS = GPT2Config.from_dict(TINY), random_tensors(TINY)
LLAMA, LLAMA_TENSORS = llama_tensors()
S_LOGITS = S[:9, :60] * np.float32(0.1)
S_FEW = normal(3000, scale=2)
ROTATION, FAR = reference.rope_table(16, 150), [10**6 + i for i in range(300)]
BLOCKS = rng(5).integers(0, 4, 400 * 17).astype(np.uint8)
K_BLOCKS = rng(6).integers(0, 256, 40 * 144).astype(np.uint8)


def in_parts(weight, kept):
    packed = _core._packed_reserve(*weight.shape, kept)
    for row in (0, 100):
        _core._packed_fill(packed, 0, weight[row : row + 100], False, row)
    return packed


def in_blocks(m, x, data, format, compute):
    if m is llorch:
        return m.PackedLinear.from_blocks(data, format, 256, 90, B, compute=compute)(x)
    if compute == "int16":
        return m.linear_int16(x, data.reshape(-1), format, 90, B)
    return m.linear(x, m.dequantize(data.reshape(-1), format, (90, 256)).T, B)


def cached(q, k, v):
    cache = llorch.KVCache(k.shape[0], k.shape[2], k.shape[1])
    for t in range(0, k.shape[1], 50):
        cache.append(k[:, t : t + 50], v[:, t : t + 50])
    return cache.attention(q)


@pytest.fixture(scope="module")
def wanted_of():
    return {name: case(reference) for name, case in CASES.items()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_environment_of_every_family(host, isa, setting, wanted_of):
    """One thread and three: the host's setting is neither used nor lost, in no thread."""
    before = host.get_env()
    mode = ~0x3F if platform.machine() == "x86_64" else ~0  # without the sticky flags
    for threads in (1, 3):
        with num_threads(threads):
            for name, case in CASES.items():
                try:
                    host.set_env(SETTINGS[setting])
                    got = case(llorch)
                    after = host.get_env()
                finally:
                    host.set_env(before)
                assert after & mode == SETTINGS[setting] & mode, name
                assert_same_bits(got, wanted_of[name], f"{name}, {setting}, {threads} threads")


NEW_THREADS = """
import ctypes, sys, numpy as np, llorch
host = ctypes.CDLL(sys.argv[1])
host.get_env.restype, host.set_env.argtypes = ctypes.c_uint64, [ctypes.c_uint64]
x = np.random.default_rng(0).standard_normal((2000, 200), np.float32)
w = (np.random.default_rng(1).standard_normal((200, 90)) * 1e-40).astype(np.float32)
before = host.get_env()
host.set_env(int(sys.argv[2]))
llorch.set_num_threads(3)
y = llorch.linear(x, w)
host.set_env(before)
llorch.set_num_threads(1)
assert np.count_nonzero(y) > y.size // 2, "subnormal results were flushed"
assert y.tobytes() == llorch.linear(x, w).tobytes()
"""


@pytest.mark.parametrize("setting", SETTINGS)
def test_threads_born_in_the_hosts_environment(host, setting):
    """A new thread has the setting of the one that made it."""
    command = [sys.executable, "-P", "-c", NEW_THREADS, host._name, str(SETTINGS[setting])]
    found = {**os.environ, "PYTHONPATH": str(Path(llorch.__file__).parent.parent)}
    done = subprocess.run(command, env=found, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_cases_hang_on_the_environment(host, setting, wanted_of):
    """Negative control: the oracle without its guard, NumPy in whatever environment, gives other bits for these."""
    before = host.get_env()
    for name in ("linear", "linear, few rows", "softmax", "attention", "rms_norm", "rope", "gate", "add_rms_norm",
                 "mean_pool", "normalize", "blocks", "blocks, int16"):  # fmt: skip
        try:
            host.set_env(SETTINGS[setting])
            got = CASES[name](UNGUARDED)
        finally:
            host.set_env(before)
        assert not same_bits(got, wanted_of[name]), name


ORACLE = {  # of llorch.reference alone; what several return is put into one array
    "exp": lambda m: m.exp(S_LOW),
    "tanh": lambda m: m.tanh(S_FEW),
    "erf": lambda m: m.erf(S_FEW),
    "sigmoid": lambda m: m.sigmoid(S_LOW),
    "silu": lambda m: m.silu(S_LOW),
    "gelu": lambda m: m.gelu(S_FEW),
    "relu": lambda m: m.relu(S_VANISHING),
    "gate": lambda m: m.gate(S, S_VANISHING, activation="silu"),
    "cast": lambda m: m.cast(W_SMALL, np.float16),
    "add_layer_norm": lambda m: np.stack(m.add_layer_norm(S_VANISHING, S_BACK, eps=0.0)),
    "add_rms_norm": lambda m: np.stack(m.add_rms_norm(S_VANISHING, S_BACK, eps=0.0)),
    "layer_norm": lambda m: m.layer_norm(S_VANISHING, eps=1e-42),
    "fma": lambda m: m.fma(S_VANISHING, S, S_VANISHING[::-1]),
    "sum64": lambda m: m.sum64(S_VANISHING),
    "dot128": lambda m: m.dot128(FEW, VANISHING, np.zeros((2, 90), np.float32)),
    "narrow": lambda m: m.narrow(W_SMALL, np.dtype(np.float16)),
    "attention, all of it": lambda m: m.attention(Q, K[:1], V[:1], window=70, softcap=0.3, scale=0.3),
    "mean_pool": lambda m: m.mean_pool(S_VANISHING, [1, 300, 99]),
    "normalize": lambda m: m.normalize(S_VANISHING),
    "rope": lambda m: m.rope(V, *ROTATION),
    "rope_table": lambda m: np.stack(m.rope_table(64, FAR, scaling={"rope_type": "linear", "factor": 1.7})),
    "dequantize": lambda m: m.dequantize(BLOCKS, "MXFP4", (400 * 32,)),
    "dequantize, Q4_K": lambda m: m.dequantize(K_BLOCKS, "Q4_K", (40 * 256,)),
    "quantize": lambda m: m.quantize(S_VANISHING.reshape(-1)[:1280], "Q8_0"),
    "quantize, Q4_K": lambda m: m.quantize(S.reshape(-1)[:1280], "Q4_K"),
    "log_probabilities": lambda m: m.log_probabilities(S_LOGITS, IDS[:9]),
    "next_token": lambda m: np.array([
        m.next_token(SUBNORMAL, 3, [1], repetition_penalty=1.5),
        *(m.next_token(row, t, [1], temperature=0.7, top_k=30, top_p=0.9, repetition_penalty=1.1, seed=4)
          for t, row in enumerate(S_LOGITS)),
    ]),
    "GPT2": lambda m: m.GPT2(SMALL, SMALL_TENSORS).forward(IDS[:30]),
    "Llama": lambda m: m.Llama(LLAMA, LLAMA_TENSORS).forward(IDS[:9]),
}  # fmt: skip


ORACLE |= {
    family.reference: lambda m, of=(family, config, tensors): getattr(m, of[0].reference)(*of[1:]).forward(IDS[:9])
    for family, config, tensors in (*map(made, families), *map(encoders.made, encoders.CASES))
}
INDIFFERENT = {"cast", "narrow"}  # NumPy rounds to float16 by integers, or by an instruction that says how


@functools.cache
def by_oracle(name):
    return np.asarray((CASES | ORACLE)[name](reference))


@pytest.mark.parametrize("setting", SETTINGS)
def test_environment_of_the_oracle(host, setting):
    before = host.get_env()
    mode = ~0x3F if platform.machine() == "x86_64" else ~0
    for name, case in (CASES | ORACLE).items():
        wanted = by_oracle(name)
        try:
            host.set_env(SETTINGS[setting])
            got = case(reference)
            after = host.get_env()
        finally:
            host.set_env(before)
        assert after & mode == SETTINGS[setting] & mode, name
        assert_same_bits(np.asarray(got), wanted, f"{name}, {setting}")


def test_the_oracle_needs_its_guard(host):
    """Negative control: without it each of these has other bits in one of the environments at least."""
    before = host.get_env()
    for name, case in ORACLE.items():
        different = False
        for setting in SETTINGS.values():
            try:
                host.set_env(setting)
                got = case(UNGUARDED)
            finally:
                host.set_env(before)
            different = not same_bits(np.asarray(got), by_oracle(name))
            if different:
                break
        assert different or name in INDIFFERENT, name


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("activation", ("gelu_new", "relu"))
def test_environment_of_gpt2(host, tmp_path, setting, activation):
    """A model loaded and run in the hosts' environments, with subnormals on the way."""
    entries = TINY | {"activation_function": activation}
    tensors = random_tensors(entries)
    tensors["h.0.mlp.c_fc.weight"] *= np.float32(1e-38)
    tensors["h.0.mlp.c_fc.bias"] *= np.float32(1e-38)
    tensors["h.0.mlp.c_proj.weight"] *= np.float32(1e38)
    folder = save(tmp_path / "model", entries, tensors)
    ids = rng(3).integers(0, TINY["vocab_size"], 30)
    wanted = reference.GPT2(GPT2Config.from_dict(entries), tensors).forward(ids)
    before = host.get_env()
    try:
        host.set_env(SETTINGS[setting])
        model = llorch.GPT2.from_pretrained(folder)
        got, last = model.forward(ids), model.step([ids, ids[:9]], [model.new_cache(), model.new_cache()])
    finally:
        host.set_env(before)
    assert_same_bits(got, wanted, setting)
    assert_same_bits(last, wanted[[-1, 8]], setting)


@pytest.mark.parametrize("setting", SETTINGS)
def test_environment_of_encoders(host, tmp_path, setting):
    """Loaded and run in the hosts' environments; a classifier is run by the same calls."""
    before = host.get_env()
    for name in encoders.CASES:
        wanted = encoders.by_text(name, "plain", IDS[:9])
        try:
            host.set_env(SETTINGS[setting])
            model = encoders.write(tmp_path / name, name)
            got, (_, batch), first = (
                model.forward(IDS[:9]),
                model.forward_batch([[1], IDS[:9]]),
                model.first_batch([IDS[:9]]),
            )
        finally:
            host.set_env(before)
        assert_same_bits(got, wanted, f"{name}, {setting}")
        assert_same_bits(batch, wanted, f"{name}, {setting}")
        assert_same_bits(first, wanted[:1], f"{name}, {setting}")


def test_environment_of_ranks(host, tmp_path, monkeypatch):
    """Scores that a host takes for zeros are in their order, and not zeros."""
    before = host.get_env()
    model = llorch.CrossEncoder.from_pretrained(sentence_models.save(tmp_path / "model", classifier=True))
    scores = np.float32([1e-40, 1e-42, 1e-39, 0])
    monkeypatch.setattr(model, "predict", lambda pairs, **options: scores)
    wanted = [(place, float(scores[place])) for place in (2, 0, 1, 3)]
    for setting in SETTINGS:
        try:
            host.set_env(SETTINGS[setting])
            got = model.rank("a", ["b"] * 4)
        finally:
            host.set_env(before)
        assert got == wanted, setting


@pytest.mark.parametrize("setting", SETTINGS)
def test_environment_of_the_scale_of_scores(host, tmp_path, setting):
    """1 / sqrt(3) / (i + 1), quotients in float64, before float32 hides their last bits."""
    entries = TINY | {"n_head": TINY["n_embd"] // 3, "n_layer": 3, "scale_attn_by_inverse_layer_idx": True}
    folder = save(tmp_path / "model", entries, random_tensors(entries))
    wanted = [GPT2Config.from_dict(entries).scale(i) for i in range(3)]
    before = host.get_env()
    try:
        host.set_env(SETTINGS[setting])
        model = llorch.GPT2.from_pretrained(folder)
        plans = [model._plan(rows) for rows in ("last", "all")]  # made with the model, and afterwards
    finally:
        host.set_env(before)
    for plan in plans:
        assert [call["attention_scale"] for call in plan.calls if call["op"] == "attention"] == wanted


SUBNORMAL = np.float32([0, 1e-40])  # made here: a host that flushes can't


def chosen_and_scored():
    """What depends on plain NumPy and Python: a penalised logit that is subnormal, draws, scores."""
    from llorch.text.sampling import SamplingParameters, next_token

    tiny = SamplingParameters(repetition_penalty=1.5)
    drawn = SamplingParameters(0.7, top_k=30, top_p=0.9, repetition_penalty=1.1, seed=4)
    tokens = [next_token(SUBNORMAL, tiny, 3, [1])]
    tokens += [next_token(row, drawn, t, [1, 2]) for t, row in enumerate(normal(50, 60))]
    model = llorch.GPT2.from_pretrained("shakespeare-1m")
    result = model.score("ROMEO:\nBut, soft! what light through yonder window breaks?")
    text = model.generate("ROMEO:", 20, temperature=1.0, seed=1)
    return tokens, result.log_probabilities, np.array([result.log_likelihood, result.perplexity]), text


@pytest.mark.parametrize("setting", SETTINGS)
def test_environment_of_choices_and_scores(host, setting):
    tokens, logs, sums, text = chosen_and_scored()
    before = host.get_env()
    try:
        host.set_env(SETTINGS[setting])
        got = chosen_and_scored()
        after = host.get_env()
    finally:
        host.set_env(before)
    assert got[0] == tokens and got[3] == text
    assert_same_bits(got[1], logs, setting)
    assert_same_bits(got[2], sums, setting)
    sticky = 0x3F if platform.machine() == "x86_64" else 0
    assert after & ~sticky == SETTINGS[setting] & ~sticky


EXTREMES = {  # of float32, beside what is out of its range
    "temperature": (1e-40, 1.5e-45, 3.40282356e38),
    "repetition_penalty": (1e-40, 1.5e-45, 3.40282356e38),
    "top_p": (5e-324, 1e-310, 1.0),
}
BEYOND = {"temperature": (1e-46, 3.4028236e38), "repetition_penalty": (0.0, 1e-46, 3.4028236e38), "top_p": (0.0,)}


@pytest.mark.parametrize("setting", SETTINGS)
def test_environment_of_the_checks_of_parameters(host, setting):
    from llorch.text.sampling import SamplingParameters

    model = llorch.CausalLM.from_pretrained("shakespeare-1m")
    hot = {"temperature": 3.40282356e38, "seed": 1}
    cold = {"temperature": 1e-40, "seed": 1, "top_p": 1e-310}
    wanted = [model.generate([5, 6], 5, **options) for options in (hot, cold)]
    before = host.get_env()
    taken, refused = [], []
    try:
        host.set_env(SETTINGS[setting])
        for name, values in EXTREMES.items():
            taken += [getattr(SamplingParameters(**{name: value}), name) for value in values]
        for name, values in BEYOND.items():
            for value in values:
                try:
                    SamplingParameters(**{name: value})
                except ValueError:
                    refused.append((name, value))
        got = [model.generate([5, 6], 5, **options) for options in (hot, cold)]
    finally:
        host.set_env(before)
    assert got == wanted and taken == [value for values in EXTREMES.values() for value in values]
    assert refused == [(name, value) for name, values in BEYOND.items() for value in values]


def test_an_unprotected_check_would_be_seen(host):
    """Negative control: the same check in the hosts' environments."""
    from llorch.text.sampling import SamplingParameters

    parameters = [SamplingParameters(temperature=value) for value in (1e-40, 3.40282356e38)]
    before, seen = host.get_env(), []
    for setting, one in zip(("flush", "up"), parameters, strict=True):
        try:
            host.set_env(SETTINGS[setting])
            one._check()
        except ValueError:
            seen.append(setting)
        finally:
            host.set_env(before)
    assert seen == ["flush", "up"]


def test_an_unprotected_choice_or_score_would_be_seen(host):
    """Negative control: the same functions in the hosts' environments, without llorch's own around them."""
    from llorch.text.sampling import SamplingParameters, _next_token, log_probabilities

    logits, ids = normal(5, 60), [0, 1, 2, 3, 4]
    wanted = log_probabilities(logits, ids)
    before = host.get_env()
    try:
        host.set_env(SETTINGS["flush"])
        flushed = _next_token(SUBNORMAL, SamplingParameters(repetition_penalty=1.5), 3, [1])
        host.set_env(SETTINGS["up"])
        up = log_probabilities(logits, ids)
    finally:
        host.set_env(before)
    assert flushed == 0 and chosen_and_scored()[0][0] == 1
    assert not same_bits(up, wanted)


def test_the_host_really_flushes(host):
    """Negative control: in the flushing environment plain C loses a subnormal."""
    before = host.get_env()
    value = (ctypes.c_float * 1)(1.17549435e-38)
    try:
        host.set_env(SETTINGS["flush"])
        flushed = host.halve(value)
    finally:
        host.set_env(before)
    kept = host.halve(value)
    assert kept > 0 and flushed == 0


def test_import_needs_numpy_alone():
    """The core imports without any of the extras."""
    code = textwrap.dedent("""
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"rich", "click", "torch", "safetensors", "tokenizers", "ml_dtypes",
                                          "threadpoolctl"}:
                    raise ImportError(name)
        sys.meta_path.insert(0, Refuse())
        import numpy as np, llorch
        llorch.layer_norm(np.ones((2, 3), np.float32))
    """)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(sys.executable).parent)


def test_the_source_tree_says_that_it_is_not_built(tmp_path):
    """The folder in which a newcomer stands after pip install hides the installed package."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "llorch").mkdir()
    for name in ("__init__.py", "_interrupts.py"):
        (tmp_path / "llorch" / name).write_text(Path(llorch.__file__).with_name(name).read_text())
    not_editable = "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]"
    code = f"import sys; {not_editable}; sys.path.insert(0, '.'); import llorch"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "ImportError: this is llorch's source tree" in done.stderr
