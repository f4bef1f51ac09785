"""llorch's kernels as operators of PyTorch: ``torch.ops.llorch.linear`` and the others.

Each has a kernel for the CPU, and one for fake tensors, by which torch.compile and torch.export see what shape comes
out. None has a backward, and says so. What calls them here goes straight to the kernel where nobody traces: PyTorch's
dispatch to a kernel in Python costs some 10 us, as long as a small kernel takes.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import torch

import llorch
from llorch import _core, _rope
from llorch.torch import attention as _attention
from llorch.torch.arrays import array
from llorch.torch.weights import packed

_library = torch.library.Library("llorch", "DEF")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def check_grad(name: str, tensors: Any) -> None:
    """RuntimeError where autograd would want a backward of the operator. tensors: its arguments, of any kind."""
    if not torch.is_grad_enabled():
        return
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            what = "a parameter" if isinstance(tensor, torch.nn.Parameter) else "a tensor"
            shape = tuple(tensor.shape)
            raise RuntimeError(
                f"llorch.torch: {name} got {what} of shape {shape} that requires grad, but has no backward: call it "
                "within torch.inference_mode() or torch.no_grad(), or call requires_grad_(False) on the module"
            )


def _operator(schema: str, fake: Callable[..., torch.Tensor]) -> Callable[[Callable[..., torch.Tensor]], Any]:
    """Makes an operator of a kernel, and of it a function that calls either. Its first argument is a tensor."""
    name = schema.partition("(")[0]

    def make(kernel: Callable[..., torch.Tensor]) -> Any:
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, kernel, "CPU")
        torch.library.register_fake(f"llorch::{name}", fake, lib=_library)
        operator = getattr(getattr(torch.ops.llorch, name), "default")  # noqa: B009

        def refuse_grad(*arguments: Any) -> Any:
            check_grad(name, arguments)
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*arguments)

        _library.impl(name, refuse_grad, "Autograd")

        def call(first: torch.Tensor, *others: Any) -> torch.Tensor:
            if torch.compiler.is_compiling() or type(first) not in _PLAIN or torch._C._len_torch_dispatch_stack():
                return operator(first, *others)
            return kernel(first, *others)

        call.__doc__ = kernel.__doc__
        return call

    return make


@_operator(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: x.new_empty((*x.shape[:-1], weight.shape[0])),
)
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight.T + bias``, x (..., K), weight (N, K), bias (N,): `llorch.linear`."""
    pack = packed(weight, bias)
    shape = list(x.shape)
    shape[-1:] = weight.shape[:1]
    y = torch.empty(shape, dtype=x.dtype)
    if pack is not None:
        pack(array(x), out=array(y))
    else:
        llorch.linear(array(x), array(weight).T, None if bias is None else array(bias), out=array(y))
    return y


@_operator("matmul(Tensor a, Tensor b) -> Tensor", lambda a, b: torch.matmul(a, b))
def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b``, a (..., M, K), b (..., K, N), leading axes broadcast: `llorch.linear` of each pair of matrices."""
    leading = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = torch.empty((*leading, a.shape[-2], b.shape[-1]), dtype=a.dtype)
    left = np.broadcast_to(array(a), (*leading, *a.shape[-2:]))
    right = np.broadcast_to(array(b), (*leading, *b.shape[-2:]))
    out = array(y)
    for i in np.ndindex(*leading):
        llorch.linear(left[i], right[i], out=out[i])
    return y


@_operator(
    "layer_norm(Tensor x, int axes, Tensor? weight, Tensor? bias, float eps) -> Tensor",
    lambda x, axes, weight, bias, eps: x.new_empty(x.shape),
)
def layer_norm(
    x: torch.Tensor, axes: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """LayerNorm over the last axes, as many as `axes`: `llorch.layer_norm`."""
    y = torch.empty(x.shape, dtype=x.dtype)
    given = [None if t is None else array(t.reshape(-1)) for t in (weight, bias)]
    llorch.layer_norm(array(_last(x, axes)), *given, eps=eps, out=array(_last(y, axes)))
    return y


@_operator(
    "rms_norm(Tensor x, int axes, Tensor? weight, float eps) -> Tensor",
    lambda x, axes, weight, eps: x.new_empty(x.shape),
)
def rms_norm(x: torch.Tensor, axes: int, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMSNorm over the last axes, as many as `axes`: `llorch.rms_norm`."""
    y = torch.empty(x.shape, dtype=x.dtype)
    given = None if weight is None else array(weight.reshape(-1))
    llorch.rms_norm(array(_last(x, axes)), given, eps=eps, out=array(_last(y, axes)))
    return y


def _last(x: torch.Tensor, axes: int) -> torch.Tensor:
    """x with its last axes as one."""
    return x if axes == 1 else x.flatten(-axes)


@_operator("softmax(Tensor x, int dim) -> Tensor", lambda x, dim: torch.empty_like(x))
def softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Softmax over one axis: `llorch.softmax`."""
    if x.ndim == 0:
        return softmax_of_one(x)
    y = torch.empty_like(x)
    llorch.softmax(array(x.movedim(dim, -1)), out=array(y.movedim(dim, -1)))
    return y


def softmax_of_one(x: torch.Tensor) -> torch.Tensor:
    """Of a tensor without axes."""
    y = torch.empty((1,), dtype=x.dtype)
    llorch.softmax(array(x.reshape(1)), out=array(y))
    return y.reshape(())


@_operator("sum(Tensor x) -> Tensor", lambda x: x.new_empty(x.shape[:-1]))
def sum_last(x: torch.Tensor) -> torch.Tensor:
    """The sum over the last axis, in the order of `llorch.linear`'s sums: a product with ones."""
    y = torch.empty((*x.shape[:-1], 1), dtype=x.dtype)
    llorch.linear(array(x), np.ones((x.shape[-1], 1), np.float32), out=array(y))
    return y.squeeze(-1)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": llorch.exp,
    "tanh": llorch.tanh,
    "erf": llorch.erf,
    "sigmoid": llorch.sigmoid,
    "silu": llorch.silu,
    "gelu": llorch.gelu,
    "gelu_tanh": lambda x, out: llorch.gelu(x, approximate="tanh", out=out),
}


@_operator("unary(Tensor x, str function) -> Tensor", lambda x, function: torch.empty_like(x))
def unary(x: torch.Tensor, function: str) -> torch.Tensor:
    """A function of every value, correctly rounded: exp, tanh, erf, sigmoid, silu, gelu, gelu_tanh, cos or sin."""
    y = torch.empty_like(x)
    if function in ("cos", "sin"):
        array(y)[...] = (_half_circle if x.dtype is torch.float16 else _circle)(array(x))[function == "sin"]
    else:
        _FUNCTIONS[function](array(x), out=array(y))
    return y


def _half_circle(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Cosine and sine of float16 values, correctly rounded: in float64, and rounded once.

    Of no float16 value is either nearer than 2**-29 of itself to the middle of two others, so any float64 function
    will do.
    """
    angles = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.cos(angles).astype(np.float16), np.sin(angles).astype(np.float16)


def _circle(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Cosine and sine of every value, correctly rounded to float32: as of the position 1 at these frequencies.

    No bfloat16 value's is so near to the middle of two others that rounding it again gives the wrong one.

    ValueError for finite values of 2**24 and more, for which there is no kernel.
    """
    angles = x.astype(np.float64).reshape(-1)
    size, finite = np.abs(angles), np.isfinite(angles)
    if (size[finite] >= 2**24).any():
        raise ValueError(f"cos and sin take values below 2**24, got {size[finite].max():g}")
    near = size <= 2.0**-100  # nearer to 0 than the kernel takes: 1 and the value itself
    cos, sin = np.empty((2, 1, angles.size), np.float32)
    f, places = np.where(near | ~finite, 1.0, size), np.ones(1, np.int64)
    if _core._rope_rows(f, np.zeros(angles.size), 1.0, 0.0, places, cos, sin):
        _rope.decide(cos, sin, places, f, Decimal(1))
    cos, sin = np.where(near, np.float32(1), cos[0]), np.where(near, size.astype(np.float32), sin[0])
    cos[~finite] = sin[~finite] = np.nan
    return cos.reshape(x.shape), np.where(np.signbit(angles), -sin, sin).reshape(x.shape)


@_operator(
    "embedding(Tensor weight, Tensor ids) -> Tensor",
    lambda weight, ids: weight.new_empty((*ids.shape, weight.shape[1])),
)
def embedding(weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of weight (V, E): `llorch.embedding`, in the weight's type again."""
    return torch.from_numpy(llorch.embedding(array(weight), array(ids))).to(weight.dtype)


def _fake_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, is_causal: bool, scale: float | None
) -> torch.Tensor:
    leading = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3]) if q.ndim > 2 else ()
    heads = q.shape[-3:-2]
    return (
        q.new_empty((*leading, q.shape[-2], *heads, v.shape[-1])).transpose(-2, -3)
        if heads
        else q.new_empty((q.shape[-2], v.shape[-1]))
    )


attention = _operator(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool is_causal, float? scale) -> Tensor", _fake_attention
)(_attention.attention)
