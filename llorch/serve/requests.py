"""Bodies of requests, checked: what they ask for, or a refusal that names what is wrong.

A field that isn't supported is refused by its name: an answer never leaves out in silence what was asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llorch._text import shown
from llorch.text.sampling import SamplingParameters, fresh_seed

MOST_CHOICES = 128
MOST_TOP = 20  # likeliest tokens told beside each
MOST_STOPS = 16
MOST_DEPTH = 64  # of a body's JSON


class Refusal(Exception):
    """An error of the API: an HTTP status, and its error object."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """What every completion asks for beside its prompt.

    stop : strings. most : new tokens, None where it isn't said. logprobs : likeliest tokens to tell beside each, None
    for none at all. schema : JSON text. usage : told at the end of a stream.
    """

    parameters: SamplingParameters
    most: int | None
    n: int
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    logprobs: int | None
    schema: str | None
    receipt: bool

    def choice(self, index: int) -> SamplingParameters:
        """How the tokens of a choice are drawn: the first by the seed, each further one by a seed made of it."""
        seed = self.parameters.seed
        if not index or seed is None:
            return self.parameters
        digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
        return self.parameters.having({"seed": int.from_bytes(digest[:4], "big")})


def parse(raw: bytes) -> dict[str, Any]:
    """The object of a body."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise Refusal("the body is nested too deeply") from None
    except ValueError as error:
        raise Refusal(f"the body isn't JSON in UTF-8: {shown(str(error))}") from None
    if not isinstance(body, dict):
        raise Refusal(f"the body must be a JSON object, it is {_kind(body)}")
    if _deeper(body, MOST_DEPTH):
        raise Refusal(f"the body is nested more than {MOST_DEPTH} deep")
    return {name: value for name, value in body.items() if value is not None}  # null is what isn't given


def _deeper(value: Any, depth: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(one, depth - 1) for one in inside)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


# ---- fields ------------------------------------------------------------------------------------------------


def take(body: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    """A field of a kind, or None."""
    value = body.get(name)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise Refusal(f"{name} must be {what}, it is {_kind(value)}", name)
    return value


def whole(body: Mapping[str, Any], name: str, low: int, high: int, default: int | None = None) -> int | None:
    value = take(body, name, int, "an integer")
    if value is None:
        return default
    if not low <= value <= high:
        raise Refusal(f"{name} must be in [{low}, {high}], got {shown(value)}", name)
    return int(value)


def real(body: Mapping[str, Any], name: str, low: float, high: float, default: float | None = None) -> float | None:
    value = take(body, name, (int | float), "a number")  # type: ignore[arg-type]
    if value is None:
        return default
    if not low <= value <= high:
        raise Refusal(f"{name} must be in [{low}, {high}], got {shown(value)}", name)
    return float(value)


def yes(body: Mapping[str, Any], name: str) -> bool:
    return bool(take(body, name, bool, "a boolean"))


def refuse_others(body: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in body:
        if name not in known:
            raise Refusal(f"{shown(name)} isn't supported", shown(name), "unsupported_parameter")


def model_of(body: Mapping[str, Any], names: frozenset[str]) -> str:
    name = take(body, "model", str, "a string")
    if name is None:
        raise Refusal(f"model is missing: {', '.join(sorted(names))} is here", "model")
    if name not in names:
        raise Refusal(f"there is no model {shown(name)} here, but {', '.join(sorted(names))}", "model",
                      "model_not_found", 404)  # fmt: skip
    return str(name)


COMMON = frozenset(
    (
        *("model", "stream", "stream_options", "n", "seed", "stop", "logprobs", "temperature", "top_p", "max_tokens"),
        *("presence_penalty", "frequency_penalty", "top_k", "repetition_penalty", "receipt", "user"),
    )
)
CHAT = COMMON | {"messages", "top_logprobs", "max_completion_tokens", "response_format"}
TEXT = COMMON | {"prompt"}
EMBEDDINGS = frozenset(("model", "input", "encoding_format", "user"))


def _asked(body: Mapping[str, Any], most: int | None, logprobs: int | None, schema: str | None) -> Asked:
    take(body, "user", str, "a string")  # nothing depends on it
    sampling = {
        "temperature": real(body, "temperature", 0, 2, 1.0),
        "top_p": real(body, "top_p", 0, 1),
        "top_k": whole(body, "top_k", 1, 2**31),
        "repetition_penalty": real(body, "repetition_penalty", 0, math.inf),
        "presence_penalty": real(body, "presence_penalty", -2, 2),
        "frequency_penalty": real(body, "frequency_penalty", -2, 2),
        "seed": whole(body, "seed", 0, 2**64 - 1),
    }
    if sampling["seed"] is None and sampling["temperature"]:
        sampling["seed"] = fresh_seed()
    if sampling["top_p"] == 0:
        raise Refusal("top_p must be more than 0; temperature 0 takes the likeliest token", "top_p")
    try:
        parameters = SamplingParameters(**sampling)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise Refusal(str(error), str(error).partition(" ")[0]) from None
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise Refusal("stop must be a string that isn't empty, or an array of them", "stop")
    if len(stops) > MOST_STOPS:
        raise Refusal(f"stop has {len(stops)} strings, at most {MOST_STOPS} are taken", "stop")
    stream = yes(body, "stream")
    options = take(body, "stream_options", dict, "an object") or {}
    if options and not stream:
        raise Refusal("stream_options are for a stream", "stream_options")
    for name in options:
        if name != "include_usage":
            raise Refusal(f"stream_options.{shown(name)} isn't supported", "stream_options", "unsupported_parameter")
    n = whole(body, "n", 1, MOST_CHOICES, 1) or 1
    usage = yes(options, "include_usage")
    return Asked(parameters, most, n, tuple(stops), stream, usage, logprobs, schema, yes(body, "receipt"))


def chat(body: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Asked]:
    """The messages of /v1/chat/completions, and the rest."""
    refuse_others(body, CHAT)
    messages = take(body, "messages", list, "an array of messages")
    if not messages:
        raise Refusal("messages is missing or empty", "messages")
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise Refusal("max_tokens and max_completion_tokens are one thing: give one of them", "max_completion_tokens")
    most = whole(body, "max_completion_tokens", 1, 2**31, whole(body, "max_tokens", 1, 2**31))
    told = yes(body, "logprobs")
    top = whole(body, "top_logprobs", 0, MOST_TOP)
    if top is not None and not told:
        raise Refusal("top_logprobs needs logprobs to be true", "top_logprobs")
    asked = _asked(body, most, (top or 0) if told else None, _schema(body))
    return [_message(message, i) for i, message in enumerate(messages)], asked


def _message(message: Any, place: int) -> dict[str, Any]:
    where = f"messages[{place}]"
    if not isinstance(message, dict):
        raise Refusal(f"{where} must be an object, it is {_kind(message)}", where)
    for name, value in message.items():
        if name not in ("role", "content", "name") and value is not None:
            raise Refusal(f"{where}.{shown(name)} isn't supported", f"{where}.{shown(name)}", "unsupported_parameter")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise Refusal(f"{where}.role must be a string, it is {_kind(role)}", f"{where}.role")
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise Refusal(f"{where}.content may have parts of type text alone", f"{where}.content")
            if others := part.keys() - {"type", "text"}:
                raise Refusal(f"{where}.content has a part with {shown(min(others))}, which isn't supported",
                              f"{where}.content", "unsupported_parameter")  # fmt: skip
            parts.append(part["text"])
        content = "".join(parts)
    if not isinstance(content, str):
        raise Refusal(f"{where}.content must be a string, it is {_kind(content)}", f"{where}.content")
    name = take(message, "name", str, "a string")
    return {"role": role, "content": content} | ({} if name is None else {"name": name})


def _schema(body: Mapping[str, Any]) -> str | None:
    """Of response_format, as JSON."""
    given = take(body, "response_format", dict, "an object")
    if given is None or given == {"type": "text"}:
        return None
    if given == {"type": "json_object"}:
        return '{"type":"object"}'
    if given.get("type") != "json_schema" or set(given) != {"type", "json_schema"}:
        raise Refusal("response_format must be text, json_object or json_schema", "response_format")
    inner = given["json_schema"]
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        raise Refusal("response_format.json_schema.schema must be an object", "response_format")
    for name in inner:
        if name not in ("name", "schema", "strict", "description"):
            raise Refusal(f"response_format.json_schema.{shown(name)} isn't supported", "response_format",
                          "unsupported_parameter")  # fmt: skip
    return json.dumps(inner["schema"], separators=(",", ":"))


def text(body: Mapping[str, Any]) -> tuple[list[str | list[int]], Asked]:
    """The prompts of /v1/completions, and the rest."""
    refuse_others(body, TEXT)
    given = body.get("prompt")
    prompts: list[Any]
    if isinstance(given, str) or (isinstance(given, list) and given and all(type(id) is int for id in given)):
        prompts = [given]
    elif isinstance(given, list) and given:
        prompts = given
    else:
        raise Refusal("prompt must be a string, token ids, or an array of them", "prompt")
    for i, prompt in enumerate(prompts):
        ids = isinstance(prompt, list) and prompt and all(type(id) is int for id in prompt)
        if not isinstance(prompt, str) and not ids:
            raise Refusal(f"prompt[{i}] must be a string or token ids", "prompt")
    if len(prompts) > MOST_CHOICES:
        raise Refusal(f"prompt has {len(prompts)} prompts, at most {MOST_CHOICES} are taken", "prompt")
    logprobs = whole(body, "logprobs", 0, MOST_TOP)
    return prompts, _asked(body, whole(body, "max_tokens", 0, 2**31, 16), logprobs, None)


def embeddings(body: Mapping[str, Any]) -> tuple[list[str], str]:
    """The texts of /v1/embeddings, and "float" or "base64"."""
    refuse_others(body, EMBEDDINGS)
    take(body, "user", str, "a string")
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise Refusal("input must be a string, or an array of strings", "input")
    how = body.get("encoding_format", "float")
    if how not in ("float", "base64"):
        raise Refusal("encoding_format must be float or base64", "encoding_format")
    return texts, how


def called(work: Callable[[], Any], param: str) -> Any:
    """work(), whose complaints about what a client sent become refusals."""
    try:
        return work()
    except (ValueError, TypeError, IndexError) as error:
        raise Refusal(str(error), param) from None
