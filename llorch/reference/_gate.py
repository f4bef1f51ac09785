"""relu, the gated product, and the way to another type, as specified."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llorch.reference._arithmetic import narrow, widen
from llorch.reference._unary import erf, exp, gelu, sigmoid, silu, tanh

Array = NDArray[Any]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "exp": exp,
    "tanh": tanh,
    "erf": erf,
    "sigmoid": sigmoid,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": lambda x: relu(x),
}

# Hugging Face's names of them
NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}


def activation(x: Array, name: str) -> Array:
    """The function that Hugging Face calls `name`."""
    if name not in NAMES:
        raise ValueError(f"the activation is {name}, it is not one that is specified")
    function = ACTIVATIONS[NAMES[name]]
    return function(x)


def relu(x: Array, *, out: Array | None = None) -> Array:
    """x where x > 0, else +0.0, of -0.0 too; a NaN stays. See `llorch.relu`."""
    v = widen(x)
    return _result(narrow(np.where(v <= 0, np.float32(0), v), x.dtype), out)


def gate(g: Array, u: Array, *, activation: str, out: Array | None = None) -> Array:
    """activation(g) * u of two arrays of one shape and type. See `llorch.gate`.

    In float32 to the end: one product, and a 16-bit result is rounded once.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if u.dtype != g.dtype:
        raise TypeError(f"u is {u.dtype}, it must have the type of g, {g.dtype}")
    if u.shape != g.shape:
        raise ValueError(f"u has shape {u.shape}, it must have the shape of g, {g.shape}")
    function = ACTIVATIONS[activation]
    with np.errstate(all="ignore"):
        y = function(widen(g, "g")) * widen(u, "u")
    return _result(narrow(y, g.dtype), out)


def cast(x: Array, dtype: Any, *, out: Array | None = None) -> Array:
    """x as float32, float16 or bfloat16: widened exactly, rounded once to nearest even. See `llorch.cast`."""
    return _result(narrow(widen(x), np.dtype(dtype)), out)


def _result(y: Array, out: Array | None) -> Array:
    if out is None:
        return y
    out[...] = y
    return out
