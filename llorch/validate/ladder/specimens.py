"""A small model of random weights of every family, with all that its configuration can switch on, for the self-test."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from llorch.models import loading
from llorch.models.registry import Family
from llorch.models.shapes import random_tensors
from llorch.validate.ladder.endings import Ending, Linear
from llorch.validate.ladder.network import Network

# Entries of config.json, for those families that have them.
SIZES: dict[str, Any] = {
    "vocab_size": 259,
    **dict.fromkeys(("hidden_size", "n_embd", "dim"), 48),
    **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim"), 80),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 6),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 60),
    "num_key_value_heads": 6,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
# Those that a family may refuse. Under these numbers each fault is far above float32's noise, as a cap of 50 is not for
# scores of the order of 1.
SWITCHES: dict[str, Any] = {
    "num_key_value_heads": 3,
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"), 1e-2),
    "use_sliding_window": True,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "max_window_layers": 1,
    "local_attention": 6,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "query_pre_attn_scalar": 20,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
    "logits_scaling": 1.7,
    "partial_rotary_factor": 0.5,
    "rotary_pct": 0.5,
    "rope_theta": 1000.0,
    "no_rope_layer_interval": 3,
}
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED |= {"original_max_position_embeddings": 16}
ENDING = Ending("mean", (Linear(40, True, "tanh"), None))  # of encoders
IDS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 58)


def specimen(family: Family) -> Network:
    """A model of a family in memory."""
    base = family.config({"model_type": family.model_types[0]})
    names = {field.name for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    entries = {name: value for name, value in SIZES.items() if name in names}
    entries |= {"model_type": family.model_types[0]}
    config = family.config(entries)
    for name, value in {**SWITCHES, "rope_scaling": SCALED}.items():
        if name in names:
            try:
                config = family.config(entries | {name: value})
            except ValueError:  # a family that has another rule, or none
                continue
            entries[name] = value
    ending = ENDING if family.kind == "encoder" else None
    graph = family.graph(config) if ending is None else ending.behind(family.graph(config))
    parameters = {name: parameter for name, _, parameter in graph.all_parameters()}
    tensors = {}
    for name, values in random_tensors(graph).items():
        arranged = loading.arranged(values, parameters[name], graph, "hf")
        tensors[name] = np.ascontiguousarray(loading.whole(arranged, parameters[name], "hf"))
    network = Network.of(family.name, config, graph, tensors)
    network.ending = ending
    return network
