"""The contract's floating-point environment around whatever a caller calls.

The one place where the oracle leans on compiled code of ours: it sets rounding to nearest even with subnormals kept,
and sets back what was there. That is no arithmetic. Where the compiled code isn't there, the caller's environment has
to be the default one.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

try:
    from llorch._core import _in_fpenv
except ImportError:
    _in_fpenv = None  # type: ignore[assignment]

P = ParamSpec("P")
T = TypeVar("T")


def guarded(function: Callable[P, T]) -> Callable[P, T]:
    """function, whose caller may round another way or flush subnormals."""
    if _in_fpenv is None:
        return function

    @wraps(function)
    def inside(*arguments: P.args, **named: P.kwargs) -> T:
        return _in_fpenv(lambda: function(*arguments, **named))

    return inside


def guard_methods(made: type) -> None:
    """The constructor and public methods of a class likewise, in place."""
    for name, method in list(vars(made).items()):
        if callable(method) and (name == "__init__" or not name.startswith("_")):
            setattr(made, name, guarded(method))
