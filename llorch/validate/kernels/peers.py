"""The same input through the real libraries, each in a process of its own with a time limit.

A library that is not installed is skipped with the command that installs it. One that raises, crashes or hangs is a
failed check, and takes nothing else down.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llorch.validate.kernels.common import Array, Check, at_most, error_check, first_line, largest, status
from llorch.validate.kernels.determinism import child_environment
from llorch.validate.kernels.peer_files import onnx_model, write_starcoder2

GROUP = "Real libraries, the largest difference from llorch"
TIMEOUT = 60  # seconds for one library


# ---- each library: float32 arrays -> float32 or float64 -------------------------------------------------------


def pytorch(x: Array, weight: Array, bias: Array, eps: Array) -> Array:
    import torch

    tensors = [torch.from_numpy(array) for array in (x, weight, bias)]
    y: Array = torch.nn.functional.layer_norm(tensors[0], (x.shape[-1],), *tensors[1:], eps=float(eps)).numpy()
    return y


def pytorch_linear(x: Array, weight: Array, bias: Array) -> Array:
    import torch

    y: Array = torch.nn.functional.linear(*(torch.from_numpy(array) for array in (x, weight, bias))).numpy()
    return y


def pytorch_addmm(x: Array, weight: Array, bias: Array) -> Array:
    """The weight as [in, out], row by row in memory, as GPT-2's files have it."""
    import torch

    tensors = [torch.from_numpy(array) for array in (bias, x, np.ascontiguousarray(weight.T))]
    y: Array = torch.addmm(*tensors).numpy()
    return y


def pytorch_attention(q: Array, k: Array, v: Array) -> Array:
    """Causal; one query against a longer cache sees all of it, which is what no mask says."""
    import torch

    tensors = [torch.from_numpy(array)[None] for array in (q, k, v)]
    causal = q.shape[-2] == k.shape[-2]
    y: Array = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)[0].numpy()
    return y


def pytorch_feed_forward(x: Array, weight: Array, bias: Array, weight2: Array, bias2: Array) -> Array:
    """Weights as [in, out]."""
    import torch

    tensors = [torch.from_numpy(array) for array in (x, weight, bias, weight2, bias2)]
    hidden = torch.nn.functional.gelu(torch.addmm(tensors[2], tensors[0], tensors[1]), approximate="tanh")
    y: Array = torch.addmm(tensors[4], hidden, tensors[3]).numpy()
    return y


def run_onnx(model: bytes, feeds: Mapping[str, Array]) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    y: Array = session.run(None, dict(feeds))[0]
    return y


def onnx_runtime(x: Array, weight: Array, bias: Array, eps: Array) -> Array:
    feeds = {"x": x, "weight": weight, "bias": bias}
    shapes = {name: array.shape for name, array in feeds.items()}
    return run_onnx(onnx_model("LayerNormalization", shapes, x.shape, {"epsilon": float(eps)}), feeds)


def onnx_runtime_linear(x: Array, weight: Array, bias: Array) -> Array:
    feeds = {"x": x, "weight": weight, "bias": bias}
    shapes = {name: array.shape for name, array in feeds.items()}
    return run_onnx(onnx_model("Gemm", shapes, (len(x), len(weight)), {"transB": 1}), feeds)


def candle(x: Array, weight: Array, bias: Array, eps: Array) -> Array:
    import candle
    import candle.nn

    norm = candle.nn.LayerNorm(x.shape[-1], eps=float(eps))
    norm.weight, norm.bias = candle.Tensor(weight.tolist()), candle.Tensor(bias.tolist())
    y = norm(candle.Tensor(x[None].tolist()))  # it wants three dimensions
    values: Array = np.array(y.values(), np.float32)[0]
    return values


def candle_linear(x: Array, weight: Array, bias: Array) -> Array:
    import candle
    import candle.nn

    linear = candle.nn.Linear(*weight.T.shape)
    linear.weight, linear.bias = candle.Tensor(weight.tolist()), candle.Tensor(bias.tolist())
    values: Array = np.array(linear(candle.Tensor(x.tolist())).values(), np.float32)
    return values


def mistral_rs(x: Array, weight: Array, bias: Array, eps: Array) -> Array:
    """float64 [rows, n] log-softmax of the LayerNorm.

    Mistral.rs has no kernel to call, it runs whole models. This one is a StarCoder2 of one layer whose attention
    and MLP add nothing, with the rows of x as embeddings, the final norm's weight and bias ours, and the identity
    as lm_head: its logits for token i are LayerNorm(x[i]), and it returns the log-probabilities of all tokens.
    """
    mistralrs: Any = importlib.import_module("mistralrs")
    rows, n = x.shape
    with tempfile.TemporaryDirectory() as folder:
        write_starcoder2(Path(folder), x, weight, bias, float(eps))
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


# ---- running them ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    compute: Callable[..., Array]
    what: str


@dataclass(frozen=True)
class Peer:
    key: str  # for --library
    name: str
    module: str
    package: str  # on PyPI
    operations: Mapping[str, Operation]

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
    Peer(
        "pytorch",
        "PyTorch",
        "torch",
        "torch",
        {
            "layer_norm": Operation(pytorch, "torch.nn.functional.layer_norm, on the CPU."),
            "linear": Operation(pytorch_linear, "torch.nn.functional.linear, on the CPU, weight [out, in]."),
            "addmm": Operation(pytorch_addmm, "torch.addmm, on the CPU, weight [in, out]."),
            "attention": Operation(pytorch_attention, "torch.nn.functional.scaled_dot_product_attention, on the CPU."),
            "feed_forward": Operation(pytorch_feed_forward, "torch.addmm, gelu(approximate='tanh'), torch.addmm."),
        },
    ),
    Peer(
        "onnxruntime",
        "ONNX Runtime",
        "onnxruntime",
        "onnxruntime",
        {
            "layer_norm": Operation(onnx_runtime, "The operator LayerNormalization (opset 17), CPU provider."),
            "linear": Operation(onnx_runtime_linear, "The operator Gemm with transB (opset 17), CPU provider."),
        },
    ),
    Peer(
        "candle",
        "Candle",
        "candle",
        "candle-nn",
        {
            "layer_norm": Operation(candle, "candle.nn.LayerNorm of Hugging Face's own binding."),
            "linear": Operation(candle_linear, "candle.nn.Linear of Hugging Face's own binding."),
        },
    ),
    Peer(
        "mistralrs",
        "Mistral.rs",
        "mistralrs",
        "mistralrs",
        {
            "layer_norm": Operation(
                mistral_rs, "A one-layer StarCoder2 whose log-probabilities are log-softmax(LayerNorm(embedding))."
            )
        },
    ),
)


class PeerError(RuntimeError):
    """A library that is installed and could not be run."""


def compute(peer: Peer, calls: Sequence[tuple[str, Sequence[Array]]]) -> list[Array]:
    """Each (operation, arrays) of the peer, all in one fresh process. PeerError has the library's own message."""
    quiet = {"RUST_LOG": "off", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        for i, (_, arrays) in enumerate(calls):
            np.savez(Path(folder, f"in_{i}.npz"), *arrays)
        names = [operation for operation, _ in calls]
        code = f"from llorch.validate.kernels import peers; peers.child({peer.key!r}, {folder!r}, {names!r})"
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
        return [np.load(Path(folder, f"out_{i}.npy")) for i in range(len(calls))]


def child(key: str, folder: str, operations: Sequence[str]) -> None:
    """What the fresh process does: in_0.npz, in_1.npz, ... -> out_0.npy, out_1.npy, ..., or error.txt."""
    peer = next(peer for peer in PEERS if peer.key == key)
    try:
        for i, operation in enumerate(operations):
            given = np.load(Path(folder, f"in_{i}.npz"))
            arrays = [given[f"arr_{k}"] for k in range(len(given.files))]
            np.save(Path(folder, f"out_{i}.npy"), peer.operations[operation].compute(*arrays))
    except BaseException as error:  # a Rust panic is a BaseException
        message = f"{type(error).__name__}: {first_line(str(error))}"
        Path(folder, "error.txt").write_text(message, encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # without waiting for the library's threads


def each(
    operation: str, compare: Callable[[Peer], Iterable[Check]], wanted: tuple[str, ...] | None, group: str
) -> Iterator[Check]:
    """The rows that `compare` makes of every library with this operation, two libraries at a time.

    wanted: the keys of the libraries to run; None is every one that is installed.
    """

    def one(peer: Peer) -> list[Check]:
        what = peer.operations[operation].what
        if wanted is not None and peer.key not in wanted:
            return [Check(group, peer.name, "skip", what, "not asked for")]
        if not peer.installed():
            return [Check(group, peer.name, "skip", what, peer.install, data={"install": peer.install})]
        try:
            return list(compare(peer))
        except PeerError as error:
            data = {"version": peer.version()}
            name = f"{peer.name} {peer.version()}"
            return [Check(group, name, "fail", what, f"could not run: {error}", data=data)]

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(one, [peer for peer in PEERS if operation in peer.operations]):
            yield from result


def largest_difference(got: Array, want: Array) -> float:
    if got.shape != want.shape:
        raise PeerError(f"returned shape {got.shape}, not {want.shape}")
    return largest(np.abs(got.astype(np.float64) - want))


# ---- beside float64 --------------------------------------------------------------------------------------------

LARGEST_ERROR = 2e-6  # of llorch from float64, of outputs up to 5
TOLERANCE = 1e-4  # between llorch and a library
RATIO = 2.0  # llorch's largest error to the library's


@dataclass(frozen=True)
class Input:
    """What an operation is tried on; ratio: whether llorch's error is held against the library's."""

    name: str
    what: str
    arrays: tuple[Array, ...]
    ratio: bool = True


def beside_float64(
    group: str,
    operation: str,
    inputs: Sequence[Input],
    results: Sequence[Array],
    exact: Sequence[Array],
    wanted: tuple[str, ...] | None,
) -> Iterator[Check]:
    """The rows of llorch's results: their errors from the exact ones (float64), and every library's beside them."""
    for case, y, right in zip(inputs, results, exact, strict=True):
        what = f"{case.what} Against float64."
        yield error_check(f"float64, {case.name}", what, np.abs(y - right), right, LARGEST_ERROR, group)

    def compare(peer: Peer) -> Iterator[Check]:
        got = compute(peer, [(operation, case.arrays) for case in inputs])
        for case, theirs, y, right in zip(inputs, got, results, exact, strict=True):
            difference = largest_difference(theirs, y)
            errors = largest_difference(y, right), largest_difference(theirs, right)
            yield Check(
                group,
                f"{peer.name} {peer.version()}, {case.name}",
                status(difference <= TOLERANCE and (errors[0] <= RATIO * errors[1] or not case.ratio)),
                f"{case.what} {peer.operations[operation].what}",
                f"{difference:.1e}; errors {errors[0]:.1e}, {errors[1]:.1e}",
                "1e-4; 2 x its error" if case.ratio else at_most(TOLERANCE),
                "The largest difference; then llorch's largest error from float64, and the library's.",
                data={
                    "version": peer.version(),
                    "largest_difference": difference,
                    "llorch_error": errors[0],
                    "library_error": errors[1],
                },
            )

    yield from each(operation, compare, wanted, group)
