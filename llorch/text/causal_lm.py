"""`llorch.CausalLM`: a model's engine, and text to and from it."""

import inspect

from llorch.models.engine import Decoder
from llorch.text.generate import Faces


class CausalLM(Faces, Decoder):
    __doc__ = Decoder.__doc__


for _name, _method in {**vars(Decoder), **vars(Faces)}.items():
    if inspect.isfunction(_method):  # what Python says of a wrong call begins with the name that its caller knows
        _method.__qualname__ = f"CausalLM.{_name}"
