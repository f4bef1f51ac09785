"""A conversation's next answer: the prompt that fits the context, the keys and values kept from turn to turn, the text.

The kept keys and values are those of the tokens that the new prompt begins with as the last one did. They have the bits
that computing them anew would give, so an answer has the same tokens with them or without.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from llorch._text import counted
from llorch.text import batch as batches
from llorch.text.batch import Batch, Request, Stop
from llorch.text.chat_prompt import Given, prompt_ids
from llorch.text.protocol import ChatModel, context_of
from llorch.text.sampling import SamplingParameters, whole
from llorch.text.score import Progress
from llorch.text.template import ChatTemplate
from llorch.text.tools import Tools

Messages = Sequence[Mapping[str, Any]]
OVERFLOWS = ("refuse", "drop_oldest")
RESERVE = 512  # tokens for an answer of no stated length, where old turns are dropped; at most a quarter of the context
FIRST_ROLES = ("system", "developer")


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer.

    text : str
    ids : list of int
        Its tokens, without the one that ended it.
    finish_reason : str
        "stop" where the model ended its turn, or a stop string or id came; "length" at max_new_tokens, or at the end of
        the context; "cancelled" where it was asked for before its end.
    prompt_ids : list of int
        The conversation before it, as the template has it.
    seed : int or None
        What the tokens were drawn by; None at temperature 0.
    dropped : int
        Messages that were left out, because the context had no room for them.
    reused : int
        Tokens of the prompt whose keys and values were there from the turn before.
    context_left : int
        Tokens that the context has room for behind this answer.
    """

    text: str
    ids: list[int]
    finish_reason: str
    prompt_ids: list[int]
    seed: int | None
    dropped: int
    reused: int
    context_left: int

    @property
    def message(self) -> dict[str, str]:
        """To be appended to the messages, for the next turn."""
        return {"role": "assistant", "content": self.text}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the template is given beside the messages; see `llorch.CausalLM.chat`."""

    tools: Tools | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    template: str | None = None
    variables: Mapping[str, Any] | None = None
    continue_final_message: bool = False


def chat_prompt(model: ChatModel, messages: Messages, asked: Asked, add_generation_prompt: bool = True) -> list[int]:
    return _prompt(model, messages, asked, _template(model, asked), add_generation_prompt)


def _template(model: ChatModel, asked: Asked) -> ChatTemplate:
    return model.chat_templates.choose(asked.template, asked.tools)


def _prompt(
    model: ChatModel, messages: Messages, asked: Asked, template: ChatTemplate, add_generation_prompt: bool = True
) -> list[int]:
    ids = prompt_ids(
        model.tokenizer,
        template,
        messages,
        tools=asked.tools,
        documents=asked.documents,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=asked.continue_final_message,
        variables=asked.variables,
    )
    if not ids:
        raise ValueError(f"{template.place}: the chat template makes no text of these messages")
    return ids


# ---- what fits ----------------------------------------------------------------------------------------------


def fit(
    model: ChatModel, messages: Messages, asked: Asked, max_new_tokens: int | None, overflow: str
) -> tuple[list[int], int, int]:
    """The prompt's ids, the most new tokens, and how many messages were left out.

    ValueError, with the numbers, where it doesn't fit and nothing may be left out, or not enough can be.
    """
    if overflow not in OVERFLOWS:
        raise ValueError(f"overflow must be 'refuse' or 'drop_oldest', got {overflow!r}")
    most = None if max_new_tokens is None else whole(max_new_tokens, "max_new_tokens", 0)
    template, context = _template(model, asked), context_of(model)
    given = Given(messages, asked.tools, asked.documents, asked.variables).messages
    ids = _prompt(model, given, asked, template)

    def fits(count: int, wanted: int) -> bool:
        return count + wanted <= context

    dropped = 0
    if overflow == "drop_oldest" and not fits(len(ids), wanted := _wanted(most, context)):
        head, turns = _turns(given)
        # A shorter conversation has a shorter prompt: the fewest turns to leave out are found by halving.
        low, high, found = 1, len(turns) - 1, None
        while low <= high:
            middle = (low + high) // 2
            kept = _prompt(model, [*head, *chain.from_iterable(turns[middle:])], asked, template)
            if fits(len(kept), wanted):
                found, high = (middle, kept), middle - 1
            else:
                low = middle + 1
        if found is not None:
            dropped, ids = sum(map(len, turns[: found[0]])), found[1]
        elif len(turns) > 1:  # the last turn alone may leave less than the reserve, if it leaves room at all
            dropped, ids = sum(map(len, turns[:-1])), _prompt(model, [*head, *turns[-1]], asked, template)
    least = 1 if most is None else most
    if not fits(len(ids), least):
        tokens = counted(len(ids), "token")
        left = ", even when all older turns are dropped" if overflow == "drop_oldest" else ""
        hint = "" if left else "; overflow='drop_oldest' leaves old turns out"
        raise ValueError(
            f"messages have {tokens} as the chat template has them{left}, the context {context}: no room for "
            f"{'an answer' if most is None else f'max_new_tokens, {most}'}{hint}"
        )
    return ids, context - len(ids) if most is None else most, dropped


def _wanted(most: int | None, context: int) -> int:
    return min(RESERVE, context // 4) if most is None else most


def _turns(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The system's messages at the beginning; and the turns: each a user's message with all that follows it."""
    at = 0
    while at < len(messages) and messages[at]["role"] in FIRST_ROLES:
        at += 1
    turns: list[list[dict[str, Any]]] = []
    for message in messages[at:]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return messages[:at], turns


# ---- what is kept -------------------------------------------------------------------------------------------


class Kept:
    """The cache of the last conversation, for the next turn. Who takes it has it alone, until he gives it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: list[int] = []
        self._cache: Any = None

    def take(self, model: ChatModel, ids: Sequence[int]) -> Any:
        """A cache that holds a beginning of ids, but not all of them: the last one's logits are needed."""
        with self._lock:
            kept, cache = self._ids, self._cache
            self._ids, self._cache = [], None
        same = 0
        if cache is not None:
            for ours, theirs in zip(kept, ids[:-1], strict=False):
                if ours != theirs:
                    break
                same += 1
        if same:
            try:
                cache.truncate(same)
                return cache
            except ValueError:  # a cache that doesn't go back so far
                pass
        return model.new_cache()

    def give(self, ids: Sequence[int], cache: Any) -> None:
        """ids : what the cache holds."""
        with self._lock:
            self._ids, self._cache = list(ids), cache

    def forget(self) -> None:
        self.give([], None)


# ---- the answer ---------------------------------------------------------------------------------------------


class ChatStream(Iterator[str]):
    """The pieces of an answer, each computed when it is asked for: whole characters.

    prompt_ids, seed, dropped, reused : as `Reply` has them.
    """

    def __init__(
        self,
        model: ChatModel,
        messages: Messages,
        asked: Asked,
        max_new_tokens: int | None,
        parameters: SamplingParameters,
        stop: Stop | None,
        overflow: str,
        keep: bool,
        progress: Progress | None,
    ) -> None:
        self.prompt_ids, most, self.dropped = fit(model, messages, asked, max_new_tokens, overflow)
        given: Any = () if stop is None else stop
        several = isinstance(given, Iterable) and not isinstance(given, str)
        stops = [*(given if several else [given]), *model.chat_end_ids]
        request = Request(self.prompt_ids, most, parameters, stops, "messages", as_text=True)
        self._sequence = batches.Sequence(model, request)
        self.seed = self._sequence.parameters.seed
        self._context = context_of(model)
        self._kept = model.kept if keep else None
        self._cache: Any = None
        self.reused = 0
        self._batch = Batch(model, 1, batches.CHUNK)
        if self._kept is not None and not self._sequence.reason:
            self._cache = self._sequence.cache = self._kept.take(model, self.prompt_ids)
            self.reused = self._sequence.fed = self._cache.length
        self._batch.admit(self._sequence)
        self._progress, self._read = progress, self.reused
        self._pieces: list[str] = []

    def __next__(self) -> str:
        while self._batch:
            for event in self._batch.step():
                if event.error is not None:
                    self.close()
                    raise event.error
                if self._progress is not None and event.read > self._read:
                    self._progress(event.read, len(self.prompt_ids))
                self._read = event.read
                if event.text:
                    self._pieces.append(event.text)
                    return event.text
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Ends the answer, and keeps the keys and values of what has been computed for the next turn. An answer that
        came to its end has done so."""
        cache, self._cache = self._cache, None
        if cache is not None and self._kept is not None:
            self._kept.give(self._sequence.ids[: cache.length], cache)
        self._batch = Batch(self._batch.model, 1, batches.CHUNK)

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._pieces)

    @property
    def ids(self) -> list[int]:
        """Its tokens so far, also those whose text is still held back."""
        return self._sequence.new_ids

    @property
    def finish_reason(self) -> str | None:
        """None on the way."""
        return self._sequence.reason

    @property
    def reply(self) -> Reply:
        """The answer so far, as `llorch.CausalLM.chat` gives it."""
        ids = self.ids
        return Reply(
            self.text,
            ids,
            self.finish_reason or "cancelled",
            list(self.prompt_ids),
            self.seed,
            self.dropped,
            self.reused,
            self._context - len(self.prompt_ids) - len(ids),
        )


def chat_stream(
    model: ChatModel,
    messages: Messages,
    max_new_tokens: int | None,
    seed: int | None,
    overflow: str,
    keep: bool,
    progress: Callable[[int, int], object] | None,
    asked: Asked,
    options: Mapping[str, Any],
) -> ChatStream:
    sampling = dict(options)
    stop = sampling.pop("stop", None)
    parameters = model.chat_sampling.having({**sampling, "seed": seed})
    return ChatStream(model, messages, asked, max_new_tokens, parameters, cast(Any, stop), overflow, keep, progress)
