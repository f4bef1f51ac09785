"""The families of decoders as the tests make them: one small model each, its switches, and its GGUF file.

tests/models/test_decoders.py does the same with all of them. A new family is one more `Case` here.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from helpers import rng
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
    "max_position_embeddings": 300,
}
GROUPED = {"num_key_value_heads": 2, "tie_word_embeddings": False}
WIDE = {"hidden_size": 96, "intermediate_size": 64}  # whose rows are whole blocks of GGUF's formats
LINEAR = {"rope_type": "linear", "factor": 3.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 4.0, 9.0],
}
WINDOW = {"num_hidden_layers": 1, "sliding_window": 5}

LENGTH = 21  # past every window and original context that the cases have, but phi3's "short" and "partly long"
LONG = 133  # past a block of the cache


def ids_of(length=LENGTH, seed=0):
    """Token ids; of one seed each text begins as a longer one does."""
    return rng(15, seed).integers(0, TINY["vocab_size"], 200)[:length]


@dataclass(frozen=True)
class Case:
    """A family.

    entries : config.json, without what TINY has. switches : further entries, by name; each must change the logits.
    "wide" is that of quantised files.
    controls : entries that make another model of the same tensors: a changed window and the like. norms : the ends of
    names of norms' parameters that must show in the logits. window : entries of a model of one layer whose queries see
    five positions, {} for a family without windows.
    metadata, tensors : of a configuration, what a GGUF file has besides `decoder_metadata` (without the architecture
    before it; None takes an entry out) and the parameters. unsaid : the switches, or "plain", that it can't say.
    graphs : the switches that put a block's steps together in another way; they go through all that "plain" does.
    beside : the switches that are compared with transformers, None for all. unseen : of "plain" or one of `graphs`,
    the tensors of a block that no module of transformers makes or takes.
    """

    entries: dict
    switches: dict
    controls: dict = field(default_factory=dict)
    norms: tuple[str, ...] = ("input_layernorm.weight", "post_attention_layernorm.weight")
    window: dict = field(default_factory=dict)
    metadata: Callable = lambda config: {}
    tensors: Callable = lambda config: {}
    unsaid: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    beside: tuple[str, ...] | None = None
    unseen: dict = field(default_factory=dict)

    @property
    def all(self):
        return ("plain", *self.switches)

    @property
    def said(self):
        """The switches of GGUF files."""
        return tuple(switch for switch in self.all if switch not in self.unsaid)


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
    return {"rope.dimension_count": config.rotary_dim, "use_parallel_residual": True}


def _without_width(config):
    """Of a converter that leaves the width of a head to be hidden_size / num_attention_heads."""
    return {"attention.key_length": None}


def _starcoder2_metadata(config):
    return _without_width(config) | ({} if config.sliding_window is None else _window(config))


def _neox_metadata(config):
    entries = {"rope.dimension_count": config.rotary_dim, "use_parallel_residual": config.use_parallel_residual}
    return _without_width(config) | entries


def _gemma_metadata(config):
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    return _window(config) | {name: float(cap) for name in caps if (cap := getattr(config, name)) is not None}


def _gemma3_metadata(config):
    entries = {"rope.freq_base_swa": float(config.rope_local_base_freq)}
    entries["attention.sliding_window_pattern"] = config.layer_types.index("full_attention") + 1
    return _gemma_metadata(config) | entries


def _granite_metadata(config):
    return {
        "embedding_scale": config.embedding_multiplier,
        "attention.scale": config.attention_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


NORMS_AROUND = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "pre_feedforward_layernorm.weight",
    "post_feedforward_layernorm.weight",
)
LAYER_NORMS = ("input_layernorm.weight", "input_layernorm.bias", "post_attention_layernorm.bias")
CASES = {
    "mistral": Case(
        {**GROUPED, "model_type": "mistral", "sliding_window": 5},
        {"no window": {"sliding_window": None}, "head_dim": {"head_dim": 20}, "wide": WIDE},
        {"window": {"sliding_window": 6}},
        window=WINDOW,
        metadata=_window,
    ),
    "qwen2": Case(
        {**GROUPED, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {
            "no window": {"use_sliding_window": False},
            "wide": {"use_sliding_window": False, **WIDE},
            "layer types": {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
            "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 75}},
        },
        {"window": {"sliding_window": 6}, "layers": {"max_window_layers": 2}},
        window={**WINDOW, "max_window_layers": 0},
        unsaid=("plain", "layer types", "yarn"),
    ),
    "qwen3": Case(
        {**GROUPED, "model_type": "qwen3", "head_dim": 16, "rope_theta": 1000000.0},
        {
            "head_dim": {"head_dim": 12},  # whose queries and keys are too odd to share a packed weight
            "biases": {"attention_bias": True},
            "wide": WIDE,
            "one key": {"num_key_value_heads": 1},
            "window": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        },
        {"window": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}},
        norms=("input_layernorm.weight", "post_attention_layernorm.weight", "q_norm.weight", "k_norm.weight"),
        window={**WINDOW, "use_sliding_window": True, "max_window_layers": 0},
        unsaid=("window",),
    ),
    "smollm3": Case(
        {**GROUPED, "model_type": "smollm3", "num_hidden_layers": 4, "pad_token_id": 0},
        {
            "layers": {"no_rope_layers": [0, 1, 0, 1]},
            "wide": WIDE,
            "interval": {"no_rope_layer_interval": 2},
            "biases": {"attention_bias": True, "mlp_bias": True},
            "window": {"use_sliding_window": True, "sliding_window": 5, "no_rope_layer_interval": 2},
        },
        {"rotated": {"no_rope_layers": [1, 1, 1, 1]}},
        window={**WINDOW, "use_sliding_window": True, "no_rope_layer_interval": 1},
        unsaid=("layers", "interval", "window"),
    ),
    "phi3": Case(
        {**GROUPED, "model_type": "phi3", "sliding_window": 11, "pad_token_id": 0},
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
        window=WINDOW,
        metadata=_phi3_metadata,
        tensors=_phi3_tensors,
    ),
    "stablelm": Case(
        {**GROUPED, "model_type": "stablelm", "partial_rotary_factor": 0.5},
        {
            "biases": {"use_qkv_bias": True},
            "side by side": {"use_parallel_residual": True},
            "a quarter": {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.25}},
            "linear": {"rope_scaling": LINEAR},
            "wide": WIDE,
        },
        {
            "all of a head": {"partial_rotary_factor": 1.0},
            "epsilon": {"layer_norm_eps": 0.01},
            "activation": {"hidden_act": "gelu"},
        },
        norms=LAYER_NORMS,
        metadata=_stablelm_metadata,
        graphs=("side by side",),
        unseen={"side by side": ("residual",)},
    ),
    "granite": Case(
        {
            **GROUPED,
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
            "linear": {"rope_scaling": LINEAR},
            "wide": WIDE,
        },
        {
            "embedding": {"embedding_multiplier": 3.1},
            "attention": {"attention_multiplier": 0.21},
            "residual": {"residual_multiplier": 0.23},
            "logits": {"logits_scaling": 1.8},
        },
        metadata=_granite_metadata,
        graphs=("no multipliers",),
        unseen={"plain": ("attn.scaled", "mlp.scaled")},
    ),
    "gemma2": Case(
        {
            "model_type": "gemma2",
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 7,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        {
            "window": {"sliding_window": 8},
            "softcap": {"attn_logit_softcapping": 2.5},
            "no softcap": {"attn_logit_softcapping": None},
            "no cap of the logits": {"final_logit_softcapping": None},
            "scalar": {"query_pre_attn_scalar": 20},
            "layers": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "biases": {"attention_bias": True},
            "untied": {"tie_word_embeddings": False},
            "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
            "activation": {"hidden_activation": "silu"},
            "epsilon": {"rms_norm_eps": 0.01},
            "wide": WIDE,
        },
        norms=NORMS_AROUND,
        window=WINDOW,
        metadata=_gemma_metadata,
        unsaid=("no softcap", "no cap of the logits", "scalar", "layers", "activation"),
        beside=("scalar", "layers"),
    ),
    "gemma3": Case(
        {
            "model_type": "gemma3_text",
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 7,
            "sliding_window_pattern": 2,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {
            "window": {"sliding_window": 8},
            "pattern": {"sliding_window_pattern": 3},
            "local base": {"rope_local_base_freq": 300.0},
            "global base": {"rope_theta": 20000.0},
            "no scaling": {"rope_scaling": None},
            "transformers 5": {
                "rope_scaling": None,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
                },
            },
            "cap of the logits": {"final_logit_softcapping": 3.0},
            "scalar": {"query_pre_attn_scalar": 20},
            "groups": {"num_key_value_heads": 3},
            "wide": WIDE,
        },
        norms=(*NORMS_AROUND, "q_norm.weight", "k_norm.weight"),
        window=WINDOW,
        metadata=_gemma3_metadata,
        unsaid=("scalar",),
        beside=("transformers 5", "cap of the logits"),
    ),
    "olmo2": Case(
        {"model_type": "olmo2", "num_key_value_heads": 2},
        {
            "all heads": {"num_key_value_heads": None},
            "biases": {"attention_bias": True},
            "tied": {"tie_word_embeddings": True},
            "theta": {"rope_theta": 500.0},
            "linear": {"rope_scaling": LINEAR},
            "epsilon": {"rms_norm_eps": 0.01},
            "wide": WIDE,
        },
        norms=(
            "post_attention_layernorm.weight",
            "post_feedforward_layernorm.weight",
            "q_norm.weight",
            "k_norm.weight",
        ),
        metadata=_without_width,
        beside=("biases",),
    ),
    "gpt_neox": Case(
        {"model_type": "gpt_neox", "rotary_pct": 0.5},
        {
            "one after the other": {"use_parallel_residual": False},
            "a quarter": {"rotary_pct": 0.25},
            "all of a head": {"rotary_pct": 1.0},
            "no biases": {"attention_bias": False},
            "tied": {"tie_word_embeddings": True},
            "theta": {"rotary_emb_base": 500},
            "activation": {"hidden_act": "gelu_fast"},
            "epsilon": {"layer_norm_eps": 0.01},
            "wide": WIDE,
        },
        norms=LAYER_NORMS,
        metadata=_neox_metadata,
        unsaid=("activation",),
        graphs=("one after the other",),
        beside=("one after the other", "tied"),
        unseen={"plain": ("branches",)},
    ),
    "starcoder2": Case(
        {"model_type": "starcoder2", "num_key_value_heads": 2, "sliding_window": 9},
        {
            "no window": {"sliding_window": None},
            "window": {"sliding_window": 10},
            "no biases": {"use_bias": False},
            "untied": {"tie_word_embeddings": False},
            "theta": {"rope_theta": 500.0},
            "activation": {"hidden_act": "gelu"},
            "epsilon": {"norm_epsilon": 0.01},
            "wide": WIDE,
        },
        norms=LAYER_NORMS,
        window=WINDOW,
        metadata=_starcoder2_metadata,
        unsaid=("activation",),
        beside=("no window",),
    ),
}
ALL = [(name, switch) for name, case in CASES.items() for switch in case.all]
GRAPHS = [(name, switch) for name, case in CASES.items() for switch in ("plain", *case.graphs)]
GGUF = [(name, switch) for name, case in CASES.items() for switch in case.said]
BESIDE = [
    (name, switch)
    for name, case in CASES.items()
    for switch in ("plain", *(case.switches if case.beside is None else case.beside))
]


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


def write(folder, name, switch="plain", entries=None, tensors=None, dtype=None):
    """A model in Hugging Face's format, loaded; entries and tensors in the place of the case's. dtype: of
    `llorch.CausalLM.from_pretrained`."""
    family, _, kept = made(name, switch)
    given = entries_of(name, switch) | (entries or {})
    path = save(folder, given, kept if tensors is None else tensors, family.prefixes[-1])
    return llorch.CausalLM.from_pretrained(path, dtype=dtype)


def metadata_of(name, config):
    """What a GGUF file of a family says of a model."""
    architecture = family_of(name).architectures[0]
    own = {f"{architecture}.{entry}": value for entry, value in CASES[name].metadata(config).items()}
    return {key: value for key, value in (decoder_metadata(config, architecture) | own).items() if value is not None}


def write_file(path, name, switch="plain", tensors=None, **options):
    """The same as a GGUF file, loaded. options: of `write_gguf`."""
    family, config, kept = made(name, switch)
    given = kept if tensors is None else tensors
    extra = CASES[name].tensors(config)
    write_gguf(path, family, config, given, family.architectures[0], metadata_of(name, config), extra=extra, **options)
    return llorch.CausalLM.from_pretrained(path)


def by_text(name, switch="plain", length=LENGTH):
    """Logits of `ids_of(length)` by the family's text in llorch.reference; of "plain" and the like up to LONG."""
    return _by_text(name, switch)[:length]


@functools.cache
def _by_text(name, switch):
    family, config, tensors = made(name, switch)
    ids = ids_of(LONG if (name, switch) in GRAPHS else LENGTH)
    logits = getattr(reference, family.reference)(config, tensors).forward(ids)
    logits.flags.writeable = False
    return logits
