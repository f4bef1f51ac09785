"""Modules that compute in several steps of Python what llorch has a kernel for: found by what they compute.

A family's own RMSNorm, or transformers' NewGELUActivation, is known by no name here. A copy of the module, with random
parameters, is called on random values, and what comes out is compared with PyTorch's functions.
"""

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F

_EPS = ("eps", "variance_epsilon", "epsilon", "layer_norm_eps", "rms_norm_eps")
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
    x = torch.cat([torch.randn(4, 64) * 3, torch.linspace(-12, 12, 256).reshape(4, 64)])
    y = module(x.clone())
    for name, function in _FUNCTIONS.items():
        if _near(y, function(x)):
            return name
    return None


def _norm(module: torch.nn.Module, named: tuple[str, torch.Tensor]) -> Any:
    name, weight = named
    if weight.ndim != 1:
        return None
    probe = copy.deepcopy(module).float()
    getattr(probe, name).normal_()
    known = [float(v) for k, v in vars(module).items() if k in _EPS and isinstance(v, int | float)]
    n = weight.shape[0]
    x = torch.randn(7, n) * torch.tensor([1e-4, 1e-3, 1e-2, 1.0, 3.0, 1e2, 1e3])[:, None]
    y = probe(x.clone())
    for eps, added in itertools.product([*known, torch.finfo(torch.float32).eps], (0, 1)):
        if _near(y, F.rms_norm(x, (n,), getattr(probe, name) + added, eps)):
            return "rms_norm", name, eps, added
    return None


def _near(y: Any, wanted: torch.Tensor) -> bool:
    return isinstance(y, torch.Tensor) and y.shape == wanted.shape and torch.allclose(y, wanted, rtol=1e-5, atol=1e-6)


def compute(role: Any, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The module's result, by the one function that it is."""
    if isinstance(role, str):
        return _FUNCTIONS[role](x)
    _, name, eps, added = role
    weight = getattr(module, name)
    y = F.rms_norm(x, weight.shape, weight + added if added else weight, eps)
    return y if x.dtype is weight.dtype else y.to(torch.promote_types(x.dtype, weight.dtype))
