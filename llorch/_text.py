"""What comes from a file, as text that can be shown: on a terminal, on a page, in an error."""

LONGEST = 200  # characters of a value shown in an error: a header may hold one of a hundred million


def printable(text: str) -> str:
    r"""A name, a path or any other text from outside, with every character escaped that a terminal would obey or can't
    show: controls, bidirectional overrides, separators of lines, halves of a surrogate pair.

    What stays is what `str.isprintable` accepts; the rest becomes \x1b, \u202e, \n, as `repr` writes it. No other
    character changes, so ordinary names stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def counted(count: int, what: str, form: str = "d") -> str:
    """1 token, 2 tokens."""
    return f"{count:{form}} {what}{'' if count == 1 else 's'}"


def shown(value: object) -> str:
    """`printable` of a text, of anything else's repr; cut after LONGEST characters, for an error of one line."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python writes
        text = f"a {type(value).__name__} too long to show"
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")
