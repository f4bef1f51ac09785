"""A model's chat template: found in its files, and rendered in jinja2's sandbox as transformers renders it.

A template is a program from somebody else's file. The sandbox keeps it from everything but its variables; what it can
take is bounded here: MOST_STEPS, MOST_SIZE and MOST_SECONDS, far above what any conversation needs.
"""

from __future__ import annotations

import contextvars
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llorch._text import printable, shown
from llorch.files.folder import read_settings
from llorch.files.gguf import Strings

if TYPE_CHECKING:
    import jinja2

LONGEST = 1_000_000  # characters of a template
MOST_STEPS = 1_000_000  # passes of loops, calls, filters
MOST_SIZE = 100_000_000  # characters that a rendering makes, on the way too; an entry of a list counts as 16
MOST_SECONDS = 10.0
MOST_WIDTH = 100_000  # a number that says how wide a text is to become, as of range in the sandbox
KEY = "tokenizer.chat_template"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GGUF_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls",
              "mask": "mask"}  # fmt: skip


class ChatTemplate:
    """One template.

    text : its source.
    place : the file it came from, for errors.
    variables : what it can name beside the messages: bos_token, eos_token and other special tokens, as text.
    """

    def __init__(self, text: str, place: str, variables: Mapping[str, str] | None = None) -> None:
        self.text, self.place, self.variables = text, place, dict(variables or {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt. ValueError names the file and the line, and says what the template says."""
        given = {**self.variables, **variables, "messages": messages, "tools": tools, "documents": documents}
        given["add_generation_prompt"] = add_generation_prompt
        template = self._template
        made: str = self._limited(lambda: template.render(given))
        return made

    @cached_property
    def words(self) -> frozenset[str]:
        """The strings and names that the template itself has, with which it may compare what it is given."""
        from jinja2 import nodes

        found = set(NAMED)
        for node in self._tree.find_all((nodes.Const, nodes.Getattr, nodes.Name, nodes.Keyword)):
            word = getattr(node, "value", None) if isinstance(node, nodes.Const) else None
            word = word or getattr(node, "attr", None) or getattr(node, "name", None) or getattr(node, "key", None)
            if isinstance(word, str):
                found.add(word)
        return frozenset(found)

    @cached_property
    def literal(self) -> str:
        """All text that the template itself can write, its pieces kept apart by NUL."""
        from jinja2 import nodes

        texts = [node.data for node in self._tree.find_all(nodes.TemplateData)]
        texts += [node.value for node in self._tree.find_all(nodes.Const) if isinstance(node.value, str)]
        return "\0".join(texts)

    @cached_property
    def _tree(self) -> jinja2.nodes.Template:
        tree: jinja2.nodes.Template = self._limited(lambda: _environment().parse(self.text))
        return tree

    @cached_property
    def _template(self) -> jinja2.Template:
        library, environment = _jinja(), _environment()

        def make() -> Any:
            code = environment.compile(self.text, None, FILE)
            return library.Template.from_code(environment, code, environment.make_globals(None))

        made: jinja2.Template = self._limited(make)
        return made

    def _limited(self, work: Callable[[], Any]) -> Any:
        jinja2 = _jinja()
        if len(self.text) > LONGEST:
            raise ValueError(f"{self.place}: the chat template has {len(self.text)} characters, at most {LONGEST}")
        token = _work.set(Work())
        try:
            return work()
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"{self.place}: line {error.lineno} of the chat template is not Jinja: {shown(error.message or '')}"
            ) from None
        except Refused as error:
            raise ValueError(f"{self._line(error)} refuses these messages: {shown(str(error))}") from None
        except RecursionError as error:
            raise ValueError(f"{self._line(error)} calls itself without end") from None
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever the operators, filters and methods of Python raise
            raise ValueError(f"{self._line(error)}: {shown(str(error)) or type(error).__name__}") from None
        finally:
            _work.reset(token)

    def _line(self, error: BaseException) -> str:
        at, line = error.__traceback__, None
        while at is not None:
            if at.tb_frame.f_code.co_filename == FILE:
                line = at.tb_lineno
            at = at.tb_next
        return f"{self.place}: " + ("the chat template" if line is None else f"line {line} of the chat template")


# ---- where templates are ------------------------------------------------------------------------------------


class ChatTemplates:
    """All templates of a model, by name; a lone one is "default"."""

    def __init__(self, templates: Mapping[str, ChatTemplate], place: str, variables: Mapping[str, str]) -> None:
        self.templates, self.place, self.variables = dict(templates), place, dict(variables)

    def choose(self, template: str | None = None, tools: Any = None) -> ChatTemplate:
        """A template by its name, or from its text; None: "tool_use" for tools where there is one, else "default"."""
        if template is not None and not isinstance(template, str):
            raise TypeError(f"template must be a name or a template's text, got {type(template).__name__}")
        names = ", ".join(map(shown, self.templates))
        if template is not None:
            if template in self.templates:
                return self.templates[template]
            if "{" in template:
                return ChatTemplate(template, "template", self.variables)
            has = f"has {names}" if names else "has none"
            raise ValueError(f"template is '{shown(template)}', {self.place} {has}; it may be a template's text, too")
        for name in ("tool_use",) * (tools is not None) + ("default",):
            if name in self.templates:
                return self.templates[name]
        if self.templates:
            raise ValueError(f"{self.place} has the chat templates {names} and no default: name one of them")
        raise ValueError(
            f"{self.place} has no chat template: its model wasn't made for chat, or its converter lost it; "
            "in Python, template= takes one"
        )


def load(source: Any) -> ChatTemplates:
    """The templates of a `llorch.files.Source`, or of a folder. Where there is none, it is empty.

    A folder has them in chat_template.jinja and chat_templates/NAME.jinja, else as chat_template in
    tokenizer_config.json: a text, or a list of named ones. A GGUF file has them in its metadata.

    ValueError names a file that isn't what it should be.
    """
    if getattr(source, "kind", "hf") == "gguf":
        return _from_metadata(source.config, printable(str(source.path)))
    folder = Path(getattr(source, "path", source))
    variables = _special_tokens(folder)
    found: dict[str, ChatTemplate] = {}
    files = [("default", folder / "chat_template.jinja")]
    files += [(path.stem, path) for path in sorted((folder / "chat_templates").glob("*.jinja"))]
    for name, path in files:
        if path.is_file():
            place = printable(str(path))
            try:
                found[name] = ChatTemplate(path.read_text(encoding="utf-8"), place, variables)
            except UnicodeDecodeError as error:
                raise ValueError(f"{place} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not found:
        path = folder / "tokenizer_config.json"
        found = _named(read_settings(folder).get("chat_template"), printable(str(path)), variables)
    return ChatTemplates(found, printable(str(folder)), variables)


def _named(entry: Any, place: str, variables: Mapping[str, str]) -> dict[str, ChatTemplate]:
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": ChatTemplate(entry, place, variables)}
    several = [{"name": name, "template": text} for name, text in entry.items()] if isinstance(entry, dict) else entry
    found = {}
    for one in several if isinstance(several, list) else [several]:
        name, text = (one.get("name"), one.get("template")) if isinstance(one, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f"{place}: chat_template must be a text, or a list of entries with name and template")
        found[name] = ChatTemplate(text, place, variables)
    return found


def _from_metadata(metadata: Mapping[str, Any], place: str) -> ChatTemplates:
    tokens = metadata.get("tokenizer.ggml.tokens")
    variables: dict[str, str] = {}
    for name, theirs in GGUF_NAMES.items():
        id = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(tokens, list | Strings) and isinstance(id, int) and 0 <= id < len(tokens):
            token = tokens[id]
            variables |= {f"{name}_token": token} if isinstance(token, str) else {}
    found = {}
    for key, text in metadata.items():
        if key == KEY or key.startswith(KEY + "."):
            if not isinstance(text, str):
                raise ValueError(f"{place}: {shown(key)} must be a text, it is {shown(text)}")
            found[key.removeprefix(KEY).removeprefix(".") or "default"] = ChatTemplate(text, place, variables)
    return ChatTemplates(found, place, variables)


def _special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and others, as the folder's files have them: a text, or an entry with its content."""
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, token in read_settings(folder, name).items():
            content = token.get("content") if isinstance(token, dict) else token
            if key in NAMED and isinstance(content, str):
                found[key] = content
    return found


# ---- what a template can take -------------------------------------------------------------------------------

FILE = "<chat template>"  # what tracebacks call it
_work: contextvars.ContextVar[Work | None] = contextvars.ContextVar("llorch_chat_template", default=None)


class Refused(Exception):
    """What raise_exception of a template raises."""


class Work:
    """What a rendering has taken so far. ValueError where it is more than it may."""

    def __init__(self) -> None:
        self.steps = self.size = 0
        self.end = time.monotonic() + MOST_SECONDS

    def step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise ValueError(f"it takes more than {MOST_STEPS} steps")
        if not self.steps % 64 and time.monotonic() > self.end:
            raise ValueError(f"it takes more than {MOST_SECONDS:.0f} seconds")

    def made(self, value: Any) -> None:
        """A value that is new: its characters, or entries, which it may share with others."""
        if isinstance(value, str | bytes):
            self.take(len(value))
        elif isinstance(value, list | tuple | dict | set):
            self.take(16 * len(value))

    def take(self, size: int) -> None:
        self.size += size
        self.check(self.size)

    def check(self, size: int) -> None:
        """Before something is made that will be so large."""
        if size > MOST_SIZE:
            raise ValueError(f"it makes more than {MOST_SIZE} characters")


def weight(value: Any) -> int:
    """Characters and entries of a value, a part as often as it is met: what its text has at least. Each part is looked
    at once, however often it is met."""
    known: dict[int, int] = {}

    def of(one: Any) -> int:
        if isinstance(one, str | bytes):
            return len(one)
        if isinstance(one, int):
            return one.bit_length() // 3
        if not isinstance(one, list | tuple | set | frozenset | dict):
            return 1
        if id(one) not in known:
            parts = sum(map(of, one)) + (sum(map(of, one.values())) if isinstance(one, dict) else 0)
            known[id(one)] = 2 * len(one) + parts
        return known[id(one)]

    return of(value)


def _now() -> Work:
    return _work.get() or Work()


# Filters and methods whose number is how wide a text, or how long a list becomes; those that put something at many
# places of a text; and those that write a value with all its parts.
WIDE = {"center", "ljust", "rjust", "zfill", "to_bytes", "batch", "slice", "lipsum", "generate_lorem_ipsum"}
MANY = {"indent", "expandtabs", "wordwrap", "translate", "tojson"}
WRITES = {"string", "tojson", "pprint", "escape", "e", "forceescape", "urlencode", "xmlattr", "urlize", "sum", "format",
          "format_map", "join", "upper", "lower", "title", "capitalize", "striptags", "safe"}  # fmt: skip
_WIDTH = re.compile(r"[0-9]{6}|\*|:[^{}]*\{")


def _before(work: Work, name: str, arguments: tuple[Any, ...]) -> None:
    """Looks at a call, by its name, whose result may be much larger than what it is given."""
    numbers = [abs(a) for a in arguments if isinstance(a, int)]
    if name in WIDE and any(n > MOST_WIDTH for n in numbers):
        raise ValueError(f"{name} has a number above {MOST_WIDTH}")
    if name in MANY:
        others = [*numbers, *(weight(a) for a in arguments[1:] if not isinstance(a, int))]
        work.check(weight(arguments[0]) * max(1, *others, 1) if arguments else 0)
    if name in ("format", "format_map", "%") and isinstance(arguments[0], str) and _WIDTH.search(arguments[0]):
        raise ValueError("a format has a width of six digits, or one from elsewhere")
    if name == "replace" and len(arguments) > 2 and all(isinstance(a, str) for a in arguments[:3]):
        text, old, new = arguments[:3]
        work.check(len(text) + text.count(old) * len(new))
    if name in WRITES or name == "%":
        work.check(weight(arguments))


def _filter(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts."""
    passed = getattr(work, "jinja_pass_arg", None)

    def counted(*arguments: Any, **named: Any) -> Any:
        now = _now()
        now.step()
        first = 0 if passed is None else 1
        values = arguments[first:]
        if name == "join":
            if values and isinstance(values[0], Iterator):
                values = (list(values[0]), *values[1:])
                arguments = (*arguments[:first], *values)
            separator = values[1] if len(values) > 1 else named.get("d", "")
            if values and hasattr(values[0], "__len__"):
                now.check(len(str(separator)) * len(values[0]))
        _before(now, name, (*values, *named.values()))
        result = work(*arguments, **named)
        now.made(result)
        return result

    if passed is not None:
        counted.jinja_pass_arg = passed  # type: ignore[attr-defined]
    return counted


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _raise_exception(message: Any) -> Any:
    raise Refused(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without HTML's escapes, which jinja2's own filter makes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _ESCAPED.sub(_escape, text) if ensure_ascii else text


# What ensure_ascii escapes, but not the 32 noncharacters with which `llorch.text.chat_prompt` marks a user's text.
_ESCAPED = re.compile("[^\0-~\ufdd0-\ufdef]")


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"


def _jinja() -> Any:
    try:
        import jinja2
        import jinja2.sandbox
    except ModuleNotFoundError:
        raise ImportError('chat needs the package jinja2: pip install "llorch[models]"') from None
    return jinja2


@lru_cache(1)
def _environment() -> Any:
    """transformers' environment (`trim_blocks`, `lstrip_blocks`, break and continue, a `generation` block, its filters
    and globals), which counts what is done."""
    _jinja()
    import jinja2
    from jinja2 import nodes, pass_context
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer

    STEP, CONCAT = "a step", "~"  # no name in a template can be these

    class Generation(Extension):
        """{% generation %} marks what an assistant wrote, for training: here it is a plain block."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

        def _as_it_is(self, caller: Any) -> Any:
            return caller()

    class Dict:
        """`dict`, of which a template sees nothing but this."""

        def __call__(self, *entries: Any, **named: Any) -> Any:
            return dict(*entries, **named)

        def fromkeys(self, keys: Any, value: Any = None) -> Any:
            return dict.fromkeys(keys, value)

    class SafeNamespace(Namespace):
        def __init__(*given: Any, **named: Any) -> None:
            self, rest = given[0], given[1:]
            entries = dict(*rest, **named)
            for name in entries:
                _public(name)
            Namespace.__init__(self, entries)

        def __setitem__(self, name: str, value: Any) -> None:
            _public(name)
            super().__setitem__(name, value)

        def __repr__(self) -> str:
            return "<namespace>"  # of its parts it could be very long

    def _public(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace can't have {name!r}: it begins with an underscore")

    class Counts(NodeTransformer):
        """Puts a step into every pass of a loop, and `~` where it is seen."""

        def __init__(self, environment: Any) -> None:
            self.environment = environment

        def step(self, line: int) -> Any:
            made = nodes.Filter(nodes.Const(True), STEP, [], [], None, None)
            return made.set_lineno(line).set_environment(self.environment)

        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            line = node.lineno
            node.body.insert(0, nodes.ExprStmt(self.step(line)).set_lineno(line).set_environment(self.environment))
            if node.test is not None:
                node.test = nodes.And(self.step(line), node.test).set_lineno(line).set_environment(self.environment)
            return node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            made = nodes.Filter(nodes.List(node.nodes), CONCAT, [], [], None, None)
            return made.set_lineno(node.lineno).set_environment(self.environment)

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def _parse(self, source: str, name: Any, filename: Any) -> Any:
            return Counts(self).visit(super()._parse(source, name, filename))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            now = _now()
            if operator == "*":
                if isinstance(left, int) and isinstance(right, int):
                    now.check((left.bit_length() + right.bit_length()) * 1000)  # digits take longer than characters
                else:
                    for a, b in ((left, right), (right, left)):
                        if isinstance(a, int) and hasattr(b, "__len__"):
                            now.check(a * (len(b) if isinstance(b, str | bytes) else 16 * len(b)))
            elif operator == "**" and isinstance(left, int) and isinstance(right, int) and right > 0:
                now.check(left.bit_length() * right * 1000)
            elif operator == "%":
                _before(now, "%", (left, right))
            result = super().call_binop(context, operator, left, right)
            now.made(result)
            return result

        def call(__self, __context: Any, __obj: Any, *arguments: Any, **named: Any) -> Any:
            now = _now()
            now.step()
            name = getattr(__obj, "__name__", "")
            owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
            if isinstance(owner, str | bytes | int):
                if name == "join" and arguments:
                    arguments = (list(arguments[0]), *arguments[1:])
                    now.check(len(owner) * len(arguments[0]) if isinstance(owner, str | bytes) else 0)
                _before(now, name, (owner, *arguments, *named.values()))
            elif name in WIDE:
                _before(now, name, (*arguments, *named.values()))
            result = super().call(__context, __obj, *arguments, **named)
            now.made(result)
            return result

        def getitem(self, obj: Any, argument: Any) -> Any:
            result = super().getitem(obj, argument)
            if isinstance(argument, slice):
                _now().made(result)
            return result

    def finalize(value: Any) -> Any:
        """Sees everything that is written."""
        now = _now()
        if isinstance(value, str):
            now.take(len(value))
        elif not isinstance(value, jinja2.Undefined):
            now.take(weight(value))
        return value

    @pass_context
    def step(context: Any, value: Any) -> Any:
        _now().step()
        return value

    @pass_context
    def concat(context: Any, values: Any) -> str:
        now = _now()
        now.check(weight(values))
        result = "".join(map(str, values))
        now.made(result)
        return result

    environment = Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=finalize
    )
    filters = {**environment.filters, "tojson": _tojson}
    environment.filters = {name: _filter(name, work) for name, work in filters.items()} | {STEP: step, CONCAT: concat}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": Dict(),
        "namespace": SafeNamespace,
    }
    return environment
