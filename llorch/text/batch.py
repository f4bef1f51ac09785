"""The scheduler: any number of sequences through `model.step` together.

A sequence's tokens are a function of its own prompt, parameters and seed: what else is in the batch, and when it came
or was cancelled, can't change them.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from llorch._text import counted
from llorch.text.prefixes import Node, Prefixes, blocks_of
from llorch.text.protocol import Ids, Logits, Model, context_of
from llorch.text.sampling import Likely, SamplingParameters, likely, next_token, whole
from llorch.text.tokenizer import checked

Prompt = str | Ids
Stop = str | int | Iterable[str | int]

CHUNK = 256  # tokens in one step: bounds memory, and the time until an interrupt is seen or others' next tokens come
SEQUENCES = 32


class QueueFull(RuntimeError):
    """As many sequences wait as may."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A prompt and what is asked for.

    prompt : str, or sequence or integer array of ids in [0, vocab_size)
        At least one token.
    max_new_tokens : int, at least 0
        Prompt and new tokens together have at most as many tokens as the model's context.
    parameters : SamplingParameters
        How tokens are chosen. Without a seed, where one is needed, a fresh one is drawn when the request is added.
    stop : str, int, or several of them, optional
        Ends the result before it: see `llorch.CausalLM.generate`.
    name : str
        What errors call the prompt.
    as_text : bool
        The new text is told for a prompt of ids, too.
    logprobs : int, at least 0, optional
        Each event with a token tells how likely it was, and as many of the likeliest: `llorch.text.sampling.Likely`.
    schema : str, optional
        A JSON schema that the new text follows; it needs the package llguidance.
    continues : bool
        The new text goes on with the prompt's own, as it always does for a prompt of text: where a tokenizer puts a
        space before a text, the new one keeps it.
    links : bool
        The sequence keeps the hash chain of its logits: `link`.
    """

    prompt: Prompt
    max_new_tokens: int
    parameters: SamplingParameters = dataclasses.field(default_factory=SamplingParameters)
    stop: Stop | None = None
    name: str = "prompt"
    as_text: bool = False
    logprobs: int | None = None
    schema: str | None = None
    links: bool = False
    continues: bool = False


class Event(NamedTuple):
    """What a step did for one sequence.

    id : int
        As `Batch.add` gave it.
    read : int
        Tokens of the prompt that have been read so far.
    token : int or None
        The new token. None while the prompt is read, and where a token that ends the sequence came.
    text : str or None
        For a prompt of text, or where text was asked for, what can be told of the new text: whole characters, without
        what may yet become part of a stop string. It may be empty, and it may hold the text of earlier tokens. Else
        None.
    reason : str or None
        None while the sequence goes on; "stop" after a stop string or id or an end-of-text token; "length" at
        max_new_tokens; "error". The batch has forgotten the sequence then.
    error : Exception or None
        Why no next token could be chosen: its own logits, its own text. Other sequences go on.
    likely : llorch.text.sampling.Likely or None
        Of the new token, where it was asked for.
    """

    id: int
    read: int
    token: int | None = None
    text: str | None = None
    reason: str | None = None
    error: Exception | None = None
    likely: Likely | None = None

    @property
    def pieces(self) -> list[str] | list[int]:
        """What it adds to the result: a text, or an id for a prompt of ids, or nothing."""
        if self.text is not None:
            return [self.text] if self.text else []
        return [] if self.token is None else [self.token]


# ---- one sequence ---------------------------------------------------------------------------------------


class _Text:
    """New text as its tokens come, without what may yet become a character or a stop string."""

    def __init__(self, model: Model, stops: tuple[str, ...], after: list[int]) -> None:
        self.decoder, self.stops = model.tokenizer.decoder(after), stops
        self.held, self.stopped = "", False

    def push(self, id: int) -> str:
        return self._pass(self.decoder.push(id))

    def flush(self) -> str:
        piece = self._pass(self.decoder.flush())
        rest, self.held = self.held, ""
        return piece if self.stopped else piece + rest

    def _pass(self, text: str) -> str:
        text = self.held + text
        places = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if places:
            self.held, self.stopped = "", True
            return text[: min(places)]
        begun = (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        end = len(text) - max(begun, default=0)
        self.held = text[end:]
        return text[:end]


class Sequence:
    """A request under way.

    prompt_ids : list of int
    parameters : SamplingParameters
        With the seed that the tokens are drawn by, where they are drawn.
    reason : str or None
        As `Event.reason`.
    """

    def __init__(self, model: Model, request: Request) -> None:
        name = request.name
        self.most = whole(request.max_new_tokens, "max_new_tokens", 0)
        strings, self.ends = _stops(model, request.stop)
        self.prompt_ids = encode(model, request.prompt, name)
        context, count = context_of(model), len(self.prompt_ids)
        if count + self.most > context:
            room = context - count
            raise ValueError(
                f"{name} has {counted(count, 'token')}, the context {context}: max_new_tokens can be at most {room}, "
                f"got {self.most}"
                if room >= 0
                else f"{name} has {counted(count, 'token')}, the context only {context}"
            )
        self.continues = request.continues or isinstance(request.prompt, str)
        continued = self.prompt_ids if self.continues else []  # an answer is a text of its own
        self.text = _Text(model, strings, continued) if isinstance(request.prompt, str) or request.as_text else None
        if strings and self.text is None:
            raise TypeError(f"stop has the string {strings[0]!r}, but {name} is ids: stop at ids, or give text")
        self.parameters = request.parameters.seeded()
        self.strings = strings
        self.logprobs = None if request.logprobs is None else whole(request.logprobs, "logprobs", 0)
        self.schema = request.schema
        self.constraint = None if request.schema is None else model.guide.constraint(request.schema)
        self.links: list[bytes] | None = [] if request.links else None
        self.end: int | None = None  # the token that ended it, which isn't part of it
        self.told = ""  # the text so far
        self.missing: Any = model.missing_ids
        self.reason: str | None = None if self.most else "length"
        self.ids = list(self.prompt_ids)
        self.fed = 0  # ids that the cache holds
        self.cache: Any = None  # made when it begins, unless it is given one, with so many ids in it
        self.reused = 0  # tokens of the prompt that were not read anew
        self.reserved = 0  # blocks of memory that are its own
        self.way: set[Node] = set()  # what it shares with the scheduler's tree of prefixes

    @property
    def positions(self) -> int:
        """The most that its cache will hold."""
        return len(self.prompt_ids) + self.most

    @property
    def new_ids(self) -> list[int]:
        """The new tokens so far, also those whose text is still held back."""
        return self.ids[len(self.prompt_ids) :]

    def next_chunk(self, room: int) -> list[int]:
        """What the cache lacks: at most `room` tokens of a prompt, or the last new token."""
        ids = self.ids[self.fed :]
        return ids[:room] if self.fed < len(self.prompt_ids) else ids

    def choose(self, logits: Logits) -> tuple[int | None, str | None]:
        """The next token and the text that it adds; no token if it ends the sequence. Sets `reason` at the end."""
        if self.links is not None:
            self.links.append(link(self.links[-1] if self.links else b"", logits))
        missing, begin = self.missing, len(self.prompt_ids)
        if self.constraint is not None:
            missing = np.union1d(missing, self.constraint.forbidden())
        id = next_token(logits, self.parameters, len(self.ids), self.ids, missing, begin)
        if id in self.ends:
            self.reason, self.end = "stop", id
            return None, self._tell(self.text.flush()) if self.text else None
        if self.constraint is not None:
            self.constraint.push(id)
        self.ids.append(id)
        if len(self.ids) == len(self.prompt_ids) + self.most:
            self.reason = "length"
        if self.text is None:
            return id, None
        text = self.text.push(id)
        if self.reason and not self.text.stopped:
            text += self.text.flush()
        if self.text.stopped:
            self.reason = "stop"
        return id, self._tell(text)

    def _tell(self, text: str) -> str:
        self.told += text
        return text


def link(before: bytes, logits: Logits) -> bytes:
    """SHA-256 of the link before (nothing, for the first) and the logits of a step, float32 in little-endian order."""
    import hashlib  # 4 MB with OpenSSL, and only receipts need it

    made = hashlib.sha256(before)
    made.update(np.ascontiguousarray(logits, "<f4").data)
    return made.digest()


def encode(model: Model, prompt: Prompt, name: str) -> list[int]:
    """The ids of a prompt, checked."""
    ids = model.tokenizer.prompt(checked(prompt, name)) if isinstance(prompt, str) else prompt
    if isinstance(prompt, str) and not ids:
        begin = model.config.bos_token_id
        hint = "" if begin is None else f", such as [{begin}]"
        raise ValueError(f"{name} is empty: a model needs at least one token to begin from{hint}")
    found: list[int] = model._ids(ids, name).tolist()
    return found


def _stops(model: Model, stop: Stop | None) -> tuple[tuple[str, ...], frozenset[int]]:
    """Strings and ids at which to stop; the model's own end-of-text tokens are among these."""
    strings, ids = [], set(model.end_ids)
    several: Any = () if stop is None else stop
    for one in several if isinstance(several, Iterable) and not isinstance(several, str) else [several]:
        if isinstance(one, str):
            if not one:
                raise ValueError("stop has an empty string, which every text has at once")
            strings.append(one)
        else:
            ids.add(whole(one, "stop, if it isn't a string,", 0, model.config.vocab_size))
    return tuple(strings), frozenset(ids)


# ---- all sequences --------------------------------------------------------------------------------------


class Batch:
    """Sequences that go through a model together; they may come and go between steps.

    Parameters
    ----------
    model : a model, such as llorch.CausalLM
    max_sequences : int, at least 1
        At most so many sequences at a time; others wait, first come, first served.
    max_tokens_per_step : int, at least 1
        At most so many tokens in one step: one of each sequence that has begun, the rest of prompts, the first come
        first. So a long prompt is read in pieces between others' tokens. No more sequences than this are active.
    memory : int, optional
        Bytes for keys and values. A sequence has room for its prompt and all its new tokens before it begins; until
        then it waits. What is left keeps prompts and answers that have been read, for prompts that begin alike, the
        least recently used is forgotten first. It changes no bit. None: no bound, and nothing is kept.
    max_waiting : int, optional
        At most so many sequences wait; one more is refused. None: any number.

    >>> import llorch
    >>> from llorch.text.batch import Batch, Request
    >>> batch = Batch(llorch.CausalLM.from_pretrained("shakespeare-1m"))
    >>> first = batch.add(Request("ROMEO:", 4))
    >>> while batch:
    ...     for event in batch.step():
    ...         print(repr(event.text), event.reason)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model,
        max_sequences: int = SEQUENCES,
        max_tokens_per_step: int = CHUNK,
        memory: int | None = None,
        max_waiting: int | None = None,
    ) -> None:
        self.model = model
        self.max_sequences = whole(max_sequences, "max_sequences", 1)
        self.max_tokens_per_step = whole(max_tokens_per_step, "max_tokens_per_step", 1)
        self.memory = None if memory is None else whole(memory, "memory", 1)
        self.max_waiting = None if max_waiting is None else whole(max_waiting, "max_waiting", 0)
        self._most = min(self.max_sequences, self.max_tokens_per_step)
        self._added = 0
        self._waiting: deque[tuple[int, Sequence]] = deque()
        self._active: dict[int, Sequence] = {}
        self._block = 0 if memory is None else model.cache_nbytes(1)
        self._blocks = 0 if self.memory is None else self.memory // self._block  # that there may be in all
        self._reserved = 0
        self._prefixes = Prefixes()

    def __len__(self) -> int:
        """Sequences that haven't ended: active and waiting."""
        return len(self._active) + len(self._waiting)

    @property
    def waiting(self) -> int:
        """Sequences that haven't begun."""
        return len(self._waiting)

    @property
    def memory_reserved(self) -> int:
        """Bytes that the active sequences may come to take; 0 without a bound."""
        return self._reserved * self._block

    @property
    def memory_kept(self) -> int:
        """Bytes of what is kept of prompts and answers for others that begin alike."""
        return self._prefixes.blocks * self._block

    def add(self, request: Request) -> int:
        """Its id in events. Nothing is computed yet; errors are those of `llorch.CausalLM.generate` and of `admit`."""
        return self.admit(Sequence(self.model, request))

    def admit(self, sequence: Sequence) -> int:
        """Adds a sequence that has been checked for this model already.

        ValueError for one that the whole memory has no room for; QueueFull where as many wait as may.
        """
        if self.memory is not None and blocks_of(sequence.positions) > self._blocks:
            raise ValueError(
                f"prompt and max_new_tokens have {counted(sequence.positions, 'token')}, whose keys and values take "
                f"{self.model.cache_nbytes(sequence.positions):,} bytes: more than memory, {self.memory:,}"
            )
        if self.max_waiting is not None and self._would_wait(sequence) > self.max_waiting:
            raise QueueFull(
                f"there is no room now, and the queue has its {counted(self.max_waiting, 'sequence')}: try again later"
            )
        self._added += 1
        self._waiting.append((self._added, sequence))
        return self._added

    def _would_wait(self, sequence: Sequence) -> int:
        """How many would wait after the next step's beginning, this one among them; 0 if it would begin."""
        waiting = [*(waiting for _, waiting in self._waiting), sequence]
        active, reserved = len(self._active), self._reserved
        for begun, one in enumerate(waiting):
            reserved += blocks_of(one.positions)
            if active + begun >= self._most or (self.memory is not None and reserved > self._blocks):
                return len(waiting) - begun
        return 0

    def cancel(self, id: int) -> bool:
        """Forgets a sequence and frees its memory, with no event; False if there is none: it has ended before."""
        if (sequence := self._active.pop(id, None)) is not None:
            self._leave(sequence)
            return True
        kept = deque(entry for entry in self._waiting if entry[0] != id)
        found = len(kept) < len(self._waiting)
        self._waiting = kept
        return found

    def step(self) -> list[Event]:
        """One call of the model: a token of each sequence that has begun, and pieces of unread prompts.

        The events of these sequences, in the order in which they were added. What the model itself raises (an
        interrupt, no memory) leaves the batch as it was, and the step can be tried again.
        """
        events = self._begin()
        decoding = sum(sequence.fed >= len(sequence.prompt_ids) for sequence in self._active.values())
        room, chunks, fed = self.max_tokens_per_step - decoding, [], []
        for id, sequence in self._active.items():
            reading = sequence.fed < len(sequence.prompt_ids)
            if reading and not room:
                continue
            if sequence.cache is None:
                self._open(sequence)
            ids = sequence.next_chunk(room)
            if reading:
                room -= len(ids)
            chunks.append(ids)
            fed.append((id, sequence))
        if not fed:
            return events
        every = self.model.step(chunks, [sequence.cache for _, sequence in fed])
        for (id, sequence), ids, logits in zip(fed, chunks, every, strict=True):
            sequence.fed += len(ids)
            read = min(sequence.fed, len(sequence.prompt_ids))
            if sequence.fed < len(sequence.ids):
                events.append(Event(id, read))
                continue
            if sequence.fed == len(sequence.prompt_ids):
                self._keep(sequence)
            try:
                token, text = sequence.choose(logits)
                told = None
                if token is not None and sequence.logprobs is not None:
                    told = likely(logits, token, sequence.logprobs)
                events.append(Event(id, read, token, text, sequence.reason, likely=told))
            except Exception as error:
                sequence.reason = "error"
                events.append(Event(id, read, reason="error", error=error))
            if sequence.reason:
                del self._active[id]
                self._leave(sequence)
        return events

    def _begin(self) -> list[Event]:
        """Makes waiting sequences active where there is room; the events of those that end without a step."""
        events = []
        while self._waiting and len(self._active) < self._most:
            id, sequence = self._waiting[0]
            if sequence.reason:
                events.append(Event(id, 0, reason=sequence.reason))
            else:
                if self.memory is not None:
                    blocks = blocks_of(sequence.positions)
                    if self._reserved + blocks > self._blocks:
                        break  # nobody who came later goes first: a long one would wait for ever
                    self._prefixes.find(sequence.prompt_ids[:-1])  # what it will use is forgotten last
                    self._prefixes.shrink(self._blocks - self._reserved - blocks)
                    self._reserved += blocks
                    sequence.reserved = blocks
                self._active[id] = sequence
            self._waiting.popleft()
        return events

    def _open(self, sequence: Sequence) -> None:
        """The cache of a sequence whose first tokens are about to be read, with what is known of its prompt in it."""
        if self.memory is None:
            sequence.cache = self.model.new_cache(sequence.positions)
            return
        node, count, way = self._prefixes.find(sequence.prompt_ids[:-1])  # the last one's logits are needed
        if node is None:
            sequence.cache = self.model.new_cache()  # forks have its capacity
            return
        cache = node.cache.fork()
        cache.truncate(count)
        sequence.cache, sequence.fed, sequence.reused, sequence.way = cache, count, count, way

    def _keep(self, sequence: Sequence) -> None:
        """Keeps what has been read for prompts that begin alike, where there is room."""
        if self.memory is not None and sequence.cache is not None:
            ids = sequence.ids[: sequence.fed]
            self._prefixes.keep(ids, sequence.cache, sequence.way, self._blocks - self._reserved)

    def _leave(self, sequence: Sequence) -> None:
        """A sequence's end: its memory is others'."""
        self._reserved -= sequence.reserved
        sequence.reserved = 0
        if sequence.reason != "error":
            self._keep(sequence)
        sequence.cache, sequence.way = None, set()
