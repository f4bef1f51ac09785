"""llorch: CPU kernels for transformer inference whose every output bit is specified, and the tools to prove it.

>>> import numpy as np, llorch
>>> x = np.random.default_rng(0).standard_normal((4, 768), np.float32)
>>> np.array_equal(llorch.layer_norm(x).view(np.uint32), llorch.reference.layer_norm(x).view(np.uint32))
True
"""

from llorch import _threadpoolctl, reference, testing
from llorch._config import __version__, config, show_config
from llorch._core import (
    add_layer_norm,
    available_isas,
    erf,
    exp,
    gelu,
    get_num_threads,
    isa,
    layer_norm,
    rms_norm,
    set_num_threads,
    sigmoid,
    silu,
    tanh,
)

__all__ = [
    "__version__",
    "add_layer_norm",
    "available_isas",
    "config",
    "erf",
    "exp",
    "gelu",
    "get_num_threads",
    "isa",
    "layer_norm",
    "reference",
    "rms_norm",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "silu",
    "tanh",
    "testing",
]

_threadpoolctl.register()
