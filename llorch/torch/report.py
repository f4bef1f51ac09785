"""`report`: what of a module's arithmetic runs on llorch, and what stays in PyTorch."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Report:
    """What an exact module has called so far.

    left : {(module, function): calls}
        Functions of floating-point values that stayed in PyTorch and aren't exact there. Empty where every bit is
        specified.
    covered : {function: calls}
        What ran on llorch, in the call that `report` made; empty where it made none.
    """

    left: dict[tuple[str, str], int]
    covered: dict[str, int]

    def __str__(self) -> str:
        lines = [f"{calls:6}  {function}  on llorch" for function, calls in self.covered.items()]
        lines += [
            f"{calls:6}  {function}{where and f' in {where}'}  stays in PyTorch"
            for (where, function), calls in self.left.items()
        ]
        return "\n".join(lines) or "nothing was called"


def report(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Report:
    """What an exact module left to PyTorch so far; with arguments, after one call on them in inference mode.

    Parameters
    ----------
    module : the result of `exact`, or a module in it
    args, kwargs : what to call it with

    Raises
    ------
    TypeError
        module isn't an exact one.
    """
    mode = getattr(module, "_llorch", None)
    if mode is None:
        raise TypeError(f"module must come from llorch.torch.exact, got a {type(module).__name__}")
    covered: Counter[str] = Counter()
    if args or kwargs:
        before, mode.covered = mode.covered, covered
        try:
            with torch.inference_mode():
                module(*args, **kwargs)
        finally:
            mode.covered = before
    return Report(dict(mode.left), dict(covered))
