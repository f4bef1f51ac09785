"""What is shown of a text that comes from outside."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llorch._text import LONGEST, printable, shown


@pytest.mark.parametrize(
    "text, wanted",
    (
        ("", ""),
        ("h.0.attn.weight", "h.0.attn.weight"),
        ("grüße 你好 \U0001f600", "grüße 你好 \U0001f600"),
        (r"C:\path\n", r"C:\path\n"),
        ("[/b]norm <b>", "[/b]norm <b>"),
        ("'\"", "'\""),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b31m", r"\x9b31m"),  # the same control in one byte
        ("two\r\nlines\t", r"two\r\nlines\t"),
        ("a\u202eb\u2066c\u200b", r"a\u202eb\u2066c\u200b"),
        ("a\u2028b\u2029\x85", r"a\u2028b\u2029\x85"),
        ("\ud800", r"\ud800"),
        ("\U000e0001\U0010ffff", r"\U000e0001\U0010ffff"),
    ),
)
def test_printable(text, wanted):
    assert printable(text) == wanted


def test_every_character():
    for code in range(sys.maxunicode + 1):
        assert printable(chr(code)).isprintable()


@given(st.text(st.characters()))
def test_any_text(text):
    found = printable(text)
    assert found.isprintable() and printable(found) == found
    found.encode()
    if text.isprintable():
        assert found == text


def test_shown():
    assert shown("a\x1b") == r"a\x1b"
    assert shown(["a\x1b", 1]) == r"['a\x1b', 1]"
    assert shown(repr("a\u202e")) == r"'a\u202e'"
    assert shown("x" * LONGEST) == "x" * LONGEST
    assert shown("x" * 10**7) == "x" * LONGEST + "..."
    assert shown(10**5000) == "a int too long to show"
    deep = []
    for _ in range(10**5):
        deep = [deep]
    assert shown(deep) == "a list too long to show"
