"""Text to token ids and back, by the tokenizers library, from the files that lie beside a model."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A model's tokenizer; `load` makes it.

    library : the `tokenizers.Tokenizer` that does the work.
    """

    def __init__(self, library: "tokenizers.Tokenizer") -> None:
        self.library = library

    def __len__(self) -> int:
        """The number of tokens, added ones too."""
        return self.library.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of text, nothing added before or behind. Special tokens that stand in it are recognised.

        TypeError if it isn't a str; ValueError if it has half a surrogate pair, which no encoding of text has, or if
        the tokenizer is broken in a way that shows only here.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text has the lone surrogate {text[error.start]!r} at {error.start}") from None
        try:
            ids: list[int] = self.library.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise ValueError(f"the tokenizer can't encode text: {_reason(error)}") from None
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens too: decode(encode(text)) == text for GPT-2's tokenizers.

        Bytes that aren't UTF-8 come as U+FFFD. An id that the vocabulary lacks gives no text.
        """
        text: str = self.library.decode(list(ids), skip_special_tokens=False)
        return text

    def token(self, id: int) -> str:
        """One token as the vocabulary spells it ("\u0120the" for " the"); "" for an id that it lacks."""
        return self.library.id_to_token(id) or ""

    def decoder(self) -> "Decoder":
        """A new decoder for ids that come one by one."""
        return Decoder(self)


class Decoder:
    """Text as its tokens come, whole characters only. The pieces and the flush together are decode(all ids)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self._given = 0  # characters

    def push(self, id: int) -> str:
        """What the next token adds: "" while a character of several tokens isn't complete."""
        self._ids.append(id)
        piece = self._stream.step(self._tokenizer.library, id) or ""
        self._given += len(piece)
        return piece

    def flush(self) -> str:
        """What was held back, at the end: a character that was never completed, as U+FFFD."""
        rest = self._tokenizer.decode(self._ids)[self._given :]
        self._given += len(rest)
        return rest


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer in a model's folder: tokenizer.json, else vocab.json and merges.txt (byte-level BPE, as GPT-2's).

    FileNotFoundError if there are neither; ValueError with the file's name if they can't be read as what they should
    be; ImportError if the tokenizers library is missing.
    """
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ImportError('text needs the package tokenizers: pip install "llorch[gpt2]"') from None
    folder = Path(folder)
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        library = _read(tokenizers.Tokenizer.from_file, whole)
        library.no_truncation()  # what a training run left in the file would drop or add tokens, or draw them by lot
        library.no_padding()
        if getattr(library.model, "dropout", None):
            library.model.dropout = None
        return Tokenizer(library)
    if missing := [path.name for path in (vocabulary, merges) if not path.is_file()]:
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json and no {' and no '.join(missing)}: text needs the one, or both others"
        )
    library = tokenizers.Tokenizer(_read(tokenizers.models.BPE.from_file, vocabulary, merges))
    spaced = _add_prefix_space(folder / "tokenizer_config.json")
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    library.decoder = tokenizers.decoders.ByteLevel()
    if library.token_to_id(END_OF_TEXT) is not None:
        library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library)


def _read(reader: Any, *paths: Path) -> Any:
    try:
        return reader(*map(str, paths))
    except BaseException as error:
        names, reason = " and ".join(path.name for path in paths), _reason(error)
        raise ValueError(f"{names} in {paths[0].parent} can't be read as a tokenizer: {reason}") from None


def _reason(error: BaseException) -> str:
    """The library raises a bare Exception, or where its code panics a BaseException; others go on."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return str(error)


def _add_prefix_space(path: Path) -> bool:
    """GPT-2 has none; a fine-tune may say otherwise."""
    if not path.is_file():
        return False
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} isn't JSON: {error}") from None
    return isinstance(settings, dict) and settings.get("add_prefix_space") is True
