"""Seeded random Llamas for the tests."""

import numpy as np
from helpers import rng

from llorch.models.llama import LlamaConfig, graph

TINY = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 256}  # fmt: skip


def random_llama(entries=None, seed=0):
    """A configuration, and float32 tensors by name, (out, in), spread so that logits are of the order of 1."""
    config = LlamaConfig.from_dict(TINY | (entries or {}))
    tensors = {}
    for i, (name, shape) in enumerate(graph(config).shapes().items()):
        values = rng(seed, i).standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif len(shape) == 2:
            values *= 0.3 if "embed" in name or "head" in name else shape[1] ** -0.5
        tensors[name] = values.astype(np.float32)
    return config, tensors
