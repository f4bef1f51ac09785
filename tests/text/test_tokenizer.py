"""Text to ids and back, from either form of the files; streams without half characters; what broken files say."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import rng
from hypothesis import example, given
from hypothesis import strategies as st
from mixed_text import mixed

import llorch
from llorch.text.tokenizer_files import load
from llorch.validate.kernels import determinism

DATA = Path(__file__).parent.parent / "data" / "gpt2_tokenizer"
EMBEDDED = llorch.GPT2.from_pretrained("shakespeare-1m").path
SMALL = load(EMBEDDED)


@pytest.fixture(scope="session")
def openai(tmp_path_factory):
    """OpenAI's vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))
    return folder


def test_openais_vocabulary(openai):
    tokenizer = load(openai)
    assert len(tokenizer) == 50257
    for text, ids in {
        "Hello.": [15496, 13],
        "Hello, world!": [15496, 11, 995, 0],
        " the the": [262, 262],
        "a<|endoftext|>b": [64, 50256, 65],
        "": [],
        "\n\n": [628],
    }.items():
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.token(262) == "\u0120the" and tokenizer.token(50257) == ""


def test_both_forms_of_the_files_are_one_tokenizer(tmp_path):
    """The small model has tokenizer.json as well as vocab.json and merges.txt."""
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((llorch.GPT2.from_pretrained("shakespeare-1m").path / name).read_bytes())
    from_parts = load(tmp_path)
    for text in ("ROMEO:\nO, she doth teach", "naïve \U0001f600<|endoftext|> ", "  two  spaces", "1234 'tis he's"):
        assert from_parts.encode(text) == SMALL.encode(text)
        assert SMALL.decode(SMALL.encode(text)) == text


def test_is_that_of_transformers(openai):
    transformers = pytest.importorskip("transformers")
    vocabulary = json.loads((openai / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (openai / "merges.txt").read_text().split("\n")[1:] if line]
    theirs = transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges)
    tokenizer = load(openai)
    for text in ("Hello.", "I'm a little late to the party, but", "\u4f60\u597d\n\n\tx  y", "a<|endoftext|>b"):
        assert tokenizer.encode(text) == theirs(text)["input_ids"]


def test_a_prefix_space_is_added_where_the_files_ask_for_it(openai, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((openai / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert load(tmp_path).encode("the") == load(openai).encode(" the") != load(openai).encode("the")


@given(st.text())
@example("\ufffd\ufffd")
@example("a\U0001f600")
def test_text_comes_back(text):
    ids = SMALL.encode(text)
    assert SMALL.decode(ids) == text
    decoder = SMALL.decoder()
    pieces = [decoder.push(id) for id in ids]
    assert "".join(pieces) + decoder.flush() == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.lists(st.integers(0, len(SMALL) - 1), max_size=40))
def test_the_pieces_are_the_whole_for_any_ids(ids):
    """Also for bytes that are no UTF-8."""
    decoder = SMALL.decoder()
    assert "".join(decoder.push(id) for id in ids) + decoder.flush() == SMALL.decode(ids)
    assert decoder.flush() == ""


def test_a_character_of_several_tokens_comes_whole():
    ids = SMALL.encode("x\U0001f600y")
    decoder = SMALL.decoder()
    assert len(ids) == 6
    assert [decoder.push(id) for id in ids] == ["x", "", "", "", "\U0001f600", "y"]
    one_by_one = [SMALL.decode([id]) for id in ids]
    assert "".join(one_by_one) != "x\U0001f600y", "negative control: token by token it is broken"


def test_a_character_that_is_never_completed():
    ids = SMALL.encode("x\U0001f600")[:3]
    decoder = SMALL.decoder()
    assert [decoder.push(id) for id in ids] == ["x", "", ""]
    assert decoder.flush() == SMALL.decode(ids)[1:] == "\ufffd"


def test_random_bytes_stream():
    """Tokens of single bytes, nearly all of them broken."""
    ids = rng(1).integers(1, 257, 3000).tolist()
    decoder = SMALL.decoder()
    assert "".join(decoder.push(id) for id in ids) + decoder.flush() == SMALL.decode(ids)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "has no tokenizer.json and no vocab.json and no merges.txt"),
        ({"vocab.json": "{}"}, FileNotFoundError, "has no tokenizer.json and no merges.txt"),
        ({"merges.txt": "#version: 0.2\n"}, FileNotFoundError, "has no tokenizer.json and no vocab.json"),
        ({"tokenizer.json": "{"}, ValueError, r"tokenizer.json in .* can't be read as a tokenizer"),
        ({"tokenizer.json": "[]"}, ValueError, "can't be read as a tokenizer"),
        ({"vocab.json": "x", "merges.txt": ""}, ValueError, "vocab.json and merges.txt in .* can't be read"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b\n"}, ValueError, "vocab.json and merges.txt in .* can't be"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "", "tokenizer_config.json": "{"},
            ValueError,
            "tokenizer_config.json isn't JSON",
        ),
    ],
)
def test_broken_files(tmp_path, files, error, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        load(tmp_path)


def changed(folder, **entries):
    """The embedded tokenizer with other entries in its tokenizer.json; model= changes some of its model."""
    settings = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    settings["model"] |= entries.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps(settings | entries), encoding="utf-8")
    return load(folder)


def test_a_broken_tokenizer_on_which_the_library_panics(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer.json in .* can't be read as a tokenizer: .*charsmap"):
        changed(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": ""})
    charsmap = "BAAAAP////9hYmM="  # can be read, but not used
    broken = changed(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap})
    with pytest.raises(ValueError, match="this tokenizer can't encode text: index out of bounds"):
        broken.encode("a")
    broken = changed(tmp_path, model={"vocab": {"a": 0}, "merges": [], "unk_token": "none"})
    with pytest.raises(ValueError, match="this tokenizer can't encode text: "):
        broken.encode("b")


STRIP = {"type": "Strip", "content": "l", "start": 5, "stop": 1}  # panics where a token is shorter
BYTES = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))["decoder"]


def changes(pattern, to):
    """A decoder that replaces text after the tokens have been put together: what was decoded before may change."""
    return {
        "type": "Sequence",
        "decoders": [BYTES, {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": pattern}, "content": to}],
    }


@pytest.mark.parametrize(
    ("decoder", "fails"),
    [
        (STRIP, True),
        ({"type": "Sequence", "decoders": [BYTES, STRIP]}, True),
        (changes("O:", "\U0001f600"), True),
        (changes("ROMEO", "x"), False),  # one token: nothing changes behind it
    ],
    ids=["panics", "panics later", "rewrites", "replaces"],
)
def test_a_decoder_that_panics_or_changes_its_mind(tmp_path, decoder, fails):
    """ValueError with the file's name; never a panic, a bare Exception, or a text that isn't the decoded ids."""
    tokenizer = changed(tmp_path, decoder=decoder)
    message = rf"tokenizer.json in {re.escape(str(tmp_path))}: this tokenizer can't decode ids"
    failed = False
    for text in ("ROMEO:\nhello, world \u00e9\u4e2d  a", "loooooooo", "aaaaaaaaaa!", "O: O: ", " "):
        ids = tokenizer.encode(text)
        try:
            wanted = tokenizer.decode(ids)
        except ValueError as error:
            assert re.match(message, str(error))
            failed = True
            continue
        one_by_one = tokenizer.decoder()
        try:
            assert "".join(one_by_one.push(id) for id in ids) + one_by_one.flush() == wanted
        except ValueError as error:
            assert re.match(message, str(error))
            failed = True
    assert failed == fails


@pytest.mark.parametrize("decoder", [STRIP | {"content": "\u010a"}, changes("l t", "")], ids=["panics", "cuts"])
def test_the_command_line_says_so_in_a_line(tmp_path, decoder):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    changed(folder, decoder=decoder)
    command = [sys.executable, "-P", "-m", "llorch", "generate", "ROMEO:", "--model", str(folder), "-n", "20"]
    done = subprocess.run(command, env=determinism.child_environment(), capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("llorch generate: tokenizer.json in")


def test_no_token_is_dropped_added_or_drawn(tmp_path):
    """A file may keep the truncation, padding and dropout of the training it comes from."""
    text = "ROMEO:\nHenceforth I never will be Romeo."
    wanted = SMALL.encode(text)
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip
    for entries in ({"truncation": truncation}, {"padding": padding}, {"model": {"dropout": 0.5}}):
        tokenizer = changed(tmp_path, **entries)
        for _ in range(10):
            assert tokenizer.encode(text) == wanted, entries


def test_text_that_is_none():
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        SMALL.encode(b"x")
    with pytest.raises(ValueError, match=r"text has the lone surrogate '\\udcff' at 1"):
        SMALL.encode("a\udcff")


def test_without_the_library():
    code = """
import sys
sys.modules["tokenizers"] = None
import llorch
model = llorch.GPT2.from_pretrained("shakespeare-1m")
print(model.generate([1], 3))
try:
    model.tokenizer
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=determinism.child_environment(), capture_output=True, text=True
    )
    ids, message = done.stdout.splitlines()
    assert len(json.loads(ids)) == 3
    assert message == 'text needs the package tokenizers: pip install "llorch[models]"'


# ---- byte order marks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_byte_order_mark_is_passed_over(tmp_path, names, newline):
    for name in names:
        text = (EMBEDDED / name).read_text(encoding="utf-8").replace("\n", newline)
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "tokenizer_config.json").write_bytes(b"\xef\xbb\xbf{}")
    tokenizer = load(tmp_path)
    for line in mixed(100):
        assert tokenizer.encode(line) == SMALL.encode(line)


def test_merges_name_the_bad_line(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    for bad in ("ab", "a b c", "a ", " b"):
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\na b\n{bad}\n")
        with pytest.raises(ValueError, match=f"line 3 of merges.txt is '{bad}', it must be two tokens"):
            load(tmp_path)


# ---- what a model expects around a text -------------------------------------------------------------------


def template(*ids):
    """A post-processor that puts these tokens before a text, and [SEP]-like the last behind it where there are two."""
    spelt = [SMALL.token(id) for id in ids]
    tokens = [{"SpecialToken": {"id": token, "type_id": 0}} for token in spelt]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [tokens[0], text, *tokens[1:]]
    special = {t: {"id": t, "ids": [id], "tokens": [t]} for t, id in zip(spelt, ids, strict=True)}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}


@pytest.mark.parametrize(
    ("ids", "settings", "begin", "end"),
    [
        ([300], {}, [], []),  # BERT's [CLS]: no token of a text that goes on
        ([300], {"bos_token": "BOS"}, [300], []),
        ([300, 301], {"bos_token": {"content": "BOS"}, "eos_token": "EOS"}, [300], [301]),
        ([300], {"bos_token": "BOS", "add_bos_token": False}, [], []),
        ([], {"bos_token": "BOS"}, [], []),
        ([], {"bos_token": "BOS", "add_bos_token": True}, [300], []),
        ([], {"bos_token": "none", "add_bos_token": True}, [], []),
    ],
)
def test_what_stands_around_a_text(tmp_path, ids, settings, begin, end):
    names = {"BOS": SMALL.token(300), "EOS": SMALL.token(301)}
    spelt = json.dumps(settings)
    for name, token in names.items():
        spelt = spelt.replace(f'"{name}"', json.dumps(token))
    (tmp_path / "tokenizer_config.json").write_text(spelt, encoding="utf-8")
    tokenizer = changed(tmp_path, **({"post_processor": template(*ids)} if ids else {}))
    bare = tokenizer.encode("ROMEO:")
    assert tokenizer.encode("ROMEO:", special=True) == [*begin, *bare, *end]
    assert tokenizer.prompt("ROMEO:") == [*begin, *bare]


# ---- BERT's vocab.txt -------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127)),
         *(f"##{chr(c)}" for c in range(97, 123)),
         *"你好世界漢字สวดัครมبلعامहनीрПивет한국어éßœ", "hello", "Hello", "world", "##ing", "##s", "the",
         "un", "##able", "naive",
         "naïve", "##ï", "cafe", "café", "123", "##45", "i", "İ", "straße", "don", "##@"]  # fmt: skip


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
@pytest.mark.parametrize(
    "settings",
    [
        None,
        {"tokenizer_class": "BertTokenizer"},
        {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"unk_token": {"content": "[UNK]"}, "mask_token": "[MASK]"},
    ],
)
def test_words_are_cut_as_in_transformers(tmp_path, settings, bom):
    transformers = pytest.importorskip("transformers")
    words = list(dict.fromkeys(WORDS))
    (tmp_path / "vocab.txt").write_bytes(bom + "\n".join(words).encode() + b"\n")
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load(tmp_path)
    options = {k: v for k, v in (settings or {}).items() if isinstance(v, bool)}
    theirs = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, **options)
    assert len(tokenizer) == len(words) == len(theirs)
    assert tokenizer.begin == tokenizer.end == (), "no [CLS], no [SEP]: the text goes on"
    for line in [*mixed(600), "Hello WORLD unables, naïve CAFÉ [MASK]! don't [SEP]你好世界 12345"]:
        ids = tokenizer.encode(line)
        assert ids == theirs(line, add_special_tokens=False)["input_ids"], line
        assert tokenizer.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
        stream = tokenizer.decoder()
        assert "".join(stream.push(id) for id in ids) + stream.flush() == tokenizer.decode(ids)


def test_no_token_is_added_to_a_vocabulary_of_words(tmp_path):
    """transformers makes up a [MASK] where there is none: an id for which the model has no row."""
    (tmp_path / "vocab.txt").write_text("[UNK]\nhello\n")
    tokenizer = load(tmp_path)
    assert len(tokenizer) == 2 and tokenizer.encode("hello [MASK]") == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (b"hello\n", "{}", r"vocab.txt in .* can't be read as a tokenizer: there is no \[UNK\]"),
        (b"[UNK]\n\xff\n", "{}", r"vocab.txt in .* can't be read as a tokenizer: .*utf-8"),
        (
            b"[UNK]\n",
            '{"tokenizer_class": "XLNetTokenizer"}',
            r"tokenizer_config.json: tokenizer_class is XLNetTokenizer",
        ),
        (b"[UNK]\n", "{", r"tokenizer_config.json isn't JSON"),
    ],
)
def test_broken_words(tmp_path, words, settings, message):
    (tmp_path / "vocab.txt").write_bytes(words)
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


# ---- special tokens in what strangers wrote ---------------------------------------------------------------


def marked(folder):
    """The embedded tokenizer with two marks of a chat; the first swallows the white space behind it."""
    tokenizer = changed(folder)
    from tokenizers import AddedToken

    tokenizer.library.add_special_tokens([AddedToken("<|user|>", rstrip=True), AddedToken("<|end|>")])
    tokenizer.library.add_tokens(["<think>"])
    return tokenizer


def test_a_special_token_can_be_text(tmp_path):
    tokenizer = marked(tmp_path)
    user, end, think = (tokenizer.library.token_to_id(token) for token in ("<|user|>", "<|end|>", "<think>"))
    text = "a <|user|>b<think><|end|>"
    assert {user, end, think} <= set(tokenizer.encode(text))
    ids = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(ids) == text and not {user, end} & set(ids) and think in ids
    assert ids[: ids.index(think)] == SMALL.encode("a <|user|>b")
    assert {user, end} <= set(tokenizer.encode(text)), "the next call recognises them again"
    with pytest.raises(TypeError, match="text must be a str, got int"):
        tokenizer.encode(1, parse_special=False)
