"""Small encoders for the tests with all their files: BERT's weights, a vocabulary, sentence-transformers' modules."""

import json

import numpy as np
from helpers import rng
from random_models import random_tensors
from safetensors.numpy import save_file

from llorch.models import bert

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 65)), *map(chr, range(97, 127)),
         *(f"##{chr(c)}" for c in range(97, 123)), *(f"##{i}" for i in range(10)), "hello", "world", "##ing", "##s",
         "the", "a", "query", "passage", "sun", "shine", "##able", "你", "好", "##é", "café"]  # fmt: skip
WORDS = list(dict.fromkeys(WORDS))

ENTRIES = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 90,
    "layer_norm_eps": 1e-12,
}
LABELS = {"id2label": {"0": "LABEL_0"}, "architectures": ["BertForSequenceClassification"]}

POOLING = {"word_embedding_dimension": 40, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
MODULES = {
    "Transformer": ("", None),
    "Pooling": ("1_Pooling", POOLING),
    "Normalize": ("2_Normalize", None),
}


def tensors_of(entries=None, classifier=False):
    config = bert.BertConfig.from_dict(ENTRIES | (entries or {}))
    family = bert.FAMILY
    if classifier:

        class Classifying:
            graph = staticmethod(family.classifier)

        return config, random_tensors(Classifying, config)
    return config, random_tensors(family, config)


def save(folder, entries=None, *, classifier=False, **small):
    """A plain folder of Hugging Face's. small : files by their names without .json."""
    folder.mkdir(exist_ok=True, parents=True)
    given = ENTRIES | (LABELS if classifier else {}) | (entries or {})
    _, tensors = tensors_of(given, classifier)
    if not classifier:  # as BertModel's files have it
        tensors = tensors | {"pooler.dense.weight": np.zeros((40, 40), np.float32)}
    prefix = "bert." if classifier else ""
    names = {name: name if name.startswith("classifier") else prefix + name for name in tensors}
    save_file({names[name]: values for name, values in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(given))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    for name, content in small.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_modules(folder, modules=None, **small):
    """modules.json and what it names, over a plain folder. modules : of each kind its folder and its config.json."""
    entries = []
    for i, (kind, (path, config)) in enumerate((MODULES if modules is None else modules).items()):
        entries.append({"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"})
        if config is not None:
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(entries))
    for name, content in small.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_dense(folder, activation="torch.nn.modules.activation.Tanh", out=24, bias=True, **entries):
    folder.mkdir(exist_ok=True)
    config = {"in_features": 40, "out_features": out, "bias": bias, "activation_function": activation}
    (folder / "config.json").write_text(json.dumps(config | entries))
    tensors = {"linear.weight": (rng(7).standard_normal((out, 40)) * 0.2).astype(np.float32)}
    if bias:
        tensors["linear.bias"] = (rng(8).standard_normal(out) * 0.2).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return tensors


# Texts of 2 to about 80 tokens, in no order of length.
TEXTS = [
    "Hello world",
    "",
    "the sun shines",
    "a " * 75,
    "unknown ☃ token",
    "hello " * 20 + "world",
    "x",
    "café, 你好! " * 9,
    "query 12345",
    "the world is shining, the sun is shineable",
]


def gguf_words(words, control=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), pre="jina-v2-en", **more):
    """What llama.cpp's converter writes of a vocabulary: ## taken away, and a mark before what begins a word."""
    kinds = [3 if word in control else 1 for word in words]
    tokens = [w if k == 3 else w[2:] if w.startswith("##") else "\u2581" + w for w, k in zip(words, kinds, strict=True)]
    ids = {"unknown": "[UNK]", "seperator": "[SEP]", "padding": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    made = {f"{name}_token_id": words.index(word) for name, word in ids.items()}
    made |= {"model": "bert", "pre": pre, "tokens": tokens, "token_type": kinds}
    return {f"tokenizer.ggml.{name}": value for name, value in (made | more).items() if value is not None}
