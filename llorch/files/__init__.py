"""Model files as named arrays: safetensors, GGUF, folders. Knows no model."""

from llorch.files.folder import Source, open_model
from llorch.files.tensor import FORMATS, Entry, Format, Reader

__all__ = ["FORMATS", "Entry", "Format", "Reader", "Source", "open_model"]
