"""Text to token ids and back, by the tokenizers library. `llorch.text.tokenizer_files` reads them."""

import json
import threading
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llorch._text import printable, shown

if TYPE_CHECKING:
    import tokenizers

Result = TypeVar("Result")


class Tokenizer:
    """A model's tokenizer; `llorch.text.tokenizer_files.load` makes it.

    library : the `tokenizers.Tokenizer` that does the work.
    name : the file or files it was made from, for errors.
    begin, end : tuple of int
        Tokens that the model expects before every text and behind it, where its files say so.
    """

    def __init__(
        self,
        library: "tokenizers.Tokenizer",
        name: str = "the tokenizer",
        begin: Iterable[int] = (),
        end: Iterable[int] = (),
    ) -> None:
        self.library, self.name = library, name
        self.begin, self.end = tuple(begin), tuple(end)
        self._missing = lru_cache(1)(self._find_missing)
        self._lock = threading.Lock()  # whether special tokens are recognised is a setting of the library's object

    def __len__(self) -> int:
        """The number of tokens, added ones too."""
        return self.library.get_vocab_size()

    def encode(self, text: str, *, special: bool = False, parse_special: bool = True) -> list[int]:
        """The ids of text. Special tokens that are spelt out in it are recognised.

        special: with the tokens that the model expects before a text and behind it. By default nothing is added.
        parse_special: False takes special tokens that are spelt out in text as text: for what strangers wrote. Added
        tokens that aren't special, such as runs of spaces, are recognised all the same.

        TypeError if it isn't a str; ValueError if it has half a surrogate pair, which no encoding of text has, or if
        the tokenizer is broken in a way that shows only here.
        """
        ids: list[int] = self._encoding(checked(text), parse_special).ids
        return [*self.begin, *ids, *self.end] if special else ids

    def _encoding(self, text: str, parse_special: bool) -> "tokenizers.Encoding":
        with self._lock:
            self.library.encode_special_tokens = not parse_special
            try:
                return self.call("encode text", lambda: self.library.encode(text, add_special_tokens=False))
            finally:
                self.library.encode_special_tokens = False

    def prompt(self, text: str) -> list[int]:
        """The ids of a text that is to be continued or scored: with `begin` before it, if it doesn't begin so."""
        ids = self.encode(text)
        return ids if tuple(ids[: len(self.begin)]) == self.begin else [*self.begin, *ids]

    def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
        """The text of ids, special tokens too: decode(encode(text)) == text for GPT-2's tokenizers. special: False
        leaves these out.

        Bytes that aren't UTF-8 come as U+FFFD. An id that the vocabulary lacks gives no text. ValueError if the
        tokenizer is broken in a way that shows only here.
        """
        several = list(ids)
        for i, id in enumerate(several):
            if isinstance(id, bool) or not hasattr(id, "__index__"):
                raise TypeError(f"ids[{i}] is {shown(repr(id))}, ids must be ints")
        text: str = self.call("decode ids", lambda: self.library.decode(several, skip_special_tokens=not special))
        return text

    def token(self, id: int) -> str:
        """One token as the vocabulary spells it ("\u0120the" for " the"); "" for an id that it lacks."""
        return self.library.id_to_token(id) or ""

    def missing(self, vocab_size: int) -> NDArray[np.intp]:
        """The ids in [0, vocab_size) that have no token, rising: the padding of a vocabulary, for one."""
        return self._missing(vocab_size)

    def _find_missing(self, vocab_size: int) -> NDArray[np.intp]:
        known = np.fromiter(self.library.get_vocab(with_added_tokens=True).values(), np.int64)
        lacks = np.ones(vocab_size, bool)
        lacks[known[known < vocab_size]] = False
        return np.flatnonzero(lacks)

    def decoder(self, after: Iterable[int] = ()) -> "Decoder":
        """A new decoder for ids that come one by one.

        after: ids that stand before them. Where a tokenizer drops the space that it has put before a text, the space of
        a word that goes on with a text stays.
        """
        around = {*self.begin, *self.end}
        goes_on = self._strips and any(id not in around for id in after)
        return Decoder(self, self.encode("a")[-1:] if goes_on else ())

    @cached_property
    def _strips(self) -> bool:
        """Whether the decoder treats the beginning of a text as SentencePiece's does."""
        decoder = json.loads(self.library.to_str())["decoder"] or {}
        steps = decoder.get("decoders", [decoder])
        return any(step.get("type") in ("Strip", "Metaspace") for step in steps)

    def call(self, what: str, work: Callable[[], Result]) -> Result:
        """work() by the library, whose errors name the file."""
        try:
            return work()
        except BaseException as error:
            raise ValueError(f"{self.name}: this tokenizer can't {what}: {reason(error)}") from None


class Decoder:
    """Text as its tokens come, whole characters only. The pieces and the flush together are decode(all ids).

    ValueError names the file of a tokenizer for which that can't be: one that decodes a text's beginning differently
    once more tokens follow.
    """

    def __init__(self, tokenizer: Tokenizer, before: Iterable[int] = ()) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self._given: list[str] = []
        for id in before:  # whole characters, whose text isn't told
            self.push(id)

    def push(self, id: int) -> str:
        """What the next token adds: "" while a character of several tokens isn't complete."""
        self._ids.append(id)
        library = self._tokenizer.library
        piece = self._tokenizer.call("decode ids one by one", lambda: self._stream.step(library, id)) or ""
        self._given.append(piece)
        return piece

    def flush(self) -> str:
        """What was held back, at the end: a character that was never completed, as U+FFFD."""
        whole, given = self._tokenizer.decode(self._ids), "".join(self._given)
        if not whole.startswith(given):
            raise ValueError(
                f"{self._tokenizer.name}: this tokenizer can't decode ids one by one: what it gave first, "
                f"{shown(given)}, is not how the whole begins, {shown(whole)}"
            )
        rest = whole[len(given) :]
        self._given.append(rest)
        return rest


def checked(text: object, name: str = "text") -> str:
    """A str of whole characters. TypeError or ValueError names what was given."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has the lone surrogate {text[error.start]!r} at {error.start}") from None
    return text


# ---- errors ------------------------------------------------------------------------------------------------


def in_folder(*paths: Path) -> str:
    return f"{' and '.join(path.name for path in paths)} in {printable(str(paths[0].parent))}"


def read(make: Callable[[], Any], *paths: Path) -> Any:
    """make(), whose errors name the files."""
    try:
        return make()
    except OSError:
        raise
    except BaseException as error:
        raise ValueError(f"{in_folder(*paths)} can't be read as a tokenizer: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """The library raises a bare Exception, or where its code panics a BaseException; others go on."""
    if isinstance(error, MemoryError) or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
        raise error
    return shown(str(error))
