"""Everything that was measured, for machines."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llorch.validate.kernels.suites import COMMAND, KernelReport, machine
from llorch.validate.ladder.compare import Comparison
from llorch.validate.ladder.diagnose import Diagnosis
from llorch.validate.ladder.rows import Row
from llorch.validate.ladder.run import Ladder, TensorResult
from llorch.validate.ladder.selftest import Injection
from llorch.validate.weights.compare import Row as WeightRow
from llorch.validate.weights.compare import WeightComparison

STATUSES = ("pass", "fail", "skip", "info")


def plain(value: Any) -> Any:
    """The same as JSON values: tuples as lists, infinities and NaN as strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def text(content: dict[str, Any]) -> str:
    return json.dumps(plain(content), indent=1, allow_nan=False) + "\n"


def of_kernels(report: KernelReport) -> dict[str, Any]:
    """Everything, machine readable."""

    def counted(counts: Counter[str]) -> dict[str, int]:
        return {key: counts[key] for key in STATUSES}

    return {
        "holds": report.holds,
        "date": report.date,
        "seconds": round(report.seconds, 2),
        "summary": counted(report.counts),
        "machine": machine(),
        "libraries": report.versions,
        "command": COMMAND,
        "suites": [
            {
                "title": result.title,
                "input": result.input,
                "holds": result.holds,
                "seconds": round(result.seconds, 2),
                "summary": counted(result.counts),
                "hashes": result.hashes,
                "checks": [asdict(check) for check in result.checks],
            }
            for result in report.results
        ],
    }


def of_row(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": row.tensor.name,
        "rung": row.tensor.rung.number,
        "layer": row.tensor.layer,
        "status": row.status,
    }
    if row.status != "absent":
        found |= {
            "theirs": row.source,
            "note": row.note,
            "against": row.against or "ours",
            "tolerance": row.allowed,
            "max_abs": row.absolute,
            "ulp": row.ulp,
            "relative_l2": row.relative,
            "worst_index": row.worst,
            "their_value": row.theirs,
            "our_value": row.ours,
            "beyond_tolerance": row.wrong,
            "values": row.size,
        }
    return found


def of_diagnosis(found: Diagnosis) -> dict[str, Any]:
    return {
        "fault": found.key,
        "says": found.says,
        "value": found.value,
        "layers": found.layers,
        "where": found.where,
        "relative_l2": found.distance,
        "relative_l2_without": found.healthy,
        "also": found.also_keys,
        "leaves": found.left,
        "leaves_of": found.left_of,
        "besides": None if found.then is None else of_diagnosis(found.then),
    }


def of_comparison(result: Comparison) -> dict[str, Any]:
    found = result.diagnosis
    return {
        "holds": result.holds,
        "theirs": result.theirs,
        "ours": result.ours,
        "first_divergence": of_row(result.first) if result.first else None,
        "diagnosis": None if found is None else of_diagnosis(found),
        "trials": result.tried,
        "notes": result.notes,
        "unknown": result.unknown,
        "tensors": [of_row(row) for row in result.rows],
    }


def of_tensor(result: TensorResult) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": result.tensor.name,
        "rung": result.tensor.rung.number,
        "layer": result.tensor.layer,
        "shape": result.tensor.shape,
        "tolerance": result.tensor.tolerance,
        "bits_differing_from_oracle": result.differing,
        "float32_noise": vars(result.floor),
    }
    if result.peer is not None and result.peer_error is not None:
        found |= {"transformers": of_row(result.peer), "transformers_error": vars(result.peer_error)}
    return found


def of_ladder(result: Ladder) -> dict[str, Any]:
    return {
        "holds": result.holds,
        "model": result.model,
        "model_sha256": result.sha256,
        "compute": result.compute,
        "prompt": result.prompt,
        "ids": result.ids,
        "generated": result.generated,
        "text": result.text,
        "first_divergence": result.first.name if result.first else None,
        "transformers": result.missing or "compared",
        "diagnosis": of_comparison(result.peer)["diagnosis"] if result.peer else None,
        "seconds": {name: round(value, 2) for name, value in result.seconds.items()},
        "versions": result.versions,
        "machine": machine(),
        "tensors": [of_tensor(found) for found in result.tensors],
    }


def of_self_test(injections: Sequence[Injection]) -> dict[str, Any]:
    return {
        "holds": all(injection.caught for injection in injections),
        "cases": [vars(injection) for injection in injections],
    }


def of_weight(row: WeightRow) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": row.name,
        "layer": row.layer,
        "a": row.a,
        "b": row.b,
        "formats": row.formats,
        "verdict": row.verdict,
        "alike": row.alike,
        "says": row.says,
        "joined": row.joined,
        "found": row.found,
    }
    if row.fit is not None:
        found |= {
            "values": row.fit.size,
            "beyond_bound": row.fit.wrong,
            "largest_in_bounds": row.fit.worst,
            "max_abs": row.fit.largest,
            "relative_l2": row.fit.relative,
            "first_index": row.fit.first,
            "first_values": row.fit.theirs if row.fit.wrong else None,
        }
    return found


def of_weights(result: WeightComparison) -> dict[str, Any]:
    return {
        "alike": result.alike,
        "a": result.a,
        "b": result.b,
        "family": result.family,
        "first_difference": result.first.name if result.first else None,
        "unknown": {"a": result.unknown[0], "b": result.unknown[1]},
        "notes": result.notes,
        "tensors": [of_weight(row) for row in result.rows],
    }
