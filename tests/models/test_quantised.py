"""Models in blocks: kept as the file has them, in both arithmetics, whatever comes together; files quantised when they
are loaded; the memory that loading takes."""

import json
import re
from pathlib import Path

import encoders
import numpy as np
import pytest
from click.testing import CliRunner
from families import ids_of, made, write, write_file
from gpt2_models import random_tensors as gpt2_tensors
from gpt2_models import save as gpt2_save
from helpers import assert_same_bits, num_threads, number_from, same_bits
from random_models import LLAMA, llama_metadata, llama_tensors, save, write_gguf
from weight_blocks import BLOCKS, blocks

import llorch
from llorch import validate
from llorch.cli import main
from llorch.files.tensor import BLOCKS as SIZES
from llorch.models import llama
from llorch.models.encoder_engine import Encoder
from llorch.models.gpt2 import FAMILY as GPT2_FAMILY
from llorch.models.gpt2 import GPT2Config
from llorch.testing import use_isa

gguf = pytest.importorskip("gguf")

INTEGERS = [format for format in BLOCKS if format != "MXFP4"]
WIDE = {  # rows of whole blocks of every format; queries and keys interleaved; a head that isn't whole panels
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MIXED = {"v_proj": "Q6_K", "down_proj": "Q6_K", "embed_tokens": "Q6_K"}  # as Q4_K_M has it


def quantised(path, format_of, entries=None, seed=0):
    """A Llama whose matrices are random blocks, by the format of each name."""
    config, tensors = llama_tensors(WIDE | (entries or {}), seed)

    def quantise(name, values):
        format = format_of(name)
        if values.ndim == 1 or format is None:
            return values, None
        count = values.size // SIZES[format].values
        made = blocks(format, count, seed + len(name))
        return made.reshape(len(values), -1), gguf.GGMLQuantizationType[format]

    return write_gguf(path, llama.FAMILY, config, tensors, "llama", llama_metadata(config), quantise)


def mixed(name):
    return next((format for part, format in MIXED.items() if part in name), "Q4_K")


def load(path, **options):
    return llorch.CausalLM.from_pretrained(path, **options)


def check_cuts(model, ids, wanted):
    """One token at a time, in chunks, beside others, on every instruction set and number of threads."""
    for lengths in ([1] * len(ids), [5, 1, len(ids) - 6]):
        cache, first = model.new_cache(), 0
        for length in lengths:
            got = model.forward(ids[first : first + length], cache)
            assert_same_bits(got, wanted[first : first + length], f"{lengths} at {first}")
            first += length
    several = [ids_of(length, seed=length) for length in (3, 20, 1)]
    got = model.step([*several, ids], [model.new_cache() for _ in range(4)])
    assert_same_bits(got[-1], wanted[-1])
    for row, one in zip(got, several, strict=False):
        assert_same_bits(row, model.forward(one)[-1])
    for isa in llorch.available_isas():
        for threads in (1, 3):
            with use_isa(isa), num_threads(threads):
                assert_same_bits(model.forward(ids), wanted, f"{isa}, {threads} threads")


@pytest.mark.parametrize("format", BLOCKS)
def test_a_file_keeps_its_blocks_and_has_the_bits_of_their_values(tmp_path, format):
    """Negative control: values rounded to 16 bits are seen."""
    path = quantised(tmp_path / "m.gguf", lambda name: format)
    model, wide, ids = load(path), load(path, dtype="float32"), ids_of(24)
    assert (model.dtype, model.compute, wide.dtype) == (format.lower(), "float32", "float32")
    stored = sum(entry.nbytes for entry in model.source.tensors.values())
    padding = 5 * 256 * SIZES[format].nbytes // SIZES[format].values * 2  # 67 tokens are 5 panels of 16
    assert stored <= model.nbytes <= 1.03 * stored + padding
    wanted = wide.forward(ids)
    assert np.isfinite(wanted).all()
    check_cuts(model, ids, wanted)
    assert not same_bits(load(path, dtype="bfloat16").forward(ids), wanted)


@pytest.mark.parametrize("format", INTEGERS)
def test_int16_is_one_function_however_the_text_comes(tmp_path, format):
    """Another than float32's, and near it; tensor by tensor that of the oracle."""
    path = quantised(tmp_path / "m.gguf", lambda name: format)
    model, ids = load(path, compute="int16"), ids_of(24)
    assert (model.dtype, model.compute) == (format.lower(), "int16") and "compute='int16'" in repr(model)
    got, exact = model.forward(ids), load(path).forward(ids)
    assert not same_bits(got, exact) and np.abs(got - exact).mean() < 1e-3 * exact.std()
    check_cuts(model, ids, got)
    found = validate.run_ladder(path, ids=ids[:5].tolist(), peer=False, compute="int16")
    assert found.holds and found.compute == "int16"


def test_the_ladder_tells_the_arithmetics_apart(tmp_path):
    """Negative control of the above: the trace of one beside the oracle of the other."""
    path = quantised(tmp_path / "m.gguf", mixed)
    a, b = (validate.run_ladder(path, ids=[3, 1, 4], peer=False, compute=one) for one in ("float32", "int16"))
    assert a.holds and b.holds and (a.compute, b.compute) == ("float32", "int16")
    model = validate.Model(path, "int16")
    del model.network.blocks[0].blocks
    model.network.blocks[0].blocks = {}
    wrong = validate.run_ladder(model, ids=[3, 1, 4], peer=False)
    assert not wrong.holds and wrong.first.name.startswith("h.0.attn")


@pytest.mark.parametrize("compute", ["float32", "int16"])
def test_a_mixed_file(tmp_path, compute):
    """Values in another format beside queries and keys, one more for the embedding, which is the head too."""
    path = quantised(tmp_path / "m.gguf", mixed)
    model, ids = load(path, compute=compute), ids_of(24)
    assert (model.dtype, model.compute) == ("q4_k+q6_k", compute)
    group = model._weights.packed["layers.0.self_attn.q_proj"]
    assert [(part.weight.dtype, len(part.columns)) for part in group] == [("q4_k", 2), ("q6_k", 1)]
    head, table = model._weights.packed["lm_head"][0].weight, model._weights.tables["embed_tokens.weight"]
    assert head is table and model.step_nbytes == model.nbytes
    wanted = load(path, dtype="float32").forward(ids)
    got = model.forward(ids)
    assert same_bits(got, wanted) == (compute == "float32")
    check_cuts(model, ids, got)
    assert validate.run_ladder(path, ids=ids[:5].tolist(), peer=False, compute=compute).holds


def test_layers_without_integers_stay_float32(tmp_path):
    """Of a file with some: only those are computed so. Of a file with none: it is said."""
    formats = {"down": "Q8_0", "up": "MXFP4"}
    some = quantised(tmp_path / "some.gguf", lambda name: formats.get(name.rpartition("mlp.")[2].partition("_")[0]))
    model = load(some, compute="int16")
    computed = {weight.dtype: weight.compute for weight in model._weights.layers}
    assert computed == {"q8_0": "int16", "mxfp4": "float32", "float32": "float32"}
    assert validate.run_ladder(some, ids=[5, 2, 60], peer=False, compute="int16").holds
    none = quantised(tmp_path / "none.gguf", lambda name: "MXFP4")
    with pytest.warns(UserWarning, match="no weight is in blocks of integers, which compute='int16' needs"):
        model = load(none, compute="int16")
    assert model.compute == "float32"
    assert_same_bits(model.forward(ids_of(9)), load(none).forward(ids_of(9)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "q9_0"}, "dtype must be None, 'float32', .*'q8_0', .* or 'q6_k', got 'q9_0'"),
        ({"dtype": "mxfp4"}, "got 'mxfp4'"),
        ({"dtype": "Q8_0"}, "got 'Q8_0'"),
        ({"compute": "int8"}, "compute must be 'float32' or 'int16', got 'int8'"),
        ({"compute": None}, "compute must be 'float32' or 'int16', got None"),
    ],
)
@pytest.mark.parametrize("kind", [llorch.CausalLM, llorch.TextEncoder, llorch.CrossEncoder])
def test_what_there_isnt_is_refused(kind, options, message):
    """Before a file is looked for."""
    with pytest.raises(ValueError, match=message):
        kind.from_pretrained("nobody/nothing", **options)


def test_commands_say_the_arithmetic(tmp_path):
    path = str(quantised(tmp_path / "m.gguf", mixed))

    def run(*arguments):
        return CliRunner().invoke(main, [*arguments, "--compute", "int16"], prog_name="llorch")

    found = json.loads(run("bench", "--model", path, "--repetitions", "1", "--json").stdout)
    assert (found["dtype"], found["compute"], found["bytes a step"]) == ("q4_k+q6_k", "int16", found["bytes"])
    done = run("validate", "--model", path, "--ids", "5,2,60", "--no-peer", "--json", str(tmp_path / "report.json"))
    assert done.exit_code == 0 and "compute int16" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["compute"] == "int16"
    dumps = {}
    for compute in ("float32", "int16"):
        validate.dump(tmp_path / f"{compute}.safetensors", path, ids=[5, 2, 60], compute=compute)
        dumps[compute] = validate.read(tmp_path / f"{compute}.safetensors")
        assert dumps[compute].metadata["compute"] == compute
    assert not same_bits(*(dump.arrays["logits"] for dump in dumps.values()))
    notes = validate.compare(dumps["int16"], dumps["float32"]).notes
    assert "the dumps say that they were computed in other arithmetics: int16 and float32" in notes
    refused = run("validate", "--model", path, "--self-test")
    assert refused.exit_code == 2 and "--self-test is of --compute float32" in refused.stderr
    info = re.sub(" +", " ", CliRunner().invoke(main, ["info", path], prog_name="llorch").stdout)
    assert "compute: float32, or int16 for 100 % of the matrices\n" in info and "tensors, Q6_K: 5, " in info


# ---- quantised when it is loaded -----------------------------------------------------------------------


@pytest.mark.parametrize(("format", "kind"), [("Q8_0", "float32"), ("Q4_0", "float16"), ("Q5_1", "bfloat16")])
def test_a_file_is_quantised_as_gguf_does_it(tmp_path, format, kind):
    """The bits of a file that was quantised before, of the same values."""
    _, _, tensors = made("mistral", "wide")
    narrow = {name: np.asarray(llorch.cast(v, kind)) if v.ndim > 1 else v for name, v in tensors.items()}
    number = gguf.GGMLQuantizationType[format]

    def quantise(name, values):
        return (gguf.quants.quantize(values, number), number) if values.ndim > 1 else (values, None)

    wide = {name: np.asarray(llorch.cast(v, "float32")) for name, v in narrow.items()}
    before, ids = write_file(tmp_path / "m.gguf", "mistral", "wide", tensors=wide, quantise=quantise), ids_of(9)
    model = write(tmp_path / "m", "mistral", "wide", tensors=narrow, dtype=format.lower())
    assert model.dtype == before.dtype == format.lower()
    assert_same_bits(model.forward(ids), before.forward(ids))
    if format != "Q8_0":
        with pytest.warns(UserWarning, match=f"matrices stay {format.lower()}, not q8_0: .*they were blocks before"):
            again = load(before.path, dtype="q8_0")
        assert again.dtype == before.dtype  # blocks aren't quantised anew


def test_what_has_no_whole_blocks_stays(tmp_path):
    """48 values are no blocks of 32; 64 are; K-quants need 256."""
    folder = save(tmp_path / "m", LLAMA | {"intermediate_size": 64}, llama_tensors({"intermediate_size": 64})[1])
    with pytest.warns(UserWarning, match=r"m: 7 of 9 matrices stay float32, not q4_0: their rows aren't whole blocks"):
        model = load(folder, dtype="q4_0")
    kept = {name: parts[0].weight.dtype for name, parts in model._weights.packed.items()}
    assert {name.rpartition(".")[2] for name, dtype in kept.items() if dtype == "q4_0"} == {"down_proj"}
    assert model.dtype == "float32+q4_0"
    with pytest.warns(UserWarning, match="9 of 9 matrices stay float32, not q4_k"):
        assert load(folder, dtype="q4_k").dtype == "float32"


def test_what_cannot_be_quantised_is_named(tmp_path):
    entries = {"intermediate_size": 64}
    tensors = dict(llama_tensors(entries)[1])
    broken = tensors["layers.1.mlp.down_proj.weight"] = tensors["layers.1.mlp.down_proj.weight"].copy()
    broken[5, 40] = np.inf
    with pytest.raises(ValueError, match=r"tensor model\.layers\.1\.mlp\.down_proj\.weight can't be quantised: .*inf"):
        load(save(tmp_path / "m", LLAMA | entries, tensors), dtype="q8_0")


def test_a_layer_that_is_stored_by_its_inputs(tmp_path):
    """GPT-2's matrices in Hugging Face's files are (in, out): blocks lie along the inputs all the same."""
    entries = {"vocab_size": 61, "n_positions": 160, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = load(gpt2_save(tmp_path / "m", entries, gpt2_tensors(entries)), dtype="q8_0")
    assert model.dtype == "q8_0"
    for name, values in gpt2_tensors(entries).items():
        if name.startswith("h.0") and values.ndim == 2:
            packed = model._weights.packed[name.removesuffix(".weight")][0].weight
            rows = llorch.quantize(values.T, "Q8_0")
            wanted = llorch.dequantize(rows, "Q8_0", values.T.shape)
            assert_same_bits(packed.column(5), wanted[5])


@pytest.mark.parametrize("compute", ["float32", "int16"])
def test_gpt2_whose_matrices_are_turned(tmp_path, compute):
    """(in, out) for the graph, (out, in) in GGUF."""
    entries = {"vocab_size": 61, "n_positions": 160, "n_embd": 64, "n_layer": 2, "n_head": 4}
    config, number = GPT2Config.from_dict(entries), gguf.GGMLQuantizationType.Q4_0
    metadata = {"block_count": 2, "context_length": 160, "embedding_length": 64, "feed_forward_length": 256}
    metadata |= {"attention.head_count": 4, "attention.layer_norm_epsilon": 1e-5}

    def quantise(name, values):
        whole = values.ndim > 1 and name != "wpe.weight"
        return (gguf.quants.quantize(values, number), number) if whole else (values, None)

    path = write_gguf(
        tmp_path / "m.gguf", GPT2_FAMILY, config, gpt2_tensors(entries), "gpt2",
        {f"gpt2.{key}": value for key, value in metadata.items()}, quantise,
    )  # fmt: skip
    model, ids = load(path, compute=compute), ids_of(24) % 61
    assert (model.dtype, model.compute) == ("q4_0", compute)
    got = model.forward(ids)
    assert same_bits(got, load(path, dtype="float32").forward(ids)) == (compute == "float32")
    assert_same_bits(model.step([ids[:9], ids], [model.new_cache(), model.new_cache()])[1], got[-1])
    assert validate.run_ladder(path, ids=ids[:5].tolist(), peer=False, compute=compute).holds


def test_an_encoder(tmp_path):
    number = gguf.GGMLQuantizationType.Q8_0

    def quantise(name, values):
        whole = values.ndim > 1 and values.shape[1] % 32 == 0 and "position" not in name and "type" not in name
        return (gguf.quants.quantize(values, number), number) if whole else (values, None)

    path = encoders.write_file(tmp_path / "m.gguf", "bert", "wide", quantise=quantise).path
    ids = [[int(i) for i in ids_of(length, seed=length)] for length in (5, 24, 1)]
    results = []
    for compute in ("float32", "int16"):
        model = Encoder.from_pretrained(path, compute=compute)
        assert "q8_0" in model.dtype and model.compute == compute
        for one, alone in zip(model.forward_batch(ids), map(model.forward, ids), strict=True):
            assert_same_bits(one, alone)
        assert validate.run_ladder(path, ids=ids[0], peer=False, compute=compute).holds
        results.append(model.forward(ids[1]))
    assert not same_bits(*results)
    assert_same_bits(results[0], Encoder.from_pretrained(path, dtype="float32").forward(ids[1]))


# ---- memory --------------------------------------------------------------------------------------------

MEMORY = """
import sys, numpy as np, llorch
def memory(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what)) * 1024
def load(path):
    model = llorch.CausalLM.from_pretrained(path, compute="int16")
    model.step([[1, 2, 3]], [model.new_cache(16)])
    return model
load(sys.argv[1])  # what any model takes
before = memory("VmRSS")
if sys.argv[3] == "twice":  # the negative control
    kept = np.fromfile(sys.argv[2], np.uint8)
model = load(sys.argv[2])
print((memory("VmHWM") - before) / sum(entry.nbytes for entry in model.source.tensors.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_loading_takes_the_memory_of_the_file(tmp_path):
    """At most 1.05 x a file of 92 MB, with what a step works in: a second copy of a large tensor would be seen."""
    entries = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 64000}
    path = quantised(tmp_path / "m.gguf", mixed, entries | {"num_attention_heads": 16})
    tiny = quantised(tmp_path / "tiny.gguf", mixed)

    assert number_from(MEMORY, tiny, path, "streamed") <= 1.05
    assert number_from(MEMORY, tiny, path, "twice") > 1.5
