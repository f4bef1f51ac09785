"""The oracle: what every bit of llorch is, in NumPy, written to be read.

Same functions and signatures as llorch's own, on NumPy arrays; `dot128`, `fma`, `sum64`, `narrow` and `widen` are what
they are made of. Only elementwise + - * /, sqrt, casts, comparisons and integer views are used; the order of every sum
is written out. NumPy's sum, mean, dot or exp don't appear: their last bits depend on NumPy's own choice of
instructions. Slow on purpose. A caller may have another rounding mode or flush subnormals: every function and model
here runs in the environment of docs/numerics.md, and leaves the caller's as it was.
"""

from llorch.reference._arithmetic import fma, narrow, sum64, widen
from llorch.reference._attention import argmax, attention, embedding, softmax
from llorch.reference._bert import Bert
from llorch.reference._decoder import Decoder as _Decoder
from llorch.reference._distilbert import DistilBert
from llorch.reference._encoder import Encoder as _Encoder
from llorch.reference._environment import guard_methods, guarded
from llorch.reference._formats import dequantize
from llorch.reference._gate import cast, gate, relu
from llorch.reference._gemma import Gemma2, Gemma3
from llorch.reference._gpt2 import GPT2
from llorch.reference._gpt_neox import GPTNeoX
from llorch.reference._granite import Granite
from llorch.reference._integers import linear_int16
from llorch.reference._linear import dot128, linear
from llorch.reference._llama import Llama
from llorch.reference._mistral import Mistral
from llorch.reference._modernbert import ModernBert
from llorch.reference._mpnet import MPNet
from llorch.reference._nomic_bert import NomicBert
from llorch.reference._norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from llorch.reference._olmo2 import OLMo2
from llorch.reference._phi3 import Phi3
from llorch.reference._pool import mean_pool, normalize
from llorch.reference._quantize import quantize
from llorch.reference._qwen2 import Qwen2
from llorch.reference._qwen3 import Qwen3
from llorch.reference._roberta import Roberta
from llorch.reference._rope import rope, rope_table
from llorch.reference._sampling import log_probabilities, next_token, philox
from llorch.reference._smollm3 import SmolLM3
from llorch.reference._stablelm import StableLM
from llorch.reference._starcoder2 import StarCoder2
from llorch.reference._unary import erf, exp, gelu, sigmoid, silu, tanh

__all__ = [
    "GPT2",
    "Bert",
    "DistilBert",
    "GPTNeoX",
    "Gemma2",
    "Gemma3",
    "Granite",
    "Llama",
    "MPNet",
    "Mistral",
    "ModernBert",
    "NomicBert",
    "OLMo2",
    "Phi3",
    "Qwen2",
    "Qwen3",
    "Roberta",
    "SmolLM3",
    "StableLM",
    "StarCoder2",
    "add_layer_norm",
    "add_rms_norm",
    "argmax",
    "attention",
    "cast",
    "dequantize",
    "dot128",
    "embedding",
    "erf",
    "exp",
    "fma",
    "gate",
    "gelu",
    "layer_norm",
    "linear",
    "linear_int16",
    "log_probabilities",
    "mean_pool",
    "narrow",
    "next_token",
    "normalize",
    "philox",
    "quantize",
    "relu",
    "rms_norm",
    "rope",
    "rope_table",
    "sigmoid",
    "silu",
    "softmax",
    "sum64",
    "tanh",
    "widen",
]

for _base in (_Decoder, _Encoder):  # what the families inherit
    guard_methods(_base)
for _name in __all__:
    if isinstance(globals()[_name], type):
        guard_methods(globals()[_name])
    else:
        globals()[_name] = guarded(globals()[_name])
