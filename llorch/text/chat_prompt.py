"""From messages to the ids of a prompt, in which only the template's own words become special tokens.

A template joins its own text and that of messages to one, and special tokens are recognised in text. So the text of
messages is marked before: a token's text in it by a mark on either side, and a place where text begins or ends that
could be a part of a token's by one mark. Marks are noncharacters of Unicode, chosen so that neither the messages nor
the template has them; templates may trim, split and compare as ever. In what the template made of it, a token is
somebody else's if it stands between marks or has one inside. Where there is no such token the marks are taken out and
nothing has changed; else the text is encoded by a copy of the tokenizer in which the special tokens have other names,
which stand where the template's own tokens stood.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llorch._text import shown
from llorch.text.template import ChatTemplate
from llorch.text.tokenizer import Tokenizer
from llorch.text.tools import Tools, is_function, schema

if TYPE_CHECKING:
    import tokenizers

NONCHARACTERS = [chr(i) for i in range(0xFDD0, 0xFDF0)]
ROLES = frozenset({"system", "user", "assistant", "tool", "developer"})
RESERVED = frozenset({"self", "messages", "tools", "documents", "add_generation_prompt"})
DEEPEST = 100  # lists in lists, of what a caller gives


def prompt_ids(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Tools | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids of a conversation: those of transformers' `apply_chat_template`, where no special token's text stands in
    what the caller gives.

    add_generation_prompt : with what begins an answer.
    continue_final_message : the last message is left open, and add_generation_prompt is not looked at.
    variables : more that the template may ask for, such as enable_thinking.

    TypeError and ValueError name what is wrong in the messages, or the template's file and line.
    """
    given = Given(messages, tools, documents, variables)
    marks = Marks(tokenizer, template, given)
    shown_to_template = [marks.message(message) for message in given.messages]
    more = {"tools": marks.of(given.tools), "documents": marks.of(given.documents), **marks.of(given.variables)}
    open_ended = marks.cut if continue_final_message else None
    return marks.encode(_rendered(template, shown_to_template, open_ended, add_generation_prompt, more))


def prompt_text(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation: for programs that make a text of it before they encode it, and take special tokens
    that stand in messages for what they are. Parameters and errors as `prompt_ids`."""
    given = Given(messages, None, None, variables)
    taken = given.characters() | set(template.text)
    cut = next((c for c in NONCHARACTERS if c not in taken), None) if continue_final_message else None
    return _rendered(template, given.messages, cut, add_generation_prompt, given.variables)


def _rendered(
    template: ChatTemplate, messages: list[dict[str, Any]], cut: str | None, add_generation_prompt: bool, more: Any
) -> str:
    """cut : a character that nothing else has, where the last message is to be left open."""
    if cut is None:
        return template.render(messages, add_generation_prompt=add_generation_prompt, **more)
    _open(messages[-1], cut)
    text = template.render(messages, add_generation_prompt=False, **more)
    at = text.rfind(cut)
    if at < 0:
        raise ValueError(f"{template.place}: the chat template leaves the last message out, it can't be continued")
    spaced = text[at + 1 : at + 2] == " "
    return text[:at] if spaced else text[:at].rstrip()


# ---- what a caller gives ------------------------------------------------------------------------------------


class Given:
    """Messages, tools, documents and variables as plain values of JSON, checked: a template sees no other objects."""

    def __init__(self, messages: Any, tools: Any, documents: Any, variables: Any) -> None:
        if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
            raise TypeError(f"messages must be a list of messages, got {type(messages).__name__}")
        self.messages = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        if not self.messages:
            raise ValueError("messages is empty, at least one message is needed")
        self.tools = _mappings(tools, "tools", functions=True)
        self.documents = _mappings(documents, "documents")
        if not isinstance(variables, Mapping | None):
            raise TypeError(f"variables must be a mapping of names to values, got {type(variables).__name__}")
        self.variables = _plain(dict(variables or {}), "variables")
        if taken := RESERVED & set(self.variables):
            raise ValueError(f"variables has {min(taken)}, which has an argument of its own")

    def characters(self) -> set[str]:
        """Those of all texts."""
        found: set[str] = set()
        rest: list[Any] = [self.messages, self.tools, self.documents, self.variables]
        while rest:
            one = rest.pop()
            if isinstance(one, str):
                found.update(one)
            elif isinstance(one, dict):
                rest += [*one, *one.values()]
            elif isinstance(one, list):
                rest += one
        return found


def _message(message: Any, name: str) -> dict[str, Any]:
    """As transformers gives it to a template: no entry that is None, and reasoning under all names it has."""
    if not isinstance(message, Mapping):
        raise TypeError(f"{name} must be a mapping with role and content, got {type(message).__name__}")
    plain = {key: value for key, value in _plain(message, name).items() if value is not None}
    if not isinstance(plain.get("role"), str):
        raise ValueError(f"{name} must have a role, a str such as 'user', it has {shown(plain.get('role'))}")
    for key in ("reasoning_content", "thinking", "reasoning"):
        if key in plain:
            return {"thinking": plain[key], **plain, "reasoning_content": plain[key]}
    return plain


def _mappings(given: Any, name: str, functions: bool = False) -> list[dict[str, Any]] | None:
    """functions : one may be a function, and becomes what a model is told of it."""
    if given is None:
        return None
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a list of mappings, got {type(given).__name__}")
    given = [schema(one, f"{name}[{i}]") if functions and is_function(one) else one for i, one in enumerate(given)]
    plain = _plain(given, name)
    for i, one in enumerate(plain):
        if not isinstance(one, dict):
            raise TypeError(f"{name}[{i}] must be a mapping, as JSON has it, got {type(one).__name__}")
    return plain  # type: ignore[no-any-return]


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"{name} is nested more than {DEEPEST} deep")
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, str):  # an enum, a NumPy scalar: without the methods of its own
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        found = {}
        for key, entry in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name} has the key {shown(key)}, keys must be str")
            found[str.__str__(key)] = _plain(entry, f"{name}[{shown(repr(key))}]", depth + 1)
        return found
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{name}[{i}]", depth + 1) for i, entry in enumerate(value)]
    raise TypeError(f"{name} must be what JSON has, such as a str or a list, got {type(value).__name__}")


def _open(message: dict[str, Any], cut: str) -> None:
    """Puts the mark behind a message's text; the space tells whether the template trims it."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + cut + " "
        return
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            part["text"] += cut + " "
            return
    raise ValueError("the last message has no text that could be continued")


# ---- marks --------------------------------------------------------------------------------------------------


class Marks:
    """Marks for one conversation.

    control : the tokens that are a template's alone: special ones, and other added tokens that stand in its own text.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, given: Given) -> None:
        self.tokenizer = tokenizer
        taken = given.characters() | set(template.text)
        free = [c for c in NONCHARACTERS if c not in taken]
        if len(free) < 4:
            raise ValueError("messages have nearly all of Unicode's noncharacters U+FDD0 to U+FDEF: four must be free")
        self.begin, self.end, self.cut, self.name = free[:4]
        added = tokenizer.library.get_added_tokens_decoder().values()
        self.added = {token.content for token in added if token.content}
        special = {token.content for token in added if token.special and token.content}
        self.control = special | {t for t in self.added if t in template.literal and not t.isspace()}
        # What an assistant has said may have tokens that it may say, such as those around its reasoning.
        self._all, self._special = _words(frozenset(self.control)), _words(frozenset(special))
        self.words = template.words | ROLES

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.of(message, self._special if message["role"] == "assistant" else self._all)
        return found

    def of(self, value: Any, words: _Words | None = None) -> Any:
        """A value with its texts marked, keys too."""
        words = words or self._all
        if isinstance(value, str):
            return self.text(value, words)
        if isinstance(value, dict):
            return {self.text(key, words): self.of(entry, words) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.of(entry, words) for entry in value]
        return value

    def text(self, text: str, words: _Words) -> str:
        if not text or not words:
            return text
        marked = words.whole.sub(f"{self.begin}\\g<0>{self.end}", text)
        if text in self.words:  # a template may ask whether it is this
            return marked
        first, last = text.lstrip(), text.rstrip()
        if words.ends_at_its_start(first) or words.within(text):
            marked = marked[: len(text) - len(first)] + self.begin + marked[len(text) - len(first) :]
        if words.begins_at_its_end(last):
            spaces = len(text) - len(last)
            marked = marked[: len(marked) - spaces] + self.end + marked[len(marked) - spaces :]
        return marked

    def encode(self, marked: str) -> list[int]:
        """The ids of a text that the template has made."""
        pieces = re.split(f"([{self.begin}{self.end}])", marked)
        text = "".join(pieces[::2])
        begins: set[int] = set()
        ends: set[int] = set()
        at = 0
        for piece, mark in zip(pieces[:-1:2], pieces[1::2], strict=True):
            at += len(piece)
            (begins if mark == self.begin else ends).add(at)
        places = sorted(begins | ends)
        own, others = [], 0
        if places:
            for match in _words(frozenset(self.added)).whole.finditer(text):
                if match[0] not in self.control:
                    continue
                from_, to = match.span()
                if (from_ in begins and to in ends) or any(from_ < place < to for place in places):
                    others += 1
                else:
                    own.append(match)
        if not others:
            return self.tokenizer.encode(text)
        names = {token: f"{self.name}{chr(0xF0000 + i)}{self.name}" for i, token in enumerate(sorted(self.control))}
        renamed, at = [], 0
        for match in own:
            renamed += [text[at : match.start()], names[match[0]]]
            at = match.end()
        return _renamed(self.tokenizer, names).encode("".join([*renamed, text[at:]]))


class _Words:
    """What is looked for in a text: whole tokens, the longest first, their beginnings and their ends."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = sorted(tokens, key=len, reverse=True)
        self.whole = re.compile("|".join(map(re.escape, self.tokens)) or "(?!)")
        self.begins = {token[:n] for token in self.tokens for n in range(1, len(token))}
        self.ends = {token[n:] for token in self.tokens for n in range(1, len(token))}
        self.longest = len(self.tokens[0]) if self.tokens else 0

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def ends_at_its_start(self, text: str) -> bool:
        return any(text[:n] in self.ends for n in range(1, self.longest))

    def begins_at_its_end(self, text: str) -> bool:
        return any(text[-n:] in self.begins for n in range(1, self.longest))

    def within(self, text: str) -> bool:
        """True for a text that is a part of a token."""
        return len(text) < self.longest and any(text in token for token in self.tokens)


@lru_cache(16)
def _words(tokens: frozenset[str]) -> _Words:
    return _Words(tokens)


# ---- a tokenizer whose special tokens have other names ------------------------------------------------------

_copies: weakref.WeakKeyDictionary[Tokenizer, tuple[dict[str, str], Tokenizer]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _renamed(tokenizer: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """A copy that knows tokens by other names and has the same ids. It takes a moment for a large vocabulary, so the
    last one of each tokenizer is kept; only a conversation with a special token's text asks for it."""
    with _lock:
        kept = _copies.get(tokenizer)
        if kept is None or kept[0] != names:
            library = tokenizer.call("be copied", lambda: _with_names(tokenizer.library, names))
            kept = _copies[tokenizer] = names, Tokenizer(library, tokenizer.name)
        return kept[1]


def _with_names(library: tokenizers.Tokenizer, names: dict[str, str]) -> tokenizers.Tokenizer:
    import tokenizers

    whole = json.loads(library.to_str())
    for token in whole["added_tokens"]:
        if token["content"] in names:
            token.update(content=names[token["content"]], normalized=False)
    model = whole["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id for token, id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:  # one that makes a special token would make it of text

        def parts(merge: Any) -> tuple[str, str]:
            left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
            return left, right

        pairs = [(left, right, left + right) for left, right in map(parts, model["merges"])]
        model["merges"] = [
            merge for merge, pair in zip(model["merges"], pairs, strict=True) if not any(p in names for p in pair)
        ]
    whole["post_processor"] = None  # it names tokens, and nothing is added here
    return tokenizers.Tokenizer.from_str(json.dumps(whole))
