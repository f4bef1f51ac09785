"""Nothing that comes from a file reaches a terminal as something that it obeys."""

import ast
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.table import Table
from rich.text import Text

import llorch
from llorch import __main__ as entry
from llorch import commands
from llorch._console import SafeConsole
from llorch.cli import main
from llorch.commands import common

EMBEDDED = Path(llorch.__file__).parent / "data" / "shakespeare-1m"
EVIL = "x\x1b]0;title\x07\x1b[2Jy\u202ez\x9b31m\r"
OBEYED = ("\x1b", "\x07", "\u202e", "\x9b", "\r")


def run(*arguments, **more):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="llorch", **more)


def plain(result):
    """The output, in which nothing is obeyed; and which isn't empty."""
    shown = result.stdout + result.stderr
    assert shown and not any(character in shown for character in OBEYED), ascii(shown)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return shown


def model(folder, **entries):
    shutil.copytree(EMBEDDED, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


def header(path, entries, data=b""):
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def hostile_models(tmp_path):
    """Folders whose name, configuration, tensors or tokenizer have what a terminal would obey."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    yield model(tmp_path / "type", model_type=EVIL)
    yield model(tmp_path / "activation", activation_function=EVIL)
    yield model(tmp_path / "number", n_embd=EVIL)
    yield model(tmp_path / f"name {EVIL}", n_head=7)
    for what, entries in {
        "tensor": {EVIL: tensor},
        "dtype": {"a": tensor | {"dtype": EVIL}},
        "offsets": {EVIL: tensor | {"data_offsets": [0, 8]}},
        "metadata": {"__metadata__": {EVIL: 1}, "a": tensor},
    }.items():
        folder = model(tmp_path / what)
        header(folder / "model.safetensors", entries, bytes(8))
        yield folder
    folder = model(tmp_path / "index")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": EVIL}}))
    yield folder
    folder = model(tmp_path / "gguf")
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    key = EVIL.encode()
    (folder / f"{EVIL.replace('/', '')}.gguf").write_bytes(
        b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
        + len(key).to_bytes(8, "little") + key + (99).to_bytes(4, "little")
    )  # fmt: skip
    yield folder


COMMANDS = (
    ("info",),
    ("info", "--json"),
    ("generate", "ROMEO:", "-n", "3", "--model"),
    ("score", "ROMEO: and", "--model"),
    ("chat", "--model"),
    ("bench", "--repetitions", "1", "--model"),
    ("dump", "-o", "dump.safetensors", "--model"),
    ("validate", "--model"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_hostile_models(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in hostile_models(tmp_path):
        result = run(*command, folder)
        plain(result)
        assert result.exit_code == 1 or command[0] == "info", (folder, result.output)


def test_info_shows_what_cannot_be_run(tmp_path):
    shown = plain(run("info", model(tmp_path / "model", model_type="mistral\x1b[2J")))
    assert r"can't be run:" in shown and r"model_type is mistral\x1b[2J" in shown and "957,184" in shown


def test_hostile_tokens(tmp_path):
    """A vocabulary whose tokens would be obeyed: `score --tokens` shows them escaped, a pipe gets them as they are."""
    folder = model(tmp_path / "model")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    tokens = {"<|endoftext|>": 0, "a": 1} | {f"\x1b[2J\u202e{i}": i for i in range(2, 1024)}
    made = {"type": "WordLevel", "vocab": tokens, "unk_token": "a"}
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": made, "pre_tokenizer": {"type": "WhitespaceSplit"}})
    )
    assert r"\x1b[2J\u202e7" in plain(run("score", "a \x1b[2J\u202e7 a", "--model", folder, "--tokens"))
    plain(run("score", "a \x1b[2J\u202e7 a", "--model", folder, "--tokens", "--json"))
    piped = run("generate", "a", "--model", folder, "-n", "9")
    text = llorch.CausalLM.from_pretrained(folder).generate("a", 9)
    assert piped.stdout == text + "\n" and "\x1b" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_generated_text(terminal, monkeypatch):
    """A pipe gets the model's text as it is; a terminal with what it would obey escaped."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    writer = common.ModelText()
    for piece in ("To be\n\tor", EVIL, "\u0644\u0627 \U0001f600 e\u0301\u3000\xa0", "\u200d", "\n"):
        writer.write(piece)
    if terminal:
        evil = r"x\x1b]0;title\x07\x1b[2Jy\u202ez\x9b31m\r"
        assert out.getvalue() == "To be\n\tor" + evil + "\u0644\u0627 \U0001f600 e\u0301\u3000\xa0\u200d\n"
    else:
        assert out.getvalue() == f"To be\n\tor{EVIL}\u0644\u0627 \U0001f600 e\u0301\u3000\xa0\u200d\n"


def hostile_dumps(tmp_path):
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for what, entries in {
        "name": {EVIL: tensor},
        "dtype": {"h.0.ln_1": tensor | {"dtype": EVIL}},
        "metadata": {"__metadata__": {EVIL: EVIL, "model": EVIL}, "h.0.ln_1": tensor},
        "both": {EVIL: tensor, "h.0.ln_1": tensor | {"data_offsets": [4, 8]}},
    }.items():
        yield header(tmp_path / f"{what}.safetensors", entries, bytes(8 if what == "both" else 4))
    yield header(tmp_path / f"{EVIL}.safetensors", {"a": tensor}, bytes(4))
    np.savez(tmp_path / "names.npz", **{EVIL: np.zeros(3, np.float32)})
    yield tmp_path / "names.npz"


def test_hostile_dumps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = tmp_path / "ours.safetensors"
    plain(run("dump", "--prompt", "Hello.", "-o", ours))
    for dump in hostile_dumps(tmp_path):
        for arguments in ((dump, ours), (ours, dump), (dump, ours, "--map", f"{EVIL}=h.0.ln_1")):
            result = run("compare", *arguments)
            plain(result)
            assert result.exit_code in (0, 1, 2)


def test_a_console_obeys_nothing_that_it_prints():
    out = io.StringIO()
    console = SafeConsole(file=out, width=60)
    table = Table("a", EVIL)
    table.add_row(EVIL, Text(EVIL))
    for what in (EVIL, Text(EVIL, style="bold"), table, "two\nlines"):
        console.print(what)
    assert not any(character in out.getvalue() for character in OBEYED)
    assert r"\x1b[2J" in out.getvalue() and "two\nlines\n" in out.getvalue()
    # At a terminal rich's own styles stay, and nothing else.
    colours = io.StringIO()
    SafeConsole(file=colours, width=60, force_terminal=True, color_system="standard").print(Text(EVIL, style="red"))
    assert colours.getvalue().startswith("\x1b[31mx\\x1b]0;title") and colours.getvalue().count("\x1b") == 2


def test_an_error_that_nothing_foresaw(capsys):
    try:
        raise RuntimeError(EVIL)
    except RuntimeError as error:
        entry._show_error(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and r"\x1b]0;title" in shown
    assert not any(character in shown for character in OBEYED)


def test_one_way_out():
    """No command prints by itself: `common.echo`, `common.ModelText` and the consoles of the reports are the ways."""
    for path in sorted(Path(commands.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name != "common.py" and isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "click.echo", "click.secho", "Console"), f"{path.name}: {called}"
                assert not called.startswith(("sys.stdout", "sys.stderr.write")), f"{path.name}: {called}"
