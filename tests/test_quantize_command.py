"""`llorch quantize`: every tensor's bytes, what is copied, what is refused; read by gguf, llorch and llama.cpp."""

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from families import ids_of, made, write_file
from families import write as write_folder
from helpers import assert_same_bits, normal, num_threads, same_bits, smollm2

import llorch
from llorch import reference
from llorch.cli import main
from llorch.commands.common import INTEGERS
from llorch.files.gguf import read_gguf, read_types
from llorch.files.output import replacing
from llorch.files.requantize import FALLBACK, requantize
from llorch.files.tensor import BLOCKS, Reader
from llorch.testing import use_isa

gguf = pytest.importorskip("gguf")
KINDS, TYPES = gguf.GGMLQuantizationType, gguf.GGUFValueType


def run(*arguments, **more):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="llorch", **more)


WIDE, NARROW, ODD = normal(20, 512, seed=1), normal(40, 96, seed=2), normal(8, 40, seed=3)
Q4 = gguf.quants.quantize(normal(24, 256, seed=4), KINDS.Q4_0)
TENSORS = {  # name: array, kind
    "token_embd.weight": (WIDE.astype(np.float16), None),
    "blk.0.attn_norm.weight": (normal(96, seed=5), None),
    "blk.0.attn_q.weight": (NARROW, None),
    "blk.0.attn_q.bias": (normal(40, seed=6).astype(np.float16), None),
    "blk.0.ffn_up.weight": (gguf.quants.quantize(normal(30, 256, seed=7), KINDS.BF16), KINDS.BF16),
    "blk.0.ffn_up_exps.weight": (normal(3, 5, 256, seed=8), None),
    "blk.0.ffn_gate_inp.weight": (normal(5, 256, seed=9), None),
    "blk.0.ffn_down.weight": (Q4, KINDS.Q4_0),
    "blk.0.odd.weight": (ODD, None),
    "position_embd.weight": (normal(7, 256, seed=10).astype(np.float16), None),
    "places": (np.arange(64, dtype=np.int32).reshape(8, 8), None),
}
METADATA = {
    "llama.block_count": (1, TYPES.UINT32, None),
    "llama.eps": (float(np.float32(1e-5)), TYPES.FLOAT32, None),
    "a.int8": (-3, TYPES.INT8, None),
    "a.float64": (1e-300, TYPES.FLOAT64, None),
    "a.bool": (True, TYPES.BOOL, None),
    "a.empty": ("", TYPES.STRING, None),
    "tokenizer.ggml.tokens": ([b"a", b"\xff\xfe", "ß".encode(), b""], TYPES.ARRAY, TYPES.STRING),
    "tokenizer.ggml.scores": ([0.5, float(np.float32(-1e-9))], TYPES.ARRAY, TYPES.FLOAT32),
    "tokenizer.ggml.token_type": ([1, 3], TYPES.ARRAY, TYPES.INT32),
    "a.bytes": ([1, 255], TYPES.ARRAY, TYPES.UINT8),
    "general.file_type": (1, TYPES.UINT32, None),
    "quantize.imatrix.file": ("calibration", TYPES.STRING, None),
    "split.count": (1, TYPES.UINT16, None),
}


def write(path, tensors=TENSORS, metadata=METADATA, alignment=None):
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (value, kind, of) in metadata.items():
        writer.add_key_value(key, value, kind, sub_type=of)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("quantize") / "model.gguf")


def values_of(path, name):
    """The float32 values of a tensor, by the oracle."""
    entry = read_gguf(path)[1][name]
    return reference.dequantize(Reader().read(entry), entry.format, entry.shape)


def expected(name, format):
    """The format that a tensor of TENSORS gets."""
    if name in ("blk.0.attn_norm.weight", "blk.0.attn_q.bias"):
        return "F32"
    kept = {
        "blk.0.ffn_gate_inp.weight": "F32",
        "position_embd.weight": "F16",
        "places": "I32",
        "blk.0.odd.weight": "F16",
    }
    return kept.get(name) or (FALLBACK.get(format, format) if name == "blk.0.attn_q.weight" else format)


@pytest.mark.parametrize("format", [name.upper() for name in INTEGERS])
def test_every_tensor(model, tmp_path, format):
    out = tmp_path / "out.gguf"
    result = run("quantize", model, "--to", format.lower(), "-o", out)
    assert result.exit_code == 0, result.output
    _, entries = read_gguf(out)
    assert list(entries) == list(TENSORS)
    for name, entry in entries.items():
        assert entry.format == expected(name, format) and entry.shape == read_gguf(model)[1][name].shape, name
        data, before = Reader().read(entry), read_gguf(model)[1][name]
        if entry.format == before.format:
            assert (data == Reader().read(before)).all(), name
        elif entry.format in BLOCKS:
            assert (data == reference.quantize(values_of(model, name), entry.format).reshape(-1)).all(), name
        else:
            wanted = values_of(model, name).astype(np.float16 if entry.format == "F16" else np.float32)
            assert (data == wanted.reshape(-1).view(np.uint8)).all(), name
    for tensor in gguf.GGUFReader(out).tensors:  # another reader finds the same, at the same places
        if tensor.name != "places":
            found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert_same_bits(found, values_of(out, tensor.name), tensor.name)
    assert f"{out}: 11 tensors, {out.stat().st_size:,} bytes\n" in result.stdout
    assert "1 in F16 from F32: rows of 40 aren't blocks of" in result.stdout
    if format in FALLBACK:
        assert f"1 in {FALLBACK[format]} from F32: rows of 96 aren't blocks of 256\n" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_metadata(model, tmp_path):
    out = tmp_path / "out.gguf"
    assert run("quantize", model, "--to", "q4_k", "-o", out).exit_code == 0
    before, after = read_gguf(model)[0], read_gguf(out)[0]
    for key in ("quantize.imatrix.file", "split.count", "general.file_type"):
        del before[key]
    assert after.pop("general.file_type") == 14 and after.pop("general.quantization_version") == 2
    assert after == before and list(after) == list(before)
    assert list(after["tokenizer.ggml.tokens"])[1].encode("utf-8", "surrogateescape") == b"\xff\xfe"
    types = read_types(model)
    assert all(read_types(out)[key] == types[key] for key in after)
    for format, number in (("q8_0", 7), ("q4_1", 3), ("q2_k", 10), ("q3_k", 11), ("q6_k", 18)):
        assert run("quantize", model, "--to", format, "-o", out, "--force").exit_code == 0
        assert read_gguf(out)[0]["general.file_type"] == number


def test_the_same_bytes(model, tmp_path):
    files = []
    for isa in llorch.available_isas():
        for threads in (1, 3):
            out = tmp_path / f"{isa}-{threads}.gguf"
            with use_isa(isa), num_threads(threads):
                assert run("quantize", model, "--to", "q4_k", "-o", out).exit_code == 0
            files.append(out.read_bytes())
    assert len(set(files)) == 1
    assert run("quantize", model, "--to", "q5_k", "-o", out, "--force").exit_code == 0
    assert out.read_bytes() != files[0]


def test_head_alignment_slices_and_a_file_onto_itself(model, tmp_path, monkeypatch):
    out = tmp_path / "out.gguf"
    assert run("quantize", model, "--to", "q2_k", "--head", "q6_k", "-o", out).exit_code == 0
    found = {name: entry.format for name, entry in read_gguf(out)[1].items()}
    assert (found["token_embd.weight"], found["blk.0.ffn_up.weight"]) == ("Q6_K", "Q2_K")
    untied = TENSORS | {"output.weight": (normal(20, 512, seed=11), None)}
    aligned = write(tmp_path / "aligned.gguf", untied, alignment=128)
    assert run("quantize", aligned, "--to", "q2_k", "--head", "q6_k", "-o", out, "--force").exit_code == 0
    metadata, entries = read_gguf(out)
    assert metadata["general.alignment"] == 128 and all(entry.begin % 128 == 0 for entry in entries.values())
    assert (entries["token_embd.weight"].format, entries["output.weight"].format) == ("Q2_K", "Q6_K")
    whole = out.read_bytes()
    monkeypatch.setattr("llorch.files.requantize.SLICE", 3 * 512)
    assert run("quantize", aligned, "--to", "q2_k", "--head", "q6_k", "-o", aligned, "--force").exit_code == 0
    assert aligned.read_bytes() == whole
    again = run("quantize", aligned, "--to", "q2_k", "--head", "q6_k", "-o", out, "--force")
    assert out.read_bytes() == whole and "4 in Q2_K: copied, it was so before\n" in again.stdout


def refused(model, *more, output=None):
    """The message of a run that fails and leaves nothing behind."""
    folder = Path(model).parent
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = run("quantize", model, "--to", "q4_0", "-o", output or folder / "new.gguf", *more)
    assert result.exit_code == 1, result.output
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    return result.output


def test_what_is_refused(model, tmp_path):
    there = tmp_path / "there.gguf"
    there.write_bytes(b"precious")
    assert "is there already: name another file, or give --force" in refused(model, output=there)
    assert there.read_bytes() == b"precious"
    wrong = NARROW.copy()
    wrong[33, 5] = np.nan
    path = write(tmp_path / "nan.gguf", TENSORS | {"blk.0.attn_q.weight": (wrong, None)})
    message = refused(path, "--force", output=there)
    assert "nan.gguf: tensor blk.0.attn_q.weight: weights[33, 5] is nan, Q4_0 has finite values only" in message
    assert there.read_bytes() == b"precious"
    path = write(tmp_path / "large.gguf", {"a.weight": (ODD * np.float32(1e6), None)})
    assert "tensor a.weight: weights have values that float16 doesn't hold" in refused(path)
    path = write(tmp_path / "iq.gguf", {"a.weight": (np.zeros((4, 74), np.uint8), KINDS.IQ2_XS)})
    assert "tensor a.weight is IQ2_XS, it must be one of F64, F32" in refused(path)
    nested = {"a.b": ([[1], [2]], TYPES.ARRAY, TYPES.ARRAY)}
    path = write(tmp_path / "nested.gguf", {"a.weight": (ODD, None)}, nested)
    assert "metadata key a.b is an array of arrays" in refused(path)
    assert "has no tensors" in refused(write(tmp_path / "none.gguf", {}))
    assert "is not a GGUF file" in refused(there)
    assert (
        "is a folder: llorch quantize reads GGUF files" in run("quantize", tmp_path, "--to", "q8_0", "-o", "x").output
    )
    assert "No such file" in refused(tmp_path / "absent.gguf")
    assert run("quantize", model, "--to", "f16", "-o", tmp_path / "x.gguf").exit_code == 2


def test_without_the_package(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert 'needs the package gguf: pip install "llorch[quantize]"' in refused(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_what_is_broken_off_leaves_nothing(model, tmp_path, monkeypatch, error):
    out, written = tmp_path / "out.gguf", []
    out.write_bytes(b"precious")
    original = gguf.GGUFWriter.write_tensor_data

    def fails(writer, tensor):
        written.append(tensor)
        if len(written) == 5:
            assert len(list(tmp_path.iterdir())) == 2
            raise error
        original(writer, tensor)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fails)
    with pytest.raises(type(error)):
        requantize(model, out, "Q4_0")
    assert len(written) == 5 and list(tmp_path.iterdir()) == [out] and out.read_bytes() == b"precious"


def test_outputs_that_are_no_files(model, tmp_path):
    """A device would be replaced by a file, and a pipe waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for output in (pipe, tmp_path):
        for command in (["quantize", model, "--to", "q4_0"], ["dump", "--prompt", "a"]):
            result = run(*command, "-o", output, "--force")
            assert result.exit_code == 2 and (
                "isn't a regular file" in result.output or "is a directory" in result.output
            )
    with pytest.raises(ValueError, match="isn't a regular file"), replacing(pipe):
        pass
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    result = run("quantize", model, "--to", "q4_0", "-o", "-")
    assert result.exit_code == 2 and "it must be a file, and not standard output" in result.output


@pytest.mark.parametrize(
    ("name", "why"),
    [("a" * 300, "File name too long"), ("file/x", "Not a directory"), ("absent/x", "No such file or directory")],
)
def test_outputs_that_cannot_be_written_are_found_before_the_work(model, tmp_path, name, why):
    (tmp_path / "file").touch()
    for command in (["quantize", model, "--to", "q4_0"], ["dump", "--prompt", "a"], ["embed", "x", "--model", "x"]):
        result = run(*command, "-o", tmp_path / name)
        assert result.exit_code == 2 and f"can't write {tmp_path / name}: {why}" in result.stderr, result.stderr
    with pytest.raises(OSError, match=f"{why}: '{tmp_path / name}'$"), replacing(tmp_path / name):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_whose_error_it_is(tmp_path):
    """What reading another file says isn't put on the one that is written."""
    for error, name in (
        (OSError(errno.EIO, "Input/output error", "model.gguf"), "model.gguf"),
        (OSError(errno.ENOSPC, "No space left on device"), f"{tmp_path / 'x'}"),
        (OSError("5 requested and 3 written"), f"{tmp_path / 'x'}"),
    ):
        with pytest.raises(OSError) as caught, replacing(tmp_path / "x"):
            raise error
        assert caught.value.filename == name
    assert not list(tmp_path.iterdir())


def test_a_source_that_cannot_be_read_is_named(model, tmp_path, monkeypatch):
    _, entries = read_gguf(model)

    class Broken(FileIO):
        def readinto(self, into):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda path, *mode, **how: Broken(path))
    with pytest.raises(OSError, match=f"Input/output error: '{model}'"):
        Reader().read(next(iter(entries.values())))


def test_links_are_followed_and_permissions_stay(model, tmp_path):
    target, link, empty = tmp_path / "target.gguf", tmp_path / "link.gguf", tmp_path / "empty.gguf"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    empty.symlink_to(tmp_path / "later.gguf")
    assert run("quantize", model, "--to", "q4_0", "-o", link).exit_code == 1 and target.read_bytes() == b"old"
    assert run("quantize", model, "--to", "q4_0", "-o", link, "--force").exit_code == 0
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o640
    assert run("quantize", tmp_path / "absent.gguf", "--to", "q4_0", "-o", empty).exit_code == 1
    assert empty.is_symlink() and not empty.exists()  # looking whether it can be written leaves nothing
    assert run("quantize", model, "--to", "q4_0", "-o", empty).exit_code == 0
    new = tmp_path / "new"
    new.touch()
    assert (tmp_path / "later.gguf").stat().st_mode == new.stat().st_mode
    assert target.read_bytes() == (tmp_path / "later.gguf").read_bytes() == empty.read_bytes()


def test_a_full_disk_is_named(model, tmp_path):
    """By a limit of the file's size: NumPy says of a write only how much was written."""
    out = tmp_path / "out.gguf"
    small = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
    for command in (["quantize", model, "--to", "q8_0", "-o", out], ["dump", "--prompt", "a", "-o", out]):
        words = [sys.executable, "-P", "-m", "llorch", *command]
        done = subprocess.run(words, capture_output=True, text=True, preexec_fn=small)
        assert (done.returncode, done.stderr) == (1, f"llorch {command[0]}: {out}: File too large\n")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_is_asked_to_end_leaves_nothing(model, tmp_path, number):
    """Asked by itself, in the middle of the file."""
    code = (
        "import os, signal, sys\n"  # in the background of a shell some are ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "import gguf\nfrom llorch import __main__\noriginal = gguf.GGUFWriter.write_tensor_data\n"
        "def ends(writer, tensor):\n    original(writer, tensor)\n    assert len(os.listdir(folder)) == 1\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "gguf.GGUFWriter.write_tensor_data, folder = ends, sys.argv[1]\n"
        "sys.argv = ['llorch', 'quantize', sys.argv[2], '--to', 'q4_0', '-o', folder + '/out.gguf']\n"
        "__main__.main()\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, tmp_path, model], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, ""), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_model_is_not_written_over(model, tmp_path):
    values = normal(4, 32)
    for number in range(2):
        parts = {"split.no": (number, TYPES.UINT16, None), "split.count": (2, TYPES.UINT16, None),
                 "split.tensors.count": (2, TYPES.INT32, None)}  # fmt: skip
        write(tmp_path / f"m-0000{number + 1}-of-00002.gguf", {f"{number}.weight": (values, None)}, parts)
    first, second = sorted(tmp_path.iterdir())
    before = second.read_bytes()
    result = run("quantize", first, "--to", "q4_0", "-o", second, "--force")
    assert result.exit_code == 1 and f"{second} is a part of the model that is read" in result.output
    assert second.read_bytes() == before and run("quantize", first, "--to", "q4_0", "-o", tmp_path / "x").exit_code == 0


def test_a_file_that_llorch_cannot_run_is_said_to_be_one(model, tmp_path):
    out = tmp_path / "out.gguf"
    assert "\n  llorch can't run it: " in run("quantize", model, "--to", "Q4_0", "-o", out).stdout
    write_file(tmp_path / "m.gguf", "qwen2", "wide")
    result = run("quantize", tmp_path / "m.gguf", "--to", "q8_0", "-o", out, "--force")
    assert result.exit_code == 0 and "can't run" not in result.stdout


def test_no_values_at_all(tmp_path):
    path = write(tmp_path / "m.gguf", {"a.weight": (np.zeros((0, 32), np.float32), None)}, {})
    result = run("quantize", path, "--to", "q4_0", "-o", tmp_path / "out.gguf")
    assert result.exit_code == 0 and "1 in Q4_0 from F32\n" in result.stdout and "bits a weight" not in result.stdout


# ---- models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["Q8_0", "Q5_1"])
def test_the_engine_has_the_bits_of_the_values(tmp_path, format):
    """Of a model whose queries and keys have other rows in the file, too."""
    for name in ("qwen2", "mistral"):
        write_file(tmp_path / f"{name}.gguf", name, "wide")
        requantize(tmp_path / f"{name}.gguf", tmp_path / "out.gguf", format)
        model = llorch.CausalLM.from_pretrained(tmp_path / "out.gguf")
        _, _, tensors = made(name, "wide")
        values = {
            key: reference.dequantize(reference.quantize(value, format).reshape(-1), format, value.shape)
            if value.ndim > 1
            else value
            for key, value in tensors.items()
        }
        wanted = write_folder(tmp_path / name, name, "wide", tensors=values).forward(ids_of())
        assert_same_bits(model.forward(ids_of()), wanted, name)
        assert not same_bits(wanted, write_folder(tmp_path / f"raw {name}", name, "wide").forward(ids_of()))


@pytest.mark.llama_cpp
def test_beside_llama_cpp(tmp_path):
    """SmolLM2 in Q8_0 and Q4_0 as its own quantiser makes it, byte for byte; and it runs a file of K-quants."""
    llama_cpp = pytest.importorskip("llama_cpp")
    for format, number in (("Q8_0", 7), ("Q4_0", 2)):
        requantize(smollm2(), tmp_path / "ours.gguf", format)
        more = llama_cpp.llama_model_quantize_default_params()
        more.ftype, more.pure, more.allow_requantize, more.nthread = number, True, True, 2
        theirs = str(tmp_path / "theirs.gguf").encode()
        assert llama_cpp.llama_model_quantize(str(smollm2()).encode(), theirs, ctypes.byref(more)) == 0
        (_, ours), (_, wanted) = (read_gguf(tmp_path / f"{name}.gguf") for name in ("ours", "theirs"))
        assert ours.keys() == wanted.keys()
        for name, entry in ours.items():
            assert entry.format == wanted[name].format, name
            assert (Reader().read(entry) == Reader().read(wanted[name])).all(), name
    requantize(smollm2(), tmp_path / "ours.gguf", "Q4_K")
    model = llama_cpp.Llama(str(tmp_path / "ours.gguf"), n_ctx=64, n_threads=2, verbose=False)
    said = model("The capital of France is", max_tokens=3, temperature=0)["choices"][0]["text"]
    assert said.startswith(" Paris")
    by_llorch = llorch.CausalLM.from_pretrained(tmp_path / "ours.gguf")
    assert "".join(by_llorch.stream("The capital of France is", max_new_tokens=3)).startswith(" Paris")
