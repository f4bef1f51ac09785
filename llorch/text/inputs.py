"""What an encoder takes of texts or pairs of texts: token ids between the model's special tokens, cut to a length, and
the types that tell a pair's texts apart."""

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple, TypeVar

from llorch._progress import progress
from llorch.files import Source
from llorch.files.folder import read_settings
from llorch.text import tokenizer_files
from llorch.text.sampling import whole
from llorch.text.tokenizer import Tokenizer, checked

# Texts that the tokenizer takes together, where they are there already: its threads, which come beside the kernels'
# own, are not worth waking for a few (measured: texts of 35 tokens take 75 us each by eights, and 36 so). And their
# characters at most, so that memory stays bounded.
AHEAD, AHEAD_CHARACTERS = 64, 1 << 18

Text = str | tuple[str, str]
Given = TypeVar("Given", str, tuple[str, str])
Made = TypeVar("Made")


class Tokens(NamedTuple):
    """Of each text its ids, and of each id its type; types is None where the model has none or one."""

    ids: list[list[int]]
    types: list[list[int]] | None

    def told_apart(self) -> list[list[int] | None] | None:
        """The types as the engine takes them: None for a text whose tokens are all of type 0, which needs no array."""
        return None if self.types is None else [each if any(each) else None for each in self.types]

    def part(self, begin: int, end: int) -> "Tokens":
        """Those of the texts [begin, end)."""
        return Tokens(self.ids[begin:end], self.types and self.types[begin:end])


class Inputs:
    """A tokenizer, and how texts are cut.

    tokenizer : its library's settings for truncation are this object's from now on.
    length : tokens of a text at most, special ones too. types : how many types of tokens the model has. side : where a
    long text loses its tokens, "right" or "left". lower : text is put into lower case first. pairs : whether texts
    come in pairs, which have more special tokens.

    ValueError names the tokenizer's file if it adds no special tokens, though the model is one that was trained with
    them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        length: int,
        *,
        types: int = 0,
        side: str = "right",
        lower: bool = False,
        pairs: bool = False,
    ) -> None:
        self.tokenizer, self.types, self.side, self.pairs = tokenizer, types, side, pairs
        library = tokenizer.library
        if not library.num_special_tokens_to_add(False):
            raise ValueError(
                f"{tokenizer.name}: this tokenizer adds no special tokens to a text, an encoder needs them"
            )
        if lower:
            from tokenizers import normalizers

            before = [] if library.normalizer is None else [library.normalizer]
            library.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
        self._lock = threading.Lock()
        self.length = length

    @property
    def length(self) -> int:
        """Tokens of a text at most."""
        return self._length

    @length.setter
    def length(self, length: int) -> None:
        # of less than its special tokens, the library makes a text that isn't cut at all
        least = self.tokenizer.library.num_special_tokens_to_add(self.pairs) + 1
        if length < least:
            raise ValueError(f"the length is {length}, it must be at least {least}: special tokens and one of the text")
        with self._lock:
            self.tokenizer.library.enable_truncation(length, direction=self.side)
        self._length = length

    def __call__(self, texts: Sequence[Text]) -> Tokens:
        """The tokens of texts, or of pairs of texts, of which the longer loses its tokens first."""
        library = self.tokenizer.library
        several = list(texts)
        found = self.tokenizer.call("encode text", lambda: library.encode_batch_fast(several))
        ids = [each.ids for each in found]
        return Tokens(ids, [each.type_ids for each in found] if self.types > 1 else None)

    def prefix(self, text: str) -> int:
        """How many tokens of a text that begins so are this beginning: special tokens before it, not behind it."""
        (ids,) = self([text]).ids
        return len(ids) - (ids[-1] in self._special)

    @property
    def _special(self) -> set[int]:
        added = self.tokenizer.library.get_added_tokens_decoder()
        return {id for id, token in added.items() if token.special}


def pair_of(value: object, name: str) -> tuple[str, str]:
    """Two texts of whole characters. TypeError or ValueError names what was given."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        what = type(value).__name__ + (f" of {len(value)}" if isinstance(value, list | tuple) else "")
        raise TypeError(f"{name} must be a pair of texts, got {what}")
    return checked(value[0], f"{name}[0]"), checked(value[1], f"{name}[1]")


def inputs_of(
    source: Source, context: int, types: int, *, length: int | None = None, lower: bool = False, pairs: bool = False
) -> Inputs:
    """What a model's encoder takes, by its tokenizer's files. The errors of `llorch.text.tokenizer_files.load`.

    context, types : positions that the model has, and types of tokens. length : of texts, where a file says it; else as
    tokenizer_config.json has it. More than the context it never is.
    """
    tokenizer = tokenizer_files.load(source)
    settings = read_settings(source.path) if source.kind == "hf" else {}
    said = settings.get("model_max_length") if length is None else length
    most = min(said, context) if isinstance(said, int) and said > 0 else context
    side = "left" if settings.get("truncation_side") == "left" else "right"
    return Inputs(tokenizer, most, types=types, side=side, lower=lower, pairs=pairs)


def in_batches(
    items: Iterable[Given],
    size: int,
    check: Callable[[Any, str], Given],
    tokens: Callable[[list[Given]], Tokens],
    work: Callable[[Tokens], Made],
    what: str,
    name: str,
    shown: bool,
) -> Iterator[Made]:
    """work() of so many items' tokens at a time, in their order.

    Of a list or a tuple, some batches' tokens are made together; of other iterables no item is asked for before it is
    needed.

    check : of an item and its name. what : is being done, for the progress bar. name : of the argument.
    """
    whole(size, "batch_size", 1)
    if isinstance(items, bytes):  # whose items would be ints
        raise TypeError(f"{name} must be texts, got bytes")
    total = length_of(items)
    try:
        rest = iter(items)
    except TypeError:
        raise TypeError(f"{name} must be texts, got {type(items).__name__}") from None
    size = min(size, sys.maxsize)

    def checked_from(first: int, several: Iterable[Any]) -> list[Given]:
        return [check(each, f"{name}[{first + i}]") for i, each in enumerate(several)]

    def next_from(first: int) -> list[Given]:
        """Checked items: one batch, or several that are good and not too long."""
        if isinstance(items, list | tuple):
            with contextlib.suppress(TypeError, ValueError):  # its own batch's, once it is that one's turn
                several = checked_from(first, items[first : first + max(AHEAD // size, 1) * size])
                if sum(map(characters, several)) <= AHEAD_CHARACTERS:
                    return several
            return checked_from(first, items[first : first + size])
        return checked_from(first, itertools.islice(rest, size))

    def batches() -> Iterator[Made]:
        done = 0
        with progress(what) as show:
            while several := next_from(done):
                made = tokens(several)
                for begin in range(0, len(several), size):
                    part = made.part(begin, begin + size)
                    yield work(part)
                    done += len(part.ids)
                    if shown:
                        show(done, total)

    return batches()


def characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


def length_of(items: Iterable[Any]) -> int | None:
    """How many there are, where they know it."""
    return len(items) if isinstance(items, Sized) else None
