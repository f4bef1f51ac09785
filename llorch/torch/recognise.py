"""Modules that compute in several steps of Python what llorch has a kernel for: found by what they compute.

A family's own RMSNorm, or transformers' NewGELUActivation, is known by no name here. A copy of the module, with random
parameters, is called on random values, and what comes out is compared with PyTorch's functions.
"""

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F

from llorch.torch.arrays import NAMES

_EPS = ("eps", "variance_epsilon", "epsilon", "layer_norm_eps", "rms_norm_eps")
_16_BITS = (torch.bfloat16, torch.float16)
_FUNCTIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def role(module: torch.nn.Module) -> Any:
    """What a module without modules in it is: a function's name, or ("rms_norm", name of its weight, eps, what is added
    to the weight); None where it isn't just one of these, or is PyTorch's own and calls one."""
    if type(module).__module__.startswith("torch.nn.") or next(module.children(), None) is not None:
        return None
    if next(module.buffers(), None) is not None:
        return None
    parameters = dict(module.named_parameters(recurse=False))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if not parameters:
                return _function(copy.deepcopy(module))
            if len(parameters) == 1:
                return _norm(module, *parameters.items())
    except Exception:  # whatever it is, it isn't a function of one tensor
        return None
    return None


def _function(module: torch.nn.Module) -> str | None:
    large = torch.logspace(1, 30, 32)  # where it may be clamped
    x = torch.cat(
        [torch.randn(4, 64) * 3, torch.linspace(-12, 12, 256).reshape(4, 64), torch.cat([large, -large])[None]]
    )
    y = module(x.clone())
    for name, function in _FUNCTIONS.items():
        if _near(y, function(x)):
            return name if all(_near_of_16_bits(module, function, x, dtype) for dtype in _16_BITS) else None
    return None


def _near_of_16_bits(module: Any, function: Any, x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether it is the function in a 16-bit type too, with a result of this type."""
    most = torch.finfo(dtype).max
    x = x.clamp(-most, most).to(dtype)
    y = module(x.clone())
    return isinstance(y, torch.Tensor) and y.dtype is dtype and _near(y.float(), function(x.float()), 0.02, 0.06)


def _norm(module: torch.nn.Module, named: tuple[str, torch.Tensor]) -> Any:
    name, weight = named
    if weight.ndim != 1:
        return None
    probe = copy.deepcopy(module).float()
    getattr(probe, name).normal_()[::3].mul_(1e5)  # for results that may be clamped
    known = [float(v) for k, v in vars(module).items() if k in _EPS and isinstance(v, int | float)]
    n = weight.shape[0]
    x = torch.randn(7, n) * torch.tensor([1e-4, 1e-3, 1e-2, 1.0, 3.0, 1e2, 6e4])[:, None]
    y = probe(x.clone())
    for eps, added in itertools.product([*known, torch.finfo(torch.float32).eps], (0, 1)):
        if _near(y, F.rms_norm(x, (n,), getattr(probe, name) + added, eps)):
            for dtype in _16_BITS:
                small = copy.deepcopy(module).to(dtype)
                getattr(small, name).normal_()
                if small(torch.randn(2, n, dtype=dtype)).dtype is not dtype:
                    return None
            return "rms_norm", name, eps, added
    return None


def _near(y: Any, wanted: torch.Tensor, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
    return isinstance(y, torch.Tensor) and y.shape == wanted.shape and torch.allclose(y, wanted, rtol=rtol, atol=atol)


def fits(role: Any, module: torch.nn.Module, x: Any) -> bool:
    """Whether a module is its role for x: of a type that was tried, which is its weight's. Families differ in what
    comes out where x and the weight are of two types."""
    if not isinstance(x, torch.Tensor) or x.dtype not in NAMES:
        return False
    return isinstance(role, str) or x.dtype is getattr(module, role[1]).dtype


def compute(role: Any, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The module's result, by the one function that it is, where x fits."""
    if isinstance(role, str):
        return _FUNCTIONS[role](x)
    _, name, eps, added = role
    weight = getattr(module, name)
    if not added:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight.float() + added, eps).to(x.dtype)  # the sum isn't one of 16 bits
