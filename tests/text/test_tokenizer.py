"""Text to ids and back, from either form of the files; streams without half characters; what broken files say."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import rng
from hypothesis import example, given
from hypothesis import strategies as st

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
    assert message == 'text needs the package tokenizers: pip install "llorch[gpt2]"'
