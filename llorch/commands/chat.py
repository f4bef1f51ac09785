"""`llorch chat`."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llorch import _interrupts
from llorch._text import counted, printable, shown
from llorch.commands import common
from llorch.text.protocol import context_of

if TYPE_CHECKING:
    from llorch.text.causal_lm import CausalLM
    from llorch.text.chat import ChatStream

PROMPT = "> "
MOST_LINES = 1000  # of the history
HELP = """\
/system TEXT   what the model is told to be; without TEXT: what it is told now
/clear         begin anew, with the same system's message
/save FILE     write the conversation as JSON
/exit          leave; so does Ctrl-D
Ctrl-C ends an answer. A line that begins with a space is sent as it is, without it."""


@click.command("chat")
@common.model_option(required=True)
@click.option("--system", help="What the model is told to be.")
@click.option("-n", "--max-new-tokens", type=click.IntRange(1), help="Of an answer. Without it: what the context has.")
@click.option(
    "--temperature",
    type=float,
    help="0 takes the likeliest token. Of this and the next three, those that aren't given are as the model's files "
    "recommend, else 0 and none.",
)
@click.option("--top-k", type=int, help="Draw from the K likeliest tokens.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens that together have probability P.")
@click.option("--repetition-penalty", type=float, help="More than 1 makes tokens that came before less likely.")
@click.option("--seed", type=int, help="The same seed gives the same answers. Without it: a fresh one, which is shown.")
@click.option(
    "--overflow",
    type=click.Choice(["refuse", "drop_oldest"]),
    default="refuse",
    show_default=True,
    help="A conversation longer than the context: an error, or the oldest turns are left out, which is said.",
)
@common.dtype_option
@common.compute_option
@common.threads_option
def command(model: str, system: str | None, overflow: str, max_new_tokens: int | None, seed: int | None,
            dtype: str | None, compute: str, **sampling: Any) -> None:  # fmt: skip
    """Talk with a model that has a chat template.

    At a terminal: lines can be edited, the arrows bring earlier ones back, a text of several lines can be pasted, and
    Ctrl-C ends an answer and not the conversation. /help tells the commands.

    From a pipe or a file each line is a turn, and the answers alone are written.
    """
    engine = common.load(model, dtype, compute)
    with common.failures():
        engine.chat_templates.choose()
        given = {name: value for name, value in sampling.items() if value is not None}
        parameters = engine.chat_sampling.having({**given, "seed": seed}).seeded()
        engine.tokenizer  # noqa: B018  now, and not with the first answer
    if recommended := _recommended(engine, given):
        common.echo(recommended, err=True)
    if parameters.seed is not None and seed is None:
        common.echo(f"seed {parameters.seed}", err=True)
    options = {**given, "seed": parameters.seed, "overflow": overflow, "max_new_tokens": max_new_tokens}
    talk = Talk(engine, system, options, recommended)
    if sys.stdin.isatty() and talk.out.terminal:
        with _interrupts.session() as session:
            status = at_terminal(talk, session)
        if status:
            sys.exit(status)
    else:
        with common.failures():
            for line in common.standard_input():
                if text := line.rstrip("\r\n"):
                    talk.answer(text)


def _recommended(model: "CausalLM", given: dict[str, Any]) -> str:
    """What of the model's own recommendation holds; nothing, where that is what holds without one."""
    found = model.chat_sampling
    names = ["repetition_penalty"]
    if given.get("temperature", found.temperature) != 0:
        names = ["temperature", "top_k", "top_p", *names]
    taken = {name: getattr(found, name) for name in names if name not in given}
    said = [f"{name} {value:g}" for name, value in taken.items() if value is not None]
    return f"as the model's files recommend: {', '.join(said)}" if said else ""


class Talk:
    """A conversation, and where its answers go. recommended : of its options, what the model's files recommend."""

    def __init__(self, model: "CausalLM", system: str | None, options: dict[str, Any], recommended: str = "") -> None:
        self.model, self.system, self.options, self.recommended = model, system, options, recommended
        self.messages: list[dict[str, Any]] = []
        self.out = common.ModelText()

    @property
    def whole(self) -> list[dict[str, Any]]:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return first + self.messages

    def answer(self, text: str, session: _interrupts.session | None = None) -> str:
        """A turn: writes the answer as it comes, and tells how it went. After an error the turn never was.

        session : Ctrl-C ends the answer alone, and what has come of it stays a part of the conversation.
        """
        asked = {"role": "user", "content": text}
        begin, first, stream, ended = time.perf_counter(), None, None, False
        shown = ""
        try:
            with common.progress("reading") as progress:
                stream = self.model.chat_stream([*self.whole, asked], progress=progress, **self.options)
                for piece in stream:
                    first = first or time.perf_counter()
                    self.out.write(piece)
                    shown += piece
            if session is not None:
                session.disarm()
        except KeyboardInterrupt:
            if session is None:
                raise
            ended = True
        finally:
            if stream is not None:
                stream.close()
                if shown:
                    self.out.write("\n")
        if not ended or shown:
            self.messages += [asked, {"role": "assistant", "content": shown}]
        return _summary(stream, begin, first, ended)


def _summary(stream: "ChatStream | None", begin: float, first: float | None, ended: bool) -> str:
    """Speed is that of decoding: the first token comes with the prompt."""
    if stream is None:
        return "ended by Ctrl-C"
    reply, end = stream.reply, time.perf_counter()
    context = reply.context_left + len(reply.prompt_ids) + len(reply.ids)
    parts = []
    if reply.dropped:
        parts.append(f"the oldest {counted(reply.dropped, 'message')} left out")
    if first is not None and len(reply.ids) > 1 and end > first:
        parts.append(f"{(len(reply.ids) - 1) / (end - first):.1f} tokens/s")
    parts.append(f"first after {(first or end) - begin:.2f} s")
    parts.append(f"context: {reply.context_left:,} of {context:,} tokens left")
    if ended:
        parts.append("ended by Ctrl-C")
    elif reply.finish_reason == "length":
        parts.append("cut off at the most tokens")
    return "; ".join(parts)


# ---- at a terminal ------------------------------------------------------------------------------------------


def at_terminal(talk: Talk, session: _interrupts.session) -> int:
    """Turn by turn, until the end; the exit status."""
    context = context_of(talk.model)
    common.say_dim(f"{talk.model!r}; context: {context:,} tokens; /help tells the commands, Ctrl-D ends")
    with _history() as remember:
        again = False  # Ctrl-C came last: once more ends
        while True:
            try:
                session.arm()
                line = input(PROMPT)
                session.disarm()
            except KeyboardInterrupt:
                talk.out.write("\n")
                if again:
                    return _interrupts.INTERRUPTED
                again = True
                common.say_dim("Ctrl-C once more ends, as Ctrl-D does")
                continue
            except EOFError:
                session.disarm()
                talk.out.write("\n")
                return 0
            except UnicodeDecodeError:
                session.disarm()
                common.say_dim("that is not text in this terminal's encoding")
                continue
            again = False
            if not line.strip():
                continue
            remember(line)
            if line.startswith("/") and "\n" not in line:
                if not _obey(talk, line):
                    return 0
                continue
            try:
                session.arm()
                with common.failures():
                    summary = talk.answer(line.removeprefix(" "), session)
            except KeyboardInterrupt:  # before the answer began
                summary = "ended by Ctrl-C"
            except click.ClickException as error:
                summary = error.format_message()
            finally:
                session.disarm()
            common.say_dim(summary)


def _obey(talk: Talk, line: str) -> bool:
    """A command of the session; False to leave."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name in ("/exit", "/quit"):
        return False
    if name == "/help":
        common.say_dim(f"{HELP}\nAnswers are chosen {talk.recommended}" if talk.recommended else HELP)
    elif name == "/clear":
        talk.messages.clear()
        talk.model.kept.forget()
        common.say_dim("a new conversation")
    elif name == "/system":
        if rest:
            talk.system = rest
        common.say_dim(f"system: {talk.system}" if talk.system is not None else "no system's message")
    elif name == "/save":
        common.say_dim(_save(talk, rest))
    else:
        common.say_dim(
            f"there is no command {shown(name)}, /help tells which; a line sent as it is begins with a space"
        )
    return True


def _save(talk: Talk, name: str) -> str:
    if not name:
        return "/save needs the name of a file"
    path = Path(name).expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(talk.whole, ensure_ascii=False, indent=2) + "\n")
    except FileExistsError:
        return f"{printable(name)} is there already, name another file"
    except (OSError, ValueError) as error:
        return f"can't write {printable(name)}: {getattr(error, 'strerror', None) or error}"
    return f"{counted(len(talk.whole), 'message')} in {printable(name)}"


@contextlib.contextmanager
def _history() -> Iterator[Any]:
    """Line editing by readline, where Python has it; lines of earlier sessions, and a function that remembers one.

    The file has a line of JSON for each, as readline's own would tear texts of several lines apart.
    """
    try:
        import readline
    except ImportError:
        yield lambda line: None
        return
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")  # a pasted text is one line, however many it has
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "llorch"
    path = folder / "chat_history.jsonl"
    lines: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        written = path.read_text(encoding="utf-8").splitlines()
        for text in written[-MOST_LINES:]:
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, str):
                    lines.append(line)
        if len(written) > 2 * MOST_LINES:
            path.write_text("".join(text + "\n" for text in written[-MOST_LINES:]), encoding="utf-8")
    readline.set_auto_history(False)
    readline.clear_history()
    for line in lines:
        with contextlib.suppress(ValueError):  # a NUL
            readline.add_history(line)

    def remember(line: str) -> None:
        if lines and lines[-1] == line:
            return
        lines.append(line)
        readline.add_history(line)
        with contextlib.suppress(OSError, ValueError):  # a conversation needs no history
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    try:
        yield remember
    finally:
        readline.clear_history()
