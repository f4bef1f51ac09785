"""What a model's files say about embeddings of sentences.

A folder of sentence-transformers' has modules.json, which names the modules and their folders: a Transformer, a
Pooling, and behind them any of Dense and Normalize; sentence_bert_config.json has the longest text, and
config_sentence_transformers.json the prompts. A folder without modules.json gets the mean, as sentence-transformers
gives it. GGUF has the pooling in its metadata and no word about the rest: the embedding is divided by its length, as
llama.cpp does by default.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch._text import printable, shown
from llorch.files import Source
from llorch.files.folder import find_tensors, read_config, read_json
from llorch.files.tensor import Reader
from llorch.text.tokenizer import checked

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}  # sentence-transformers' names, and ours
TRANSFORMERS = (
    "bert",
    "roberta",
    "distilbert",
    "camembert",
    "albert",
    "xlm-roberta",
    "xlnet",
)  # in their configs' names
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
GGUF_POOLINGS = {1: "mean", 2: "cls", 3: "last"}
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = {
    "Identity": None,
    "Tanh": "tanh",
    "GELU": "gelu",
    "ReLU": "relu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
}
IN, OUT = "module_input_name", "module_output_name"

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Dense:
    """A linear layer and a function on the pooled embedding."""

    layer: "llorch.PackedLinear"
    activation: str | None

    @property
    def width(self) -> int:
        return self.layer.out_features

    def __call__(self, x: Array) -> Array:
        return self.layer(x, activation=self.activation)


@dataclasses.dataclass(frozen=True)
class Normalize:
    """A row divided by its length."""

    def __call__(self, x: Array) -> Array:
        return llorch.normalize(x, out=x)


@dataclasses.dataclass(frozen=True)
class Sentences:
    """How a model makes an embedding of a text.

    folder : the folder or file of the transformer and its tokenizer.
    pooling : "mean", "cls" or "last".
    include_prompt : False leaves a prompt's positions out of the mean.
    after : what is done to what was pooled, in order.
    max_seq_length : tokens, special ones too; None where no file says it.
    lower : text is put into lower case before it is tokenized.
    prompts, default_prompt_name, similarity, truncate_dim : as config_sentence_transformers.json has them.
    normalized : GGUF, whose embeddings are divided by their lengths, unless a caller says otherwise.
    """

    folder: Path
    pooling: str = "mean"
    include_prompt: bool = True
    after: tuple[Dense | Normalize, ...] = ()
    max_seq_length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str = "cosine"
    truncate_dim: int | None = None
    normalized: bool = False

    @property
    def ends_normalized(self) -> bool:
        return bool(self.after) and isinstance(self.after[-1], Normalize)


def load(path: Path) -> Sentences:
    """What the files of a model say. FileNotFoundError, ValueError or TypeError names a file that is missing, can't be
    read, or asks for what llorch hasn't."""
    if path.is_file():
        return Sentences(path, normalized=True)
    modules, settings = path / MODULES, _settings(path)
    if not modules.is_file():
        return Sentences(path, **settings, **_transformer(path))
    entries = _modules(modules)
    if not entries or entries[0][0] != "Transformer":
        raise ValueError(f"{_shown(modules)}: the first module is {_named(entries)}, it must be a Transformer")
    if len(entries) < 2 or entries[1][0] != "Pooling":
        raise ValueError(f"{_shown(modules)}: the second module is {_named(entries[1:])}, it must be a Pooling")
    folder = path / entries[0][1]
    pooling, include_prompt = _pooling(path / entries[1][1] / "config.json")
    after: list[Dense | Normalize] = []
    for kind, name in entries[2:]:
        if kind == "Dense":
            after.append(_dense(path / name))
        elif kind == "Normalize":
            _check_places(path / name / "config.json")
            after.append(Normalize())
        else:
            raise ValueError(
                f"{_shown(modules)}: {printable(kind)} behind the Pooling isn't supported, Dense and Normalize are"
            )
    return Sentences(folder, pooling, include_prompt, tuple(after), **settings, **_transformer(folder))


def with_metadata(found: Sentences, source: Source) -> Sentences:
    """With what a GGUF file's metadata says of the pooling. ValueError for one that llorch hasn't."""
    if source.kind != "gguf":
        return found
    key = f"{source.config.get('general.architecture')}.pooling_type"
    kind = source.config.get(key, 1)
    if kind not in list(GGUF_POOLINGS):
        known = ", ".join(f"{number} ({name})" for number, name in GGUF_POOLINGS.items())
        raise ValueError(f"{_shown(source.path)}: {key} is {shown(kind)}, llorch has {known}")
    return dataclasses.replace(found, pooling=GGUF_POOLINGS[kind])


def activation(name: Any, place: Path, entry: str) -> str | None:
    """llorch's name of a function that a file names as PyTorch's class, such as torch.nn.modules.activation.Tanh; None
    for the identity."""
    last = str(name).rpartition(".")[2]
    if not str(name).startswith("torch.nn.") or last not in ACTIVATIONS:
        raise ValueError(f"{_shown(place)}: {entry} is {shown(name)}, llorch has torch's {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[last]


# ---- the modules -------------------------------------------------------------------------------------------


def _modules(path: Path) -> list[tuple[str, str]]:
    """The kinds of the modules and their folders, in the file's order: sentence-transformers doesn't read idx."""
    found = read_json(path)
    try:
        entries = [(each["type"], each["path"]) for each in found]
    except (TypeError, KeyError):
        raise ValueError(f"{_shown(path)} must be a list of modules, each with type and path") from None
    made = []
    for kind, name in entries:
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise ValueError(f"{_shown(path)}: a module of type {shown(kind)} isn't sentence-transformers' own")
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise ValueError(f"{_shown(path)}: the folder of a module is {shown(name)}, it must lie in the model's")
        made.append((kind.rpartition(".")[2], name))
    return made


def _named(entries: list[tuple[str, str]]) -> str:
    return f"a {printable(entries[0][0])}" if entries else "missing"


def _pooling(path: Path) -> tuple[str, bool]:
    config = read_config(path)
    mode = config.get("pooling_mode")
    if mode is None:
        mode = [name for entry, name in OLD_POOLINGS.items() if config.get(entry)] or ["mean"]
    modes = [mode] if isinstance(mode, str) else mode
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in list(POOLINGS):
        named = " and ".join(map(shown, modes)) if isinstance(modes, list) and modes else shown(modes)
        raise ValueError(f"{_shown(path)}: pooling by {named} isn't supported, one of {', '.join(POOLINGS)} is")
    include = config.get("include_prompt", True)
    if not isinstance(include, bool):
        raise ValueError(f"{_shown(path)}: include_prompt is {shown(include)}, it must be true or false")
    if not include and modes[0] == "cls":  # whose versions disagree on which token is meant then
        raise ValueError(f"{_shown(path)}: include_prompt false isn't supported with pooling by cls")
    return POOLINGS[modes[0]], include


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    config = read_config(path)
    _check_places(path)
    if config.get("use_residual"):
        raise ValueError(f"{_shown(path)}: use_residual isn't supported")
    function = activation(
        config.get("activation_function", "torch.nn.modules.activation.Tanh"), path, "activation_function"
    )
    tensors = find_tensors(folder)
    wanted = {"linear.weight", "linear.bias"} if config.get("bias", True) else {"linear.weight"}
    if set(tensors) != wanted:
        names = ", ".join(sorted(map(printable, tensors)))
        raise ValueError(f"{_shown(folder)} has the tensors {names}; a Dense has {', '.join(sorted(wanted))}")
    sizes = config.get("out_features"), config.get("in_features")
    shapes = {"linear.weight": sizes, "linear.bias": sizes[:1]}
    reader, values = Reader(), {}
    for name, entry in tensors.items():
        if entry.shape != shapes[name]:
            raise ValueError(f"{entry.place} has shape {entry.shape}, config.json makes it {shapes[name]}")
        values[name] = np.array(llorch.cast(reader.array(entry), "float32"))
    layer = llorch.PackedLinear(values["linear.weight"], values.get("linear.bias"), transposed=True)
    return Dense(layer, function)


def _check_places(path: Path) -> None:
    """A module works on the embedding of the sentence."""
    config = read_config(path) if path.is_file() else {}
    for entry in (IN, OUT):
        if config.get(entry) not in (None, "sentence_embedding"):
            raise ValueError(f"{_shown(path)}: {entry} is {shown(config[entry])}, only sentence_embedding is supported")


# ---- the small files ---------------------------------------------------------------------------------------


def _transformer(folder: Path) -> dict[str, Any]:
    """The longest text and the case, of sentence_bert_config.json, or as old models call it."""
    paths = [folder / f"sentence_{name}_config.json" for name in TRANSFORMERS]
    path = next((each for each in paths if each.is_file()), paths[0])
    config = read_config(path) if path.is_file() else {}
    length, lower = config.get("max_seq_length"), config.get("do_lower_case", False)
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise ValueError(f"{_shown(path)}: max_seq_length is {shown(length)}, it must be an int of at least 1")
    task = config.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise ValueError(f"{_shown(path)}: transformer_task is {shown(task)}, only feature-extraction is supported")
    return {"max_seq_length": length, "lower": bool(lower)}


def _settings(folder: Path) -> dict[str, Any]:
    """The prompts, the similarity and how long embeddings are."""
    path = folder / SETTINGS
    config = read_config(path) if path.is_file() else {}
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ValueError(f"{_shown(path)}: model_type is {shown(kind)}, only SentenceTransformer is supported")
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ValueError(f"{_shown(path)}: prompts must be texts by their names")
    for name, text in prompts.items():
        try:
            checked(text, f"prompts[{shown(repr(name))}]")
        except ValueError as error:
            raise ValueError(f"{_shown(path)}: {error}") from None
    if default is not None and default not in list(prompts):
        raise ValueError(f"{_shown(path)}: default_prompt_name is {shown(default)}, it must be one of prompts")
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise ValueError(
            f"{_shown(path)}: similarity_fn_name is {shown(similarity)}, it must be one of {', '.join(SIMILARITIES)}"
        )
    cut = config.get("truncate_dim")
    if cut is not None and (isinstance(cut, bool) or not isinstance(cut, int) or cut < 1):
        raise ValueError(f"{_shown(path)}: truncate_dim is {shown(cut)}, it must be an int of at least 1")
    return {"prompts": prompts, "default_prompt_name": default, "similarity": similarity, "truncate_dim": cut}


def _shown(path: Path) -> str:
    return printable(str(path))
