"""The families of decoders as the tests make them: one small model each, its switches, and its GGUF file.

tests/models/test_decoders.py does the same with all of them. A new family is one more `Case` here.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from random_models import decoder_metadata, random_tensors, save, write_gguf

import llorch
from llorch import reference
from llorch.models import registry

TINY = {
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 300,
    "tie_word_embeddings": False,
}
WIDE = {"hidden_size": 96, "intermediate_size": 64}  # whose rows are whole blocks of GGUF's formats
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 4.0, 9.0],
}


@dataclass(frozen=True)
class Case:
    """A family.

    entries : config.json, without what TINY has. switches : further entries, by name; each must change the logits.
    "wide" is that of quantised files.
    controls : entries that make another model of the same tensors: a changed window and the like. norms : the ends of
    names of norms' parameters that must show in the logits.
    architecture : GGUF's, "" where there is none. metadata, tensors : of a configuration, what the file has besides
    `decoder_metadata` (without the architecture before it) and the parameters. gguf : the switches that it can say.
    graphs : the switches that put a block's steps together in another way; they go through all that "plain" does.
    """

    entries: dict
    switches: dict
    controls: dict = field(default_factory=dict)
    norms: tuple[str, ...] = ("input_layernorm.weight", "post_attention_layernorm.weight")
    architecture: str = ""
    metadata: Callable = lambda config: {}
    tensors: Callable = lambda config: {}
    gguf: tuple[str, ...] = ("plain",)
    graphs: tuple[str, ...] = ()


def _window(config):
    return {"attention.sliding_window": config.sliding_window or 0}


def _phi3_metadata(config):
    entries = _window(config) | {"rope.dimension_count": int(config.head_dim * config.partial_rotary_factor)}
    if config.rope_scaling:
        original = config.rope_scaling["original_max_position_embeddings"]
        factor = config.max_position_embeddings / original
        entries["rope.scaling.original_context_length"] = original
        if factor > 1:
            entries["rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(factor) / np.log(original)))
    return entries


def _phi3_tensors(config):
    names = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}
    scaling = config.rope_scaling or {}
    return {gguf: np.array(scaling[name], np.float32) for name, gguf in names.items() if name in scaling}


def _stablelm_metadata(config):
    """As the converter writes it: side by side where config.json doesn't say it, which the tensors contradict."""
    entries = {"rope.dimension_count": config.rotary_dim, "use_parallel_residual": True}
    if config.rope_scaling:
        entries |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling["factor"])}
    return entries


def _granite_metadata(config):
    return {
        "embedding_scale": config.embedding_multiplier,
        "attention.scale": config.attention_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


CASES = {
    "mistral": Case(
        {"model_type": "mistral", "sliding_window": 5},
        {"no window": {"sliding_window": None}, "head_dim": {"head_dim": 20}, "wide": WIDE},
        {"window": {"sliding_window": 6}},
        architecture="mistral3",
        metadata=_window,
        gguf=("plain", "no window", "head_dim"),
    ),
    "qwen2": Case(
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {
            "no window": {"use_sliding_window": False},
            "wide": {"use_sliding_window": False, **WIDE},
            "layer types": {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
            "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 75}},
        },
        {"window": {"sliding_window": 6}, "layers": {"max_window_layers": 2}},
        architecture="qwen2",
        gguf=("no window",),
    ),
    "qwen3": Case(
        {"model_type": "qwen3", "head_dim": 16, "rope_theta": 1000000.0},
        {
            "head_dim": {"head_dim": 12},  # whose queries and keys are too odd to share a packed weight
            "biases": {"attention_bias": True},
            "wide": WIDE,
            "one key": {"num_key_value_heads": 1},
            "window": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        },
        {"window": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}},
        norms=("input_layernorm.weight", "post_attention_layernorm.weight", "q_norm.weight", "k_norm.weight"),
        architecture="qwen3",
        gguf=("plain", "biases", "head_dim"),
    ),
    "smollm3": Case(
        {"model_type": "smollm3", "num_hidden_layers": 4, "pad_token_id": 0},
        {
            "layers": {"no_rope_layers": [0, 1, 0, 1]},
            "wide": WIDE,
            "interval": {"no_rope_layer_interval": 2},
            "biases": {"attention_bias": True, "mlp_bias": True},
            "window": {"use_sliding_window": True, "sliding_window": 5, "no_rope_layer_interval": 2},
        },
        {"rotated": {"no_rope_layers": [1, 1, 1, 1]}},
        architecture="smollm3",
        gguf=("plain", "biases"),
    ),
    "phi3": Case(
        {"model_type": "phi3", "sliding_window": 11, "pad_token_id": 0},
        {
            "no window": {"sliding_window": None},
            "wide": WIDE,
            "partial": {"partial_rotary_factor": 0.5, "hidden_size": 96},
            "long": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 16},
            "short": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 300},
            "partly long": {
                "hidden_size": 96,
                "original_max_position_embeddings": 30,
                "rope_parameters": {**LONGROPE, "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
            },
        },
        {
            "window": {"sliding_window": 12},
            "long": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 16},
        },
        architecture="phi3",
        metadata=_phi3_metadata,
        tensors=_phi3_tensors,
        gguf=("plain", "no window", "partial", "long", "short"),
    ),
    "stablelm": Case(
        {"model_type": "stablelm", "partial_rotary_factor": 0.5},
        {
            "biases": {"use_qkv_bias": True},
            "side by side": {"use_parallel_residual": True},
            "a quarter": {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.25}},
            "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
            "wide": WIDE,
        },
        {
            "all of a head": {"partial_rotary_factor": 1.0},
            "epsilon": {"layer_norm_eps": 0.01},
            "activation": {"hidden_act": "gelu"},
        },
        norms=("input_layernorm.weight", "input_layernorm.bias", "post_attention_layernorm.bias"),
        architecture="stablelm",
        metadata=_stablelm_metadata,
        gguf=("plain", "biases", "side by side", "a quarter", "linear"),
        graphs=("side by side",),
    ),
    "granite": Case(
        {
            "model_type": "granite",
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.22,
            "logits_scaling": 1.7,
        },
        {
            "no multipliers": {
                **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0),
                "attention_multiplier": 8**-0.5,
            },
            "biases": {"attention_bias": True, "mlp_bias": True},
            "tied": {"tie_word_embeddings": True},
            "head_dim": {"head_dim": 12},
            "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
            "wide": WIDE,
        },
        {
            "embedding": {"embedding_multiplier": 3.1},
            "attention": {"attention_multiplier": 0.21},
            "residual": {"residual_multiplier": 0.23},
            "logits": {"logits_scaling": 1.8},
        },
        architecture="granite",
        metadata=_granite_metadata,
        gguf=("plain", "no multipliers", "biases", "tied", "head_dim"),
        graphs=("no multipliers",),
    ),
}
ALL = [(name, switch) for name, case in CASES.items() for switch in ("plain", *case.switches)]
GRAPHS = [(name, switch) for name, case in CASES.items() for switch in ("plain", *case.graphs)]
GGUF = [(name, switch) for name, case in CASES.items() for switch in case.gguf]


def entries_of(name, switch="plain"):
    """config.json of a family with a switch: a copy, as transformers changes what it is given."""
    case = CASES[name]
    return copy.deepcopy(TINY | case.entries | ({} if switch == "plain" else case.switches[switch]))


def family_of(name):
    return next(family for family in registry.families() if name in family.model_types)


@functools.cache
def made(name, switch="plain"):
    """The family, configuration and tensors of a case; not to be changed."""
    family = family_of(name)
    config = family.config(entries_of(name, switch))
    return family, config, random_tensors(family, config)


def write(folder, name, switch="plain", entries=None, tensors=None):
    """A model in Hugging Face's format, loaded; entries and tensors in the place of the case's."""
    family, _, kept = made(name, switch)
    given = entries_of(name, switch) | (entries or {})
    return llorch.CausalLM.from_pretrained(
        save(folder, given, kept if tensors is None else tensors, family.prefixes[0])
    )


def write_file(path, name, switch="plain", **options):
    """The same as a GGUF file, loaded. options: of `write_gguf`."""
    family, config, tensors = made(name, switch)
    case = CASES[name]
    metadata = decoder_metadata(config, case.architecture)
    metadata |= {f"{case.architecture}.{entry}": value for entry, value in case.metadata(config).items()}
    write_gguf(path, family, config, tensors, case.architecture, metadata, extra=case.tensors(config), **options)
    return llorch.CausalLM.from_pretrained(path)


def by_text(name, switch, ids):
    """Logits by the family's text in llorch.reference."""
    family, config, tensors = made(name, switch)
    return getattr(reference, family.reference)(config, tensors).forward(ids)
