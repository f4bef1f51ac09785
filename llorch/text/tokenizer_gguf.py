"""The tokenizer in a GGUF file's metadata: byte-level BPE, `tokenizer.ggml.model` = "gpt2".

The file has tokens, merges and kinds of tokens; how text is cut into words before the merges it tells by a name,
`tokenizer.ggml.pre`, which llama.cpp gives to the tokenizers of published models. PRE has what these models' own
tokenizers do, in transformers and in their tokenizer.json files. A name that isn't in it is refused: merges on words
that were cut otherwise give ids that the model has never seen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llorch._text import printable, shown
from llorch.text.tokenizer import Tokenizer, read

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # token_type

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
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    if f"{KEY}model" not in metadata:
        raise FileNotFoundError(f"{printable(str(path))} has no {KEY}model: it has no tokenizer")
    try:
        tokens, kinds, merges, pre = _checked(metadata)
    except ValueError as error:
        raise ValueError(f"{printable(str(path))}: {error}") from None
    if UNUSED in kinds:  # how converters fill up a vocabulary; but a merge may go by way of one
        made = {left + right for left, right in merges}
        kinds = [
            NORMAL if kind == UNUSED and token in made else kind for kind, token in zip(kinds, tokens, strict=True)
        ]
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    if UNUSED in kinds:
        vocabulary = {token: id for token, id in vocabulary.items() if kinds[id] != UNUSED}

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
    for wanted, special in ((CONTROL, True), (USER_DEFINED, False)):
        ids = [id for id, kind in enumerate(kinds) if kind == wanted and tokens[id]]
        added = [tokenizers.AddedToken(tokens[id], normalized=False, special=special) for id in ids]
        (library.add_special_tokens if special else library.add_tokens)(added)

    def around(name: str, usual: bool) -> list[int]:
        id, adds = metadata.get(f"{KEY}{name}_token_id"), metadata.get(f"{KEY}add_{name}_token")
        return [id] if id is not None and (usual if adds is None else bool(adds)) else []

    return Tokenizer(library, printable(str(path)), around("bos", pre.begin), around("eos", False))


def _checked(metadata: Mapping[str, Any]) -> tuple[list[str], Sequence[int], list[tuple[str, str]], Pre]:
    kind = metadata.get(f"{KEY}model")
    if kind != "gpt2":
        raise ValueError(f"{KEY}model is '{shown(kind)}', llorch has 'gpt2', byte-level BPE")
    name = metadata.get(f"{KEY}pre")
    if name is None and metadata.get("general.architecture") == "gpt2":
        name = "gpt-2"
    if name is None:
        raise ValueError(f"there is no {KEY}pre, which tells how text is cut into words: convert the model anew")
    if not isinstance(name, str) or name not in PRE:
        raise ValueError(f"{KEY}pre is '{shown(name)}', llorch has {', '.join(PRE)}")
    tokens = _strings(metadata, "tokens")
    kinds = metadata.get(f"{KEY}token_type")
    if kinds is None:
        kinds = [NORMAL] * len(tokens)
        for end in ("bos", "eos", "eot"):
            id = metadata.get(f"{KEY}{end}_token_id")
            if isinstance(id, int) and 0 <= id < len(tokens):
                kinds[id] = CONTROL
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
    merges = [merge.partition(" ") for merge in _strings(metadata, "merges")]
    pairs = [(left, right) for left, _, right in merges]
    for i, (left, right) in enumerate(pairs):
        if not left and right:  # the first token begins with a space
            left, _, right = right.partition(" ")
            pairs[i] = (" " + left, right)
        if not right:
            raise ValueError(
                f"{KEY}merges has '{shown(''.join(merges[i]))}', it must be two tokens with a space between"
            )
    return tokens, kinds, pairs, PRE[name]


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    found = metadata.get(KEY + name)
    if not isinstance(found, list) or set(map(type, found)) - {str}:
        raise ValueError(
            f"{KEY}{name} must be a list of texts, it is {'missing' if found is None else 'something else'}"
        )
    return found
