"""What a user asks of a model: generate, stream, generate_batch, chat, score, and its tokenizer.

`Faces` adds them to any engine, as thin loops on `llorch.text.batch`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray

from llorch._text import counted
from llorch.text import batch as batches
from llorch.text import chat as chats
from llorch.text import generation_config, tokenizer_files
from llorch.text import template as templates
from llorch.text.batch import Batch, Prompt, Request, Stop
from llorch.text.chat import Asked, ChatStream, Kept, Messages, Reply
from llorch.text.grammar import Guide
from llorch.text.protocol import ChatModel, Ids, Model
from llorch.text.sampling import Sampling, SamplingParameters, whole
from llorch.text.score import Continuation, Progress, Score, continuations, score
from llorch.text.template import ChatTemplates
from llorch.text.tokenizer import Tokenizer
from llorch.text.tools import Tools

Piece = TypeVar("Piece", str, int)


class Options(Sampling, total=False):
    """What every way to generate takes: see `Faces.generate`."""

    stop: Stop | None


class Faces:
    """Text from a model. A mixin: what it stands beside is a `llorch.text.protocol.Model`.

    Attributes
    ----------
    tokenizer : llorch.text.tokenizer.Tokenizer
        Loaded when it is first used.
    """

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back. ImportError, FileNotFoundError, ValueError as `llorch.text.tokenizer_files.load`."""
        return tokenizer_files.load(getattr(self, "source", None) or cast(Model, self).path)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text: of the model's configuration, and of generation_config.json where there is one.

        ValueError names the file if it is none of ids.
        """
        model = cast(Model, self)
        config = model.config
        if hasattr(config, "eos_token_ids"):
            ends = set(config.eos_token_ids)
        else:
            ends = set() if config.eos_token_id is None else {config.eos_token_id}
        return frozenset(ends | generation_config.ends(model.path))

    @cached_property
    def chat_templates(self) -> ChatTemplates:
        """How a conversation becomes a prompt; empty for a model that has none. ValueError names a broken file."""
        return templates.load(getattr(self, "source", None) or cast(Model, self).path)

    @cached_property
    def chat_end_ids(self) -> frozenset[int]:
        """The tokens that end an answer: `end_ids`; the tokenizer's eos_token; GGUF's eos, eot and eom."""
        model = cast(Model, self)
        source: Any = getattr(self, "source", None)
        found = set(model.end_ids)
        if getattr(source, "kind", None) == "gguf":
            ids = (source.config.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
            found |= {id for id in ids if isinstance(id, int) and 0 <= id < model.config.vocab_size}
        else:
            eos = model.tokenizer.library.token_to_id(self.chat_templates.variables.get("eos_token", ""))
            found |= set() if eos is None or eos >= model.config.vocab_size else {eos}
        return frozenset(found)

    @cached_property
    def chat_sampling(self) -> SamplingParameters:
        """How `chat` chooses tokens where a caller doesn't say: as the model's files recommend, else greedily.

        What they ask for beside it and llorch hasn't is said once a model, by a warning. ValueError or TypeError names
        a file and its entry that can't be.
        """
        found = generation_config.recommended(getattr(self, "source", None) or cast(Model, self).path)
        if found.lacking:
            warnings.warn(
                f"{found.place} asks for {', '.join(found.lacking)}, which llorch hasn't: answers are chosen without",
                stacklevel=2,
            )
        return found.parameters

    @cached_property
    def guide(self) -> Guide:
        """Which ids may come where a text follows a JSON schema. ImportError without the package llguidance."""
        return Guide(self.tokenizer, cast(Model, self).config.vocab_size, self.chat_end_ids)

    @property
    def kept(self) -> Kept:
        """The keys and values of the last conversation; `kept.forget()` gives their memory back."""
        made: Kept = self.__dict__.setdefault("_kept", Kept())
        return made

    @cached_property
    def missing_ids(self) -> NDArray[np.intp]:
        """Ids that the tokenizer has no token for, such as a vocabulary's padding: they are never chosen.

        Said once a model, by a warning. None where there is no tokenizer, or none that can be read.
        """
        model = cast(Model, self)
        size = model.config.vocab_size
        try:
            tokenizer = model.tokenizer
        except (ImportError, OSError, ValueError):  # ids alone need none
            return np.empty(0, np.intp)
        missing = tokenizer.missing(size)
        if missing.size:
            warnings.warn(
                f"{tokenizer.name}: the model has {size} ids, {missing.size} have no token, such as "
                f"{missing[0]}: these are never chosen",
                stacklevel=2,
            )
        return missing

    @overload
    def generate(
        self: Model, prompt: str, max_new_tokens: int, *, seed: int | None = None, **options: Unpack[Options]
    ) -> str: ...
    @overload
    def generate(
        self: Model, prompt: Ids, max_new_tokens: int, *, seed: int | None = None, **options: Unpack[Options]
    ) -> list[int]: ...
    def generate(
        self: Model, prompt: Prompt, max_new_tokens: int, *, seed: int | None = None, **options: Unpack[Options]
    ) -> str | list[int]:
        """What follows the prompt: the new text for text, the list of new ids for ids.

        Parameters
        ----------
        prompt : str, or sequence or integer array of ids in [0, vocab_size)
            At least one token. A special token that is spelt out in text, such as <|endoftext|>, is that token.
        max_new_tokens : int, at least 0
            Prompt and new tokens together have at most as many tokens as the model's context.
        stop : str, int, or several of them, optional
            Ends the result before it: a token id where the model chooses it, as the model's end-of-text tokens always
            do; a string, for a prompt of text, where the new text first has it. What ended the result is not part of
            it.
        seed : int in [0, 2**64), optional
            None draws a fresh one where one is needed; `stream` tells which.
        temperature, top_k, top_p, repetition_penalty, presence_penalty, frequency_penalty
            temperature is 0 by default, which takes the likeliest token (the lowest id of equals): see
            `llorch.text.sampling.SamplingParameters`. Tokens are drawn by a pure function of logits, parameters, seed
            and position, which `llorch.reference._sampling` defines. An id that the model's tokenizer has no token for
            is never chosen.

        Raises
        ------
        ValueError
            An empty prompt; one that leaves no room for max_new_tokens; a parameter that is out of range; while
            generating, logits with a NaN, of weights that aren't finite.
        IndexError
            An id that is not in [0, vocab_size).
        TypeError
            An argument of another type; a stop string for a prompt of ids.
        ImportError
            Text without the tokenizers library; FileNotFoundError and ValueError if the model has no tokenizer, or a
            broken one.
        """
        result: str | list[int] = _whole(_stream(self, prompt, max_new_tokens, seed, None, options), prompt)
        return result

    @overload
    def stream(
        self: Model,
        prompt: str,
        max_new_tokens: int,
        *,
        seed: int | None = None,
        progress: Progress | None = None,
        links: bool = False,
        **options: Unpack[Options],
    ) -> Stream[str]: ...
    @overload
    def stream(
        self: Model,
        prompt: Ids,
        max_new_tokens: int,
        *,
        seed: int | None = None,
        progress: Progress | None = None,
        links: bool = False,
        **options: Unpack[Options],
    ) -> Stream[int]: ...
    def stream(
        self: Model,
        prompt: Prompt,
        max_new_tokens: int,
        *,
        seed: int | None = None,
        progress: Progress | None = None,
        links: bool = False,
        **options: Unpack[Options],
    ) -> Stream[Any]:
        """As `generate`, piece by piece: `"".join(pieces)` is its text, `list(pieces)` its ids.

        Bad arguments raise at once, not with the first piece. A piece of text is whole characters, and nothing is given
        that might yet become part of a stop string. progress(done, of) is called as the prompt is read. links keeps the
        hash chain of the logits, for `llorch.receipts.make(model, stream.sequence)`.
        """
        return _stream(self, prompt, max_new_tokens, seed, progress, options, links)

    @overload
    def generate_batch(
        self: Model,
        prompts: Iterable[str],
        max_new_tokens: int,
        *,
        seed: int | Sequence[int | None] | None = None,
        batch_size: int = batches.SEQUENCES,
        **options: Unpack[Options],
    ) -> list[str]: ...
    @overload
    def generate_batch(
        self: Model,
        prompts: Iterable[Ids],
        max_new_tokens: int,
        *,
        seed: int | Sequence[int | None] | None = None,
        batch_size: int = batches.SEQUENCES,
        **options: Unpack[Options],
    ) -> list[list[int]]: ...
    @overload
    def generate_batch(
        self: Model,
        prompts: Iterable[Prompt],
        max_new_tokens: int,
        *,
        seed: int | Sequence[int | None] | None = None,
        batch_size: int = batches.SEQUENCES,
        **options: Unpack[Options],
    ) -> list[Any]: ...
    def generate_batch(
        self: Model,
        prompts: Iterable[Prompt],
        max_new_tokens: int,
        *,
        seed: int | Sequence[int | None] | None = None,
        batch_size: int = batches.SEQUENCES,
        **options: Unpack[Options],
    ) -> list[Any]:
        """For each prompt what `generate` gives for it alone, bit for bit.

        Prompts of any lengths go through the model together, without padding, at most batch_size of them at a time; as
        one ends, the next begins. seed: one for all (equal prompts then get equal texts), a list with one for each, or
        None: a fresh one for each. Errors are `generate`'s and name the prompt; nothing has been computed then.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Iterable):
            raise TypeError(f"prompts must be several prompts, got {type(prompts).__name__}")
        prompts = list(prompts)
        whole(batch_size, "batch_size", 1)
        if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str):
            seeds: list[Any] = list(seed)
            if len(seeds) != len(prompts):
                raise ValueError(f"seed has {counted(len(seeds), 'seed')} for {counted(len(prompts), 'prompt')}")
        else:
            seeds = [seed] * len(prompts)
        names = [f"prompts[{i}]" for i in range(len(prompts))]
        batch = Batch(self, batch_size, batch_size + batches.CHUNK)
        pieces: dict[int, list[Any]] = {
            batch.add(request): [] for request in _requests(prompts, max_new_tokens, names, seeds, options)
        }
        while batch:
            for event in batch.step():
                if event.error is not None:
                    raise event.error
                pieces[event.id] += event.pieces
        return [_whole(found, prompt) for found, prompt in zip(pieces.values(), prompts, strict=True)]

    def chat(
        self: ChatModel,
        messages: Messages,
        max_new_tokens: int | None = None,
        *,
        tools: Tools | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        overflow: str = "refuse",
        keep: bool = True,
        seed: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Reply:
        """A conversation's next answer, by the chat template that comes with the model.

        The prompt's ids are those of transformers' `apply_chat_template`, but that a special token whose text stands in
        messages, tools or documents stays text: only the template's own become special tokens. Other added tokens that
        the template uses, such as those around reasoning, are tokens in the messages of the assistant alone. Where the
        template joins texts of its own with a role to a special token, that is the template's.

        Parameters
        ----------
        messages : list of mappings
            At least one, each with a role ("system", "user", "assistant", "tool" or what the template has) and as a
            rule with content, a str. The template may know more, such as tool_calls.
        max_new_tokens : int, at least 0, optional
            None: as many as the context has room for.
        tools : list of functions and mappings, optional
            Of a function the model is told its name, its parameters by their type hints, and what its docstring in
            Google's style says of them: as transformers' `get_json_schema` has it. A mapping is taken as it is. No
            function is called.
        documents : list of mappings, optional
            As JSON has them: see the model's own description of its template.
        template : str, optional
            The name of one of the model's templates, or a template's text. None: "tool_use" where tools are given and
            there is one, else the default.
        variables : mapping, optional
            More that the template may ask for, such as {"enable_thinking": False}.
        continue_final_message : bool
            The last message is the answer's beginning, and is continued.
        overflow : "refuse" or "drop_oldest"
            What to do with a conversation that the context has no room for, together with max_new_tokens: ValueError
            says how long it is; or the oldest turns are left out, a user's message together with all that follows it,
            until it fits. The system's messages at the beginning stay, and so does the last turn. Without
            max_new_tokens 512 tokens are left free for the answer, at most a quarter of the context. The result says
            how many messages were left out.
        keep : bool
            Keep the keys and values for the next turn, which then reads only what is new. The bits of an answer don't
            depend on it. One conversation is kept, the last; its memory is that of `new_cache`, until
            `kept.forget()`.
        seed, stop
            As `generate` has them. The tokens that end a turn are `chat_end_ids`.
        temperature, top_k, top_p, repetition_penalty, presence_penalty, frequency_penalty
            As `generate` has them, but that one which isn't given is what the model's files recommend:
            `chat_sampling`. temperature=0 takes the likeliest token whatever they say; None is no top_k, top_p or
            penalty.
        progress : function of (done, of), optional
            Called as the prompt is read.

        Returns
        -------
        llorch.text.chat.Reply
            With text, ids, finish_reason, and message to append for the next turn.

        Raises
        ------
        ValueError
            As `generate`; messages that are too long, or that the template refuses; a model without a template; a
            template that is broken, or that takes more than a conversation needs: the file and the line are named;
            a function without a docstring or type hints.
        TypeError
            Messages, tools or documents that aren't what JSON has.
        ImportError
            The package jinja2 is missing, or tokenizers.
        """
        asked = Asked(tools, documents, template, variables, continue_final_message)
        stream = chats.chat_stream(
            self, messages, max_new_tokens, seed, overflow, keep, progress, asked, cast(dict[str, Any], options)
        )
        try:
            for _ in stream:
                pass
        finally:
            stream.close()
        return stream.reply

    def chat_stream(
        self: ChatModel,
        messages: Messages,
        max_new_tokens: int | None = None,
        *,
        tools: Tools | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        overflow: str = "refuse",
        keep: bool = True,
        seed: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> ChatStream:
        """As `chat`, piece by piece: `"".join(pieces)` is its text, `reply` the rest.

        Bad arguments raise at once, not with the first piece. `close` ends an answer before its end.
        """
        asked = Asked(tools, documents, template, variables, continue_final_message)
        return chats.chat_stream(
            self, messages, max_new_tokens, seed, overflow, keep, progress, asked, cast(dict[str, Any], options)
        )

    def chat_prompt(
        self: ChatModel,
        messages: Messages,
        *,
        tools: Tools | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The ids that `chat` continues. Without add_generation_prompt they end with the last message."""
        asked = Asked(tools, documents, template, variables, continue_final_message)
        return chats.chat_prompt(self, messages, asked, add_generation_prompt)

    def score(self: Model, text: Prompt, *, stride: int | None = None, progress: Progress | None = None) -> Score:
        """The log-probability of each token of a text (or of ids) by those before it.

        By the logits l of the position before, m their maximum, the token i has (l_i - m) - ln(Z) in float64, where Z
        is the running float64 sum, in order of id, of exp(l - m), which is correctly rounded to float32, and ln is
        correctly rounded to float64: `llorch.reference.log_probabilities`.

        Parameters
        ----------
        text : str, or sequence or integer array of ids
            At least 2 tokens, and without a stride at most the context's.
        stride : int in [1, context), optional
            For a text of any length. Windows of up to `context` tokens begin at the tokens 0, stride, 2 stride ..., the
            last where one has the text's end. A token is scored in the first window that has it, by the tokens before
            it in that window: a small stride leaves more of these (at least context - stride), and takes more time.
            https://huggingface.co/docs/transformers/perplexity defines it so. Memory is that of one window.
        progress : function of (done, of), optional
            Called as tokens are scored.

        Raises
        ------
        ValueError
            Another number of tokens; a stride that is out of range; logits with a NaN.
        IndexError
            An id that is not in [0, vocab_size).
        TypeError
            An argument of another type.
        """
        return score(self, text, stride=stride, progress=progress)

    def score_continuations(
        self: Model,
        pairs: Iterable[tuple[Ids, Ids]],
        *,
        batch_size: int = batches.SEQUENCES,
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """Of each continuation the log-probabilities of its tokens, by the context and by those before them.

        They are `score`'s, bit for bit. Tokens with which several pairs begin are read once, such as a question before
        its answers, or the examples before all questions. Neither that nor batch_size changes a bit.

        Parameters
        ----------
        pairs : iterable of (context, continuation)
            Both ids, at least one each; but for the last, which isn't read, together at most the model's context.
        batch_size : int, at least 1
            At most so many sequences go through the model together.
        progress : function of (done, of), optional
            Called as pairs are scored.

        Raises
        ------
        ValueError, IndexError, TypeError
            As `score`, naming the pair. Nothing has been computed then.
        """
        pairs = list(pairs)
        results: list[Any] = [None] * len(pairs)
        for done, (place, found) in enumerate(continuations(self, pairs, batch_size), 1):
            results[place] = found
            if progress is not None:
                progress(done, len(pairs))
        return results


class Stream(Iterator[Piece], Generic[Piece]):
    """The pieces of one sequence, each computed when it is asked for: text for a text prompt, else ids.

    prompt_ids : list of int
    seed : int or None
        What the tokens were drawn by; None where nothing is drawn (temperature 0).
    sequence : llorch.text.batch.Sequence
    """

    def __init__(self, model: Model, request: Request, progress: Progress | None) -> None:
        self.sequence = batches.Sequence(model, request)
        self._batch = Batch(model, 1, batches.CHUNK)
        self._batch.admit(self.sequence)
        self._progress, self._read = progress, 0
        self.prompt_ids = list(self.sequence.prompt_ids)
        self.seed = self.sequence.parameters.seed

    def __next__(self) -> Piece:
        while self._batch:
            for event in self._batch.step():
                if event.error is not None:
                    raise event.error
                if self._progress is not None and event.read > self._read:
                    self._progress(event.read, len(self.prompt_ids))
                self._read = event.read
                for piece in event.pieces:  # one, or none
                    return cast(Piece, piece)
        raise StopIteration

    @property
    def ids(self) -> list[int]:
        """The new ids so far, also those whose text is still held back."""
        return self.sequence.new_ids

    @property
    def finish_reason(self) -> str | None:
        """None on the way; "stop" after a stop string or id or an end-of-text token; "length" at max_new_tokens."""
        return self.sequence.reason


def _stream(
    model: Model,
    prompt: Prompt,
    most: int,
    seed: int | None,
    progress: Progress | None,
    options: Options,
    links: bool = False,
) -> Stream[Any]:
    (request,) = _requests([prompt], most, ["prompt"], [seed], options)
    return Stream(model, dataclasses.replace(request, links=links), progress)


def _requests(prompts: list[Any], most: int, names: list[str], seeds: list[Any], options: Options) -> list[Request]:
    sampling: Any = {**options}
    stop = sampling.pop("stop", None)
    parameters = SamplingParameters().having(sampling)
    return [
        Request(prompt, most, dataclasses.replace(parameters, seed=seed), stop, name)
        for prompt, name, seed in zip(prompts, names, seeds, strict=True)
    ]


def _whole(pieces: Iterable[Any], prompt: Prompt) -> Any:
    return "".join(pieces) if isinstance(prompt, str) else list(pieces)
