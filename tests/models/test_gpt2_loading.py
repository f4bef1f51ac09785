"""Loading GPT-2: layouts, types, memory, and files that aren't what their configuration says, or not what llorch does.
Damaged and hostile files are in tests/files."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gpt2_models import NUMPY, TINY, cast, random_model, random_tensors, save
from helpers import assert_same_bits, number_from, rng
from safetensors.numpy import load_file, save_file

import llorch
from llorch import GPT2, _progress
from llorch.files import Reader, open_model
from llorch.models import loading
from llorch.models.gpt2 import GPT2Config, shapes

TENSORS = random_tensors(TINY)
IDS = rng(1).integers(0, TINY["vocab_size"], 20)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    return GPT2.from_pretrained(save(tmp_path_factory.mktemp("plain") / "model", TINY, TENSORS)).forward(IDS)


def logits(folder, **options):
    return GPT2.from_pretrained(folder, **options).forward(IDS)


def sharded(folder, tensors, prefix="", shards=3):
    """Saves tensors over several files, as save_pretrained does with max_shard_size."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    places = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {prefix + name: tensors[name] for name in sorted(tensors)[i::shards]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


# ---- layouts -------------------------------------------------------------------------------------------


def test_prefix(tmp_path, wanted):
    tensors = {f"transformer.{name}": values for name, values in TENSORS.items()}
    assert_same_bits(logits(save(tmp_path / "model", TINY, tensors)), wanted)
    tensors["lm_head.weight"] = TENSORS["wte.weight"]
    assert_same_bits(logits(save(tmp_path / "model", TINY, tensors)), wanted)


def test_old_masks_are_ignored(tmp_path, wanted):
    mask = np.tril(np.ones((1, 1, 160, 160), np.uint8))
    tensors = dict(TENSORS)
    for i in range(TINY["n_layer"]):
        tensors |= {f"h.{i}.attn.bias": mask, f"h.{i}.attn.masked_bias": np.float32(-1e4)[None]}
    assert_same_bits(logits(save(tmp_path / "model", TINY, tensors)), wanted)


@pytest.mark.parametrize("prefix", ("", "transformer."))
def test_shards(tmp_path, wanted, prefix):
    assert_same_bits(logits(sharded(tmp_path / "model", TENSORS, prefix)), wanted)


def head(model):
    return model._weights.packed["lm_head"][0].weight


def test_tied_and_untied(tmp_path, wanted):
    same = TENSORS | {"lm_head.weight": TENSORS["wte.weight"].copy()}
    model = GPT2.from_pretrained(save(tmp_path / "same", TINY, same))
    assert head(model) is model._weights.tables["wte.weight"]
    assert_same_bits(model.forward(IDS), wanted)
    other = TENSORS | {"lm_head.weight": TENSORS["wte.weight"] + np.float32(0.01)}
    model = GPT2.from_pretrained(save(tmp_path / "other", TINY, other))
    assert head(model) is not model._weights.tables["wte.weight"]
    assert (model.forward(IDS) != wanted).any()


def test_any_alignment_and_order(tmp_path, wanted):
    """A header of odd length, and tensors in an order that is neither the file's nor the alphabet's."""
    folder = save(tmp_path / "model", TINY, TENSORS)
    header, data = {}, b""
    for name in sorted(TENSORS, reverse=True):
        raw = TENSORS[name].tobytes()
        header[name] = {"dtype": "F32", "shape": TENSORS[name].shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (len(text) % 2 == 0)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert len(text) % 2 == 1
    assert_same_bits(logits(folder), wanted)


def test_a_string_or_a_path(tmp_path, wanted):
    folder = save(tmp_path / "model", TINY, TENSORS)
    assert_same_bits(logits(str(folder)), wanted)
    assert GPT2.from_pretrained(str(folder)).path == folder


# ---- types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
@pytest.mark.parametrize("stored", ("float32", "float16", "bfloat16"))
def test_types(tmp_path, stored, dtype):
    """dtype has the bits of a file of that type, rounded once, to nearest even."""
    tensors = cast(TENSORS, stored)
    folder = save(tmp_path / "stored", TINY, tensors)
    kept = GPT2.from_pretrained(folder)
    assert kept.dtype == stored
    model = GPT2.from_pretrained(folder, dtype=dtype)
    assert model.dtype == dtype
    rounded = {name: values.astype(np.float32).astype(NUMPY[dtype]) for name, values in tensors.items()}
    assert_same_bits(model.forward(IDS), logits(save(tmp_path / "rounded", TINY, rounded)))
    if dtype == stored:
        assert_same_bits(kept.forward(IDS), model.forward(IDS))
    elif dtype != "float32" and stored != "bfloat16":  # bfloat16 has fewer digits than float16: these lose none
        assert (kept.forward(IDS) != model.forward(IDS)).any()


@pytest.mark.parametrize(
    ("narrow", "dtype"),
    ((lambda name, v: v.ndim == 2, "bfloat16"), (lambda name, v: "h.0" in name, "float32+bfloat16")),
)
def test_several_types_stay_as_they_are(tmp_path, narrow, dtype):
    mixed = {n: v.astype(ml_dtypes.bfloat16 if narrow(n, v) else np.float32) for n, v in TENSORS.items()}
    model = GPT2.from_pretrained(save(tmp_path / "mixed", TINY, mixed))
    assert model.dtype == dtype  # of the matrices, that of most bytes first
    widened = {name: values.astype(np.float32) for name, values in mixed.items()}
    assert_same_bits(model.forward(IDS), logits(save(tmp_path / "wide", TINY, widened)))


@pytest.mark.parametrize("dtype", ("int8", "bf16", np.float32, 16))
def test_unknown_dtype(dtype):
    with pytest.raises(ValueError, match="dtype must be None, 'float32', 'bfloat16', 'float16', 'q8_0'"):
        GPT2.from_pretrained("shakespeare-1m", dtype=dtype)


# ---- the model that comes with llorch ------------------------------------------------------------------


def load_embedded(folder):
    reader = Reader()
    return {name: reader.array(entry).copy() for name, entry in open_model(folder).tensors.items()}


def test_embedded_model_is_what_the_tool_makes(tmp_path):
    source = Path(llorch.__file__).parent / "data" / "shakespeare-1m"
    wide = tmp_path / "wide"
    shutil.copytree(source, wide)
    stored = load_embedded(source)
    save_file({name: values.astype(np.float32) for name, values in stored.items()}, wide / "model.safetensors")
    spec = importlib.util.spec_from_file_location(
        "embed_model", Path(__file__).resolve().parent.parent.parent / "tools" / "embed_model.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main(wide, tmp_path / "made")
    for file in (tmp_path / "made").iterdir():
        assert file.read_bytes() == (source / file.name).read_bytes(), file.name
    assert {file.name for file in source.iterdir()} - {file.name for file in (tmp_path / "made").iterdir()} == {
        "README.md"
    }


def test_the_tool_rounds_to_nearest_even():
    """What the embedded model relies on, on ties."""
    values = np.uint32([0x3F808000, 0x3F818000, 0x3F808001, 0xBF808000]).view(np.float32)
    rounded = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert rounded.tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80]


@pytest.mark.parametrize("width", (64, 24))  # slices are of 16 rows: whole ones, or half of one at the end
@pytest.mark.parametrize("dtype", (None, "float16", "bfloat16"))
def test_matrices_in_slices(monkeypatch, tmp_path, dtype, width):
    """Read some rows at a time, from the first to the last, as they are in large models."""
    entries = TINY | {"n_embd": width, "n_head": 2}
    folder = save(tmp_path / "model", entries, random_tensors(entries))
    wanted, counts, run = logits(folder, dtype=dtype), [], loading.run
    monkeypatch.setattr(loading, "run", lambda jobs, *rest: (counts.append(len(jobs)), run(jobs, *rest)))
    for size in (1, width * 4 * 40, loading.SLICE):
        monkeypatch.setattr(loading, "SLICE", size)
        assert_same_bits(logits(folder, dtype=dtype), wanted)
    assert counts[0] > counts[1] > counts[2]


# ---- memory --------------------------------------------------------------------------------------------

MEMORY = """
import sys, numpy as np, ml_dtypes, llorch
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
folder, everything = sys.argv[1], sys.argv[2] == "everything"
before = peak()
if everything:  # the negative control
    kept = np.fromfile(folder + "/model.safetensors", np.uint8)
model = llorch.GPT2.from_pretrained(folder)
print((peak() - before) / model.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_peak_memory(tmp_path, dtype):
    """At most 1.15 x the packed model, in GPT-2 Medium's proportions; a second copy of the file would be seen."""
    entries = {"vocab_size": 20000, "n_positions": 512, "n_embd": 640, "n_layer": 12, "n_head": 10}
    tensors = {name: np.zeros(shape, NUMPY[dtype]) for name, shape in shapes(GPT2Config(**entries)).items()}
    folder = save(tmp_path / "model", entries, tensors)

    assert number_from(MEMORY, folder, "streamed") <= 1.15
    assert number_from(MEMORY, folder, "everything") > 1.5


# ---- files that aren't the model of their configuration --------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    (
        ({"h.1.ln_2.bias": None}, ValueError, r"tensors are missing: h\.1\.ln_2\.bias$"),
        ({name: None for name in TENSORS if "h.0" in name}, ValueError, r"missing: h\.0\.\S+, .* and 8 more"),
        (
            {"scores.weight": TENSORS["wpe.weight"]},
            ValueError,
            "a GPT-2 of this config.json doesn't have: scores.weight",
        ),
        ({"h.2.ln_1.bias": TENSORS["ln_f.bias"]}, ValueError, r"doesn't have: h\.2\.ln_1\.bias"),
        (
            {"h.1.mlp.c_fc.weight": TENSORS["h.1.mlp.c_fc.weight"].T.copy()},
            ValueError,
            r"tensor h\.1\.mlp\.c_fc\.weight has shape \(96, 24\), config\.json makes it \(24, 96\)",
        ),
        (
            {"wpe.weight": TENSORS["wpe.weight"].astype(np.float64)},
            TypeError,
            "tensor wpe.weight is F64, it must be F32",
        ),
        ({"ln_f.bias": TENSORS["ln_f.bias"].astype(np.int32)}, TypeError, "tensor ln_f.bias is I32, it must be F32"),
        (
            {"transformer.ln_f.bias": TENSORS["ln_f.bias"]},
            ValueError,
            "tensor ln_f.bias is there twice, as",
        ),
    ),
)
def test_tensors_that_do_not_fit(tmp_path, change, error, message):
    tensors = {name: values for name, values in (TENSORS | change).items() if values is not None}
    with pytest.raises(error, match=message):
        GPT2.from_pretrained(save(tmp_path / "model", TINY, tensors))


# ---- configurations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    (
        ({"model_type": "mamba"}, ValueError, "model_type is mamba, llorch has .*gpt2, .*llama"),
        ({"add_cross_attention": True}, ValueError, "add_cross_attention is True: llorch's GPT-2 doesn't support it"),
        ({"pruned_heads": {"0": [1]}}, ValueError, "pruned_heads is .*: llorch's GPT-2 doesn't support it"),
        ({"quantization_config": {"bits": 4}}, ValueError, "quantization_config is .*: llorch's GPT-2 doesn't"),
        ({"activation_function": "mish"}, ValueError, "activation_function is 'mish', llorch has gelu, "),
        ({"activation_function": None}, ValueError, "activation_function is None, llorch has gelu, "),
        ({"n_head": 5}, ValueError, "n_embd is 24, it must be a multiple of n_head, 5"),
        ({"n_layer": 0}, ValueError, "n_layer is 0, it must be at least 1"),
        ({"n_layer": 2**24}, ValueError, "n_layer is 16777216, it must be at least 1 and at most 10000"),
        ({"vocab_size": 2**25}, ValueError, "vocab_size is 33554432, it must be at least 1 and at most 16777216"),
        ({"n_embd": 24.0}, TypeError, "n_embd must be an int, got 24.0"),
        ({"n_positions": True}, TypeError, "n_positions must be an int, got True"),
        ({"layer_norm_epsilon": -1}, ValueError, "layer_norm_epsilon is -1, it must be finite in float32 and not neg"),
        ({"layer_norm_epsilon": 1e39}, ValueError, "layer_norm_epsilon is 1e[+]39, it must be finite in float32"),
        (
            {"layer_norm_epsilon": 10**400},
            ValueError,
            r"layer_norm_epsilon is 10000+\.\.\., it must be finite in float32",
        ),
        ({"layer_norm_epsilon": "1e-5"}, TypeError, "layer_norm_epsilon must be a number, got str"),
        ({"scale_attn_weights": 1}, TypeError, "scale_attn_weights must be true or false, got 1"),
        ({"eos_token_id": "end"}, TypeError, "eos_token_id must be an int, got 'end'"),
    ),
)
def test_refused_configurations(tmp_path, change, error, message):
    folder = save(tmp_path / "model", TINY | change, TENSORS)
    with pytest.raises(error, match=message) as caught:
        GPT2.from_pretrained(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("text", ("{", "\xff", "[1]", "null"))
def test_a_configuration_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises((ValueError, TypeError), match=r"config\.json.*(isn't JSON|must be a mapping)"):
        GPT2.from_pretrained(tmp_path)


def test_harmless_entries(tmp_path, wanted):
    """What a real config.json has beside, and a switch that changes rounding in 16-bit code only."""
    more = {
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "n_ctx": 1024,
        "n_inner": None,
        "add_cross_attention": False,
        "pruned_heads": {},
        "reorder_and_upcast_attn": True,
        "task_specific_params": {"text-generation": {"do_sample": True}},
    }
    assert_same_bits(logits(save(tmp_path / "model", TINY | more, TENSORS)), wanted)


def test_configuration():
    config = GPT2Config()
    assert (config.inner, config.head_dim, config.activation) == (3072, 64, "gelu_tanh")
    assert GPT2Config(n_inner=5).inner == 5
    assert config.scale(7) == 0.125
    assert GPT2Config(scale_attn_by_inverse_layer_idx=True).scale(2) == 0.125 / 3
    assert GPT2Config(scale_attn_weights=False).scale(2) == 1.0
    with pytest.raises(AttributeError):
        config.n_embd = 3


# ---- progress ------------------------------------------------------------------------------------------


def test_progress(monkeypatch, tmp_path, capsys):
    """A bar after a second, at a terminal; nothing before, nothing elsewhere."""
    console = pytest.importorskip("rich.console")
    # More threads could leave this one, which draws, too few tensors for a second of this clock.
    monkeypatch.setattr(loading, "READERS", 1)
    model = save(tmp_path / "model", TINY, TENSORS)
    clock = iter(range(10**6))
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock) / 2)
    GPT2.from_pretrained(model)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(console.Console, "is_terminal", True)
    monkeypatch.setattr(console.Console, "is_dumb_terminal", False)
    GPT2.from_pretrained(model)
    assert "loading model" in capsys.readouterr().err
    monkeypatch.setattr(_progress.time, "monotonic", lambda: 0)
    GPT2.from_pretrained(model)
    assert capsys.readouterr().err == ""


def test_random_models_differ(tmp_path):
    a, b = (random_model(tmp_path / str(seed), seed=seed).forward(IDS) for seed in (1, 2))
    assert (a != b).any()


def test_safetensors_reads_what_the_tests_write(tmp_path):
    folder = save(tmp_path / "model", TINY, TENSORS)
    for name, values in load_file(folder / "model.safetensors").items():
        assert_same_bits(values, TENSORS[name])
