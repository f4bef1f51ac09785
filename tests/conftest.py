import ctypes
import os
import re
from pathlib import Path

# Before NumPy is imported, here and in what tests start: two threads of its BLAS that share a core with another process
# take twenty times as long for a small product.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest

import llorch
from llorch.testing import use_isa

# A failing example must be the same for everybody who runs the tests.
hypothesis.settings.register_profile("llorch", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.load_profile("llorch")

# NumPy's large temporaries, of which the oracle makes millions, are kept and used again: else the C library gives
# each back to the system and takes it anew, page by page. What was written before lies in them, where new pages have
# zeros, so that what reads memory before it writes there shows sooner. Only glibc has the function.
for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    if hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(parameter, 256 << 20)


# avx512_vnni has one kernel of its own, the product of 16-bit integers, and takes the others from avx512.
@pytest.fixture(params=[isa for isa in llorch.available_isas() if isa != "avx512_vnni"])
def isa(request):
    """Each instruction set of this machine in turn."""
    with use_isa(request.param):
        assert llorch.isa() == request.param
        yield request.param


def is_worker(config):
    """Whether this process was started by pytest-xdist, to which it tells all that it finds."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's own
def pytest_cmdline_main(config):
    """The whole suite runs in two processes, if pytest-xdist is there and nothing else was said: most tests leave one
    core free. Those of a file or a folder run in one, as starting others takes longer."""
    if is_worker(config):
        return
    options = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    quiet = options.capture != "no" and not options.usepdb and not options.trace
    if whole and quiet and getattr(options, "numprocesses", 0) is None and llorch.get_num_threads() > 1:
        options.numprocesses, options.dist = 2, "worksteal"


# ---- what is skipped because a package isn't there ---------------------------------------------------------

# As pytest.importorskip says it, and as tests do.
MISSING = re.compile(r"could not import|not installed|No module named|needs the package")


def pytest_addoption(parser):
    parser.addoption("--skipped-to", metavar="FILE", help="write the tests that lack a package to FILE, one a line")
    parser.addoption("--no-missing", action="store_true", help="fail if a test lacks a package")


class Missing:
    """Notes the tests that were skipped for want of a package: .ci/run runs just these once more, where it is there."""

    def __init__(self, config):
        self.config, self.found = config, {}

    def pytest_runtest_logreport(self, report):
        self.note(report)

    def pytest_collectreport(self, report):
        self.note(report)

    def note(self, report):
        if report.skipped and isinstance(report.longrepr, tuple) and MISSING.search(report.longrepr[2]):
            self.found[report.nodeid] = report.longrepr[2]

    def pytest_sessionfinish(self, session):
        if path := self.config.getoption("skipped_to"):
            Path(path).write_text("".join(f"{node}\n" for node in self.found))
        if self.found and self.config.getoption("no_missing"):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.config.getoption("no_missing"):
            for node, reason in self.found.items():
                terminalreporter.write_line(f"MISSING {node}: {reason}")


def pytest_configure(config):
    if not is_worker(config):
        config.pluginmanager.register(Missing(config), "llorch-missing")
