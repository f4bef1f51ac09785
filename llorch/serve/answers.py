"""The API's answers, as objects for JSON: completions of chats and of texts, whole or in pieces."""

from __future__ import annotations

import secrets
import time
from typing import Any

from llorch.text.batch import Event
from llorch.text.sampling import Likely
from llorch.text.tokenizer import Tokenizer


class Choice:
    """One answer on its way.

    text : so far. reason : None until it ends. tokens : how likely each was, where that was asked for.
    """

    def __init__(self, index: int, seed: int | None) -> None:
        self.index, self.seed = index, seed
        self.pieces: list[str] = []
        self.tokens: list[tuple[int, Likely]] = []
        self.reason: str | None = None
        self.receipt: str | None = None

    def take(self, event: Event) -> list[tuple[int, Likely]]:
        """Adds an event; what it tells of its token."""
        if event.text:
            self.pieces.append(event.text)
        self.reason = event.reason
        if event.token is None or event.likely is None:
            return []
        self.tokens.append((event.token, event.likely))
        return self.tokens[-1:]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Form:
    """How one request's answers look."""

    object, chunk, prefix = "", "", ""

    def __init__(self, model: str, fingerprint: str, tokenizer: Tokenizer, logprobs: bool) -> None:
        self.id = self.prefix + secrets.token_hex(12)
        self.created = int(time.time())
        self.model, self.fingerprint, self.tokenizer, self.logprobs = model, fingerprint, tokenizer, logprobs

    def _envelope(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def whole(self, choices: list[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        return self._envelope(self.object, [self._end(choice) for choice in choices]) | {"usage": usage}

    def piece(self, choice: Choice, text: str, tokens: list[tuple[int, Likely]]) -> dict[str, Any]:
        """What comes next of a choice, or its end."""
        made = {"index": choice.index} | self._piece(choice, text)
        made |= {"logprobs": self._logs(choice, tokens), "finish_reason": choice.reason}
        return self._envelope(self.chunk, [made | self._told(choice)])

    def usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last piece of a stream that asked for it."""
        return self._envelope(self.chunk, []) | {"usage": usage}

    def first(self, choice: Choice) -> list[dict[str, Any]]:
        return []

    def _end(self, choice: Choice) -> dict[str, Any]:
        made = {"index": choice.index} | self._whole(choice)
        return (
            made | {"logprobs": self._logs(choice, choice.tokens), "finish_reason": choice.reason} | self._told(choice)
        )

    def _told(self, choice: Choice) -> dict[str, Any]:
        """What this server says beside the API: by which seed the tokens are drawn, and where the receipt is."""
        if choice.reason is None:
            return {}
        return {"seed": choice.seed} | ({"receipt": choice.receipt} if choice.receipt else {})

    def _whole(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, choice: Choice, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _logs(self, choice: Choice, tokens: list[tuple[int, Likely]]) -> dict[str, Any] | None:
        raise NotImplementedError


class Chat(Form):
    object, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def first(self, choice: Choice) -> list[dict[str, Any]]:
        made = {"index": choice.index, "delta": {"role": "assistant", "content": ""}}
        return [self._envelope(self.chunk, [made | {"logprobs": None, "finish_reason": None}])]

    def _whole(self, choice: Choice) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": choice.text, "refusal": None}}

    def _piece(self, choice: Choice, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text or choice.reason is None else {}}

    def _logs(self, choice: Choice, tokens: list[tuple[int, Likely]]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [
            self._token(id, likely.log_probability) | {"top_logprobs": [self._token(*top) for top in likely.top]}
            for id, likely in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, id: int, log: float) -> dict[str, Any]:
        text = self.tokenizer.decode([id])
        raw = None if "\ufffd" in text else list(text.encode())  # a part of a character has no text of its own
        return {"token": text, "logprob": _finite(log), "bytes": raw}


class Text(Form):
    object = chunk = "text_completion"
    prefix = "cmpl-"

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._offsets: dict[int, int] = {}  # of each choice: characters of the tokens that have been told

    def _whole(self, choice: Choice) -> dict[str, Any]:
        return {"text": choice.text}

    def _piece(self, choice: Choice, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logs(self, choice: Choice, tokens: list[tuple[int, Likely]]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        texts = [self.tokenizer.decode([id]) for id, _ in tokens]
        at, offsets = self._offsets.get(choice.index, 0), []
        for one in texts:
            offsets.append(at)
            at += len(one)
        self._offsets[choice.index] = at
        return {
            "tokens": texts,
            "token_logprobs": [_finite(likely.log_probability) for _, likely in tokens],
            "top_logprobs": [
                {self.tokenizer.decode([id]): _finite(log) for id, log in likely.top} for _, likely in tokens
            ],
            "text_offset": offsets,
        }


def _finite(log: float) -> float:
    """JSON has no infinity: the API's own least number stands for it."""
    return log if log > -9999.0 else -9999.0
