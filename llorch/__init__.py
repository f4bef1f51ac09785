"""llorch: CPU kernels for transformer inference whose every output bit is specified, and the tools to prove it.

>>> import numpy as np, llorch
>>> x = np.random.default_rng(0).standard_normal((4, 768), np.float32)
>>> np.array_equal(llorch.layer_norm(x).view(np.uint32), llorch.reference.layer_norm(x).view(np.uint32))
True
"""

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

__all__ = [
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
]

_threadpoolctl.register()
