"""examples/: .ci/run runs each of them, where the libraries are that they show."""

import ast
import sys
from pathlib import Path

import pytest

import llorch

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.rglob("*.py"))


def imported(path):
    """Names of the packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.fixture(scope="module")
def packages():
    ours = [path for path in Path(llorch.__file__).parent.rglob("*.py") if "reference" not in path.parts]
    return sys.stdlib_module_names | {name for path in [*EXAMPLES, *ours] for name in imported(path)}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_an_example_hides_no_package(path, packages):
    # Python looks in a script's folder first: of examples/torch.py, `import torch` in any example would get that.
    assert {"torch", "json"} <= packages and path.stem not in packages
    assert f"python {path.relative_to(FOLDER.parent)}" in ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
