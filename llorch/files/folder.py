"""A model on disk: found by a path, the name of the embedded model, or a hub id; its configuration, and the tensors of
all its files by name."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from llorch._text import printable, shown
from llorch.files.gguf import MAGIC, PART, read_gguf_model
from llorch.files.safetensors import read_header
from llorch.files.tensor import Entry

EMBEDDED = Path(__file__).resolve().parent.parent / "data"
HUB_FILES = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_templates/*.jinja",
    "generation_config.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    *(f"*_{module}/config.json" for module in ("Transformer", "Pooling", "Dense", "Normalize")),
    *(f"*_{module}/model.safetensors" for module in ("Transformer", "Dense")),
    *(f"*_Transformer/{name}" for name in ("sentence_*_config.json", "tokenizer.json", "tokenizer_config.json",
                                           "vocab.txt", "special_tokens_map.json")),
)  # fmt: skip
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

# What PyTorch puts into the names of a module that is wrapped: torch.compile and FSDP anywhere, DistributedDataParallel
# and DataParallel in front (deeper inside, "module" may be a name of the model's own).
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

# What a file that isn't a model may be, by its first bytes.
BEGINNINGS = (
    (b"PK\x03\x04", "it is a zip archive, as torch.save writes pickles and numpy.savez arrays"),
    (b"\x80", "it is a pickle, which llorch doesn't read: unpickling runs whatever code the file holds"),
    (b"\x89HDF", "it is an HDF5 file"),
    (b"tjgg", "it is a file of llama.cpp's from before GGUF"),
    (b"fmgg", "it is a file of llama.cpp's from before GGUF"),
    (b"lmgg", "it is a file of llama.cpp's from before GGUF"),
    (b"version https://git-lfs", "it is a pointer of Git LFS, the file itself hasn't been fetched: git lfs pull"),
)


@dataclass(frozen=True, eq=False)
class Source:
    """A model's files, with everything known about them but the values.

    path : the folder, or the GGUF file (of a split one, the part that was asked for).
    kind : "hf" for a folder with config.json and safetensors, "gguf".
    config : the content of config.json, or GGUF's metadata.
    tensors : by the file's own names, without what PyTorch's wrappers put into them.
    files : those with the weights, in the order of their names.
    """

    path: Path
    kind: Literal["hf", "gguf"]
    config: dict[str, Any] = field(repr=False)
    tensors: dict[str, Entry] = field(repr=False)
    files: list[Path] = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """Of the files of weights, one after the other in the order of their names; read once, when first asked for."""
        import hashlib  # 4 MB with OpenSSL, and only who asks for a digest needs it

        digest = hashlib.sha256()
        room = memoryview(bytearray(1 << 20))
        for path in self.files:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(room):
                    digest.update(room[:count])
        return digest.hexdigest()


def open_model(path_or_hub_id: str | Path, *, weights: bool = True) -> Source:
    """Finds a model and reads the headers of its files.

    path_or_hub_id : a folder with config.json and model.safetensors (or its shards and their index), a .gguf file (any
        part of a split one), a folder with one of these, the name of the embedded model, or a hub id, which is
        downloaded if need be.
    weights : False leaves out a folder's weights, which may be missing then: no tensors, no files.

    FileNotFoundError names what was looked for; ValueError names the file and what is wrong with it; see `read_header`
    and `read_gguf_model`. ModuleNotFoundError for a hub id without the package huggingface-hub.
    """
    path = find_model(path_or_hub_id)
    if path.is_file():
        metadata, entries, files = read_gguf_model(path)
        return Source(path, "gguf", metadata, unwrapped(path, entries), sorted(files))
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{printable(str(path))} is not a model: it has no config.json, and no .gguf file"
            + (", though safetensors" if _whole(path).is_file() or _index(path).is_file() else "")
        )
    config = read_config(path / "config.json")
    tensors = find_tensors(path) if weights else {}
    return Source(path, "hf", config, tensors, sorted({entry.file for entry in tensors.values()}))


def find_model(name: str | Path, **hub: Any) -> Path:
    """The folder of a model in Hugging Face's files, or a GGUF file. As `open_model`, but nothing is read. hub: for
    huggingface_hub.snapshot_download, where it is asked: cache_dir, revision, token, local_files_only."""
    path = _find(name, hub)
    if path.is_file():
        return path
    if _whole(path).is_file() or _index(path).is_file():
        return path
    files = sorted(file for file in path.glob("*.gguf") if file.is_file())
    parts = {file: PART.fullmatch(file.name) for file in files}
    models = {match["stem"] + match["count"] if match else file.name: file for file, match in reversed(parts.items())}
    if len(models) > 1:
        raise ValueError(
            f"{printable(str(path))} holds several GGUF files, name one of them: "
            f"{_some(sorted(file.name for file in models.values()))}"
        )
    return models.popitem()[1] if models else path


def _find(name: str | Path, hub: dict[str, Any]) -> Path:
    """A folder, or a file that begins as GGUF does."""
    if not isinstance(name, str | PathLike):
        raise TypeError(f"path_or_hub_id must be a str or a Path, got {type(name).__name__}")
    text = str(name)
    if not text:
        raise ValueError("path_or_hub_id is empty, it must be a folder, a .gguf file or a hub id")
    path, place, kind = Path(name), printable(text), "file" if text.endswith(".gguf") else "folder"
    if "\0" in text:
        raise FileNotFoundError(f"there is no {kind} {place}")
    if path.is_dir():
        return path
    if path.is_file():
        _check_is_gguf(path)
        return path
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{printable(str(path))} is a link that leads to nothing")
    if path.exists():
        raise ValueError(f"{place} is not a model: it is neither a folder nor a file with bytes of its own")
    if re.fullmatch(r"[\w-]+", text) and (EMBEDDED / text).is_dir():
        return EMBEDDED / text
    if isinstance(name, Path) or text.endswith(".gguf") or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", text):
        raise FileNotFoundError(f"there is no {kind} {place}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModuleNotFoundError(
            f"there is no {kind} {place}; to look for it on Hugging Face's hub, the package huggingface-hub is "
            'needed: pip install "llorch[models]"'
        ) from None
    try:
        return Path(snapshot_download(text, allow_patterns=list(HUB_FILES), **hub))
    except Exception as error:  # the hub's, the network's and the file system's own, which have no base in common
        lines = str(error).strip().removeprefix("Got: ").splitlines()
        raise FileNotFoundError(
            f"there is no {kind} {place}, no embedded model of that name, and the hub didn't give it: "
            f"{shown(lines[0]) if lines else type(error).__name__}"
        ) from error


def _check_is_gguf(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(32)
    if begin[:4] == MAGIC:
        return
    place = printable(str(path))
    if path.suffix == ".safetensors" or begin[8:9] == b"{":
        raise ValueError(
            f"{place} is not a model: a safetensors file has the weights alone, give the folder where it lies beside "
            "config.json"
        )
    for start, what in BEGINNINGS:
        if begin.startswith(start):
            raise ValueError(f"{place} is not a model: {what}")
    raise ValueError(
        f"{place} is not a model: it must be a folder or a GGUF file, "
        + (f"and begins with {begin[:8]!r}, not {MAGIC!r}" if begin else "and is empty")
    )


def read_json(path: Path) -> Any:
    """What a JSON file has. OSError if it can't be read; ValueError names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(str(path))} isn't JSON: {error}") from None


def read_settings(folder: Path, name: str = "tokenizer_config.json") -> Mapping[str, Any]:
    """What one of a folder's small files says; nothing if there is none."""
    path = folder / name
    settings = read_json(path) if path.is_file() else {}
    return settings if isinstance(settings, dict) else {}


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file, as config.json is one. OSError if it can't be read; ValueError or TypeError names the
    file."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise TypeError(
            f"{printable(str(path))}: a configuration must be a mapping of names to values, got {type(config).__name__}"
        )
    return config


def find_tensors(folder: Path) -> dict[str, Entry]:
    """All tensors of the folder's model.safetensors, or of the files its index names."""
    whole, index = _whole(folder), _index(folder)
    if whole.is_file():
        return unwrapped(folder, read_header(whole))
    if index.is_file():
        return unwrapped(folder, _sharded(folder, index))
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        raise ValueError(
            f"{printable(str(folder))} has its weights as a pickle only ({printable(pickles[0])}). Unpickling runs "
            "whatever code the file holds, so llorch doesn't. Where you trust it, convert it once: "
            f"transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(new_folder)"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    other = f"; it has {_some(others)}" if others else ""
    raise FileNotFoundError(f"{printable(str(folder))} has neither {whole.name} nor {index.name}{other}")


def unwrapped(place: Path, entries: dict[str, Entry]) -> dict[str, Entry]:
    """Tensors by their names without what PyTorch's wrappers put into them; ValueError where two become one."""
    tensors: dict[str, Entry] = {}
    for name, entry in entries.items():
        plain = _plain(name)
        if plain in tensors:
            other = tensors[plain].name
            raise ValueError(
                f"{printable(str(place))}: tensor {shown(plain)} is there twice, as {shown(name)} and as {shown(other)}"
            )
        tensors[plain] = entry
    return tensors


def _plain(name: str) -> str:
    *parts, last = name.split(".")
    parts = [part for part in parts if part not in WRAPPERS]
    while parts and parts[0] == "module":
        del parts[0]
    return ".".join([*parts, last])


def _whole(folder: Path) -> Path:
    return folder / "model.safetensors"


def _index(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def _sharded(folder: Path, index: Path) -> dict[str, Entry]:
    place = printable(str(index))
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = set(places.values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{place} must be JSON with a "weight_map" of tensors to files') from None
    files = {}
    for name in sorted(names, key=str):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors") or "\0" in name:
            raise ValueError(
                f"{place} names the file {shown(repr(name))}, it must be a safetensors file in the same folder"
            )
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{printable(str(folder / name))} is missing, {index.name} says that tensors are in it"
            )
        files[name] = read_header(folder / name)
    for tensor, name in places.items():
        if tensor not in files[name]:
            raise ValueError(
                f"{printable(str(folder / name))}: tensor {shown(tensor)} is missing, {index.name} says that it is "
                "in it"
            )
    return {tensor: files[name][tensor] for tensor, name in places.items()}


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(shown, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
