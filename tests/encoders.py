"""The families of encoders as the tests make them: one small model each, its switches, and its GGUF file.

tests/models/test_encoders.py does the same with all of them. A new family is one more `Case` here.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from random_models import random_tensors, usual_metadata, write_gguf
from safetensors.numpy import save_file

from llorch import reference
from llorch.models import bert, registry
from llorch.models.encoder_engine import Classifier, Encoder

TINY = {
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 300,
}
MODERN = {**TINY, "num_hidden_layers": 3, "pad_token_id": 0, "local_attention": 10}
MODERN |= {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
DISTIL = {"dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 6, "vocab_size": 67, "max_position_embeddings": 300}
WIDE = {"hidden_size": 96, "intermediate_size": 64}  # whose rows are whole blocks of GGUF's formats


@dataclass(frozen=True)
class Case:
    """A family.

    entries : config.json. switches : further entries, by name; each must change the hidden state. controls : entries
    that make another model of the same tensors. labels : whether it has a classifier, whose names begin with one of
    `outside`: no prefix stands before those.
    architecture : GGUF's, "" where there is none. gguf : the switches that it can say. metadata : of a configuration,
    what the file has besides the usual. as_gguf : family, configuration and tensors to what the file is written as.
    length : of the text that transformers is compared on. theirs : transformers' class of the hidden state.
    """

    entries: dict
    switches: dict = field(default_factory=dict)
    controls: dict = field(default_factory=dict)
    labels: bool = True
    outside: tuple[str, ...] = ("classifier",)
    architecture: str = "bert"
    gguf: tuple[str, ...] = ("plain",)
    metadata: Callable = lambda config: {}
    as_gguf: Callable = lambda family, config, tensors: (family, config, tensors)
    length: int = 40
    theirs: str = "BertModel"


def _as_bert(rename, first=0):
    """A model as the BERT that GGUF has it as: other names, and the positions from the first one on."""

    def of(family, config, tensors):
        places = "embeddings.position_embeddings.weight"
        made = {rename(name): values for name, values in tensors.items()}
        made[places] = np.ascontiguousarray(made[places][first:])
        entries = {f.name: getattr(config, f.name) for f in dataclasses.fields(bert.BertConfig)}
        return bert.FAMILY, bert.BertConfig(**entries | {"max_position_embeddings": len(made[places])}), made

    return of


DISTIL_NAMES = {
    "transformer.layer.": "encoder.layer.",
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}


def _distil_name(name):
    for theirs, ours in DISTIL_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _nomic_metadata(config):
    return {"rope.freq_base": float(config.rope_theta)}


def _modern_metadata(config):
    return {
        "attention.sliding_window": config.local_attention,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
        "rope.freq_base": config.global_rope_theta,
        "rope.freq_base_swa": config.local_rope_theta,
    }


CASES = {
    "bert": Case(
        {"model_type": "bert", **TINY},
        {
            "one type": {"type_vocab_size": 1},
            "relu": {"hidden_act": "relu"},
            "epsilon": {"layer_norm_eps": 0.01},
            "odd": {"hidden_size": 44, "num_attention_heads": 4, "intermediate_size": 67},
            "wide": WIDE,
        },
        {"epsilon": {"layer_norm_eps": 0.01}, "heads": {"num_attention_heads": 3}},
        gguf=("plain", "one type", "epsilon", "odd"),
    ),
    "distilbert": Case(
        {"model_type": "distilbert", **DISTIL},
        {"silu": {"activation": "silu"}, "wide": {"dim": 96, "hidden_dim": 64}},
        {"heads": {"n_heads": 3}},
        outside=("classifier", "pre_classifier"),
        as_gguf=_as_bert(_distil_name),
        theirs="DistilBertModel",
    ),
    "roberta": Case(
        {"model_type": "roberta", **TINY, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        {"two types": {"type_vocab_size": 2}, "padding": {"pad_token_id": 5}, "wide": WIDE},
        {"padding": {"pad_token_id": 2}, "heads": {"num_attention_heads": 3}},
        gguf=("plain", "two types"),
        as_gguf=_as_bert(str, 2),
        theirs="RobertaModel",
    ),
    "xlm-roberta": Case(
        {"model_type": "xlm-roberta", **TINY, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        as_gguf=_as_bert(str, 2),
        theirs="XLMRobertaModel",
    ),
    "nomic_bert": Case(
        {"model_type": "nomic_bert", **TINY},
        {
            "base": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
            "gelu": {"hidden_act": "gelu"},
            "one type": {"type_vocab_size": 1},
            "wide": WIDE,
        },
        {"base": {"rope_theta": 500.0}, "heads": {"num_attention_heads": 3}},
        labels=False,
        architecture="nomic-bert",
        gguf=("plain", "base", "one type"),
        metadata=_nomic_metadata,
        theirs="NomicBertModel",
    ),
}
CASES |= {
    "mpnet": Case(
        {"model_type": "mpnet", **TINY},
        {"epsilon": {"layer_norm_eps": 0.01}, "relu": {"hidden_act": "relu"}},
        {"epsilon": {"layer_norm_eps": 0.01}},
        architecture="",
        gguf=(),
        length=150,
        theirs="MPNetModel",
    ),
    "modernbert": Case(
        {"model_type": "modernbert", **MODERN},
        {
            "biases": {"norm_bias": True, "attention_bias": True, "mlp_bias": True},
            "epsilon": {"norm_eps": 0.01},
            "silu": {"hidden_activation": "silu"},
            "every second": {"global_attn_every_n_layers": 2, "local_attention": 7},
            "types": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            "bases": {"global_rope_theta": 500.0, "local_rope_theta": 20.0},
            "wide": WIDE,
        },
        {
            "a window one wider": {"local_attention": 12},
            "no window": {"layer_types": ["full_attention"] * 3},
            "base": {"local_rope_theta": 9000.0},
            "heads": {"num_attention_heads": 3},
        },
        labels=False,
        architecture="modern-bert",
        gguf=("plain", "biases", "epsilon", "every second", "types", "bases"),
        metadata=_modern_metadata,
        theirs="ModernBertModel",
    ),
}
ALL = [(name, switch) for name, case in CASES.items() for switch in ("plain", *case.switches)]
GGUF = [(name, switch) for name, case in CASES.items() for switch in case.gguf]
LABELS = [name for name, case in CASES.items() if case.labels]


def entries_of(name, switch="plain"):
    """config.json of a family with a switch: a copy, as transformers changes what it is given."""
    case = CASES[name]
    return copy.deepcopy(case.entries | ({} if switch == "plain" else case.switches[switch]))


def family_of(name):
    return next(family for family in registry.families() if name in family.model_types)


@functools.cache
def made(name, switch="plain", labels=False):
    """The family, configuration and tensors of a case; not to be changed."""
    family = family_of(name)
    config = family.config(entries_of(name, switch) | ({"num_labels": 1} if labels else {}))
    graph = family.classifier if labels else family.graph
    return family, config, random_tensors(dataclasses.replace(family, graph=graph), config)


def save(folder, name, entries, tensors):
    """A folder as Hugging Face has it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(entries))
    prefix, outside = family_of(name).prefixes[0], CASES[name].outside
    named = {key if key.startswith(outside) else prefix + key: values for key, values in tensors.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write(folder, name, switch="plain", entries=None, tensors=None):
    """A model in Hugging Face's format, loaded; entries and tensors in the place of the case's."""
    kept = made(name, switch)[2] if tensors is None else tensors
    return Encoder.from_pretrained(save(folder, name, entries_of(name, switch) | (entries or {}), kept))


def write_classifier(folder, name):
    kept = made(name, labels=True)[2]
    return Classifier.from_pretrained(save(folder, name, entries_of(name) | {"num_labels": 1}, kept))


def write_file(path, name, switch="plain", **options):
    """A model as a GGUF file, loaded. options: of `write_gguf`."""
    case = CASES[name]
    family, config, tensors = case.as_gguf(*made(name, switch))
    entries = usual_metadata(config) | {"attention.causal": False} | case.metadata(config)
    metadata = {f"{case.architecture}.{entry}": value for entry, value in entries.items()}
    return Encoder.from_pretrained(write_gguf(path, family, config, tensors, case.architecture, metadata, **options))


def by_text(name, switch, ids, types=None):
    """The hidden state by the family's text in llorch.reference."""
    family, config, tensors = made(name, switch)
    return getattr(reference, family.reference)(config, tensors).forward(ids, types)
