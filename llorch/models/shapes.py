"""The published sizes of GPT-2, and checkpoints of random weights in any shape, for benchmarks and tests."""

import dataclasses
import json
import string
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llorch.models import bert, gpt2
from llorch.models.config import ModelConfig
from llorch.models.gpt2 import GPT2Config
from llorch.models.graph import Graph
from llorch.models.registry import Family

SHAPES = {
    "tiny": GPT2Config(1024, 256, 128, 4, 4, bos_token_id=0, eos_token_id=0),
    "distil": GPT2Config(n_layer=6),
    "small": GPT2Config(),
    "medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}


def random_tensors(graph: Graph, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """float32 tensors by their names in Hugging Face's files without a prefix, spread so that activations and logits
    are of the order of 1, as in a trained model."""
    tensors = {}
    for i, (name, _, parameter) in enumerate(graph.all_parameters()):
        if parameter.optional is not None:
            continue
        shape = graph.shape(parameter.axes)
        values = np.random.default_rng([20261124, seed, i]).standard_normal(shape)
        if name.endswith("bias"):
            values *= 0.1
        elif len(shape) == 1:
            values = 1 + 0.2 * values
        elif "embed" in name:
            values *= 0.5
        else:
            values *= shape[0 if parameter.conv1d else 1] ** -0.5
        tensors[name] = values.astype(np.float32)
    return tensors


def write_random(
    folder: Path,
    config: ModelConfig,
    family: Family = gpt2.FAMILY,
    *,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """A model of random float32 weights in Hugging Face's format, which is held in memory while it is written.

    Matrices as GPT-2's are initialised (0.02 times normal noise), norms near 1, biases near 0. progress(done, of) is
    called as tensors are made.
    """
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    wanted, tensors = family.graph(config).shapes(), {}
    for name, shape in wanted.items():
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(0.02)
        if len(shape) == 1 and name.endswith("weight"):
            values += np.float32(1)
        tensors[(family.prefixes or ("",))[0] * (name != "lm_head.weight") + name] = values
        if progress is not None:
            progress(len(tensors), len(wanted))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    entries = dataclasses.asdict(config) | {"model_type": family.model_types[0]}  # type: ignore[call-overload]
    (folder / "config.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def write_random_encoder(folder: Path, words: Iterable[str], prompts: Mapping[str, str] | None = None) -> None:
    """A small BERT of random weights that makes embeddings of texts of these words, with the files of
    sentence-transformers: the mean over the positions, divided by its length. For examples and tests.

    words : in lower case; others are taken letter by letter. prompts : for config_sentence_transformers.json.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    vocabulary = list(dict.fromkeys([*special, *words, *letters]))
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    entries = {"vocab_size": len(vocabulary), "max_position_embeddings": 64} | sizes
    write_random(folder, bert.BertConfig.from_dict(entries), bert.FAMILY)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": 64, "pooling_mode": "mean"}
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules", modules),
        ("1_Pooling/config", pooling),
        ("config_sentence_transformers", {"prompts": dict(prompts or {})}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
