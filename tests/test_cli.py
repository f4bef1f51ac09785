"""The command line: what it prints and where, its exit statuses, and how it leaves."""

import errno
import io
import json
import math
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import num_threads, smollm2
from safetensors.numpy import load_file, save_file

import llorch
from llorch import _progress
from llorch.cli import COMMANDS, main
from llorch.commands import common
from llorch.models import loading
from llorch.models.gpt2 import GPT2Config, shapes
from llorch.models.shapes import SHAPES, write_random
from llorch.validate.kernels import determinism

MODEL = llorch.GPT2.from_pretrained("shakespeare-1m")
SEEDED = ("--temperature", "0.8", "--top-k", "40", "--top-p", "0.95", "--repetition-penalty", "1.1", "--seed", "3")
OPTIONS = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 3}


def run(*arguments, **more):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="llorch", **more)


def command(*arguments):
    return [sys.executable, "-P", "-m", "llorch", *map(str, arguments)]


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model that takes seconds to fill its context, with the small one's vocabulary and no end of text."""
    folder = tmp_path_factory.mktemp("slow")
    write_random(folder, GPT2Config(1024, 8192, 256, 8, 4, bos_token_id=None, eos_token_id=None))
    shutil.copy(MODEL.path / "tokenizer.json", folder)
    return folder


# ---- generate ---------------------------------------------------------------------------------------------


def test_generate_prints_the_new_text_and_nothing_else():
    result = run("generate", "ROMEO:", "-n", 40)
    assert result.exit_code == 0
    assert result.stdout == MODEL.generate("ROMEO:", 40) + "\n"
    assert result.stderr == ""


def test_generate_takes_all_options():
    result = run("generate", "ROMEO:", "--max-new-tokens", 60, *SEEDED, "--model", MODEL.path, "--stop", "zzz")
    assert result.stdout == MODEL.generate("ROMEO:", 60, **OPTIONS) + "\n"
    whole = MODEL.generate("ROMEO:", 60, **OPTIONS)
    stop = whole[20:23]
    result = run("generate", "ROMEO:", "-n", 60, *SEEDED, "--stop", "zzz", "--stop", stop)
    assert result.stdout == whole[: whole.index(stop)] + "\n"
    wide = llorch.GPT2.from_pretrained("shakespeare-1m", dtype="float16")
    assert run("generate", "ROMEO:", "-n", 9, "--dtype", "float16").stdout == wide.generate("ROMEO:", 9) + "\n"


def test_a_fresh_seed_is_shown_and_gives_the_text_again():
    first = run("generate", "ROMEO:", "-n", 30, "--temperature", 1)
    word, seed = first.stderr.split()
    assert word == "seed"
    again = run("generate", "ROMEO:", "-n", 30, "--temperature", 1, "--seed", seed)
    assert again.stdout == first.stdout and again.stderr == ""
    assert run("generate", "ROMEO:", "-n", 30, "--temperature", 1).stdout != first.stdout


def test_the_prompt_may_come_from_stdin_or_be_empty():
    assert run("generate", "-", "-n", 9, input="ROMEO:\n").stdout == MODEL.generate("ROMEO:\n", 9) + "\n"
    assert run("generate", "", "-n", 9).stdout == MODEL.generate("<|endoftext|>", 9) + "\n"


def test_the_default_length_is_what_the_context_has_room_for():
    prompt = "O " * 100
    room = MODEL.config.n_positions - len(MODEL.tokenizer.encode(prompt))
    assert 0 < room < 200
    assert run("generate", prompt).stdout == MODEL.generate(prompt, room) + "\n"
    assert run("generate", "O").stdout == MODEL.generate("O", 200) + "\n"


def test_stats():
    result = run("generate", "ROMEO:", "-n", 5, "--stats")
    assert result.stdout == MODEL.generate("ROMEO:", 5) + "\n"
    assert "prompt: 2 tokens in" in result.stderr and "new: 5 tokens in" in result.stderr
    assert "decoding: " in result.stderr and result.stderr.endswith(" tokens/s\n")


def test_threads():
    with num_threads(1):
        result = run("generate", "ROMEO:", "-n", 5, "--threads", 2)
        assert llorch.get_num_threads() == 2
    assert result.stdout == MODEL.generate("ROMEO:", 5) + "\n"


def test_at_a_terminal_the_summary_is_shown():
    """stderr is a terminal, stdout is not: the text stays plain."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        command("generate", "ROMEO:", "-n", 5), stdout=subprocess.PIPE, stderr=theirs,
        env=determinism.child_environment(),
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert done.stdout.decode() == MODEL.generate("ROMEO:", 5) + "\n"
    assert "tokens/s" in shown and done.returncode == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_terminals(monkeypatch, terminal):
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(_progress, "SLOW", 0.05)
    with common.progress("reading the prompt") as advance:
        advance(1, 3)
        assert shown.getvalue() == "", "not before it is slow"
        time.sleep(0.1)
        advance(2, 3)
        advance(3, 3)
    assert ("reading the prompt" in shown.getvalue()) == terminal
    assert terminal or shown.getvalue() == ""


# ---- leaving ----------------------------------------------------------------------------------------------


def test_text_streams_and_ctrl_c_keeps_what_came(slow):
    process = subprocess.Popen(
        command("generate", "ROMEO:", "--model", slow, "-n", 8000, "--stats"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=determinism.child_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background may ignore it
    )
    first = process.stdout.read1(1)
    assert process.poll() is None, "the first text comes while the rest is computed"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    text = (first + out).decode()
    assert process.returncode == 130
    assert "Traceback" not in err.decode() and "new: " in err.decode()
    model = llorch.GPT2.from_pretrained(slow)
    assert len(text) > 1 and model.generate("ROMEO:", 500).startswith(text[:400])


def test_a_reader_that_leaves(slow):
    process = subprocess.Popen(
        command("generate", "ROMEO:", "--model", slow, "-n", 8000),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=determinism.child_environment(),
    )
    with process:
        process.stdout.read1(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["generate"], 2, "llorch generate: Missing argument 'PROMPT'"),
        (["generate", "a", "b"], 2, "llorch generate: Got unexpected extra argument"),
        (["generate", "a", "-n", "-1"], 2, "llorch generate: Invalid value for '-n'"),
        (["generate", "a", "--dtype", "int8"], 2, "llorch generate: Invalid value for '--dtype'"),
        (["generate", "a", "--threads", "0"], 2, "llorch generate: Invalid value for '--threads'"),
        (["generate", "a", "--bogus"], 2, "llorch generate: No such option"),
        (["sing"], 2, "llorch: No such command 'sing'"),
        (["bench", "--shape", "tiny", "--model", "x"], 2, "llorch bench: --model and --shape exclude each other"),
        (["generate", "a", "--top-k", "0"], 1, "llorch generate: top_k must be at least 1, got 0"),
        (["generate", "a", "--temperature", "-1"], 1, "llorch generate: temperature must be 0, or more than 0"),
        (["generate", "a", "--stop", ""], 1, "llorch generate: stop has an empty string"),
        (["generate", "a", "-n", "256"], 1, "max_new_tokens can be at most 255, got 256"),
        (["generate", "a " * 400], 1, "tokens, the context only 256"),
        (["generate", "\udcff"], 1, r"text has the lone surrogate '\udcff' at 0"),
        (["generate", "a", "--model", "./nowhere"], 1, "llorch generate: there is no folder ./nowhere"),
        (["score", ""], 1, "llorch score: text is empty"),
        (["score", "a"], 1, "llorch score: text has 1 token, it must have at least 2"),
        (["info", "./nowhere"], 1, "llorch info: there is no folder ./nowhere"),
        (["info", "."], 1, "config.json"),
    ],
)
def test_errors_are_one_line(arguments, status, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == status
    assert result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name):
    result = run(name, "--help")
    assert result.exit_code == 0 and f"Usage: llorch {name}" in result.stdout
    assert name in run("--help").stdout


def test_the_list_of_commands_is_not_cut():
    lines = run("--help").stdout.splitlines()
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS)
    assert not [line for line in lines[1:] if line.endswith("...")]


def test_the_version():
    assert run("--version").output == f"llorch, version {llorch.__version__}\n"


def test_a_command_starts_without_the_packages_metadata():
    """To read it takes a sixth of a short command's time."""
    code = """import sys
from llorch.cli import main
try:
    main(["generate", "ROMEO:", "-n", "1"])
finally:
    assert "importlib.metadata" not in sys.modules"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_standard_input_that_is_not_utf8_is_named():
    """And what is, is read so whatever the locale says; the mark that some editors put first is no part of it."""
    for command in (["generate", "-"], ["score", "-"]):
        result = run(*command, input=b"To be\nor \xe9\n")
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr == f"llorch {command[0]}: standard input, line 2 isn't UTF-8: byte 3 is 0xe9\n"
    wanted = run("generate", "caf\u00e9\nau lait", "-n", "4").stdout
    assert run("generate", "-", "-n", "4", input=b"\xef\xbb\xbfcaf\xc3\xa9\r\nau lait").stdout == wanted


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line():
    short, weights = ["generate", "a", "-n", "1"], ["compare-weights", MODEL.path, MODEL.path]
    with open("/dev/full", "w") as full:
        for arguments, name, status in (
            (["info", "shakespeare-1m"], "llorch info", 1),
            (["--help"], "llorch", 1),
            (short, "llorch generate", 1),
            (weights, "llorch compare-weights", 2),
        ):
            done = subprocess.run(command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True)
            assert (done.returncode, done.stderr) == (status, f"{name}: standard output: No space left on device\n")
    for arguments, status in (([*short, "--receipt"], 1), ([*weights, "--json"], 2)):
        done = run(*arguments, "/dev/full")
        assert done.exit_code == status
        assert done.stderr.endswith(f"llorch {arguments[0]}: /dev/full: No space left on device\n")


def test_an_error_that_is_not_of_standard_output_is_not_called_one(monkeypatch):
    monkeypatch.setattr("llorch.commands.config.config_lines", lambda: fails())

    def fails():
        raise OSError(errno.EAGAIN, "no process can be made")

    with pytest.raises(OSError, match="no process can be made"):
        CliRunner().invoke(main, ["config"], catch_exceptions=False)


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
def test_results_to_a_pipe():
    """As `--json >(jq .)` and `--json /dev/stdout` are; it is opened once, when there is something to write."""
    words = "set -o pipefail; " + shlex.join(command("compare-weights", MODEL.path, MODEL.path))
    done = subprocess.run(["bash", "-c", f"{words} --json >(cat >&2) | cat"], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stderr)["alike"]) == (0, True)
    done = subprocess.run(["bash", "-c", f"{words} --json /dev/stdout | cat"], capture_output=True, text=True)
    assert done.returncode == 0 and '"alike": true' in done.stdout


def test_standard_output_that_was_closed_before():
    words = shlex.join(command("generate", "a", "-n", "1"))
    done = subprocess.run(["sh", "-c", f"{words} >&-"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_formats_to_choose_from_are_the_loaders():
    assert (common.FLOATS, common.INTEGERS) == (loading.FLOATS, loading.INTEGERS)


def test_a_missing_tokenizer_is_one_line(tmp_path):
    write_random(tmp_path, SHAPES["tiny"])
    result = run("generate", "a", "--model", tmp_path)
    assert result.exit_code == 1 and "has no tokenizer.json" in result.stderr


# ---- the others -------------------------------------------------------------------------------------------


def test_score():
    text = "ROMEO:\nBut, soft!"
    wanted = MODEL.score(text)
    result = run("score", text)
    assert f"perplexity:     {wanted.perplexity:.6f}\n" in result.stdout
    numbers = json.loads(run("score", "-", "--json", "--tokens", input=text).stdout)
    assert numbers["perplexity"] == wanted.perplexity and numbers["log_likelihood"] == wanted.log_likelihood
    assert [token["log_probability"] for token in numbers["by_token"]] == [None, *wanted.log_probabilities.tolist()]
    assert [token["id"] for token in numbers["by_token"]] == wanted.ids
    assert "by_token" not in json.loads(run("score", text, "--json").stdout)
    lines = run("score", text, "--tokens").stdout.splitlines()
    assert len(lines) == len(wanted.ids) + 4 and lines[0].split() == [str(wanted.ids[0]), "ROMEO"]


def test_info():
    found = json.loads(run("info", "shakespeare-1m", "--json").stdout)
    assert found["parameters"] == 957184 and found["config"]["n_embd"] == 128
    bf16 = {"tensors": 52, "parameters": 957184, "bytes": 1914368, "bits": 16.0, "share": 1.0}
    assert found["tensors"] == {"BF16": bf16} and found["compute"] == {"float32": 1.0, "int16": 0.0}
    assert found["sampling"]["parameters"]["temperature"] == 0 and found["memory"]["as in the file"] == 1914368
    assert found["memory"]["cache, a position"] == 4 * 2 * 128 * 4
    assert (found["family"], found["problem"], found["left_out"]) == ("GPT-2", None, {})
    assert "957,184" in run("info", "shakespeare-1m").stdout


def test_info_tells_the_recommended_sampling(tmp_path):
    shutil.copytree(MODEL.path, tmp_path / "model")
    settings = tmp_path / "model" / "generation_config.json"
    for entries, shown in (
        ({}, "recommended sampling: none, the likeliest token is taken\n"),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, "recommended sampling: temperature 0.6, top_k 20\n"),
        ({"do_sample": True, "min_p": 0.1}, "temperature 1\nasked for, and not there: min_p 0.1\n"),
        ({"do_sample": True, "top_p": 7}, "recommended sampling can't be used: .*top_p must be more than 0"),
    ):
        settings.write_text(json.dumps(entries))
        assert re.search(shown, re.sub(" +", " ", run("info", tmp_path / "model").stdout)), shown
    found = json.loads(run("info", tmp_path / "model", "--json").stdout)["sampling"]
    assert found.keys() == {"problem"} and "generation_config.json" in found["problem"]


def test_info_tells_what_a_position_of_the_cache_takes(tmp_path):
    """Values of a head are kept in whole panels of 16: a head of 12 takes 12 + 16 floats a position."""
    write_random(tmp_path, GPT2Config(64, 256, 36, 2, 3, bos_token_id=None, eos_token_id=None))
    memory = json.loads(run("info", tmp_path, "--json").stdout)["memory"]
    model = llorch.GPT2.from_pretrained(tmp_path)
    cache = model.new_cache()
    model.step([[1, 2, 3]], [cache])
    assert memory["cache, a position"] == 4 * 2 * 3 * (12 + 16) == cache.nbytes / 128  # positions of a block
    assert memory["float32"] == 4 * sum(math.prod(shape) for shape in shapes(model.config).values())


def test_info_tells_what_is_left_out_and_why_a_model_cannot_run(tmp_path):
    made = load_file(MODEL.path / "model.safetensors")
    shutil.copy(MODEL.path / "config.json", tmp_path)
    save_file(made | {"score.weight": np.zeros((2, 128), np.float32)}, tmp_path / "model.safetensors")
    found = json.loads(run("info", tmp_path, "--json").stdout)
    assert found["left_out"] == {"score.weight": "a head of another task"} and found["parameters"] == 957184
    assert found["tokenizer"] is None and found["problem"] is None
    assert "left out, score.weight:          a head of another task" in run("info", tmp_path).stdout
    config = json.loads((tmp_path / "config.json").read_text())
    for entries, why in (
        ({"model_type": "t5"}, "model_type is t5"),
        ({"n_head": 7}, "it must be a multiple of n_head"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | entries))
        found = json.loads(run("info", tmp_path, "--json").stdout)
        assert why in found["problem"] and "memory" not in found and found["tensors"]["BF16"]["tensors"] == 52
        assert f"can't be run:                    {tmp_path}" in run("info", tmp_path).stdout


def test_info_of_gguf(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_block_count(3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("plain", np.zeros((4, 32), np.float32))
    blocks = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = json.loads(run("info", path, "--json").stdout)
    assert found["kind"] == "gguf" and found["family"] is None and "mamba" in found["problem"]
    assert found["config"] == {"mamba.block_count": 3} and found["parameters"] == 128 + 256
    q4_0 = {"tensors": 1, "parameters": 256, "bytes": 144, "bits": 4.5, "share": 256 / 384}
    assert found["tensors"]["Q4_0"] == q4_0 and "compute" not in found
    about = found["tokenizer"]
    assert (about["type"], about["pre"], about["vocabulary"]) == ("gpt2", "smollm", 3)
    assert "merges must be a list of texts" in about["problem"] and found["layers"] == 3
    text = re.sub(" +", " ", run("info", path).stdout)
    assert "family: unknown to llorch, mamba\n" in text and "layers: 3\n" in text and "chat template: none\n" in text
    assert "tokenizer: gpt2, pre-tokenizer smollm, 3 tokens\ntokenizer can't be used: " in text
    assert "parameters: 384, 656 bytes, 13.67 bits each\n" in text
    assert "tensors, Q4_0:                   1, 66.67 % of the parameters, 4.5 bits each" in run("info", path).stdout


def test_info_of_formats_that_are_not_read(tmp_path):
    """A file of I-quants: everything is told, and why it can't be run."""
    import gguf_files as files

    text = [("general.architecture", files.STRING, "llama"), ("llama.block_count", files.UINT32, 2),
            ("llama.context_length", files.UINT32, 64), ("llama.embedding_length", files.UINT32, 256),
            ("llama.feed_forward_length", files.UINT32, 256), ("llama.attention.head_count", files.UINT32, 4),
            ("llama.attention.layer_norm_rms_epsilon", files.FLOAT32, 1e-5),
            ("llama.vocab_size", files.UINT32, 1)]  # fmt: skip
    text += [("tokenizer.ggml.model", files.STRING, "llama"),
             ("tokenizer.ggml.tokens", files.ARRAY, (files.STRING, ["<s>"])),
             ("tokenizer.ggml.scores", files.ARRAY, (files.FLOAT32, [0.0])),
             ("tokenizer.ggml.token_type", files.ARRAY, (files.INT32, [3])),
             ("tokenizer.ggml.bos_token_id", files.UINT32, 0),
             ("tokenizer.chat_template", files.STRING, "\n{{ '\x1b[2J' }}\nmore")]  # fmt: skip
    path = files.write(tmp_path / "model.gguf", text, [("token_embd.weight", (256, 1), 16, 0)], bytes(66))
    found = json.loads(run("info", path, "--json").stdout)
    assert found["problem"] and found["tensors"]["IQ2_XXS"]["bits"] == 8 * 66 / 256 == found["bits"]
    assert found["tokenizer"]["bos"] == {"id": 0, "token": "<s>"} and found["tokenizer"]["problem"] is None
    result = run("info", path)
    text = re.sub(" +", " ", result.stdout)
    assert result.exit_code == 0 and "family: Llama\ncan't be run: " in text and "layers: 2\n" in text
    assert "tokenizer: llama, 1 token\nbos: 0, <s>, before every text\n" in text
    assert r"chat template: yes, begins {{ '\x1b[2J' }}" in text


def test_a_folder_without_weights(tmp_path):
    """Its family comes first: nobody should look for the weights of a model that can't be run with them either."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "num_hidden_layers": 2}))
    for command in (("generate", "a", "--model"), ("score", "ab", "--model")):
        assert "model_type is t5, llorch has" in run(*command, tmp_path).stderr
    result = run("info", tmp_path)
    assert result.exit_code == 0 and "model_type is t5" in result.stdout and "no tokenizer.model" not in result.stdout
    assert "layers: 2\n" in re.sub(" +", " ", result.stdout)
    shutil.copy(MODEL.path / "config.json", tmp_path)
    assert "has neither model.safetensors nor" in run("generate", "a", "--model", tmp_path).stderr
    result = run("info", tmp_path)
    assert result.exit_code == 0 and "has neither model.safetensors nor" in result.stdout and "GPT-2" in result.stdout
    (tmp_path / "config.json").unlink()
    assert run("info", tmp_path).exit_code == 1


def test_a_variable_that_cannot_be_followed_is_one_line():
    environment = determinism.child_environment() | {"LLORCH_NUM_THREADS": "abc"}
    command = [sys.executable, "-P", "-m", "llorch", "info", "shakespeare-1m"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "llorch: LLORCH_NUM_THREADS must be an integer of at least 1, got 'abc'\n"


def test_help_is_short_too():
    assert run("-h").stdout == run("--help").stdout and run("info", "-h").stdout == run("info", "--help").stdout


@pytest.mark.weights
def test_info_of_real_weights():
    shown = run("info", smollm2()).stdout
    for line in ("family: Llama", "layers: 30", "heads: 9 of 64 values, 3 of keys and values", "context: 8192",
                 "parameters: 134,515,008", "tensors, Q4_1: 210, 78.93 % of the parameters, 5 bits each",
                 "compute: float32, or int16 for 100 % of the matrices",
                 "memory, cache, a position: about 46,080 bytes"):  # fmt: skip
        assert line in re.sub(" +", " ", shown), shown


def test_bench():
    result = run("bench", "--shape", "tiny", "--repetitions", 1, "--dtype", "bfloat16", "--json")
    numbers = json.loads(result.stdout)
    assert numbers["dtype"] == "bfloat16" and numbers["model"] == "tiny"
    assert [row["what"] for row in numbers["rows"]] == [
        "prefill, 128 tokens",
        "decode, 1 sequence",
        "decode, 8 sequences",
    ]
    assert all(row["tokens_per_s"] > 0 for row in numbers["rows"])
    assert numbers["compute"] == "float32" and 0 < numbers["bytes a step"] < numbers["bytes"]
    for row, together in zip(numbers["rows"], (None, 1, 8), strict=True):
        read = None if together is None else numbers["bytes a step"] * row["tokens_per_s"] / together / 1e9
        assert row.get("GB_per_s") == read
    assert "tokens/s" in run("bench", "--repetitions", 1).stdout


def test_random_checkpoints(tmp_path):
    """The same seed gives the same file, another another; all shapes have the published number of parameters."""
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        write_random(tmp_path / folder, SHAPES["tiny"], seed=seed)
    a, b, c = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in "abc")
    assert a == b != c
    assert llorch.GPT2.from_pretrained(tmp_path / "a").config == SHAPES["tiny"]
    sizes = {name: sum(map(math.prod, shapes(config).values())) for name, config in SHAPES.items()}
    assert sizes["distil"] == 81912576 and sizes["small"] == 124439808 and sizes["medium"] == 354823168
    assert sizes["large"] == 774030080 and sizes["xl"] == 1557611200
