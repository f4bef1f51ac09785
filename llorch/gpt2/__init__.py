"""GPT-2 on llorch's kernels: configuration, loading, the model; see `llorch.GPT2`."""

from llorch.gpt2.config import GPT2Config
from llorch.gpt2.model import GPT2, Cache

__all__ = ["GPT2", "Cache", "GPT2Config"]
