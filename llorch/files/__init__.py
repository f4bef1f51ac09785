"""Model files as named arrays: safetensors, GGUF, folders. Knows no model."""
