"""The tokenizer in a GGUF file's metadata.

`tokenizer.ggml.model` = "gpt2" is byte-level BPE. The file has tokens, merges and kinds of tokens; how text is cut into
words before the merges it tells by a name, `tokenizer.ggml.pre`, which llama.cpp gives to the tokenizers of published
models. PRE has what these models' own tokenizers do, in transformers and in their tokenizer.json files. A name that
isn't in it is refused: merges on words that were cut otherwise give ids that the model has never seen.

"llama" is SentencePiece's BPE. The file has tokens, their scores and kinds, and no merges: two neighbours become one
where that is a token, the one of the highest score first. A character that is no token is its bytes, <0x00> to <0xFF>.
SPACE is a space inside a token, and one comes before a text unless `tokenizer.ggml.add_space_prefix` is false. Files
don't tell whether that is so for a text that begins with a space, and for text behind a special token; most of the
models' own tokenizers add none there, and those of the architectures in SPACED do.

"bert" is WordPiece. The file spells a token that goes on with a word without its ##, and one that begins a word with a
SPACE before it; tokens of control, and in old files all in brackets, stand as they are. Files don't tell whether text
is put into lower case: llama.cpp always does it, and so do the tokenizers that LOWERCASED names. Under another name it
isn't done where the vocabulary has capital letters.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llorch._text import printable, shown
from llorch.files.gguf import Strings
from llorch.text.tokenizer import Tokenizer, read

if TYPE_CHECKING:
    import tokenizers

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # token_type
SPACE = "\u2581"
LONGEST_TOKEN = 1 << 12  # characters of a token of text: the time to take one apart grows with their square
SPACED = ("phi3",)
LOWERCASED = ("bert-bge", "bert-bge-large", "jina-v1-en", "jina-v2-en", "nomic-bert")

# The words of GPT-2; None stands for it, as the library has it built in.
GPT2 = None
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SHORT}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Pre(NamedTuple):
    """How text is cut into words.

    words : the regular expression of a word, None for GPT-2's.
    digits : every digit is a word, before anything else is cut.
    nfc : text is normalised to Unicode's composed form first.
    ignore_merges : a word that is a token is that token, whatever the merges would make of it.
    begin : the bos token comes before every text, unless add_bos_token says otherwise.
    """

    words: str | None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    begin: bool = False


_DIGITS, _LLAMA3, _QWEN2 = Pre(GPT2, digits=True), Pre(LLAMA3, ignore_merges=True, begin=True), Pre(QWEN2, nfc=True)
PRE = {
    "default": Pre(GPT2),
    "gpt-2": Pre(GPT2),
    "phi-2": Pre(GPT2),
    "mpt": Pre(GPT2, nfc=True),
    "olmo": Pre(GPT2, nfc=True),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "command-r": Pre(GPT2, digits=True, nfc=True),
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "dbrx": Pre(LLAMA3),
    "smaug-bpe": Pre(LLAMA3),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "qwen35": Pre(QWEN35, nfc=True),
    "tekken": Pre(TEKKEN, ignore_merges=True, begin=True),
    "gpt-4o": Pre(GPT4O),
    "llama4": Pre(GPT4O),
}


def from_metadata(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer that a file's metadata describes.

    ValueError names the file and the entry: one that is missing or malformed, a kind of tokenizer or a name of a
    pre-tokenizer that llorch doesn't have.
    """
    if metadata.get(f"{KEY}model", "none") in ("none", "no_vocab"):  # as llama.cpp's converter says that there is none
        said = f"{KEY}model is {shown(metadata[f'{KEY}model'])}" if f"{KEY}model" in metadata else f"no {KEY}model"
        raise FileNotFoundError(f"{printable(str(path))} has no tokenizer: {said}")
    try:
        kind = metadata[f"{KEY}model"]
        if kind == "llama":
            tokens, kinds = _tokens(metadata)
            scores, spaced = _scores(metadata, len(tokens)), metadata.get(f"{KEY}add_space_prefix", True)
        elif kind == "gpt2":
            pre = _pre(metadata)
            tokens, kinds = _tokens(metadata)
            merges = _merges(metadata)
        elif kind == "bert":
            tokens, kinds = _tokens(metadata)
            return _wordpiece(metadata, path, tokens, kinds)
        else:
            raise ValueError(
                f"{KEY}model is '{shown(kind)}', llorch has 'gpt2', byte-level BPE, 'llama', SentencePiece's BPE, and "
                "'bert', WordPiece"
            )
    except ValueError as error:
        raise ValueError(f"{printable(str(path))}: {error}") from None
    if kind == "llama":
        every = metadata.get("general.architecture") in SPACED
        return _sentencepiece(metadata, path, tokens, kinds, scores, bool(spaced), every)
    return _byte_level(metadata, path, tokens, kinds, merges, pre)


def _byte_level(
    metadata: Mapping[str, Any],
    path: Path,
    tokens: list[str],
    kinds: Sequence[int],
    merges: list[tuple[str, str]],
    pre: Pre,
) -> Tokenizer:
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    if UNUSED in kinds:  # how converters fill up a vocabulary; but a merge may go by way of one
        made = {left + right for left, right in merges}
        kinds = [
            NORMAL if kind == UNUSED and token in made else kind for kind, token in zip(kinds, tokens, strict=True)
        ]
    vocabulary = _used(tokens, kinds)

    def model() -> Any:
        return tokenizers.models.BPE(vocabulary, merges, ignore_merges=pre.ignore_merges)

    library = tokenizers.Tokenizer(read(model, path))
    if pre.nfc:
        library.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.words is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(pre.words), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.words is None))
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    library.decoder = decoders.ByteLevel()
    return _finished(library, metadata, path, tokens, kinds, pre.begin)


def _sentencepiece(
    metadata: Mapping[str, Any],
    path: Path,
    tokens: list[str],
    kinds: Sequence[int],
    scores: list[float],
    spaced: bool,
    every: bool,
) -> Tokenizer:
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    # Runs of spaces are tokens of the user's for SentencePiece, which converters spell with real spaces. Here they come
    # of merges, as their low ids and high scores have it.
    runs = [
        i for i, kind in enumerate(kinds) if kind == USER_DEFINED and tokens[i] and not tokens[i].strip(" " + SPACE)
    ]
    taken = set(tokens)
    respelt = {i: new for i in runs if (new := SPACE * len(tokens[i])) == tokens[i] or new not in taken}
    tokens = [respelt.get(i, token) for i, token in enumerate(tokens)]
    kinds = [NORMAL if i in respelt else kind for i, kind in enumerate(kinds)]
    vocabulary = _used(tokens, kinds)
    unknown = metadata.get(f"{KEY}unknown_token_id")
    if not isinstance(unknown, int) and UNKNOWN in kinds:
        unknown = kinds.index(UNKNOWN)
    named = isinstance(unknown, int) and 0 <= unknown < len(tokens) and tokens[unknown] in vocabulary
    unk = tokens[unknown] if named else None  # type: ignore[index]

    def model() -> Any:
        merges = _merges_of_scores(tokens, kinds, scores)
        return tokenizers.models.BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=True)

    library = tokenizers.Tokenizer(read(model, path))
    if spaced and not every:
        library.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    else:
        before: list[Any] = [normalizers.Prepend(SPACE)] if spaced else []
        library.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if spaced else steps)
    return _finished(library, metadata, path, tokens, kinds, True)


def _merges_of_scores(tokens: list[str], kinds: Sequence[int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that make each token of text of two others: the highest score first, then the lowest id, then the
    longest left part."""
    normal = {token: i for i, token in enumerate(tokens) if kinds[i] == NORMAL and token}
    lengths = {len(token) for token in normal}
    if max(lengths, default=0) > LONGEST_TOKEN:
        token = max(normal, key=len)
        raise ValueError(
            f"{KEY}tokens[{normal[token]}] has {len(token)} characters, a token of text has at most {LONGEST_TOKEN}"
        )
    cuts = {n: [at for at in range(n - 1, 0, -1) if at in lengths and n - at in lengths] for n in lengths}
    merges = []
    for token in sorted(normal, key=lambda token: (-scores[normal[token]], normal[token])):
        of_token = cuts[len(token)]
        merges += [(token[:at], token[at:]) for at in of_token if token[:at] in normal and token[at:] in normal]
    return merges


def _wordpiece(metadata: Mapping[str, Any], path: Path, tokens: list[str], kinds: Sequence[int]) -> Tokenizer:
    """ValueError for a vocabulary that lacks what WordPiece needs."""
    import tokenizers

    words = [token if kind in (CONTROL, UNKNOWN) else _word(token) for token, kind in zip(tokens, kinds, strict=True)]
    vocabulary = _used(words, kinds)
    if len(vocabulary) < sum(kind != UNUSED for kind in kinds):
        raise ValueError(f"{KEY}tokens spells two tokens so that they are the same word")
    special = {}
    for name, usual in (("unknown", "[UNK]"), ("seperator", "[SEP]"), ("cls", "[CLS]")):  # spelt so in GGUF
        id = metadata.get(f"{KEY}{name}_token_id")
        if id is None and name == "cls":
            id = metadata.get(f"{KEY}bos_token_id")
        if id is not None and not (isinstance(id, int) and 0 <= id < len(words)):
            raise ValueError(f"{KEY}{name}_token_id is {shown(id)}, ids must be in [0, {len(words)})")
        special[usual] = usual if id is None else words[id]
        if special[usual] not in vocabulary:
            raise ValueError(f"there is no {shown(special[usual])}, which WordPiece needs, in {KEY}tokens")
    lower = metadata.get(f"{KEY}pre") in LOWERCASED or not any(
        kind == NORMAL and word[:1] != "[" and re.search("[A-Z]", word) for word, kind in zip(words, kinds, strict=True)
    )
    library = wordpiece(vocabulary, special["[UNK]"], special["[CLS]"], special["[SEP]"], lowercase=lower)
    added = [words[id] for id, kind in enumerate(kinds) if kind in (CONTROL, UNKNOWN) and words[id]]
    library.add_special_tokens([tokenizers.AddedToken(word, normalized=False, special=True) for word in added])
    return Tokenizer(library, printable(str(path)))


def _word(token: str) -> str:
    """A token as BERT's vocabulary spells it."""
    if len(token) > 1 and token.startswith(SPACE):
        return token[1:]
    return token if len(token) > 2 and token[0] == "[" and token[-1] == "]" else f"##{token}"


def wordpiece(
    vocabulary: Mapping[str, int],
    unknown: str,
    begin: str,
    end: str,
    *,
    lowercase: bool,
    chinese: bool = True,
    accents: bool | None = None,
) -> "tokenizers.Tokenizer":
    """WordPiece as BERT has it, [CLS] text [SEP] where special tokens are asked for, and of a pair text [SEP] more.

    begin, end : [CLS] and [SEP]; a vocabulary that lacks one of them adds none. accents : whether they are stripped,
    None for where text is put into lower case.
    """
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers, processors

    library = tokenizers.Tokenizer(tokenizers.models.WordPiece(dict(vocabulary), unk_token=unknown))
    library.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lowercase
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##")
    if begin in vocabulary and end in vocabulary:
        library.post_processor = processors.BertProcessing((end, vocabulary[end]), (begin, vocabulary[begin]))
    return library


def _used(tokens: list[str], kinds: Sequence[int]) -> dict[str, int]:
    return {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}


def _finished(
    library: "tokenizers.Tokenizer",
    metadata: Mapping[str, Any],
    path: Path,
    tokens: list[str],
    kinds: Sequence[int],
    begins: bool,
) -> Tokenizer:
    """With the added tokens, and those around a text. begins : bos comes before a text where the file says nothing."""
    import tokenizers

    for wanted, special in ((CONTROL, True), (USER_DEFINED, False)):
        ids = [id for id, kind in enumerate(kinds) if kind == wanted and tokens[id]]
        added = [tokenizers.AddedToken(tokens[id], normalized=False, special=special) for id in ids]
        (library.add_special_tokens if special else library.add_tokens)(added)

    def around(name: str, usual: bool) -> list[int]:
        id, adds = metadata.get(f"{KEY}{name}_token_id"), metadata.get(f"{KEY}add_{name}_token")
        return [id] if id is not None and (usual if adds is None else bool(adds)) else []

    return Tokenizer(library, printable(str(path)), around("bos", begins), around("eos", False))


# ---- checks -----------------------------------------------------------------------------------------------


def _pre(metadata: Mapping[str, Any]) -> Pre:
    name = metadata.get(f"{KEY}pre")
    if name is None and metadata.get("general.architecture") == "gpt2":
        name = "gpt-2"
    if name is None:
        raise ValueError(f"there is no {KEY}pre, which tells how text is cut into words: convert the model anew")
    if not isinstance(name, str) or name not in PRE:
        raise ValueError(f"{KEY}pre is '{shown(name)}', llorch has {', '.join(PRE)}")
    return PRE[name]


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], Sequence[int]]:
    """The tokens and their kinds."""
    tokens = _strings(metadata, "tokens")
    kinds = metadata.get(f"{KEY}token_type")
    if kinds is None:
        kinds = [NORMAL] * len(tokens)
        for end in ("bos", "eos", "eot"):
            id = metadata.get(f"{KEY}{end}_token_id")
            if isinstance(id, int) and 0 <= id < len(tokens):
                kinds[id] = CONTROL
    elif isinstance(kinds, str | Mapping) or not hasattr(kinds, "__len__"):
        raise ValueError(f"{KEY}token_type must be a list of numbers, it is something else")
    elif len(kinds) != len(tokens):
        raise ValueError(f"{KEY}token_type has {len(kinds)} entries, {KEY}tokens {len(tokens)}")
    elif not isinstance(kinds, list):
        kinds = list(kinds)
    if len(set(tokens)) < len(tokens):
        seen: dict[str, int] = {}
        for id, token in enumerate(tokens):
            if token in seen:
                raise ValueError(f"{KEY}tokens has '{shown(token)}' twice, as {seen[token]} and {id}")
            seen[token] = id
    for end in ("bos", "eos"):
        id = metadata.get(f"{KEY}{end}_token_id")
        if id is not None and not (isinstance(id, int) and 0 <= id < len(tokens)):
            raise ValueError(f"{KEY}{end}_token_id is {shown(id)}, ids must be in [0, {len(tokens)})")
    return tokens, kinds


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for merge in _strings(metadata, "merges"):
        left, _, right = merge.partition(" ")
        if not left and right:  # the first token begins with a space
            left, _, right = right.partition(" ")
            left = " " + left
        if not right:
            raise ValueError(f"{KEY}merges has '{shown(merge)}', it must be two tokens with a space between")
        pairs.append((left, right))
    return pairs


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    found = metadata.get(f"{KEY}scores")
    try:
        scores = [float(score) for score in found]  # type: ignore[union-attr]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{KEY}scores must be a list of numbers, it is {'missing' if found is None else 'something else'}"
        ) from None
    if len(scores) != count:
        raise ValueError(f"{KEY}scores has {len(scores)} entries, {KEY}tokens {count}")
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"{KEY}scores has a NaN, at {next(i for i, s in enumerate(scores) if math.isnan(s))}")
    return scores


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    found = metadata.get(KEY + name)
    if isinstance(found, Strings):
        return list(found)
    if not isinstance(found, list) or set(map(type, found)) - {str}:
        raise ValueError(
            f"{KEY}{name} must be a list of texts, it is {'missing' if found is None else 'something else'}"
        )
    return found
