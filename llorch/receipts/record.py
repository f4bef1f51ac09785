"""A receipt as data: made of a sequence that has ended, written and read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from llorch._text import shown
from llorch.receipts import digests
from llorch.text.batch import Sequence

FORMAT = "llorch receipt 1"
CONTRACT = "llorch numerics 1"  # the bits of docs/numerics.md; another number once any of them changes
PREDICATE = "urn:llorch:receipt:1"
STATEMENT = "https://in-toto.io/Statement/v1"

PARAMETERS = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "seed", "stop", "end_ids", "schema", "continues"),
)
PARTS = {  # what each hash covers
    "prompt_sha256": ("prompt",),
    "parameters_sha256": PARAMETERS,
    "output_sha256": ("output", "end", "finish_reason", "text"),
}
Receipt = dict[str, Any]


class Malformed(ValueError):
    """It isn't a receipt."""


def make(model: Any, sequence: Sequence) -> Receipt:
    """The receipt of a sequence that has ended, and whose request had `links`.

    ValueError for one that hasn't, or that was ended from outside: what it would have chosen next isn't known.
    """
    if sequence.links is None or sequence.reason not in ("stop", "length"):
        raise ValueError("a receipt is of a sequence that has ended by itself, and whose request asked for links")
    p = sequence.parameters
    receipt: Receipt = {
        "format": FORMAT,
        "contract": CONTRACT,
        "compute": model.compute,
        "family": model.family.name,
        **digests.of_model(model),
        "max_new_tokens": sequence.most,
        "temperature": p.temperature,
        "top_k": p.top_k,
        "top_p": p.top_p,
        "repetition_penalty": p.repetition_penalty,
        "presence_penalty": p.presence_penalty,
        "frequency_penalty": p.frequency_penalty,
        "seed": p.seed,
        "stop": list(sequence.strings),
        "end_ids": sorted(sequence.ends),
        "schema": sequence.schema,
        "continues": sequence.continues,
        "prompt": list(sequence.prompt_ids),
        "output": list(sequence.new_ids),
        "end": sequence.end,
        "finish_reason": sequence.reason,
        "text": None if sequence.text is None else sequence.told,
    }
    for name, fields in PARTS.items():
        receipt[name] = part(receipt, fields)
    receipt["chain"] = [link.hex() for link in sequence.links]
    return receipt


def part(receipt: Mapping[str, Any], fields: tuple[str, ...]) -> str:
    """The hash of some of its fields."""
    return digests.sha256({name: receipt[name] for name in fields})


def statement(receipt: Receipt) -> dict[str, Any]:
    """It as an in-toto statement, whose subject is the answer: for the tools that sign and store those.

    https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
    """
    subject = {"name": "output", "digest": {"sha256": receipt["output_sha256"]}}
    return {"_type": STATEMENT, "subject": [subject], "predicateType": PREDICATE, "predicate": receipt}


def dumps(receipt: Mapping[str, Any]) -> str:
    """As JSON, a field a line."""
    lines = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in receipt.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


@cache
def schema() -> dict[str, Any]:
    """The JSON schema that is published with llorch: llorch/receipts/schema.json."""
    found: dict[str, Any] = json.loads(files("llorch.receipts").joinpath("schema.json").read_text("utf-8"))
    return found


def loads(text: str) -> Receipt:
    """A receipt, or the one in an in-toto statement. Malformed says what isn't as the schema has it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it isn't JSON: {shown(str(error))}") from None
    if isinstance(found, dict) and found.get("_type") == STATEMENT:
        if found.get("predicateType") != PREDICATE:
            raise Malformed(f"the statement's predicateType is {shown(found.get('predicateType'))}, not {PREDICATE}")
        inner, subject = found.get("predicate"), found.get("subject")
        wanted = inner.get("output_sha256") if isinstance(inner, dict) else None
        if subject != [{"name": "output", "digest": {"sha256": wanted}}]:
            raise Malformed("the statement's subject isn't the output of the receipt in it")
        found = inner
    _check(found)
    receipt: Receipt = found
    return receipt


def _check(found: Any) -> None:
    """By what the schema uses: types, enum, items, pattern, bounds."""
    rules = schema()
    if not isinstance(found, dict):
        raise Malformed("it isn't a JSON object")
    for name in rules["required"]:
        if name not in found:
            raise Malformed(f"{name} is missing")
    for name, value in found.items():
        rule = rules["properties"].get(name)
        if rule is None:
            raise Malformed(f"{shown(name)} is no field of a receipt")
        if not _is(value, rule):
            raise Malformed(f"{name} is {shown(value)}, the schema has it as {rule['description']}")


def _is(value: Any, rule: Mapping[str, Any]) -> bool:
    if "enum" in rule and value not in rule["enum"]:
        return False
    kinds = rule.get("type", [])
    if kinds and not any(_kind(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if isinstance(value, str):
        return "pattern" not in rule or re.search(rule["pattern"], value) is not None
    if isinstance(value, list):
        return all(_is(one, rule["items"]) for one in value) and len(value) >= rule.get("minItems", 0)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(rule.get("minimum", value) <= value <= rule.get("maximum", value))
    return True


def _kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "number":
        return isinstance(value, int | float)
    return isinstance(value, {"string": str, "integer": int, "array": list, "null": type(None), "boolean": bool}[kind])
