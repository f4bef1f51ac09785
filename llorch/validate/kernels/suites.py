"""Every suite, and what a run of them found."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import llorch
from llorch.validate.kernels import attention, feed_forward, layer_norm, qkv
from llorch.validate.kernels.common import Check, Part, run

SUITES: dict[str, ModuleType] = {
    "layer_norm": layer_norm,
    "qkv": qkv,
    "attention": attention,
    "feed_forward": feed_forward,
}
COMMAND = 'pip install ".[gpt2,references]" && llorch kernels'


@dataclass(frozen=True)
class SuiteResult:
    """The checks of one suite."""

    title: str  # "LayerNorm"
    input: str
    checks: list[Check]
    seconds: float

    @property
    def counts(self) -> Counter[str]:
        return Counter(check.status for check in self.checks)

    @property
    def holds(self) -> bool:
        """Something ran, and nothing of it failed."""
        return self.counts["fail"] == 0 and self.counts["pass"] > 0

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the suite's inputs and outputs, by the name of the check that computed them."""
        return {check.name: check.data["sha256"] for check in self.checks if "sha256" in check.data}

    @property
    def line(self) -> str:
        """For people: "LayerNorm: 27 passed"."""
        return f"{self.title}: {summary(self.counts)}"


@dataclass(frozen=True)
class KernelReport:
    """The suites of a run with all that a second person needs to repeat them."""

    results: list[SuiteResult]
    started: float  # seconds since the epoch
    seconds: float

    @property
    def counts(self) -> Counter[str]:
        return sum((result.counts for result in self.results), Counter())

    @property
    def holds(self) -> bool:
        return all(result.holds for result in self.results)

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M UTC")

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries that ran, by name."""
        found = {}
        for check in (check for result in self.results for check in result.checks):
            if "version" in check.data:
                version = check.data["version"]
                found[check.name.partition(f" {version}")[0]] = version
        return found


def summary(counts: Counter[str]) -> str:
    words = {"pass": "passed", "fail": "failed", "skip": "skipped", "info": "for information"}
    return ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts[key])


def machine() -> dict[str, Any]:
    """`llorch.config()` and the operating system."""
    return llorch.config() | {"os": platform.platform()}


def run_suites(
    chosen: Collection[str] = (),
    libraries: tuple[str, ...] | None = None,
    progress: Callable[[str, int, int], object] = lambda title, done, of: None,
) -> KernelReport:
    """Runs suites of SUITES, all without `chosen`, beside `libraries` (keys of peers.PEERS, None for all that are
    installed). progress: a function of (what begins, parts done, of how many)."""
    started, clock = time.time(), time.perf_counter()
    suites = [suite for key, suite in SUITES.items() if not chosen or key in chosen]
    parts = [suite.parts(libraries) for suite in suites]
    done, count = 0, sum(map(len, parts))
    results: list[SuiteResult] = []

    def begin(part: Part) -> None:
        nonlocal done
        progress(part.title, done, count)
        done += 1

    for suite, mine in zip(suites, parts, strict=True):
        since = time.perf_counter()
        checks = list(run(mine, begin))
        results.append(SuiteResult(suite.TITLE, suite.INPUT, checks, time.perf_counter() - since))
    progress("", count, count)
    return KernelReport(results, started, time.perf_counter() - clock)
