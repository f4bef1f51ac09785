"""Text from a model: generate, stream, generate_batch, score. `llorch.GPT2` has methods of the same names.

All of them go through `_tokens`, which feeds any number of sequences to `GPT2.step` together. A sequence's tokens are
a function of its own prompt, parameters and seed, so what else is in the batch can't change them.
"""

import dataclasses
import decimal
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch import _core
from llorch.models.engine import GPT2, Cache
from llorch.text.sampling import FloatArray, SamplingParameters, next_token, whole

Progress = Callable[[int, int], object]  # done, of how many
Ids = Sequence[int] | NDArray[Any]
Stop = str | int | Iterable[str | int]

CHUNK = 256  # tokens of prompts in one step: bounds memory, and the time until an interrupt is seen
SCORED = 64  # positions whose logits are looked at together
BATCH = 32


class Sampling(TypedDict, total=False):
    """See `llorch.text.sampling.SamplingParameters`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None


# ---- one sequence ---------------------------------------------------------------------------------------


class _Text:
    """New text as its tokens come, without what may yet become a character or a stop string."""

    def __init__(self, model: GPT2, stops: tuple[str, ...]) -> None:
        self.decoder, self.stops = model.tokenizer.decoder(), stops
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


class _Sequence:
    """A prompt and what follows it."""

    def __init__(
        self,
        model: GPT2,
        prompt: str | Ids,
        most: int,
        parameters: SamplingParameters,
        stops: tuple[tuple[str, ...], frozenset[int]],
        name: str,
    ) -> None:
        strings, self.ends = stops
        self.prompt = _encode(model, prompt, name)
        context = model.config.n_positions
        if len(self.prompt) + most > context:
            room = context - len(self.prompt)
            raise ValueError(
                f"{name} has {len(self.prompt)} tokens, the context {context}: max_new_tokens can be at most {room}, "
                f"got {most}"
                if room >= 0
                else f"{name} has {len(self.prompt)} tokens, the context only {context}"
            )
        self.text = _Text(model, strings) if isinstance(prompt, str) else None
        if strings and self.text is None:
            raise TypeError(f"stop has the string {strings[0]!r}, but {name} is ids: stop at ids, or give text")
        self.parameters = parameters
        self.most = most
        self.ids = list(self.prompt)
        self.fed = 0  # ids that the cache holds
        self.cache: Cache | None = None
        self.reason = "" if most else "length"

    def new_ids(self) -> list[int]:
        return self.ids[len(self.prompt) :]

    def choose(self, logits: FloatArray) -> str | int | None:
        """The piece that the next token adds: text, or its id; None if it ends the sequence and adds nothing."""
        id = next_token(logits, self.parameters, len(self.ids), self.ids)
        if id in self.ends:
            self.reason = "stop"
            return self.text.flush() if self.text else None
        self.ids.append(id)
        if len(self.ids) == len(self.prompt) + self.most:
            self.reason = "length"
        if self.text is None:
            return id
        piece = self.text.push(id)
        if self.reason and not self.text.stopped:
            piece += self.text.flush()
        if self.text.stopped:
            self.reason = "stop"
        return piece


def _encode(model: GPT2, prompt: str | Ids, name: str) -> list[int]:
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if isinstance(prompt, str) and not ids:
        begin = model.config.bos_token_id
        hint = "" if begin is None else f", such as [{begin}]"
        raise ValueError(f"{name} is empty: a model needs at least one token to begin from{hint}")
    checked: list[int] = model._ids(ids, name).tolist()
    return checked


def _stops(model: GPT2, stop: Stop | None) -> tuple[tuple[str, ...], frozenset[int]]:
    """Strings and ids at which to stop; eos_token_id is one of these."""
    strings, ids = [], set()
    several: Any = () if stop is None else stop
    for one in several if isinstance(several, Iterable) and not isinstance(several, str) else [several]:
        if isinstance(one, str):
            if not one:
                raise ValueError("stop has an empty string, which every text has at once")
            strings.append(one)
        else:
            ids.add(whole(one, "stop, if it isn't a string,", 0, model.config.vocab_size))
    if model.config.eos_token_id is not None:
        ids.add(model.config.eos_token_id)
    return tuple(strings), frozenset(ids)


# ---- all sequences --------------------------------------------------------------------------------------


def _tokens(
    model: GPT2, sequences: Iterable[_Sequence], batch_size: int, progress: Progress | None = None
) -> Iterator[tuple[_Sequence, str | int | None]]:
    """Each sequence's pieces, as they come. At most batch_size sequences at a time, the next when one ends.

    A step takes one token of every sequence that has begun, and up to CHUNK tokens of the prompts that have not.
    """
    waiting = deque(sequence for sequence in sequences if not sequence.reason)
    active: list[_Sequence] = []
    while waiting or active:
        while waiting and len(active) < batch_size:
            active.append(waiting.popleft())
            active[-1].cache = model.new_cache(len(active[-1].prompt) + active[-1].most)
        room, chunks, fed, caches = CHUNK, [], [], []
        for sequence in active:
            ids = sequence.ids[sequence.fed :]
            if sequence.fed < len(sequence.prompt):
                ids = ids[:room]
                room -= len(ids)
            if ids and sequence.cache is not None:
                chunks.append(ids)
                fed.append(sequence)
                caches.append(sequence.cache)
        for sequence, ids, logits in zip(fed, chunks, model.step(chunks, caches), strict=True):
            sequence.fed += len(ids)
            if progress is not None and sequence.fed <= len(sequence.prompt):
                progress(sequence.fed, len(sequence.prompt))
            if sequence.fed == len(sequence.ids):
                yield sequence, sequence.choose(logits)
                if sequence.reason:
                    sequence.cache = None
                    active.remove(sequence)


class Stream(Iterator[Any]):
    """The pieces of one sequence, each computed when it is asked for: text for a text prompt, else ids.

    prompt_ids : list of int
    seed : int or None
        What the tokens were drawn by; None where nothing is drawn (temperature 0).
    """

    def __init__(self, model: GPT2, sequence: _Sequence, progress: Progress | None) -> None:
        self.prompt_ids = list(sequence.prompt)
        self.seed = sequence.parameters.seed
        self._sequence = sequence
        self._pieces = (piece for _, piece in _tokens(model, [sequence], 1, progress) if piece not in ("", None))

    def __next__(self) -> Any:
        return next(self._pieces)

    @property
    def ids(self) -> list[int]:
        """The new ids so far, also those whose text is still held back."""
        return self._sequence.new_ids()

    @property
    def finish_reason(self) -> str | None:
        """None on the way; "stop" after a stop string or id or the end-of-text token; "length" at max_new_tokens."""
        return self._sequence.reason or None


def stream(
    model: GPT2,
    prompt: str | Ids,
    max_new_tokens: int,
    *,
    stop: Stop | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    **sampling: Unpack[Sampling],
) -> Stream:
    """As `generate`, piece by piece: `"".join(pieces)` is its text, `list(pieces)` its ids.

    Bad arguments raise at once, not with the first piece. A piece of text is whole characters, and nothing is given
    that might yet become part of a stop string. progress(done, of) is called as the prompt is read.
    """
    (sequence,) = _sequences(model, [prompt], max_new_tokens, ["prompt"], stop, [seed], sampling)
    return Stream(model, sequence, progress)


@overload
def generate(
    model: GPT2,
    prompt: str,
    max_new_tokens: int,
    *,
    stop: Stop | None = None,
    seed: int | None = None,
    **sampling: Unpack[Sampling],
) -> str: ...
@overload
def generate(
    model: GPT2,
    prompt: Ids,
    max_new_tokens: int,
    *,
    stop: Stop | None = None,
    seed: int | None = None,
    **sampling: Unpack[Sampling],
) -> list[int]: ...
def generate(
    model: GPT2,
    prompt: str | Ids,
    max_new_tokens: int,
    *,
    stop: Stop | None = None,
    seed: int | None = None,
    **sampling: Unpack[Sampling],
) -> str | list[int]:
    """What follows the prompt: the new text for text, the list of new ids for ids.

    Parameters
    ----------
    model : GPT2
    prompt : str, or sequence or integer array of ids in [0, vocab_size)
        At least one token. A special token that is spelt out in text, such as <|endoftext|>, is that token.
    max_new_tokens : int, at least 0
        Prompt and new tokens together have at most config.n_positions tokens.
    stop : str, int, or several of them, optional
        Ends the result before it: a token id where the model chooses it, as config.eos_token_id always does; a string,
        for a prompt of text, where the new text first has it. What ended the result is not part of it.
    seed : int in [0, 2**64), optional
        None draws a fresh one where one is needed; `stream` tells which.
    **sampling
        temperature, 0 by default, which takes the likeliest token (the lowest id of equals); top_k; top_p;
        repetition_penalty: see `llorch.text.sampling.SamplingParameters`. Tokens are drawn by a pure function of
        logits, parameters, seed and position, which `llorch.reference._sampling` defines.

    Raises
    ------
    ValueError
        An empty prompt; one that leaves no room for max_new_tokens; a parameter that is out of range; while generating,
        logits with a NaN, of weights that aren't finite.
    IndexError
        An id that is not in [0, vocab_size).
    TypeError
        An argument of another type; a stop string for a prompt of ids.
    ImportError
        Text without the tokenizers library; FileNotFoundError and ValueError if the folder has no tokenizer, or a
        broken one.
    """
    return _whole(stream(model, prompt, max_new_tokens, stop=stop, seed=seed, **sampling), prompt)


def _whole(pieces: Iterable[Any], prompt: str | Ids) -> str | list[int]:
    return "".join(pieces) if isinstance(prompt, str) else list(pieces)


def generate_batch(
    model: GPT2,
    prompts: Iterable[str | Ids],
    max_new_tokens: int,
    *,
    stop: Stop | None = None,
    seed: int | Sequence[int | None] | None = None,
    batch_size: int = BATCH,
    **sampling: Unpack[Sampling],
) -> list[Any]:
    """For each prompt what `generate` gives for it alone, bit for bit.

    Prompts of any lengths go through the model together, without padding, at most batch_size of them at a time; as one
    ends, the next begins. seed: one for all (equal prompts then get equal texts), a list with one for each, or None: a
    fresh one for each. Errors are `generate`'s and name the prompt; nothing has been computed then.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise TypeError(f"prompts must be several prompts, got {type(prompts).__name__}")
    prompts = list(prompts)
    whole(batch_size, "batch_size", 1)
    if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str):
        seeds: list[Any] = list(seed)
        if len(seeds) != len(prompts):
            raise ValueError(f"seed has {len(seeds)} seeds, there are {len(prompts)} prompts")
    else:
        seeds = [seed] * len(prompts)
    names = [f"prompts[{i}]" for i in range(len(prompts))]
    sequences = _sequences(model, prompts, max_new_tokens, names, stop, seeds, sampling)
    pieces: dict[int, list[Any]] = {id(sequence): [] for sequence in sequences}
    for sequence, piece in _tokens(model, sequences, batch_size):
        if piece is not None:
            pieces[id(sequence)].append(piece)
    return [_whole(pieces[id(sequence)], prompt) for sequence, prompt in zip(sequences, prompts, strict=True)]


def _sequences(
    model: GPT2,
    prompts: list[Any],
    most: int,
    names: list[str],
    stop: Stop | None,
    seeds: list[Any],
    sampling: Sampling,
) -> list[_Sequence]:
    most = whole(most, "max_new_tokens", 0)
    parameters, stops = SamplingParameters(**sampling), _stops(model, stop)
    return [
        _Sequence(model, prompt, most, dataclasses.replace(parameters, seed=seed).seeded(), stops, name)
        for prompt, name, seed in zip(prompts, names, seeds, strict=True)
    ]


# ---- score ----------------------------------------------------------------------------------------------

EXACT = decimal.Context(40, decimal.ROUND_HALF_EVEN, decimal.MIN_EMIN, decimal.MAX_EMAX, traps=[])


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """How likely a model finds a text.

    ids : list of int
        Its n tokens.
    log_probabilities : float64 array (n - 1,)
        Natural logarithms: of each token from the second on, by those before it. The first has nothing before it.
    """

    ids: list[int]
    log_probabilities: NDArray[np.float64]

    @cached_property
    def log_likelihood(self) -> float:
        """Their exact sum, rounded once to float64."""
        return _core._in_fpenv(math.fsum, self.log_probabilities.tolist())

    @cached_property
    def perplexity(self) -> float:
        """exp(-log_likelihood / (n - 1)): the quotient in float64, and the float64 nearest to its exponential."""
        return _core._in_fpenv(_perplexity, self.log_likelihood, len(self.log_probabilities))


def _perplexity(log_likelihood: float, count: int) -> float:
    return float(EXACT.exp(decimal.Decimal(-log_likelihood / count)))


def score(model: GPT2, text: str | Ids, *, progress: Progress | None = None) -> Score:
    """The log-probability of each token of a text (or of ids) by those before it.

    By the logits l of the position before, m their maximum, the token i has (l_i - m) - ln(Z) in float64, where Z is
    the running float64 sum, in order of id, of exp(l - m), which is correctly rounded to float32, and ln is correctly
    rounded to float64: `llorch.reference.log_probabilities`. progress(done, of) is called as positions are done.

    ValueError if there are fewer than 2 tokens, or more than config.n_positions; IndexError for an id that is not in
    [0, vocab_size); TypeError if text is something else.
    """
    ids = _encode(model, text, "text")
    context = model.config.n_positions
    if not 2 <= len(ids) <= context:
        raise ValueError(f"text has {len(ids)} token{'s' * (len(ids) > 1)}, it must have at least 2 and at most "
                         f"{context}, the context")  # fmt: skip
    cache = model.new_cache(len(ids))
    parts = []
    for first in range(0, len(ids) - 1, SCORED):
        last = min(first + SCORED, len(ids) - 1)
        logits = model.forward(ids[first:last], cache)
        parts.append(_core._in_fpenv(log_probabilities, logits, ids[first + 1 : last + 1]))
        if progress is not None:
            progress(last, len(ids) - 1)
    return Score(ids, np.concatenate(parts))


def log_probabilities(logits: FloatArray, ids: Ids) -> NDArray[np.float64]:
    """Of the token ids[t] by logits[t]: logits (T, V) in float32, ids (T,); float64 (T,).

    ValueError if logits has a NaN or a row whose largest value is infinite.
    """
    rows = np.arange(len(logits))
    m = logits[rows, llorch.argmax(logits)]
    if not np.isfinite(m).all():
        raise ValueError(f"logits has a row whose largest value is {m[~np.isfinite(m)][0]}: it must be finite")
    with np.errstate(over="ignore", under="ignore"):
        z = logits - m[:, None]
    e = llorch.exp(z, out=z)
    Z = np.cumsum(e, axis=1, dtype=np.float64)[:, -1]  # a running sum by definition, unlike np.sum
    ln = np.array([float(EXACT.ln(decimal.Decimal(z))) for z in Z.tolist()], np.float64)
    result: NDArray[np.float64] = (logits[rows, ids].astype(np.float64) - m.astype(np.float64)) - ln
    return result
