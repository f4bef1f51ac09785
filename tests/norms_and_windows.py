"""Random models of the decoders that differ most from Llama: their configurations, small, what each switch of them
changes, and what GGUF says of them."""

from dataclasses import dataclass, field

import llorch
from llorch.models import gemma2, gemma3, gpt_neox, olmo2, starcoder2
from llorch.models.registry import Family

SMALL = {
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 300,
}
LINEAR = {"rope_type": "linear", "factor": 3.0}


@dataclass
class Case:
    """family. entries : of config.json. switches : other entries, by a name; "~" in front: what GGUF can't say.
    metadata : GGUF's entries of a configuration, besides those of every decoder, without the architecture."""

    family: Family
    entries: dict
    switches: dict
    metadata: object = field(default=lambda config: {})

    @property
    def prefix(self):
        return self.family.prefixes[-1]

    def config(self, switch="plain"):
        return self.family.config(self.with_switch(switch))

    def with_switch(self, switch):
        return self.entries | ({} if switch == "plain" else self.switches[switch])


def gemma_metadata(config):
    found = {"attention.key_length": config.head_dim, "attention.sliding_window": config.sliding_window}
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name) is not None:
            found[name] = float(getattr(config, name))
    return found


def gemma3_metadata(config):
    found = gemma_metadata(config) | {"rope.freq_base_swa": float(config.rope_local_base_freq)}
    found |= {"attention.sliding_window_pattern": config.layer_types.index("full_attention") + 1}
    return found | scaling_metadata(config)


def scaling_metadata(config):
    if config.rope_scaling is None:
        return {}
    return {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling["factor"])}


def neox_metadata(config):
    return {"rope.dimension_count": config.rotary_dim, "use_parallel_residual": config.use_parallel_residual}


CASES = {
    "gemma2": Case(
        gemma2.FAMILY,
        SMALL
        | {
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
            "~no softcap": {"attn_logit_softcapping": None},
            "~no cap of the logits": {"final_logit_softcapping": None},
            "~scalar": {"query_pre_attn_scalar": 20},
            "~layers": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "biases": {"attention_bias": True},
            "untied": {"tie_word_embeddings": False},
            "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
            "~activation": {"hidden_activation": "silu"},
            "epsilon": {"rms_norm_eps": 0.01},
        },
        gemma_metadata,
    ),
    "gemma3": Case(
        gemma3.FAMILY,
        SMALL
        | {
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
            "~scalar": {"query_pre_attn_scalar": 20},
            "groups": {"num_key_value_heads": 3},
        },
        gemma3_metadata,
    ),
    "olmo2": Case(
        olmo2.FAMILY,
        SMALL | {"model_type": "olmo2", "num_key_value_heads": 2},
        {
            "all heads": {"num_key_value_heads": None},
            "biases": {"attention_bias": True},
            "tied": {"tie_word_embeddings": True},
            "theta": {"rope_theta": 500.0},
            "linear": {"rope_scaling": LINEAR},
            "epsilon": {"rms_norm_eps": 0.01},
        },
        scaling_metadata,
    ),
    "gpt_neox": Case(
        gpt_neox.FAMILY,
        SMALL | {"model_type": "gpt_neox", "rotary_pct": 0.5},
        {
            "one after the other": {"use_parallel_residual": False},
            "a quarter": {"rotary_pct": 0.25},
            "all of a head": {"rotary_pct": 1.0},
            "no biases": {"attention_bias": False},
            "tied": {"tie_word_embeddings": True},
            "theta": {"rotary_emb_base": 500},
            "~activation": {"hidden_act": "gelu_fast"},
            "epsilon": {"layer_norm_eps": 0.01},
        },
        neox_metadata,
    ),
    "starcoder2": Case(
        starcoder2.FAMILY,
        SMALL | {"model_type": "starcoder2", "num_key_value_heads": 2, "sliding_window": 9},
        {
            "no window": {"sliding_window": None},
            "window": {"sliding_window": 10},
            "no biases": {"use_bias": False},
            "untied": {"tie_word_embeddings": False},
            "theta": {"rope_theta": 500.0},
            "~activation": {"hidden_act": "gelu"},
            "epsilon": {"norm_epsilon": 0.01},
        },
        lambda config: {} if config.sliding_window is None else {"attention.sliding_window": config.sliding_window},
    ),
}
PLAIN = list(CASES)
EVERY = [(name, switch) for name, case in CASES.items() for switch in ("plain", *case.switches)]
SAID_BY_GGUF = [(name, switch) for name, switch in EVERY if not switch.startswith("~")]


def metadata(name, config):
    """What a GGUF file says of a model."""
    case = CASES[name]
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": float(config.rope_theta),
        config.GGUF_EPS: float(config.eps),
    }
    architecture = case.family.architectures[0]
    return {f"{architecture}.{key}": value for key, value in (found | case.metadata(config)).items()}


def load(path):
    return llorch.CausalLM.from_pretrained(path)
