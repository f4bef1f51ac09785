"""A model's tokenizer from its files.

A folder has tokenizer.json, or vocab.json and merges.txt (byte-level BPE, as GPT-2's), or vocab.txt (WordPiece, as
BERT's); a GGUF file has its tokenizer in its metadata: `llorch.text.tokenizer_gguf`. A byte order mark is passed over.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llorch._text import printable, shown
from llorch.files.folder import read_settings
from llorch.text.tokenizer import Tokenizer, in_folder, read
from llorch.text.tokenizer_gguf import from_metadata, wordpiece

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "ConvBertTokenizer")
BERT_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
               "mask_token": "[MASK]"}  # fmt: skip


def load(model: Any) -> Tokenizer:
    """The tokenizer of a model's folder, or of a `llorch.files.Source`.

    FileNotFoundError if there is none; ValueError with the file's name if the files can't be read as what they should
    be, or are a tokenizer of a kind that llorch doesn't have; ImportError if the tokenizers library is missing.
    """
    try:
        import tokenizers  # noqa: F401
    except ModuleNotFoundError:
        raise ImportError('text needs the package tokenizers: pip install "llorch[models]"') from None
    if getattr(model, "kind", "hf") == "gguf":
        return from_metadata(model.config, model.path)
    config = getattr(model, "config", {})
    folder = Path(getattr(model, "path", model))
    names = "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"
    whole, vocabulary, merges, words = (folder / name for name in names)
    if whole.is_file():
        return _from_json(whole, config)
    missing = [path.name for path in (vocabulary, merges) if not path.is_file()]
    if not missing:
        return _from_bpe(vocabulary, merges)
    if words.is_file():
        return _from_words(words)
    raise FileNotFoundError(
        f"{printable(str(folder))} has no tokenizer.json and no {' and no '.join(missing)}: text needs the one, or "
        "both others, or BERT's vocab.txt"
    )


def _from_json(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    import tokenizers

    library = read(lambda: tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8-sig")), path)
    library.no_truncation()  # what a training run left in the file would drop or add tokens, or draw them by lot
    library.no_padding()
    if getattr(library.model, "dropout", None):
        library.model.dropout = None
    tokenizer = Tokenizer(library, in_folder(path))
    settings = read_settings(path.parent)

    def around() -> tuple[list[int], list[int]]:
        bare = library.encode("a", add_special_tokens=False).ids
        full = library.encode("a", add_special_tokens=True).ids
        begin = next(i for i in range(len(full) + 1) if full[i : i + len(bare)] == bare)
        return full[:begin], full[begin + len(bare) :]

    adds = library.num_special_tokens_to_add(False)
    begin, end = tokenizer.call("encode text", around) if adds else ([], [])
    tokenizer.begin = _expected("bos", begin, settings, config, library)
    tokenizer.end = _expected("eos", end, settings, config, library)
    return tokenizer


def _expected(
    name: str, added: list[int], settings: Mapping[str, Any], config: Mapping[str, Any], library: "tokenizers.Tokenizer"
) -> tuple[int, ...]:
    """The tokens that a model expects on one side of a text: where tokenizer_config.json says so, its bos or eos token;
    else what tokenizer.json's template adds, if it is that token. BERT's [CLS] and [SEP] are none: a text with them
    doesn't go on."""
    said = content(settings.get(f"{name}_token"))
    known = None if said is None else library.token_to_id(said)
    adds = settings.get(f"add_{name}_token")
    if adds is True and known is not None:
        return (known,)
    ends = {known, config.get(f"{name}_token_id")} if isinstance(config.get(f"{name}_token_id"), int) else {known}
    return tuple(added) if adds is not False and len(added) == 1 and added[0] in ends else ()


def _from_bpe(vocabulary: Path, merges: Path) -> Tokenizer:
    import tokenizers

    def model() -> Any:
        lines = merges.read_text(encoding="utf-8-sig").split("\n")
        pairs = []
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r")
            if not line or line.startswith("#version"):
                continue
            left, space, right = line.partition(" ")
            if not (left and right and space) or " " in right:
                raise ValueError(f"line {number} of merges.txt is '{shown(line)}', it must be two tokens")
            pairs.append((left, right))
        return tokenizers.models.BPE(json.loads(vocabulary.read_text(encoding="utf-8-sig")), pairs)

    library = tokenizers.Tokenizer(read(model, vocabulary, merges))
    settings = read_settings(vocabulary.parent)
    spaced = settings.get("add_prefix_space") is True  # GPT-2 has none; a fine-tune may say otherwise
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    library.decoder = tokenizers.decoders.ByteLevel()
    if library.token_to_id(END_OF_TEXT) is not None:
        library.add_special_tokens([END_OF_TEXT])
    begin = _expected("bos", [], settings, {}, library)
    return Tokenizer(library, in_folder(vocabulary, merges), begin)


def _from_words(path: Path) -> Tokenizer:
    """BERT's, as transformers makes it, but that no token is added to the vocabulary: a model has no row for it."""

    settings = read_settings(path.parent)
    kind = settings.get("tokenizer_class")
    if kind is not None and str(kind).removesuffix("Fast") not in BERT_CLASSES:
        raise ValueError(
            f"{printable(str(path.parent / 'tokenizer_config.json'))}: tokenizer_class is {shown(kind)}, llorch reads "
            f"vocab.txt as {', '.join(BERT_CLASSES)}"
        )
    special = {name: content(settings.get(name)) or usual for name, usual in BERT_TOKENS.items()}

    def made() -> Any:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        if not lines[-1]:
            del lines[-1]
        words = {line.rstrip("\r"): i for i, line in enumerate(lines)}
        if special["unk_token"] not in words:
            raise ValueError(f"there is no {shown(special['unk_token'])}, the token of unknown words")
        return wordpiece(
            words,
            *(special[name] for name in ("unk_token", "cls_token", "sep_token")),
            lowercase=settings.get("do_lower_case") is not False,
            chinese=settings.get("tokenize_chinese_chars") is not False,
            accents=settings.get("strip_accents"),
        )

    library = read(made, path)
    library.add_special_tokens([token for token in special.values() if library.token_to_id(token) is not None])
    return Tokenizer(library, in_folder(path))


def content(token: Any) -> str | None:
    """A token as tokenizer_config.json has it: a text, or an entry with its content."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None
