"""`llorch embed` and `llorch search`: the model's embeddings, row by line; whole files wherever they are broken off."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import assert_same_bits
from sentence_models import MODULES, TEXTS, save, write_modules

import llorch
from llorch.cli import main
from llorch.validate.kernels import determinism

LINES = [text.rstrip() for text in TEXTS]
INPUT = "\n".join(LINES) + "\n"


def run(*arguments, **more):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="llorch", **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = save(tmp_path_factory.mktemp("embed") / "model")
    prompts = {"prompts": {"query": "query ", "document": "passage "}}
    return write_modules(made, MODULES, config_sentence_transformers=prompts)


@pytest.fixture(scope="module")
def model(folder):
    return llorch.TextEncoder.from_pretrained(folder)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "lines.txt").write_text(INPUT, encoding="utf-8")
    return tmp_path / "lines.txt"


# ---- embed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 32])
def test_a_row_a_line(folder, model, file, tmp_path, size):
    out = tmp_path / "out.npy"
    result = run("embed", file, "--model", folder, "-o", out, "--batch-size", size)
    assert result.exit_code == 0 and result.stdout == f"{out}: {len(LINES)} embeddings of 40 values\n"
    assert_same_bits(np.load(out), model.encode(LINES))
    assert out.stat().st_size == 128 + len(LINES) * 40 * 4


def test_one_line(folder, tmp_path):
    out = tmp_path / "out.npy"
    result = run("embed", "-", "--model", folder, "-o", out, input="a\n")
    assert result.stdout == f"{out}: 1 embedding of 40 values\n"


def test_options(folder, model, tmp_path):
    out = tmp_path / "out.npy"

    def embedded(*more, text=INPUT):
        result = run("embed", "-", "--model", folder, "-o", out, "--force", *more, input=text)
        assert result.exit_code == 0, result.output
        return np.load(out)

    wanted = model.encode(LINES)
    assert_same_bits(embedded(), wanted)
    assert_same_bits(embedded(text=INPUT.replace("\n", "\r\n")), wanted, "carriage returns")
    assert_same_bits(embedded(text="\ufeff" + INPUT.rstrip("\n")), wanted, "a byte order mark, and no last end of line")
    assert_same_bits(embedded("--prompt-name", "query"), model.encode(LINES, prompt_name="query"))
    assert_same_bits(embedded("--prompt", "a "), model.encode(LINES, prompt="a "))
    assert_same_bits(embedded("--output-dtype", "float16"), model.encode(LINES, output_dtype="float16"))
    assert_same_bits(embedded("--normalize"), wanted)
    entries = "".join(json.dumps({"id": i, "body": line}) + "\n" for i, line in enumerate(LINES))
    assert_same_bits(embedded("--field", "body", text=entries), wanted)
    assert embedded(text="").shape == (0, 40)


def test_json_lines(folder, model, file, tmp_path):
    out = tmp_path / "out.jsonl"
    assert run("embed", file, "--model", folder, "-o", out).exit_code == 0
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [entry["text"] for entry in found] == LINES
    assert_same_bits(np.float32([entry["embedding"] for entry in found]), model.encode(LINES))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_what_was_written_is_whole(folder, model, tmp_path, name, sent):
    """The command waits for the rest of its standard input when it is ended."""
    out = tmp_path / name
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "llorch", "embed", "-", "--model", folder, "-o", out, "--batch-size", "2"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=determinism.child_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    process.stdin.write("\n".join(LINES[:5]).encode())  # the last is half a line
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while count_of(out) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    error = process.communicate(timeout=20)[1].decode()
    if sent == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in error
        assert error.strip() == f"interrupted: {out} has the first 4 embeddings"
    rows = np.load(out) if name.endswith(".npy") else rows_of(out)
    assert_same_bits(rows, model.encode(LINES[:4]))


def rows_of(path):
    return np.float32([json.loads(line)["embedding"] for line in path.read_text().splitlines()])


def count_of(path):
    if not path.exists() or path.stat().st_size < 128:
        return 0
    return len(np.load(path)) if path.suffix == ".npy" else path.read_text().count("\n")


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_a_full_disk(folder, model, file, tmp_path, name):
    """What was written before is whole, nothing follows it, and the file is named."""
    resource = pytest.importorskip("resource")
    out, limits = tmp_path / name, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        result = run("embed", file, "--model", folder, "-o", out, "--batch-size", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1 and f"{out}: File too large" in result.stderr
    rows = np.load(out) if name.endswith(".npy") else rows_of(out)
    assert 1 < len(rows) < len(LINES)
    assert_same_bits(rows, model.encode(LINES[: len(rows)]))
    assert name.endswith(".jsonl") or out.stat().st_size == 128 + rows.nbytes


def test_a_file_that_breaks_in_the_middle(folder, model, tmp_path):
    """What comes before the line is there, and the line is named."""
    (tmp_path / "lines.txt").write_bytes(INPUT.encode() + b"a \xff\nb\n")
    out = tmp_path / "out.npy"
    result = run("embed", tmp_path / "lines.txt", "--model", folder, "-o", out, "--batch-size", 4)
    assert result.exit_code == 1
    assert f"lines.txt, line {len(LINES) + 1} isn't UTF-8: byte 2 is 0xff" in result.stderr
    assert_same_bits(np.load(out), model.encode(LINES[: len(LINES) // 4 * 4]))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-o", "out.txt"), 2, "out.txt must end in .npy or .jsonl"),
        (("-o", "there.npy"), 1, "there.npy is there already: name another file, or give --force"),
        (("-o", "out.jsonl", "--output-dtype", "float16"), 2, "--output-dtype is for .npy files"),
        (("-o", "out.npy", "--prompt-name", "x"), 1, "prompt_name is 'x', the model's prompts are 'query', 'document'"),
        (("-o", "out.npy", "--field", "x"), 1, "lines.txt, line 1 isn't JSON"),
        (("-o", "out.npy", "--model", "shakespeare-1m"), 1, "is a decoder"),
        ((), 2, "Missing option '-o'"),
    ],
)
def test_errors(folder, file, tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npy").write_bytes(b"kept")
    given = arguments if "--model" in arguments else ("--model", folder, *arguments)
    result = run("embed", file, *given)
    assert result.exit_code == status and message in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "there.npy").read_bytes() == b"kept"


def test_json_has_no_number_for_what_is_not_finite(folder, tmp_path, monkeypatch):
    def broken(self, made, skip):
        b = self._inputs(["b"]).ids[0]
        return np.float32([[1] * 40 if ids != b else [np.nan] * 40 for ids in made.ids])

    monkeypatch.setattr(llorch.TextEncoder, "_pooled", broken)
    out = tmp_path / "out.jsonl"
    result = run("embed", "-", "--model", folder, "-o", out, "--batch-size", 2, input="a\na\na\nb\n")
    assert result.exit_code == 1 and "the embedding of line 4 isn't finite" in result.stderr
    assert out.read_text().count("\n") == 2


def test_json_keeps_the_sign_of_zeros(folder, tmp_path, monkeypatch):
    rows = np.float32([[-0.0, *[0.0, -1e-10, -10, -0.5] * 9, 1e-45, 3.4028235e38, -0.0]])
    monkeypatch.setattr(llorch.TextEncoder, "_pooled", lambda self, made, skip: rows)
    monkeypatch.setattr(llorch, "normalize", lambda x, out: x)
    assert run("embed", "-", "--model", folder, "-o", tmp_path / "out.jsonl", input="a\n").exit_code == 0
    assert_same_bits(rows_of(tmp_path / "out.jsonl"), rows)


def test_the_input_is_not_written_over(folder, tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "a"}\n')
    same = tmp_path / "lines.jsonl"
    result = run("embed", same, "--model", folder, "-o", same, "--field", "text", "--force")
    assert result.exit_code == 1 and "is what is to be embedded" in result.stderr
    assert same.read_text() == '{"text": "a"}\n'


def test_an_input_that_is_not_there_costs_no_output(folder, tmp_path):
    out = tmp_path / "out.npy"
    out.write_bytes(b"kept")
    for name, message in (("missing", "missing: No such file"), (".", ": it is a folder")):
        result = run("embed", tmp_path / name, "--model", folder, "-o", out, "--force")
        assert result.exit_code == 1 and message in result.stderr and out.read_bytes() == b"kept"


def test_a_field_that_is_no_text(folder, tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    result = run("embed", tmp_path / "lines.jsonl", "--model", folder, "-o", tmp_path / "o.npy", "--field", "text")
    assert result.exit_code == 1 and "line 2 has no text 'text'" in result.stderr
    (tmp_path / "lines.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    result = run("search", tmp_path / "lines.jsonl", "a", "--model", folder, "--field", "text")
    assert result.exit_code == 1 and "line 2: text has the lone surrogate" in result.stderr


# ---- search ------------------------------------------------------------------------------------------------


def nearest(model, lines, query, count):
    """By sorting all scores: the highest first, of equals the first line."""
    places = [i for i, line in enumerate(lines) if line.strip()]
    documents = model.encode([lines[i] for i in places], prompt_name="document")
    scores = model.similarity(model.encode(query, prompt_name="query"), documents)[0]
    order = np.argsort(-scores, kind="stable")[:count]
    return [(float(scores[i]), places[i] + 1, lines[places[i]]) for i in order]


def test_search(folder, model, tmp_path):
    lines = [*LINES, "", "hello", "hello", *LINES[::-1]]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    for count, size in ((10, 4), (3, 32), (50, 1)):
        more = "--model", folder, "-n", count, "--batch-size", size
        result = run("search", tmp_path / "lines.txt", "the world", *more)
        wanted = nearest(model, lines, "the world", count)
        shown = [line.split(None, 2) for line in result.stdout.splitlines()]
        assert [(f"{score:.4f}", str(place), line.strip()) for score, place, line in wanted] == [
            (score, place, text.strip()) for score, place, text in shown
        ]
        found = json.loads(run("search", "-", "the world", *more, "--json", input="\n".join(lines)).stdout)
        assert [(entry["score"], entry["line"], entry["text"]) for entry in found] == wanted


def test_search_in_json_lines_and_in_nothing(folder):
    entries = "".join(json.dumps({"t": line}) + "\n" for line in LINES)
    result = run("search", "-", "hello", "--model", folder, "--field", "t", "-n", 1, input=entries)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 1
    result = run("search", "-", "hello", "--model", folder, input="\n\n")
    assert result.exit_code == 0 and result.stdout == "" and result.stderr == "no line has a text\n"


def test_what_has_no_score_is_named(folder, monkeypatch):
    monkeypatch.setattr(llorch.TextEncoder, "similarity", lambda self, a, b: np.float32([[1, np.nan, 2]]))
    result = run("search", "-", "a", "--model", folder, input="a\nb\nc\n")
    assert result.exit_code == 1 and "the score of line 2 is not a number" in result.stderr


def test_lines_are_shown_escaped(folder):
    shown = run("search", "-", "hello", "--model", folder, input="a \x1b[2J\u202e\n").stdout
    assert r"a \x1b[2J\u202e" in shown and "\x1b" not in shown


# ---- info --------------------------------------------------------------------------------------------------


def test_info_tells_how_an_embedding_is_made(folder, model, tmp_path):
    found = json.loads(run("info", folder, "--json").stdout)["embeddings"]
    assert found["pooling"] == "mean" and found["max_seq_length"] == model.max_seq_length and found["problem"] is None
    assert found["normalized"] and found["prompts"] == ["query", "document"]
    shown = run("info", folder).stdout
    assert (
        "the mean of the positions" in shown
        and f"{model.max_seq_length} tokens" in shown
        and "query, document" in shown
    )
    plain = json.loads(run("info", save(tmp_path / "plain"), "--json").stdout)["embeddings"]
    assert plain["pooling"] == "mean" and not plain["normalized"] and not plain["prompts"]
    odd = write_modules(save(tmp_path / "odd"), MODULES | {"WeightedLayerPooling": ("3_Weighted", {})})
    shown = run("info", odd).stdout
    assert "embeddings can't be made" in shown and "WeightedLayerPooling" in shown
