"""Models on disk: folders, shards, GGUF files, names that PyTorch's wrappers change, the hub; what isn't a model."""

import fnmatch
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from gguf_files import STRING, write
from safetensors.numpy import save_file

import llorch
from llorch.files import Reader, open_model
from llorch.files.folder import EMBEDDED, HUB_FILES, find_model

TENSORS = {"wte.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "ln_f.bias": np.arange(3, dtype=np.float16)}
CONFIG = {"model_type": "gpt2", "n_embd": 3}


def save(folder, tensors=None, config=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    save_file(TENSORS if tensors is None else tensors, folder / "model.safetensors")
    return folder


def sharded(folder, tensors=None, shards=2):
    """Over several files, as save_pretrained does with max_shard_size."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors, places = TENSORS if tensors is None else tensors, {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def gguf(path, name="a"):
    return write(path, [("general.architecture", STRING, "llama")], [(name, [1], 0, 0)], bytes(4))


def assert_has(source, tensors):
    assert source.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        assert (Reader().array(source.tensors[name]) == values).all()


# ---- what is found -------------------------------------------------------------------------------------


def test_a_folder(tmp_path):
    folder = save(tmp_path / "model")
    for given in (folder, str(folder), f"{folder}/"):
        source = open_model(given)
        assert (source.path, source.kind, source.config) == (folder, "hf", CONFIG)
        assert source.files == [folder / "model.safetensors"]
        assert_has(source, TENSORS)


def test_shards(tmp_path):
    folder = sharded(tmp_path / "model")
    source = open_model(folder)
    assert source.files == sorted(folder.glob("model-*.safetensors")) and len(source.files) == 2
    assert_has(source, TENSORS)


def test_a_file(tmp_path):
    path = gguf(tmp_path / "x.gguf")
    for given in (path, str(path), path.rename(tmp_path / "of any name")):
        source = open_model(given) if os.path.exists(given) else None
        if source is not None:
            assert (source.path, source.kind, source.files) == (given, "gguf", [given])
            assert source.config == {"general.architecture": "llama"} and list(source.tensors) == ["a"]


def test_a_folder_with_a_file(tmp_path):
    """One GGUF file is the model, unless there are safetensors; of several, one must be named."""
    path = gguf(tmp_path / "x.gguf")
    assert open_model(tmp_path).path == find_model(tmp_path) == path
    gguf(tmp_path / "y.gguf")
    with pytest.raises(ValueError, match=r"holds several GGUF files, name one of them: x\.gguf, y\.gguf$"):
        open_model(tmp_path)
    for i in range(6):
        gguf(tmp_path / f"a{i}.gguf")
    with pytest.raises(ValueError, match=r"a0\.gguf, a1\.gguf, a2\.gguf, a3\.gguf and 4 more$"):
        open_model(tmp_path)
    save(tmp_path)
    assert open_model(tmp_path).kind == "hf"


def test_a_folder_with_a_split_file(tmp_path):
    parts = [
        write(
            tmp_path / f"m-{i + 1:05}-of-00002.gguf",
            [("split.no", 2, i), ("split.count", 2, 2)],
            [(f"blk.{i}", [1], 0, 0)],
            bytes(4),
        )
        for i in range(2)
    ]
    source = open_model(tmp_path)
    assert source.path == parts[0] and source.files == parts and list(source.tensors) == ["blk.0", "blk.1"]
    assert source.sha256 == hashlib.sha256(parts[0].read_bytes() + parts[1].read_bytes()).hexdigest()
    gguf(tmp_path / "other.gguf")
    with pytest.raises(ValueError, match=r"several GGUF files, name one of them: m-00001-of-00002\.gguf, other\.gguf$"):
        open_model(tmp_path)


def test_the_embedded_model():
    source = open_model("shakespeare-1m")
    assert source.path == EMBEDDED / "shakespeare-1m" and source.config["model_type"] == "gpt2"


def test_sha256(tmp_path):
    """Of the weights alone, in the order of the files' names; read once."""
    folder = sharded(tmp_path / "model")
    source = open_model(folder)
    raw = b"".join(path.read_bytes() for path in sorted(folder.glob("model-*.safetensors")))
    assert source.sha256 == hashlib.sha256(raw).hexdigest()
    for path in source.files:
        path.unlink()
    assert source.sha256 == hashlib.sha256(raw).hexdigest()
    embedded = EMBEDDED / "shakespeare-1m" / "model.safetensors"
    assert open_model("shakespeare-1m").sha256 == hashlib.sha256(embedded.read_bytes()).hexdigest()


# ---- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, plain",
    (
        ("_orig_mod.wte.weight", "wte.weight"),
        ("module.wte.weight", "wte.weight"),
        ("_orig_mod.module.wte.weight", "wte.weight"),
        ("module._orig_mod.wte.weight", "wte.weight"),
        ("module.module.wte.weight", "wte.weight"),
        ("model._orig_mod.layers.0.mlp.weight", "model.layers.0.mlp.weight"),
        ("model.layers.0._orig_mod.mlp._orig_mod.weight", "model.layers.0.mlp.weight"),
        ("_fsdp_wrapped_module.h.0._checkpoint_wrapped_module.weight", "h.0.weight"),
        ("transformer.h.0.weight", "transformer.h.0.weight"),
        ("model.module.weight", "model.module.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("modules.weight", "modules.weight"),
        ("module", "module"),
        ("_orig_mod", "_orig_mod"),
        ("", ""),
        ("..", ".."),
    ),
)
def test_wrappers(tmp_path, name, plain):
    source = open_model(save(tmp_path / "model", {name: TENSORS["wte.weight"]}))
    assert_has(source, {plain: TENSORS["wte.weight"]})
    assert source.tensors[plain].name == name


def test_wrapped_shards(tmp_path):
    source = open_model(sharded(tmp_path / "model", {f"_orig_mod.{name}": values for name, values in TENSORS.items()}))
    assert_has(source, TENSORS)


def test_a_name_that_is_there_twice(tmp_path):
    values = TENSORS["wte.weight"]
    folder = save(tmp_path / "model", {"module.a": values, "_orig_mod.a": values})
    with pytest.raises(ValueError, match=r"model: tensor a is there twice, as \S+\.a and as \S+\.a$"):
        open_model(folder)


# ---- what isn't there, or isn't a model ----------------------------------------------------------------


def test_nothing_there(tmp_path):
    for name in (tmp_path / "nothing", str(tmp_path / "nothing"), "./nothing", "a/b/c", "bad name", "a\0b"):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            open_model(name)
    for name in (tmp_path / "no.gguf", "no.gguf", "some/no.gguf"):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*no\.gguf$"):
            open_model(name)
    with pytest.raises(ValueError, match="path_or_hub_id is empty"):
        open_model("")
    with pytest.raises(FileNotFoundError, match=r"is not a model: it has no config\.json, and no \.gguf file$"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json$"):
        open_model(tmp_path)
    save_file(TENSORS, tmp_path / "adapter.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors\.index\.json; it has adapter\.safetensors$"):
        open_model(tmp_path)
    save(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json, and no \.gguf file, though safetensors$"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    "begin, what",
    (
        (b"", "it must be a folder or a GGUF file, and is empty"),
        (b"GGU", "it must be a folder or a GGUF file, and begins with b'GGU', not b'GGUF'"),
        (b"\x1b[31mred", r"it must be a folder or a GGUF file, and begins with b'\\x1b\[31mred', not b'GGUF'"),
        (b"PK\3\4", "it is a zip archive, as torch.save writes pickles and numpy.savez arrays"),
        (b"\x80\2}q", "it is a pickle, which llorch doesn't read: unpickling runs whatever code the file holds"),
        (b"tjgg\3\0\0\0", "it is a file of llama.cpp's from before GGUF"),
        (b"version https://git-lfs.github.com/spec/v1", "it is a pointer of Git LFS"),
        (b"\x89HDF\r\n", "it is an HDF5 file"),
        (b"\x10\0\0\0\0\0\0\0{}      ", "a safetensors file has the weights alone, give the folder"),
    ),
)
def test_no_model(tmp_path, begin, what):
    path = tmp_path / "x.bin"
    path.write_bytes(begin)
    with pytest.raises(ValueError, match=rf"x\.bin is not a model: {what}"):
        open_model(path)


def test_neither_folder_nor_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        ValueError, match="pipe is not a model: it is neither a folder nor a file with bytes of its own"
    ):
        open_model(tmp_path / "pipe")


@pytest.mark.parametrize(
    "text, message",
    (
        ("{", "isn't JSON"),
        ("\xff", "isn't JSON"),
        ("[1]", "must be a mapping"),
        ("[" * 100_000, "isn't JSON"),
        ("1" * 5000, "isn't JSON"),
    ),
)
def test_a_configuration_that_is_none(tmp_path, text, message):
    save(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises((ValueError, TypeError), match=rf"config\.json.*{message}"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    "index, error, message",
    (
        (b"{", ValueError, 'must be JSON with a "weight_map"'),
        (b"[]", ValueError, 'must be JSON with a "weight_map"'),
        (b'{"weight_map": []}', ValueError, 'must be JSON with a "weight_map"'),
        (b'{"weight_map": {"a": ["b"]}}', ValueError, 'must be JSON with a "weight_map"'),
        (b'{"weight_map": {"a": 3}}', ValueError, "names the file 3, it must be a safetensors file in the same folder"),
        (b'{"weight_map": {"a": "../model.safetensors"}}', ValueError, "names the file '../model.safetensors'"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', ValueError, "names the file '/etc/passwd'"),
        (b'{"weight_map": {"a": "\\u001b.safetensors"}}', FileNotFoundError, r"\\x1b\.safetensors is missing"),
        (b'{"weight_map": {"a": "b.safetensors"}}', FileNotFoundError, "b.safetensors is missing, model.s"),
        (b'{"weight_map": {"a": "c.safetensors"}}', ValueError, "c.safetensors: tensor a is missing"),
    ),
)
def test_bad_indexes(tmp_path, index, error, message):
    (tmp_path / "config.json").write_text("{}")
    save_file(TENSORS, tmp_path / "c.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(error, match=message) as caught:
        open_model(tmp_path)
    assert str(caught.value).isprintable()


def test_a_missing_shard(tmp_path):
    folder = sharded(tmp_path / "model")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors is missing"):
        open_model(folder)


@pytest.mark.parametrize("name", ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.ckpt"))
def test_pickles(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match=rf"as a pickle only \({name}\). Unpickling runs .* convert it once"):
        open_model(tmp_path)


def test_paths_are_escaped(tmp_path):
    folder = tmp_path / "a\x1b[31m\u202e"
    folder.mkdir()
    (folder / "x").write_bytes(b"x")
    (folder / "y").mkdir()
    (folder / "y" / "config.json").write_text("{}")
    for path in (folder, folder / "x", folder / "y", folder / "none", folder / "none.gguf"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"a\\x1b\[31m\\u202e") as caught:
            open_model(path)
        assert str(caught.value).isprintable()


# ---- the hub -------------------------------------------------------------------------------------------


def test_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    folder, asked = save(tmp_path / "model"), []

    def snapshot_download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert_has(open_model("openai-community/gpt2"), TENSORS)
    assert asked[0][0] == "openai-community/gpt2"
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "vocab.txt"}
    assert wanted | {"chat_template.jinja", "special_tokens_map.json", "generation_config.json"} <= set(asked[0][1])
    assert not any(pattern.endswith((".bin", "*")) for pattern in asked[0][1])


def test_the_hub_is_asked_for_the_modules_of_sentence_transformers():
    def asked(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in HUB_FILES)

    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
                 "0_Transformer/config.json", "0_Transformer/model.safetensors", "0_Transformer/tokenizer.json",
                 "config_sentence_transformers.json", "sentence_bert_config.json",
                 "0_Transformer/sentence_roberta_config.json"):  # fmt: skip
        assert asked(name), name
    for name in ("pytorch_model.bin", "2_Dense/pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "README.md"):
        assert not asked(name), name


def test_hub_without_a_network():
    pytest.importorskip("huggingface_hub")
    code = """
from llorch.files import open_model
try:
    open_model("llorch-tests/no-such-model")
except FileNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "no folder llorch-tests/no-such-model, no embedded model of that name, and the hub didn't" in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("package, name", (("huggingface_hub", "some/model"), ("ml_dtypes", "shakespeare-1m")))
def test_a_missing_package(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r'llorch\[models\]"'):
        Reader().array(open_model(name).tensors["transformer.wte.weight"])


def test_files_know_no_model():
    """The floors: files imports nothing of what is built on it."""
    code = "import sys, llorch.files; print(sorted(m for m in sys.modules if m.startswith('llorch.')))"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "llorch.files.gguf" in found
    assert not any(f"llorch.{upper}" in found for upper in ("models", "text", "validate", "commands"))
    assert llorch.__name__
