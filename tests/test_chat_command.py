"""`llorch chat`: at a terminal, where Ctrl-C ends an answer, and from a pipe."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
from click.testing import CliRunner
from helpers import smollm2

import llorch
from llorch import _interrupts
from llorch.cli import main
from llorch.commands import common
from llorch.models.gpt2 import GPT2Config
from llorch.models.shapes import write_random
from llorch.validate.kernels import determinism

EMBEDDED = llorch.CausalLM.from_pretrained("shakespeare-1m").path
TEMPLATE = """\
{%- for m in messages -%}
{%- if 'refuse' in m.content %}{{ raise_exception('not \x1b[2J that') }}{% endif -%}
{{ m.role | upper }}:\n{{ m.content }}\n\n{% endfor -%}
{%- if add_generation_prompt %}{{ 'ROMEO:\n' }}{% endif -%}"""
UP, CTRL_A, CTRL_C, CTRL_D = "\x1b[A", "\x01", "\x03", "\x04"


def chat_folder(folder):
    shutil.copytree(EMBEDDED, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_folder(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model whose answers take seconds."""
    folder = tmp_path_factory.mktemp("slow")
    write_random(folder, GPT2Config(1024, 8192, 256, 8, 4, bos_token_id=None, eos_token_id=None))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def run(*arguments, **more):
    return CliRunner().invoke(main, ["chat", *map(str, arguments)], prog_name="llorch", **more)


def answers(folder, *turns, system=None, n=12):
    """What the model says by itself."""
    model = llorch.CausalLM.from_pretrained(folder)
    messages, found = [] if system is None else [{"role": "system", "content": system}], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        found.append(model.chat(messages, n, keep=False, temperature=0).text)
        messages.append({"role": "assistant", "content": found[-1]})
    return found


# ---- from a pipe --------------------------------------------------------------------------------------------


def test_each_line_is_a_turn(folder):
    turns = ["Who art thou?", "And whence?", "Farewell."]
    result = run("--model", folder, "-n", 12, "--system", "Verona.", input="\n".join(turns) + "\n\n")
    assert result.stdout == "".join(answer + "\n" for answer in answers(folder, *turns, system="Verona."))
    assert result.exit_code == 0 and result.stderr == ""
    sampled = ("--temperature", 0.9, "--top-k", 40, "--top-p", 0.9, "--repetition-penalty", 1.1)
    first = run("--model", folder, "-n", 9, *sampled, input="Who art thou?\n")
    word, seed = first.stderr.split()
    again = run("--model", folder, "-n", 9, *sampled, "--seed", seed, input="Who art thou?\n")
    assert word == "seed" and again.stdout == first.stdout and again.stderr == ""


@pytest.mark.filterwarnings("default")
def test_the_models_own_recommendation_is_followed_and_said(tmp_path):
    folder = chat_folder(tmp_path / "model")
    entries = {"do_sample": True, "temperature": 0.9, "top_k": 40, "min_p": 0.1}
    (folder / "generation_config.json").write_text(json.dumps(entries))
    result = run("--model", folder, "-n", 9, "--seed", 5, input="Who art thou?\n")
    lacking, said = result.stderr.splitlines()
    assert "generation_config.json asks for min_p 0.1, which llorch hasn't" in lacking
    assert said == "as the model's files recommend: temperature 0.9, top_k 40"
    given = run("--model", folder, "-n", 9, "--seed", 5, "--temperature", 0.9, "--top-k", 40, input="Who art thou?\n")
    assert given.stdout == result.stdout and "files recommend" not in given.stderr
    greedy = run("--model", folder, "-n", 9, "--temperature", 0, input="Who art thou?\n")
    assert "files recommend" not in greedy.stderr and greedy.stdout == answers(folder, "Who art thou?", n=9)[0] + "\n"
    assert greedy.stdout != result.stdout
    with Terminal(folder, "-n", 9, "--seed", 5, "--top-k", 1, state=tmp_path) as terminal:
        assert "Answers are chosen as the model's files recommend: temperature 0.9\n" in terminal.ask("/help")
        assert greedy.stdout.strip() in terminal.ask("Who art thou?")
        assert terminal.end() == 0


def test_a_program_may_hold_it(folder):
    """An answer comes before the next line is written; here Ctrl-C ends the command."""
    one_line = [answer.split("\n")[0] for answer in answers(folder, "Ay", n=5)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "llorch", "chat", "--model", str(folder), "-n", "5"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=determinism.child_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with process:
        process.stdin.write("Ay\n")
        process.stdin.flush()
        assert process.stdout.readline() == one_line[0] + "\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == ""
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "given", "status", "message"),
    [
        ((), "", 2, "llorch chat: Missing option '--model'"),
        (("--model", EMBEDDED), "", 1, "has no chat template: its model wasn't made for chat"),
        (("--model", "FOLDER", "-n", "9"), "refuse\n", 1, r"refuses these messages: not \x1b[2J that"),
        (("--model", "FOLDER", "-n", "9"), "why " * 300 + "\n", 1, "no room for max_new_tokens, 9"),
        (("--model", "FOLDER", "-n", "0"), "", 2, "Invalid value for '-n'"),
        (("--model", "FOLDER", "--top-k", "0"), "", 1, "llorch chat: top_k must be at least 1, got 0"),
        (("--model", "FOLDER", "--overflow", "cut"), "", 2, "Invalid value for '--overflow'"),
    ],
)
def test_errors_are_one_line(folder, arguments, given, status, message):
    result = run(*(folder if a == "FOLDER" else a for a in arguments), input=given)
    assert (result.exit_code, result.stdout) == (status, "") and message in result.stderr
    assert result.stderr.count("\n") == 1 and "\x1b" not in result.stderr


def test_the_oldest_turns_may_be_dropped(folder):
    turns = [f"Question {i}: why is this so long a question, sir?" for i in range(8)]
    assert run("--model", folder, "-n", 20, input="\n".join(turns)).exit_code == 1
    result = run("--model", folder, "-n", 20, "--overflow", "drop_oldest", input="\n".join(turns))
    assert result.exit_code == 0 and result.stderr == "" and len(result.stdout) > 100


# ---- at a terminal ------------------------------------------------------------------------------------------


class Terminal:
    """`llorch chat` in a terminal of its own."""

    def __init__(self, folder, *arguments, state):
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 400))
        environment = {**determinism.child_environment(), "XDG_STATE_HOME": str(state), "TERM": "xterm"}

        def begin():
            os.setsid()
            import fcntl

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background may ignore it

        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llorch", "chat", "--model", str(folder), *map(str, arguments)],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=begin,
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def __enter__(self):
        self.until("> ")
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)

    def read(self, seconds):
        """More of what is shown; False at its end, or where nothing has come."""
        if not select.select([self.ours], [], [], seconds)[0]:
            return False
        try:
            raw = os.read(self.ours, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += raw.decode(errors="replace")
        return bool(raw)

    def until(self, what, seconds=30):
        """What is shown up to a text, without what only moves and colours; it is taken away."""
        end = time.monotonic() + seconds
        while True:
            plain = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z@]|\r", "", self.shown)
            if (at := plain.find(what) + len(what)) >= len(what):
                self.shown = plain[at:]
                return plain[:at]
            assert self.read(max(end - time.monotonic(), 0)), f"no {what!r} in {self.shown!r}"

    def type(self, text):
        os.write(self.ours, text.encode())

    def interrupt(self):
        """Ctrl-C at the prompt. Python's readline passes over one that comes between the prompt and its first wait for
        a key, which here is often enough; the next one it sees."""
        self.type(CTRL_C)
        if not select.select([self.ours], [], [], 5)[0]:
            self.type(CTRL_C)

    def ask(self, text):
        """A line, and what is shown until the next prompt."""
        self.type(text + "\r")
        return self.until("\n> ")

    def end(self, keys=CTRL_D):
        self.interrupt() if keys == CTRL_C else self.type(keys)
        while self.read(20):
            pass
        return self.process.wait(timeout=20)


def test_a_conversation(folder, tmp_path):
    turns = ["Who art thou?", "And whence?"]
    said = answers(folder, *turns)
    with Terminal(folder, "-n", 12, state=tmp_path) as terminal:
        for turn, answer in zip(turns, said, strict=True):
            shown = terminal.ask(turn)
            assert answer in shown and re.search(
                r"[0-9.]+ tokens/s; .*context: [0-9]+ of 256 tokens left; cut off", shown
            )
        assert "/clear" in terminal.ask("/help")
        assert "no command /bogus" in terminal.ask("/bogus")
        assert "system: Verona." in terminal.ask("/system Verona.") and "system: Verona." in terminal.ask("/system")
        assert "5 messages in" in terminal.ask(f"/save {tmp_path / 'talk.json'}")
        assert "is there already" in terminal.ask(f"/save {tmp_path / 'talk.json'}")
        assert "a new conversation" in terminal.ask("/clear")
        assert answers(folder, turns[0], system="Verona.")[0] in terminal.ask(turns[0])
        assert answers(folder, turns[0], "/help", system="Verona.")[1] in terminal.ask(" /help")
        shown = terminal.ask("refuse")
        assert r"refuses these messages: not \x1b[2J that" in shown
        assert terminal.end() == 0
    talk = json.loads((tmp_path / "talk.json").read_text())
    assert talk[0] == {"role": "system", "content": "Verona."}
    assert [m["content"] for m in talk[1:]] == [turns[0], said[0], turns[1], said[1]]


def test_exit(folder, tmp_path):
    with Terminal(folder, state=tmp_path) as terminal:
        assert terminal.end("/exit\r") == 0


def test_ctrl_c_ends_an_answer_and_not_the_session(slow, tmp_path):
    """Pressed twice at once, too. What has come stays a part of the conversation."""
    with Terminal(slow, state=tmp_path) as terminal:
        terminal.type("Who art thou?\r")
        terminal.until("art thou?")
        while len(terminal.shown) < 60:
            assert terminal.read(20)
        terminal.type(CTRL_C + CTRL_C)
        shown = terminal.until("ended by Ctrl-C")
        terminal.until("> ")
        assert "Traceback" not in shown and "Traceback" not in terminal.ask(f"/save {tmp_path / 'talk.json'}")
        terminal.type("And whence?\r")
        terminal.until("whence?")
        while len(terminal.shown) < 20:
            assert terminal.read(20)
        terminal.type(CTRL_C)
        terminal.until("ended by Ctrl-C")
        terminal.until("> ")
        assert terminal.end() == 0
    asked, answered = json.loads((tmp_path / "talk.json").read_text())
    assert asked["content"] == "Who art thou?" and len(answered["content"]) > 5
    whole = llorch.CausalLM.from_pretrained(slow).chat([asked], 400).text
    assert whole.startswith(answered["content"][:300])


def test_ctrl_c_at_the_prompt(folder, tmp_path):
    with Terminal(folder, "-n", 5, state=tmp_path) as terminal:
        terminal.type("half a li")
        terminal.until("half a li")
        terminal.interrupt()
        assert "once more ends" in terminal.until("\n> ")
        said = answers(folder, "Who art thou?", n=5)[0]
        assert said in terminal.ask("Who art thou?"), "the half line is gone, the session is there"
        terminal.interrupt()
        terminal.until("\n> ")
        assert terminal.end(CTRL_C) == 130
    assert "Traceback" not in terminal.shown


def test_lines_are_edited_and_remembered(folder, tmp_path):
    said = answers(folder, "Who art thou?", "Who art thou?", n=5)
    with Terminal(folder, "-n", 5, state=tmp_path) as terminal:
        assert said[0] in terminal.ask("art thou?" + CTRL_A + "Who ")
        assert said[1] in terminal.ask(UP)
        assert terminal.end() == 0
    file = tmp_path / "llorch" / "chat_history.jsonl"
    assert file.read_text() == '"Who art thou?"\n' and file.stat().st_mode & 0o77 == 0
    file.write_text(file.read_text() + "broken\n3\n")
    with Terminal(folder, "-n", 5, state=tmp_path) as terminal:
        assert said[0] in terminal.ask(UP), "another session knows it"
        assert terminal.end() == 0


def test_a_pasted_text_is_one_message(folder, tmp_path):
    import readline

    if "libedit" in (readline.__doc__ or ""):
        pytest.skip("libedit knows no bracketed paste")
    text = "Who art thou?\nAnd whence?\n/help\nSpeak!"
    said = answers(folder, text, "Ay", n=5)
    with Terminal(folder, "-n", 5, state=tmp_path) as terminal:
        shown = terminal.ask(f"\x1b[200~{text}\x1b[201~")
        assert said[0] in shown and shown.count("tokens left") == 1 and "leave" not in shown
        assert said[1] in terminal.ask("Ay")
        assert terminal.end() == 0
    with Terminal(folder, "-n", 5, state=tmp_path) as terminal:  # from the history it is one, too
        assert said[0] in terminal.ask(UP + UP)
        assert terminal.end() == 0


# ---- what Ctrl-C does in a session --------------------------------------------------------------------------


def test_a_session_passes_over_what_ends_nothing():
    command = _interrupts.Command()
    command.busy = True
    _interrupts_command, _interrupts.command = _interrupts.command, command
    try:
        with _interrupts.session() as session:
            command.handle(2, None)
            session.arm()
            with pytest.raises(KeyboardInterrupt):
                command.handle(2, None)
            command.handle(2, None)
            session.arm()
            session.disarm()
            command.handle(2, None)
            assert not command.came
        with pytest.raises(KeyboardInterrupt):  # behind it, Ctrl-C is the command's again
            command.handle(2, None)
        assert command.came
    finally:
        _interrupts.command = _interrupts_command


def test_what_we_say_between_is_escaped(capsys):
    common.say_dim("x\x1b]0;title\x07\u202e\nsecond")
    assert capsys.readouterr().out == "x\\x1b]0;title\\u202e\nsecond\n"  # rich rings no bell


@pytest.mark.weights
def test_a_conversation_with_real_weights(tmp_path):
    with Terminal(smollm2(), "-n", 30, state=tmp_path) as terminal:
        assert "Paris" in terminal.ask("What is the capital of France?")
        assert "tokens/s" in terminal.ask("And of Italy?")
        assert terminal.end() == 0
