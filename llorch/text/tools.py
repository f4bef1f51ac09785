"""A Python function as a tool: what a chat template is told of it, from its signature and its docstring.

The docstring is Google's style: what the function does, then "Args:" with a line "name: what it is" for each
parameter, which may go on in lines that are indented further, and "Returns:" if it likes. The result is that of
transformers' `get_json_schema`.
"""

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llorch._text import shown

Tools = Sequence[Mapping[str, Any] | Callable[..., Any]]

NAMES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
SCALARS = (str, int, float, bool, type(None))
SECTIONS = ("Args:", "Returns:", "Raises:")
ENTRY = re.compile(r"(?P<name>\w+)[ \t]*(?:\([^()]*\))?:(?P<text>.*)")
CHOICES = re.compile(r"\(choices:(?P<list>.*)\)$", re.IGNORECASE)


def is_function(tool: Any) -> bool:
    return inspect.isfunction(tool) or inspect.ismethod(tool)


def schema(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The tool that a function is, as JSON has it. ValueError says what can't be told of it; name is what it is called
    there."""
    where = f"{name} is the function {shown(getattr(function, '__name__', repr(function)))}"
    sections = _sections(inspect.getdoc(function) or "")
    if sections is None:
        raise ValueError(f"{where}: it needs a docstring, which tells the model what it does")
    told, signature = _entries(sections["Args:"]), inspect.signature(function)
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # an annotation in quotes may be anything
        raise ValueError(f"{where}: its type hints can't be read: {error}") from None
    properties: dict[str, Any] = {}
    required = []
    for i, (parameter, how) in enumerate(signature.parameters.items()):
        if i == 0 and parameter in ("self", "cls") and how.annotation is how.empty:
            continue
        if how.kind in (how.VAR_POSITIONAL, how.VAR_KEYWORD):
            raise ValueError(f"{where}: {how} has no names that a model could give arguments by")
        if parameter not in hints:
            raise ValueError(f"{where}: its parameter {parameter} needs a type hint, such as {parameter}: str")
        if parameter not in told:
            raise ValueError(f"{where}: its docstring needs a line '{parameter}: what it is' below Args:")
        try:
            properties[parameter] = _described(_type(hints[parameter]), told[parameter])
        except ValueError as error:
            raise ValueError(f"{where}: its parameter {parameter}: {error}") from None
        if how.default is how.empty:
            required.append(parameter)
    parameters = {"type": "object", "properties": properties} | ({"required": required} if required else {})
    found = {"name": function.__name__, "description": "\n".join(sections[""]).strip(), "parameters": parameters}
    try:
        result = _type(hints["return"])
    except (KeyError, ValueError):  # a model doesn't make it, so what can't be said of it is left out
        return {"type": "function", "function": found}
    if text := "\n".join(sections["Returns:"]).strip():
        result["description"] = text
    return {"type": "function", "function": found | {"return": result}}


# ---- docstrings ---------------------------------------------------------------------------------------------


def _sections(doc: str) -> dict[str, list[str]] | None:
    """The lines below each heading; what comes before is that of ""."""
    if not doc.strip():
        return None
    found: dict[str, list[str]] = {name: [] for name in ("", *SECTIONS)}
    now = found[""]
    for line in doc.strip().split("\n"):
        if line.strip() in SECTIONS:
            now = found[line.strip()]
        else:
            now.append(line)
    return found


def _entries(lines: list[str]) -> dict[str, str]:
    """What is told of each name, in one line."""
    found: dict[str, list[str]] = {}
    name, least = "", 0
    for line in lines:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        entry = ENTRY.match(text)
        if entry and (not found or indent <= least):
            name, least, text = entry["name"], indent, entry["text"].strip()
            found[name] = []
        if found and text:
            found[name].append(text)
    return {name: " ".join(parts) for name, parts in found.items()}


def _described(type_: dict[str, Any], text: str) -> dict[str, Any]:
    """With its description, and with what may be chosen where that ends with it."""
    match = CHOICES.search(text)
    if match:
        try:
            values = json.loads(match["list"])
        except ValueError:
            values = None
        if not isinstance(values, list):
            raise ValueError(f"choices must be a list as JSON has it, got {shown(match['list'].strip())}")
        type_ = type_ | {"enum": [value.strip() if isinstance(value, str) else value for value in values]}
        text = text[: match.start()].rstrip()
    return type_ | {"description": text}


# ---- types --------------------------------------------------------------------------------------------------


def _type(hint: Any) -> dict[str, Any]:
    """A type as JSON Schema has it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if isinstance(hint, type) and origin is None:
        if issubclass(hint, enum.Enum):
            return _one_of([member.value for member in hint], hint)
        if hint in NAMES:
            return {"type": NAMES[hint]}
    elif origin is typing.Literal:
        return _one_of(list(inner), hint)
    elif origin in (typing.Union, types.UnionType):
        return _any_of(inner)
    elif origin is list:
        return {"type": "array", "items": _type(inner[0])}
    elif origin is tuple and len(inner) > 1 and ... not in inner:
        return {"type": "array", "prefixItems": [_type(one) for one in inner]}
    elif origin is dict:
        return {"type": "object", "additionalProperties": _type(inner[1])}
    raise ValueError(
        f"its type hint {shown(inspect.formatannotation(hint))} isn't str, int, float, bool, None, Any, an Enum or a "
        "Literal of these, or a list[T], dict[str, T], tuple[T, U] or union of such: give the tool as a mapping"
    )


def _one_of(values: list[Any], hint: Any) -> dict[str, Any]:
    if not values or any(type(value) not in SCALARS for value in values):
        raise ValueError(
            f"its type hint {shown(inspect.formatannotation(hint))} must have values that JSON has: str, int, float, "
            "bool or None"
        )
    names = list(dict.fromkeys(NAMES[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _any_of(hints: tuple[Any, ...]) -> dict[str, Any]:
    found = [_type(hint) for hint in hints if hint is not type(None)]
    if len(found) == 1:
        made = found[0]
    elif all(list(one) == ["type"] and isinstance(one["type"], str) for one in found):
        names = sorted({one["type"] for one in found})
        made = {"type": names[0] if len(names) == 1 else names}
    else:
        made = {"anyOf": found}
    return made | ({"nullable": True} if type(None) in hints else {})
