"""llorch: CPU kernels for transformer inference whose every output bit is specified, and the tools to prove it.

>>> import numpy as np, llorch
>>> x = np.random.default_rng(0).standard_normal((4, 768), np.float32)
>>> np.array_equal(llorch.layer_norm(x).view(np.uint32), llorch.reference.layer_norm(x).view(np.uint32))
True
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from llorch import _core as _core
except ImportError as error:
    if (Path(__file__).parents[1] / "csrc").is_dir():
        raise ImportError(
            "this is llorch's source tree, and its compiled part isn't in it: import llorch from another folder, "
            "where the installed package is found, or build it here with pip install -e ."
        ) from error
    raise

from llorch import _threadpoolctl, reference, testing
from llorch._config import __version__, config, show_config
from llorch._core import (
    KVCache,
    PackedLinear,
    add_layer_norm,
    argmax,
    attention,
    available_isas,
    embedding,
    erf,
    exp,
    gelu,
    get_num_threads,
    isa,
    layer_norm,
    linear,
    rms_norm,
    set_num_threads,
    sigmoid,
    silu,
    softmax,
    tanh,
)

if TYPE_CHECKING:
    from llorch import validate
    from llorch.text.causal_lm import CausalLM

    GPT2 = CausalLM

__all__ = [
    "GPT2",
    "CausalLM",
    "KVCache",
    "PackedLinear",
    "__version__",
    "add_layer_norm",
    "argmax",
    "attention",
    "available_isas",
    "config",
    "embedding",
    "erf",
    "exp",
    "gelu",
    "get_num_threads",
    "isa",
    "layer_norm",
    "linear",
    "reference",
    "rms_norm",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
    "testing",
    "validate",
]

_threadpoolctl.register()


def __getattr__(name: str) -> Any:
    if name in ("CausalLM", "GPT2"):  # on demand: the kernels alone need NumPy alone, and are there sooner
        from llorch.text.causal_lm import CausalLM

        globals()[name] = CausalLM
        return CausalLM
    if name == "validate":
        return importlib.import_module("llorch.validate")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
