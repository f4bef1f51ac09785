"""The same input through the real libraries, each in a process of its own with a time limit.

A library that is not installed is skipped with the command that installs it. One that raises, crashes or hangs is a
failed check, and takes nothing else down.

Candle appears twice. Its Python package computes LayerNorm from tensor operations, in two passes. Its Rust kernel,
which Mistral.rs runs, sums x and x*x in one pass, each in one float32 chain, and takes the difference for the
variance; `one_pass` is that formula. Where a row's mean is large beside its spread the difference cancels: the
checkpoint's second row (mean 0.48, standard deviation 0.02) loses four digits there. So Mistral.rs is compared on the
first row, on the second with 0.48 subtracted (exact in float32, and LayerNorm does not see a constant), and for the
second as it stands the difference is shown for information, beside the one that `one_pass` predicts: it is far
outside the tolerance, and Mistral.rs's own error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import llorch

from . import Array, Check, at_most, first_line, status
from .determinism import child_environment

GROUP = "Real libraries, the largest difference from llorch"
TOLERANCE = 1e-5
TIMEOUT = 60  # seconds for one library
SHIFT = np.float32(0.48)  # near the mean of the checkpoint's second row


# ---- each library: (x [rows, n], weight [n], bias [n], eps) -> float32 or float64 [rows, n] -------------------


def pytorch(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    import torch

    tensors = [torch.from_numpy(array) for array in (x, weight, bias)]
    y: Array = torch.nn.functional.layer_norm(tensors[0], (x.shape[-1],), *tensors[1:], eps=eps).numpy()
    return y


def onnx_runtime(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(onnx_model(x.shape, eps), options, providers=["CPUExecutionProvider"])
    y: Array = session.run(None, {"x": x, "weight": weight, "bias": bias})[0]
    return y


def candle(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    import candle
    import candle.nn

    norm = candle.nn.LayerNorm(x.shape[-1], eps=eps)
    norm.weight, norm.bias = candle.Tensor(weight.tolist()), candle.Tensor(bias.tolist())
    y = norm(candle.Tensor(x[None].tolist()))  # it wants three dimensions
    values: Array = np.array(y.values(), np.float32)[0]
    return values


def mistral_rs(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """float64 [rows, n] log-softmax of the LayerNorm.

    Mistral.rs has no kernel to call, it runs whole models. This one is a StarCoder2 of one layer whose attention
    and MLP add nothing, with the rows of x as embeddings, the final norm's weight and bias ours, and the identity
    as lm_head: its logits for token i are LayerNorm(x[i]), and it returns the log-probabilities of all tokens.
    """
    mistralrs: Any = importlib.import_module("mistralrs")
    rows, n = x.shape
    with tempfile.TemporaryDirectory() as folder:
        write_starcoder2(Path(folder), x, weight, bias, eps)
        which = mistralrs.Which.Plain(
            model_id=folder, arch=mistralrs.Architecture.Starcoder2, dtype=mistralrs.ModelDType.F32
        )
        runner = mistralrs.Runner(which=which, max_seqs=1, token_source="none")
        result = np.full((rows, n), np.nan)
        for i in range(rows):
            request = mistralrs.ChatCompletionRequest(
                model="layer_norm",
                messages=f"t{i}",
                logprobs=True,
                top_logprobs=n,
                max_tokens=1,
                temperature=0.0,
            )
            answer = runner.send_chat_completion_request(request)
            for entry in answer.choices[0].logprobs.content[0].top_logprobs:
                result[i, entry.token] = entry.logprob
    return result


def one_pass(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """float32 [rows, n]: the formula of Candle's Rust kernel, candle_nn::ops::layer_norm, on the CPU."""
    n = np.float32(x.shape[-1])
    total, squares = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
    for column in x.T:
        total = total + column
        squares = squares + column * column
    mean = total / n
    scale = np.float32(1) / np.sqrt(squares / n - mean * mean + np.float32(eps))
    y: Array = (x - mean[:, None]) * scale[:, None] * weight + bias
    return y


def log_softmax(y: Array) -> Array:
    wide: Array = y.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


# ---- the files two of them need --------------------------------------------------------------------------------


def onnx_model(shape: tuple[int, ...], eps: float) -> bytes:
    """An ONNX model of one LayerNormalization over the last axis, encoded by hand (field numbers: onnx.proto3)."""

    def varint(value: int) -> bytes:
        head = bytearray()
        while value > 127:
            head.append(value & 127 | 128)
            value >>= 7
        return bytes([*head, value])

    def field(number: int, value: int | float | str | bytes) -> bytes:
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        data = value.encode() if isinstance(value, str) else value
        return varint(number << 3 | 2) + varint(len(data)) + data

    def tensor(name: str, dims: tuple[int, ...]) -> bytes:  # ValueInfoProto, float32
        sizes = b"".join(field(1, field(1, size)) for size in dims)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, sizes)))

    inputs = {"x": shape, "weight": shape[-1:], "bias": shape[-1:]}
    epsilon = field(1, "epsilon") + field(2, eps) + field(20, 1)
    node = b"".join(field(1, name) for name in inputs)
    node += field(2, "y") + field(4, "LayerNormalization") + field(5, epsilon)
    graph = field(1, node) + field(2, "layer_norm")
    graph += b"".join(field(11, tensor(*item)) for item in inputs.items()) + field(12, tensor("y", shape))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))  # IR 8, opset 17


def write_starcoder2(folder: Path, x: Array, weight: Array, bias: Array, eps: float) -> None:
    """config.json, tokenizer.json and model.safetensors of the model that `mistral_rs` describes; x [rows, n]."""
    rows, n = x.shape
    head = 32
    config = {
        "model_type": "starcoder2",
        "architectures": ["Starcoder2ForCausalLM"],
        "vocab_size": n,
        "hidden_size": n,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": n // head,
        "num_key_value_heads": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 64,
        "norm_epsilon": eps,
        "rope_theta": 10000.0,
        "use_bias": True,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": n - 1,
        "eos_token_id": n - 1,
    }
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(n)}, "unk_token": f"t{n - 1}"},
    }
    special = {"bos_token": f"t{n - 1}", "eos_token": f"t{n - 1}", "chat_template": "{{ messages[0]['content'] }}"}

    embedding = np.zeros((n, n), np.float32)
    embedding[:rows] = x
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": weight,
        "model.norm.bias": bias,
        "lm_head.weight": np.eye(n, dtype=np.float32),
    }
    layer = "model.layers.0."
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{layer}{norm}.weight"] = np.ones(n, np.float32)
        tensors[f"{layer}{norm}.bias"] = np.zeros(n, np.float32)
    linears = {
        "self_attn.q_proj": (n, n),
        "self_attn.k_proj": (head, n),
        "self_attn.v_proj": (head, n),
        "self_attn.o_proj": (n, n),
        "mlp.c_fc": (8, n),
        "mlp.c_proj": (n, 8),
    }
    for name, shape in linears.items():
        tensors[f"{layer}{name}.weight"] = np.zeros(shape, np.float32)
        tensors[f"{layer}{name}.bias"] = np.zeros(shape[0], np.float32)

    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    with open(folder / "model.safetensors", "wb") as file:
        header, end = {}, 0
        for name, tensor in tensors.items():
            header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
            end += tensor.nbytes
        head_bytes = json.dumps(header).encode()
        file.write(struct.pack("<Q", len(head_bytes)) + head_bytes)
        for tensor in tensors.values():
            file.write(tensor.astype("<f4").tobytes())


# ---- running them ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    key: str  # for --peer
    name: str
    module: str
    package: str  # on PyPI
    compute: Callable[[Array, Array, Array, float], Array]
    what: str

    @property
    def install(self) -> str:
        return f"pip install {self.package}"

    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def version(self) -> str:
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "of unknown version"


PEERS = (
    Peer("pytorch", "PyTorch", "torch", "torch", pytorch, "torch.nn.functional.layer_norm, on the CPU."),
    Peer(
        "onnxruntime",
        "ONNX Runtime",
        "onnxruntime",
        "onnxruntime",
        onnx_runtime,
        "The operator LayerNormalization (opset 17), CPU provider.",
    ),
    Peer("candle", "Candle", "candle", "candle-nn", candle, "candle.nn.LayerNorm of Hugging Face's own binding."),
    Peer(
        "mistralrs",
        "Mistral.rs",
        "mistralrs",
        "mistralrs",
        mistral_rs,
        "A one-layer StarCoder2 whose log-probabilities are log-softmax(LayerNorm(embedding)).",
    ),
)


class PeerError(RuntimeError):
    """A library that is installed and could not be run."""


Case = tuple[Array, Array, Array]  # x [rows, n], weight [n], bias [n]


def compute(peer: Peer, cases: Sequence[Case], eps: float) -> list[Array]:
    """peer.compute of every case in one fresh process: [rows, n] each. PeerError has the library's own message."""
    quiet = {"RUST_LOG": "off", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        for i, (x, weight, bias) in enumerate(cases):
            np.savez(Path(folder, f"in_{i}.npz"), x=x, weight=weight, bias=bias, eps=np.float64(eps))
        code = f"from llorch.validation import peers; peers.child({peer.key!r}, {folder!r}, {len(cases)})"
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", code],
                env=child_environment() | quiet,
                capture_output=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise PeerError(f"no answer in {TIMEOUT} seconds") from None
        error = Path(folder, "error.txt")
        if error.exists():
            raise PeerError(error.read_text(encoding="utf-8"))
        if done.returncode != 0:
            raise PeerError(f"exit status {done.returncode}")
        return [np.load(Path(folder, f"out_{i}.npy")) for i in range(len(cases))]


def child(key: str, folder: str, cases: int) -> None:
    """What the fresh process does: in_0.npz, in_1.npz, ... -> out_0.npy, out_1.npy, ..., or error.txt."""
    peer = next(peer for peer in PEERS if peer.key == key)
    try:
        for i in range(cases):
            given = np.load(Path(folder, f"in_{i}.npz"))
            y = peer.compute(given["x"], given["weight"], given["bias"], float(given["eps"]))
            np.save(Path(folder, f"out_{i}.npy"), y)
    except BaseException as error:  # a Rust panic is a BaseException
        message = f"{type(error).__name__}: {first_line(str(error))}"
        Path(folder, "error.txt").write_text(message, encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # without waiting for the library's threads


def second_case(x: Array) -> Case:
    """The checkpoint's rows again, with a weight about 1 and a bias about 0 in place of ones and zeros."""
    random = np.random.default_rng(2)
    n = x.shape[-1]
    weight, bias = random.standard_normal((2, n))
    return x, (1 + 0.25 * weight).astype(np.float32), (0.5 * bias).astype(np.float32)


def largest_difference(got: Array, want: Array) -> float:
    if got.shape != want.shape:
        raise PeerError(f"returned shape {got.shape}, not {want.shape}")
    difference = np.abs(got.astype(np.float64) - want)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def checks(
    x: Array,
    weight: Array,
    bias: Array,
    eps: float,
    exact: Array,
    wanted: tuple[str, ...] | None = None,
) -> Iterator[Check]:
    """Every library in PEERS on x float32 [2, 1024], weight and bias [1024], two at a time.

    exact: LayerNorm without weight and bias of x as float64 [2, 1024]; it tells whose error a difference is.
    wanted: the keys of the libraries to run; None is every one that is installed.
    """
    cases = [(x, weight, bias), second_case(x)]

    def one(peer: Peer) -> list[Check]:
        if wanted is not None and peer.key not in wanted:
            return [Check(GROUP, peer.name, "skip", peer.what, "not asked for")]
        if not peer.installed():
            return [Check(GROUP, peer.name, "skip", peer.what, peer.install, data={"install": peer.install})]
        try:
            compare = mistral_checks if peer.compute is mistral_rs else layer_norm_checks
            return list(compare(peer, cases, eps, exact))
        except PeerError as error:
            data = {"version": peer.version()}
            name = f"{peer.name} {peer.version()}"
            return [Check(GROUP, name, "fail", peer.what, f"could not run: {error}", data=data)]

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(one, PEERS):
            yield from result


def tolerance_check(peer: Peer, label: str, what: str, worst: Sequence[float], cases: Sequence[Case]) -> Check:
    """worst: the largest difference in each of the cases; the tolerance grows with the largest weight, as y does."""
    bounds = [TOLERANCE * max(1.0, float(np.abs(weight).max())) for _, weight, _ in cases]
    values = cases[0][0].shape[-1] * (1 if label else len(cases[0][0]))
    return Check(
        GROUP,
        f"{peer.name} {peer.version()}{label}",
        status(all(difference <= bound for difference, bound in zip(worst, bounds, strict=True))),
        what,
        f"{worst[0]:.1e} over {values:,} values",
        at_most(TOLERANCE),
        f"With another weight and bias: {worst[1]:.1e} (bound: {bounds[1]:.1e}, times the largest weight).",
        data={
            "version": peer.version(),
            "values": values,
            "largest_difference": worst[0],
            "largest_difference_with_weight_and_bias": worst[1],
        },
    )


def layer_norm_checks(peer: Peer, cases: Sequence[Case], eps: float, exact: Array) -> Iterator[Check]:
    """One check of a library that returns the LayerNorm itself."""
    got = compute(peer, cases, eps)
    worst = [largest_difference(y, llorch.layer_norm(*case, eps=eps)) for y, case in zip(got, cases, strict=True)]
    yield tolerance_check(peer, "", peer.what, worst, cases)


def mistral_checks(peer: Peer, cases: Sequence[Case], eps: float, exact: Array) -> Iterator[Check]:
    """Three checks, see the top of this file. What is compared are log-probabilities, ours in float64."""
    x = cases[0][0]
    centred = x[1] - SHIFT
    if not np.array_equal(centred.astype(np.float64) + float(SHIFT), x[1]):
        raise PeerError("the shift of the second row is not exact")
    rows = np.stack([x[0], centred, x[1]])
    got = compute(peer, [(rows, weight, bias) for _, weight, bias in cases], eps)
    ours = [llorch.layer_norm(*case, eps=eps) for case in cases]
    want = [log_softmax(y) for y in ours]

    moved = f" The row is shifted by {SHIFT:g}, exactly in float32, before Mistral.rs sees it."
    for i, label, how in ((0, ", row 0", ""), (1, ", row 1, centred", moved)):
        worst = [largest_difference(g[i], w[i]) for g, w in zip(got, want, strict=True)]
        yield tolerance_check(peer, label, peer.what + how, worst, cases)

    difference = largest_difference(got[0][2], want[0][1])
    formula = largest_difference(got[0][2], log_softmax(one_pass(*cases[0], eps))[1])
    theirs = largest_difference(got[0][2], log_softmax(exact)[1])
    own = largest_difference(want[0][1], log_softmax(exact)[1])
    agrees = difference <= TOLERANCE
    yield Check(
        GROUP,
        f"{peer.name} {peer.version()}, row 1 as it is",
        "pass" if agrees else "info",
        "The second row unshifted. Mistral.rs computes its variance in one pass and loses it to cancellation; "
        "the detail says whose error the difference is.",
        f"{difference:.1e}; llorch's share: {own:.1e}",
        at_most(TOLERANCE) if agrees else "none: its own error",
        ""
        if agrees
        else f"Mistral.rs is off by {theirs:.1e} from the exact result, llorch by {own:.1e}. "
        f"Candle's one-pass formula in float32 gives Mistral.rs's answer within {formula:.1e}.",
        data={
            "version": peer.version(),
            "values": x.shape[1],
            "largest_difference": difference,
            "from_one_pass": formula,
            "from_exact": theirs,
            "llorch_from_exact": own,
        },
    )
