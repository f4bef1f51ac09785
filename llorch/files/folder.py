"""A model's folder: a path, the name of the embedded model, or a hub id; and the tensors of its files."""

import json
import re
from pathlib import Path

from llorch.files.safetensors import Entry, read_header

EMBEDDED = Path(__file__).resolve().parent.parent / "data"
HUB_FILES = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def find_folder(name: str | Path) -> Path:
    """The folder of a model: a path, the name of the embedded model, or a hub id, which is downloaded if need be."""
    if not str(name):
        raise ValueError("path_or_hub_id is empty, it must be a folder or a hub id")
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{folder} is a file, a model is a folder with config.json and model.safetensors")
    text = str(name)
    if re.fullmatch(r"[\w-]+", text) and (EMBEDDED / text).is_dir():
        return EMBEDDED / text
    if isinstance(name, Path) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", text):
        raise FileNotFoundError(f"there is no folder {text}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModuleNotFoundError(
            f"there is no folder {text}; to look for it on Hugging Face's hub, the package huggingface-hub is needed: "
            'pip install "llorch[gpt2]"'
        ) from None
    try:
        return Path(snapshot_download(text, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub's, the network's and the file system's own, which have no base in common
        lines = str(error).strip().splitlines()
        raise FileNotFoundError(
            f"there is no folder {text}, no embedded model of that name, and the hub didn't give it: "
            f"{lines[0] if lines else type(error).__name__}"
        ) from error


def find_tensors(folder: Path) -> dict[str, Entry]:
    """All tensors of the folder's model.safetensors, or of the files its index names; without "transformer."."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        entries = read_header(whole)
    elif index.is_file():
        entries = _sharded(folder, index)
    else:
        _refuse_pickles(folder)
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")
    tensors: dict[str, Entry] = {}
    for name, entry in entries.items():
        plain = name.removeprefix("transformer.")
        if plain in tensors:
            raise ValueError(f"{folder}: tensor {plain} is there twice, with and without transformer. before its name")
        tensors[plain] = entry
    return tensors


def _sharded(folder: Path, index: Path) -> dict[str, Entry]:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = set(places.values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{index} must be JSON with a "weight_map" of tensors to files') from None
    files = {}
    for name in sorted(names, key=str):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names the file {name!r}, it must be a safetensors file in the same folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing, {index.name} says that tensors are in it")
        files[name] = read_header(folder / name)
    for tensor, name in places.items():
        if tensor not in files[name]:
            raise ValueError(f"{folder / name}: tensor {tensor} is missing, {index.name} says that it is in it")
    return {tensor: files[name][tensor] for tensor, name in places.items()}


def _refuse_pickles(folder: Path) -> None:
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        raise ValueError(
            f"{folder} has its weights as a pickle only ({pickles[0]}). Unpickling runs whatever code the file holds, "
            "so llorch doesn't. Where you trust it, convert it once: transformers.AutoModelForCausalLM"
            f".from_pretrained({str(folder)!r}).save_pretrained(new_folder)"
        )
