""".ci/run's second pass: what lacked a package in the first runs where it is there, and may not be skipped again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import llorch

TESTS = """
import pytest

def test_lacks_a_module():
    pytest.importorskip("no_such_module_anywhere")

@pytest.fixture(scope="module")
def peer():
    pytest.skip("transformers is not installed")

@pytest.mark.parametrize("case", ["a b", "c[d]"])
def test_lacks_a_peer(peer, case):
    pass

@pytest.mark.skipif(True, reason="this system has no /proc")
def test_of_another_system():
    pass

def test_that_runs():
    pass
"""


RUNS = """
import json, sys, pytest
for arguments in json.loads(sys.argv[1]):
    print(f"\\nSTATUS {pytest.main(arguments):d}")
"""


def pytest_runs(folder, *runs):
    """Status and output of pytest with each of the lists of arguments, one run after the other in a fresh process."""
    paths = [str(Path(__file__).parent), str(Path(llorch.__file__).parents[1])]
    common = ["-q", "-c", os.devnull, "--rootdir", str(folder), "-p", "conftest"]
    done = subprocess.run(
        [sys.executable, "-c", RUNS, json.dumps([[*common, *arguments] for arguments in runs])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *ended, rest = re.split(r"\nSTATUS (\d+)\n", done.stdout)
    assert not rest and len(ended) == 2 * len(runs)
    return [(int(status), shown) for shown, status in zip(ended[::2], ended[1::2], strict=True)]


def test_what_lacks_a_package_is_noted_and_not_skipped_again(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (status, shown), (again, then), (other, _) = pytest_runs(
        tmp_path,
        ["--skipped-to", "lacking", "test_some.py"],
        ["--no-missing", "@lacking"],
        ["--no-missing", "test_some.py::test_of_another_system"],
    )
    assert status == 0 and "1 passed, 4 skipped" in shown
    lacking = (tmp_path / "lacking").read_text().splitlines()
    assert lacking == [
        "test_some.py::test_lacks_a_module",
        *(f"test_some.py::test_lacks_a_peer[{c}]" for c in ("a b", "c[d]")),
    ]
    assert again == 1 and "3 skipped" in then and then.count("MISSING test_some.py::") == 3
    assert other == 0
    (tmp_path / "test_some.py").write_text(
        TESTS.replace("no_such_module_anywhere", "numpy").replace("pytest.skip(", "str(")
    )
    ((status, shown),) = pytest_runs(tmp_path, ["--no-missing", "@lacking"])
    assert status == 0 and "3 passed" in shown
