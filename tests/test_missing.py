""".ci/run's second pass: what lacked a package in the first runs where it is there, and may not be skipped again."""

import os
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


def pytest_run(folder, *arguments):
    paths = [str(Path(__file__).parent), str(Path(llorch.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", folder, "-p", "conftest", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def test_what_lacks_a_package_is_noted_and_not_skipped_again(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    status, shown = pytest_run(tmp_path, "--skipped-to", "lacking", "test_some.py")
    assert status == 0 and "1 passed, 4 skipped" in shown
    lacking = (tmp_path / "lacking").read_text().splitlines()
    assert lacking == [
        "test_some.py::test_lacks_a_module",
        *(f"test_some.py::test_lacks_a_peer[{c}]" for c in ("a b", "c[d]")),
    ]
    status, shown = pytest_run(tmp_path, "--no-missing", "@lacking")
    assert status == 1 and "3 skipped" in shown and shown.count("MISSING test_some.py::") == 3
    assert pytest_run(tmp_path, "--no-missing", "test_some.py::test_of_another_system")[0] == 0
    (tmp_path / "test_some.py").write_text(
        TESTS.replace("no_such_module_anywhere", "numpy").replace("pytest.skip(", "str(")
    )
    status, shown = pytest_run(tmp_path, "--no-missing", "@lacking")
    assert status == 0 and "3 passed" in shown
