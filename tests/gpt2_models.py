"""Seeded random GPT-2 models for the tests, on disk as Hugging Face has them."""

import json

import ml_dtypes
import numpy as np
from helpers import rng
from safetensors.numpy import save_file

from llorch import GPT2
from llorch.files import Reader, open_model
from llorch.models import loading
from llorch.models.gpt2 import GPT2Config, shapes

NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TINY = {"vocab_size": 61, "n_positions": 160, "n_embd": 24, "n_layer": 2, "n_head": 3}


def random_tensors(entries, seed=0, *, untied=False):
    """float32 tensors by name, spread so that activations and logits are of the order of 1, as in a trained model."""
    tensors = {}
    for i, (name, shape) in enumerate(shapes(GPT2Config.from_dict(entries)).items()):
        values = rng(seed, i).standard_normal(shape)
        if name.endswith("bias"):
            values *= 0.1
        elif len(shape) == 1:
            values = 1 + 0.2 * values
        else:
            values *= 0.3 if name.startswith("w") else shape[0] ** -0.5
        tensors[name] = values.astype(np.float32)
    if untied:
        tensors["lm_head.weight"] = (
            rng(seed, 1000).standard_normal(tensors["wte.weight"].shape).astype(np.float32) * 0.3
        )
    return tensors


def cast(tensors, dtype):
    return {name: values.astype(NUMPY[dtype]) for name, values in tensors.items()}


def save(folder, entries, tensors, file="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(entries))
    save_file(tensors, folder / file)
    return folder


def random_model(folder, entries=None, seed=0, *, dtype="float32", untied=False):
    entries = TINY | (entries or {})
    return GPT2.from_pretrained(
        save(folder, entries, cast(random_tensors(entries, seed, untied=untied), dtype)),
    )


def tensors_of(model):
    """The tensors of a model's file by the graph's names, in the file's types; without what was left out."""
    found = loading.find(open_model(model.path), model.family, model.graph)
    return {name: Reader().array(entry).copy() for name, entry in found.entries.items()}
