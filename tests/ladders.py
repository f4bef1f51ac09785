"""The networks of a GPT-2 and a Llama and their right dumps, for the tests of the validator."""

import functools
import tempfile
from pathlib import Path

from gpt2_models import random_model
from random_models import random_llama

from llorch.validate.ladder import faults, selftest
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.network import Kernels
from llorch.validate.ladder.sources import Model

PROMPT = "Hello. My lord, what news?"


@functools.cache
def embedded():
    return Model()


@functools.cache
def network():
    """The embedded model's, its weights with all of float32's bits."""
    return selftest.full_precision(embedded().network)


@functools.cache
def right():
    """The dump of `network()` for PROMPT: not to be changed."""
    return selftest.right_dump(network(), embedded().ids(PROMPT))


def dump_with(key, *layers):
    """The dump of `network()` with a fault."""
    fault = faults.by_key(network())[key]
    return Dump(fault.inject(network(), *layers).run(right().ids, Kernels()), {}, "theirs")


def copied(dump):
    return Dump({name: values.copy() for name, values in dump.arrays.items()}, {}, "theirs")


def tiny(folder, entries=None, **options):
    """A random model on disk: 2 blocks of 24, without a tokenizer."""
    random_model(folder, entries, **options)
    return Model(folder)


@functools.cache
def llama():
    """A random Llama: 2 blocks, 6 heads, 2 of keys, read into memory from a folder that is gone."""
    with tempfile.TemporaryDirectory() as folder:
        random_llama(Path(folder, "model"), {"tie_word_embeddings": False, "attention_bias": True})
        model = Model(Path(folder, "model"))
        assert model.engine and model.network and model.sha256
    return model
