"""`exact`: the copy of a module, each of whose modules calls PyTorch's functions in the mode of functions.py."""

import copy
from functools import cache, wraps
from typing import Any

import torch

from llorch.torch import functions, recognise, threads
from llorch.torch.arrays import NAMES
from llorch.torch.functions import Exact, active
from llorch.torch.weights import own


def exact(module: torch.nn.Module, *, strict: bool = False) -> Any:
    """A copy of a module for inference, whose arithmetic runs on llorch's kernels: every bit of it is specified.

    Linear layers (also transformers' Conv1D), LayerNorm, RMSNorm (also the families' own), GELU, SiLU, softmax,
    embedding, attention and matrix products run on llorch wherever the module calls them, as modules or as functions.
    A row's bits then depend neither on the batch nor on the threads.

    Parameters
    ----------
    module : torch.nn.Module
        Of float32, bfloat16 or float16 on the CPU. It stays as it is. A copy of it comes back, of the same class but
        for its forward, with the same names, hooks and state_dict, in eval mode. Parameters share their memory with
        the module's; weights of products are packed when they are first used, which takes their memory once more.
    strict : bool
        What has no kernel in llorch, and isn't exact in PyTorch either, is a NotImplementedError when it is called,
        which names it. Without it, PyTorch computes it, and `llorch.torch.report` lists it.

    Raises
    ------
    TypeError
        module isn't a torch.nn.Module, or one of TorchScript; a parameter of another kind, element type or device,
        by its name.
    RuntimeError
        When the copy is called: autograd is on and a parameter or an input requires grad; a dropout is on, in training
        mode; autocast is on.

    Notes
    -----
    Writing into parameters (load_state_dict, in place under no_grad) is seen, and weights are packed anew; writing
    through ``.data`` isn't.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    for name, part in module.named_modules():
        for kind, called in (
            (torch.jit.ScriptModule, "torch.jit.ScriptModule"),
            (torch.fx.GraphModule, "torch.fx.GraphModule"),
        ):
            if isinstance(part, kind):
                raise TypeError(f"module {name or 'itself'} is a {called}: give the module that it was made of")
        if "forward" in part.__dict__:
            raise TypeError(
                f"module {name or 'itself'} has a forward of its own, not its class's: nothing is known of it"
            )
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters(remove_duplicate=False):
            _check(name, parameter)
            if id(parameter) not in memo:
                shared = torch.nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
                shared.__dict__.update(parameter.__dict__)
                memo[id(parameter)] = shared
        for part in module.modules():
            for value in vars(part).values():
                if isinstance(value, torch.Tensor) and not value.is_leaf:  # torch.nn.utils.weight_norm's weight
                    memo[id(value)] = value.detach().clone()
        made = copy.deepcopy(module, memo)
    mode = Exact(strict)
    for part in made.modules():
        part.__dict__["_llorch"] = mode
        part.__class__ = _exact_class(_original(type(part)), recognise.role(part))
    for parameter in made.parameters():
        own(parameter)
    return made.eval()


def _check(name: str, parameter: torch.Tensor) -> None:
    if type(parameter) is not torch.nn.Parameter:
        raise TypeError(f"parameter {name} is a {type(parameter).__name__}, it must be a torch.nn.Parameter")
    if parameter.device.type != "cpu":
        raise TypeError(f"parameter {name} is on {parameter.device}, it must be on the CPU")
    if (parameter.is_floating_point() and parameter.dtype not in NAMES) or parameter.is_complex():
        kind = str(parameter.dtype).removeprefix("torch.")
        raise TypeError(f"parameter {name} is {kind}, it must be float32, bfloat16 or float16")


def _linear(module: Any, x: torch.Tensor) -> Any:
    parameters = module._parameters  # a module's own lookup of attributes comes here last
    return functions.linear(x, parameters["weight"], parameters["bias"])


def _layer_norm(module: Any, x: torch.Tensor) -> Any:
    parameters = module._parameters
    return functions.layer_norm(x, module.normalized_shape, parameters["weight"], parameters["bias"], module.eps)


# PyTorch's modules that are one call, without the way through PyTorch's dispatch: a microsecond or two each. A KeyError
# says that a weight is computed (torch.nn.utils.parametrizations, prune): its own arithmetic belongs in the mode.
_DIRECT: dict[Any, Any] = {
    torch.nn.Linear.forward: _linear,
    torch.nn.LayerNorm.forward: _layer_norm,
    torch.nn.Embedding.forward: lambda m, x: functions.embedding(x, m._parameters["weight"], m.padding_idx, m.max_norm),
    torch.nn.Dropout.forward: lambda m, x: functions.dropout(x, m.p, m.training),
    torch.nn.Identity.forward: lambda m, x: x,
}


# ---- classes ------------------------------------------------------------------------------------------------


def _original(cls: type) -> type:
    found: type = cls.__dict__.get("_llorch_class", cls)
    return found


def _remade(cls: type, role: Any) -> Any:
    """An empty module of a class's exact class: what unpickling and copying begin with."""
    made = _exact_class(cls, role)
    return made.__new__(made)


@cache
def _exact_class(cls: type, role: Any) -> Any:
    """The subclass of a module's class whose forward runs in the mode; where it has a role, by that function alone."""
    original = cls.forward  # type: ignore[attr-defined]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if active():
            return original(self, *args, **kwargs)
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("llorch.torch: autocast is on, and the kernels take the types as they are: turn it off")
        if torch.compiler.is_compiling():
            with self._llorch:
                return without_fast_path(self, *args, **kwargs)
        counts = threads.alone()
        try:
            with self._llorch:
                return original(self, *args, **kwargs)
        finally:
            threads.together(counts)

    def without_fast_path(self: Any, *args: Any, **kwargs: Any) -> Any:
        """torch.nn.TransformerEncoder and MultiheadAttention have one function for all they do. In a mode they don't
        call it, but dynamo doesn't know that of modes."""
        before = torch.backends.mha._is_fastpath_enabled
        torch.backends.mha._is_fastpath_enabled = False
        try:
            return original(self, *args, **kwargs)
        finally:
            torch.backends.mha._is_fastpath_enabled = before

    def by_role(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or not recognise.fits(role, self, args[0]):
            return forward(self, *args, **kwargs)
        if active():
            return recognise.compute(role, self, args[0])
        if torch.is_autocast_enabled("cpu"):
            return forward(self, *args, **kwargs)  # which refuses it
        with self._llorch:
            return recognise.compute(role, self, args[0])

    def directly(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and self._llorch.covered is None and not torch.compiler.is_compiling():
            try:
                if not torch._C._len_torch_function_stack():
                    if torch.is_autocast_enabled("cpu"):
                        return forward(self, *args, **kwargs)  # which refuses it
                    return direct(self, args[0])
                with torch._C.DisableTorchFunction():  # what it calls needn't ask the mode
                    return direct(self, args[0])
            except (functions.Declined, KeyError):
                pass
        return forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        return _remade, (cls, role), self.__getstate__()

    direct: Any = _DIRECT.get(original)
    chosen = wraps(original)(by_role if role is not None else forward if direct is None else directly)
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    kind: Any = type(cls)
    return kind(cls.__name__, (cls,), names | {"forward": chosen, "__reduce_ex__": reduce, "_llorch_class": cls})
