"""The networks of a GPT-2 and a Llama and their right dumps, for the tests of the validator."""

import functools
import tempfile
from pathlib import Path

import numpy as np
from gpt2_models import random_model
from helpers import rng
from random_models import random_llama

from llorch.validate.ladder import faults, selftest
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.network import Kernels
from llorch.validate.ladder.sources import Model

PROMPT = "Hello. My lord, what news?"
IDS = [3, 1, 4, 1, 5, 9, 2]  # of a Llama


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


def side_by_side(a):
    """(heads, T, D) with the rotated pairs of a head side by side."""
    return a.reshape(*a.shape[:2], 2, -1).swapaxes(2, 3).reshape(a.shape)


def of_llama_cpp(a, T, noise=0.0):
    """A Llama's dump as llama.cpp has it: its names, pairs side by side, scores before scale and mask, with room."""
    heads, found = rng(4), {}
    for i in (0, 1):
        q, v, q_rope, k_rope = (a[f"h.{i}.attn.{x}"] for x in ("q", "v", "q_rope", "k_rope"))
        product = np.einsum("htd,hsd->hts", q_rope, np.repeat(k_rope, 3, axis=0))
        found |= {
            f"Qcur-{i}": side_by_side(q).transpose(1, 0, 2)[None],
            f"Qcur_rope-{i}": side_by_side(q_rope).transpose(1, 0, 2)[None],
            f"Kcur-{i}": side_by_side(k_rope).transpose(1, 0, 2)[None],  # by name alone: the last of its three
            f"Vcur-{i}": v.transpose(1, 0, 2)[None],
            f"kq-{i}": np.pad(product, ((0, 0), (0, 0), (0, 32 - T)))[None],
            f"kqv-{i}": a[f"h.{i}.attn.context"].reshape(T, 6, -1).swapaxes(0, 1)[None],
            f"kqv_out-{i}": a[f"h.{i}.attn.context"][None, None],
            f"attn_out-{i}": a[f"h.{i}.attn.c_proj"][None, None],
            f"ffn_swiglu-{i}": a[f"h.{i}.mlp.product"][None, None],
            f"l_out-{i}": a[f"h.{i}"][None, None],
        }
    found |= {"norm": a["ln_f"] * 3, "result_norm": a["ln_f"]}
    return {n: x * (1 + noise * heads.standard_normal(x.shape)).astype(np.float32) for n, x in found.items()}
