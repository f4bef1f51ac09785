"""llorch: CPU kernels for transformer inference whose every output bit is specified, and the tools to prove it.

>>> import numpy as np, llorch
>>> x = np.random.default_rng(0).standard_normal((4, 768), np.float32)
>>> np.array_equal(llorch.layer_norm(x).view(np.uint32), llorch.reference.layer_norm(x).view(np.uint32))
True
"""

import _signal  # type: ignore[import-not-found]

_mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, [])
try:
    # Until it is known what Ctrl-C is to do. It blocks, and then raises what came before: within the try.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGINT])
    from llorch import _interrupts
finally:
    _signal.pthread_sigmask(_signal.SIG_SETMASK, _mask)

with _interrupts.held():
    import inspect as _inspect  # noqa: F401  Cython's start of _core takes it without a look whether it is there

    try:
        from llorch import _core as _core
    except ImportError as error:
        from pathlib import Path

        if (Path(__file__).parents[1] / "csrc").is_dir():
            raise ImportError(
                "this is llorch's source tree, and its compiled part isn't in it: import llorch from another folder, "
                "where the installed package is found, or build it here with pip install -e ."
            ) from error
        raise
    except (ValueError, RuntimeError) as error:  # a variable of the environment that can't be followed
        if _interrupts.is_command:
            raise SystemExit(f"llorch: {error}") from None
        raise

    from llorch import _threadpoolctl
    from llorch._core import (
        KVCache,
        PackedLinear,
        add_layer_norm,
        add_rms_norm,
        argmax,
        attention,
        available_isas,
        cast,
        dequantize,
        embedding,
        erf,
        exp,
        gate,
        gelu,
        get_num_threads,
        isa,
        layer_norm,
        linear,
        mean_pool,
        normalize,
        quantize,
        relu,
        rms_norm,
        rope,
        set_num_threads,
        sigmoid,
        silu,
        softmax,
        tanh,
    )

    _threadpoolctl.register()

TYPE_CHECKING = False  # as typing has it, without the time to import typing
if TYPE_CHECKING:
    from llorch import langchain as langchain
    from llorch import llama_index as llama_index
    from llorch import lm_eval as lm_eval
    from llorch import ray as ray
    from llorch import receipts as receipts
    from llorch import reference, testing, validate
    from llorch import sentence_transformers as sentence_transformers
    from llorch import serve as serve
    from llorch import torch as torch
    from llorch._config import __version__, config, show_config
    from llorch._rope import rope_table
    from llorch.text.causal_lm import CausalLM
    from llorch.text.cross_encoder import CrossEncoder
    from llorch.text.text_encoder import TextEncoder

    GPT2 = CausalLM

__all__ = [
    "GPT2",
    "CausalLM",
    "CrossEncoder",
    "KVCache",
    "PackedLinear",
    "TextEncoder",
    "__version__",
    "add_layer_norm",
    "add_rms_norm",
    "argmax",
    "attention",
    "available_isas",
    "cast",
    "config",
    "dequantize",
    "embedding",
    "erf",
    "exp",
    "gate",
    "gelu",
    "get_num_threads",
    "isa",
    "layer_norm",
    "linear",
    "mean_pool",
    "normalize",
    "quantize",
    "reference",
    "relu",
    "rms_norm",
    "rope",
    "rope_table",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
    "testing",
    "validate",
]

# Imported when they are asked for: the kernels need NumPy alone, and are there sooner.
_MODULES = (
    "langchain",
    "llama_index",
    "lm_eval",
    "ray",
    "receipts",
    "reference",
    "sentence_transformers",
    "serve",
    "testing",
    "torch",
    "validate",
)
_ELSEWHERE = {
    "CausalLM": ("llorch.text.causal_lm", "CausalLM"),
    "CrossEncoder": ("llorch.text.cross_encoder", "CrossEncoder"),
    "GPT2": ("llorch.text.causal_lm", "CausalLM"),
    "TextEncoder": ("llorch.text.text_encoder", "TextEncoder"),
    "__version__": ("llorch._config", "__version__"),
    "config": ("llorch._config", "config"),
    "rope_table": ("llorch._rope", "rope_table"),
    "show_config": ("llorch._config", "show_config"),
}

if not TYPE_CHECKING:  # types come from the imports above

    def __getattr__(name):
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"llorch.{name}")
        if name in _ELSEWHERE:
            module, attribute = _ELSEWHERE[name]
            globals()[name] = getattr(import_module(module), attribute)
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
