"""Functions as tools: what a template is told of them is what transformers makes of them."""

import enum
import json
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from chat_templates import random_model

from llorch.text.tools import schema

TEMPLATE = "{{ tools[0].function.parameters.properties.place|tojson }}{{ tools[-1].function.name }}"
TALK = [{"role": "user", "content": "Who goes there?"}]


class Unit(enum.Enum):
    CELSIUS = "C"
    KELVIN = 1


class Empty(enum.Enum):
    pass


def plain(place: str, days: int, share: float = 0.5, cold: bool = False) -> str:
    """The weather.

    Args:
        place: The town.
        days: How many.
        share: Of the sky.
        cold: If it is.
    """


def long(place: str, other: "str | None" = None) -> list[str]:
    """The weather of a place: as it was, as it is,
    and as it will be.

      - indented

    Args:
        place (str): The town, a name that
            may be long,

            with: a colon.
        other (str, optional): Another.

    Returns:
        Lines: one a day,
        or none.

    Raises:
        KeyError: for no town.
    """


def nothing():
    """Does nothing."""


def no_arguments_but_a_result() -> dict[str, float]:
    """The time.
    Returns:
        The time."""


def containers(a: list, b: tuple, c: dict, d: list[int], e: dict[str, list[str]], f: tuple[int, str], g: Any,
               h: None = None):  # fmt: skip
    """Bags.
    Args:
    a: A
    b: B
    c: C
    d: D
    e: E
    f: F
    g: G
    h: H
    """


def unions(a: int | str, b: Optional[float], c: Union[int, str, None], d: list[int] | str, e: list | tuple,  # noqa: UP007, UP045
           f: Literal["x", 1, None] | None = None, g: Any | None = None):  # fmt: skip
    """Many.

    Args:
        a: A
        b: B
        c: C
        d: D
        e: E
        f: F
        g: G
    """


def choices(drink: str, size: int, unit: Unit, how: Literal["hot", "cold"], *, note: Annotated[str, "x"] = "é"):
    """Tee trinken \U0001f375.

    Args:
      drink: What to drink (choices: ["tea ", "coffee"])
      size: How much (CHOICES: [1, 2])
      unit: Of what
        is warm
      how:
        The way.
      note: Any (choices: are good)!
    Example: of what isn't a parameter
    """


def unknown_result(a: int) -> object:
    """What.

    Args:
        a: A
    Returns:
        Anything.
    """


class Thing:
    def method(self, a: int) -> None:
        """A method.

        Args:
            a: A
        """

    @classmethod
    def of_class(cls, a: int):
        """Of a class.

        Args:
            a: A
        """


FUNCTIONS = [plain, long, nothing, no_arguments_but_a_result, containers, unions, choices, unknown_result,
             Thing.method, Thing().method, Thing.of_class]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_is_what_transformers_makes(function):
    theirs = pytest.importorskip("transformers.utils").get_json_schema
    assert json.dumps(schema(function, "it"), indent=1) == json.dumps(theirs(function), indent=1)  # in the same order


def test_the_functions_differ():
    """Negative control: each word of a signature or a docstring shows."""
    assert len({json.dumps(schema(function, "it")) for function in FUNCTIONS[:-2]}) == len(FUNCTIONS) - 2
    told = json.dumps(schema(long, "it"))
    for word in ("with: a colon", "as it will be", "- indented", "or none", '"nullable": true'):
        assert word in told
    assert "KeyError" not in told and "Example" not in json.dumps(schema(choices, "it"))


def documented(function, text="Does.\n\nArgs:\n    a: A\n"):
    function.__doc__ = text
    return function


def hinted(hint):
    def f(a):
        pass

    f.__annotations__["a"] = hint
    return documented(f)


def untyped(a):
    pass


def undocumented(a: int):
    pass


def several(*a: int):
    pass


def named(**a: int):
    pass


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, r"tools\[1\] is the function <lambda>: it needs a docstring"),
        (undocumented, r"tools\[1\] is the function undocumented: it needs a docstring"),
        (documented(untyped), "its parameter a needs a type hint, such as a: str"),
        (documented(lambda a=1, b=2: a, "B.\nArgs:\n  a: A"), "parameter a needs a type hint"),
        (documented(several), r"\*a: int has no names that a model could give arguments by"),
        (documented(named), r"\*\*a: int has no names"),
        (documented(hinted(int), "Does.\n\nArgs:\n    b: B\n"), "needs a line 'a: what it is' below Args:"),
        (hinted(bytes), "its parameter a: its type hint bytes isn't str, int, .*: give the tool as a mapping"),
        (hinted(Thing), "its type hint .*Thing isn't"),
        (hinted(list[bytes]), "its type hint bytes isn't"),
        (hinted(tuple[int]), r"its type hint tuple\[int\] isn't"),
        (hinted(tuple[int, ...]), r"its type hint tuple\[int, \.\.\.\] isn't"),
        (hinted(Literal[b"x"]), "must have values that JSON has"),
        (hinted(Empty), "Empty must have values that JSON has"),
        (hinted("Nowhere"), "its type hints can't be read: name 'Nowhere' is not defined"),
        (documented(hinted(str), "D.\nArgs:\n a: A (choices: one, two)"), "choices must be a list .*, got one, two"),
        (documented(hinted(str), 'D.\nArgs:\n a: A (choices: "a")'), 'choices must be a list .*, got "a"'),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_named(function, message, model):
    with pytest.raises(ValueError, match=message):
        model.chat_prompt(TALK, tools=[plain, function])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("tools"), TEMPLATE)


def test_a_conversation_takes_them(model):
    tools = [plain, {"type": "function", "function": {"name": "other"}}, Thing().method]
    written = [schema(plain, "it"), tools[1], schema(Thing().method, "it")]
    ids = model.chat_prompt(TALK, tools=tools)
    assert ids == model.chat_prompt(TALK, tools=written) != model.chat_prompt(TALK, tools=written[:2])
    assert model.tokenizer.decode(ids) == '{"type": "string", "description": "The town."}method'
    reply = model.chat(TALK, 5, tools=tools)
    assert reply.prompt_ids == ids and reply.ids == model.chat(TALK, 5, tools=written).ids
    with pytest.raises(TypeError, match=r"tools\[0\] must be what JSON has, such as a str or a list, got type"):
        model.chat_prompt(TALK, tools=[Thing])
    with pytest.raises(TypeError, match=r"documents\[0\] must be what JSON has.* got function"):
        model.chat_prompt(TALK, documents=[plain])
