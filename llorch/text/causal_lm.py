"""`llorch.CausalLM`: a model's engine, and text to and from it."""

from llorch.models.engine import GPT2
from llorch.text.generate import Faces


class CausalLM(Faces, GPT2):
    __doc__ = GPT2.__doc__
