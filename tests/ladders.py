"""The embedded model's network and its right dump, for the tests of the validator."""

import functools

from gpt2_models import random_model

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
