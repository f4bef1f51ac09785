"""`llorch.CausalLM`: a model's engine, and text to and from it."""

from llorch.models.engine import Decoder
from llorch.text.generate import Faces


class CausalLM(Faces, Decoder):
    __doc__ = Decoder.__doc__
