"""The validator as a library: what `llorch validate`, `llorch dump` and `llorch compare` do. See docs/validator.md.

>>> from llorch import validate
>>> validate.run_ladder().holds            # the ladder on the model that comes with llorch
True
>>> validate.dump("ours.safetensors")      # every tensor of it  # doctest: +SKIP
>>> found = validate.compare("theirs.safetensors", "ours.safetensors", model="shakespeare-1m")  # doctest: +SKIP
>>> found.first, found.diagnosis           # the first wrong tensor, the fault that gives it  # doctest: +SKIP
"""

from collections.abc import Iterator
from pathlib import Path

from llorch.validate.ladder import selftest as _selftest
from llorch.validate.ladder.compare import Comparison, compare
from llorch.validate.ladder.diagnose import Diagnosis
from llorch.validate.ladder.dumps import Dump, read
from llorch.validate.ladder.network import Progress, silent
from llorch.validate.ladder.rows import Row
from llorch.validate.ladder.run import Error, Ladder, TensorResult, dump, run_ladder
from llorch.validate.ladder.rungs import RUNGS, Rung, Tensor, tensors
from llorch.validate.ladder.selftest import Injection
from llorch.validate.ladder.sources import Model
from llorch.validate.weights.compare import WeightComparison, compare_weights

__all__ = [
    "RUNGS",
    "Comparison",
    "Diagnosis",
    "Dump",
    "Error",
    "Injection",
    "Ladder",
    "Model",
    "Row",
    "Rung",
    "Tensor",
    "TensorResult",
    "WeightComparison",
    "compare",
    "compare_weights",
    "dump",
    "read",
    "run_ladder",
    "self_test",
    "tensors",
]


def self_test(
    model: str | Path | Model | None = None, *, workers: int = 1, progress: Progress = silent
) -> Iterator[Injection]:
    """Injects every known fault; an Injection each, of a model the first the control without a fault.

    All is well if each is caught: at the right tensor, by the right name. model: None for a small one of random weights
    of every family, in so many processes. Errors as `run_ladder`.
    """
    if model is None:
        return _selftest.of_families(workers, progress=progress)
    return _selftest.run(model if isinstance(model, Model) else Model(model), progress=progress)
