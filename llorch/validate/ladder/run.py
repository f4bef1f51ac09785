"""The whole ladder on a model: llorch against its oracle in bits, and against transformers within the tolerances."""

from __future__ import annotations

import importlib.util
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import llorch
from llorch.testing import differing_bits
from llorch.validate.ladder import distance, dumps, plants, rungs
from llorch.validate.ladder.compare import Comparison, compare_dumps
from llorch.validate.ladder.distance import Aligned
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.network import Progress, Trace, silent
from llorch.validate.ladder.peer import FOR_GGUF, trace_transformers, transformers_class
from llorch.validate.ladder.rows import Row
from llorch.validate.ladder.rungs import Tensor
from llorch.validate.ladder.sources import (
    PROMPT,
    Model,
    trace_engine,
    trace_float64,
    trace_oracle,
)


@dataclass(frozen=True)
class Error:
    """The largest error of a tensor from float64: absolute, in ULP of float32 there; and relative L2."""

    absolute: float
    ulp: float
    relative: float


@dataclass(frozen=True)
class TensorResult:
    """What was found of one tensor.

    differing : values of llorch whose bits aren't the oracle's. floor : the oracle's distance from float64, which is
    float32's own noise. peer : transformers beside llorch; peer_error : its distance from float64. None if it isn't
    there.
    """

    tensor: Tensor
    differing: int
    floor: Error
    peer: Row | None = None
    peer_error: Error | None = None


@dataclass(frozen=True)
class Ladder:
    """What `run_ladder` found.

    holds : every bit is the oracle's, and transformers agrees, if it is there. peer : what transformers' comparison
    found, with a diagnosis where it diverges. missing : why transformers didn't run, "" if it did. compute : the
    arithmetic of linear layers, as `llorch.CausalLM.from_pretrained` has it.
    """

    model: str
    sha256: str
    prompt: str
    ids: list[int]
    generated: list[int]
    text: str
    tensors: list[TensorResult]
    peer: Comparison | None
    missing: str
    seconds: dict[str, float]
    versions: dict[str, str]
    compute: str = "float32"

    @property
    def first(self) -> Tensor | None:
        """The first tensor whose bits aren't the oracle's, or that transformers doesn't agree with."""
        return next(
            (
                found.tensor
                for found in self.tensors
                if found.differing or (found.peer is not None and found.peer.status == "diverges")
            ),
            None,
        )

    @property
    def holds(self) -> bool:
        return self.first is None


@np.errstate(all="ignore")
def error(tensor: Tensor, values: Any, exact: Any) -> Error:
    theirs, right, finite = distance.comparable(Aligned(values, ""), tensor, exact)
    d = distance.differences(theirs, right)
    if not d.size:
        return Error(0.0, 0.0, 0.0)
    at = np.unravel_index(int(np.argmax(d)), d.shape)
    unit = float(distance.ulp(right)[at]) if finite[at] else 1.0
    return Error(float(d[at]), float(d[at] / unit), distance.relative(theirs, right))


def absent_packages(model: Model) -> list[str]:
    """What isn't installed of what transformers needs to run the model."""
    needed = ("torch", "transformers", *(FOR_GGUF if model.source.kind == "gguf" else ()))
    return [name for name in needed if importlib.util.find_spec(name) is None]


def missing_peer(model: Model) -> str:
    """What is missing for transformers to run the model, "" if nothing is."""
    if absent := absent_packages(model):
        return f"{', '.join(absent)} not installed"
    if transformers_class(model) is not None:
        return ""
    if model.source.kind == "gguf":
        return "it doesn't read all that this GGUF file says"
    return f"it has no {model.family.name}"


def versions() -> dict[str, str]:
    """Of what computes."""
    from importlib import metadata

    found = {"llorch": llorch.__version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in ("torch", "transformers", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"isa": llorch.isa(), "os": platform.platform(), "cpu": str(llorch.config()["cpu"])}


def prepare(
    model: str | Path | Model, prompt: str, ids: Sequence[int] | None, compute: str
) -> tuple[Model, str, list[int]]:
    """The model, and the prompt as text and ids. ids, if given, are what the prompt is."""
    at_hand = model if isinstance(model, Model) else Model(model, compute)
    if ids is None:
        found = at_hand.ids(prompt)
    else:
        found = [int(id) for id in ids]
        size = at_hand.config.vocab_size
        if wrong := [id for id in found if not 0 <= id < size]:  # a tokenizer may not even take it
            raise ValueError(f"ids has {wrong[0]}, token ids must be in [0, {size})")
        text = at_hand.text(found)
        prompt = " ".join(map(str, found)) if text is None else text
    most = at_hand.config.context
    if not 1 <= len(found) <= most:
        raise ValueError(f"the prompt has {len(found)} tokens, it must have at least 1 and at most {most}")
    return at_hand, prompt, found


def run_ladder(
    model: str | Path | Model = "shakespeare-1m",
    prompt: str = PROMPT,
    *,
    ids: Sequence[int] | None = None,
    peer: bool = True,
    compute: str = "float32",
    progress: Progress = silent,
) -> Ladder:
    """Every rung of the ladder on a model and a prompt.

    Parameters
    ----------
    model : folder, hub id or Model
        As `llorch.GPT2.from_pretrained` takes it; by default the one that comes with llorch.
    prompt : str
        A folder without a tokenizer knows "Hello." alone, as GPT-2's own ids.
    ids : sequence of int, optional
        Token ids in the place of a text.
    peer : bool
        Whether to run transformers, if it is installed.
    compute : "float32" or "int16"
        The arithmetic of llorch and of its oracle, as `llorch.CausalLM.from_pretrained` has it; a Model has its own.
    progress : function of (done, of)

    Raises
    ------
    OSError, ValueError, TypeError
        As `llorch.GPT2.from_pretrained`; a prompt without tokens, or longer than the context.
    """
    at_hand, prompt, tokens = prepare(model, prompt, ids, compute)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name], clock = now - clock, now

    engine = trace_engine(at_hand, tokens)
    lap("llorch")
    generated = engine.get("generated", np.zeros(0, np.int64))
    oracle = trace_oracle(at_hand, tokens, generated, progress)
    lap("oracle")
    exact = trace_float64(at_hand, tokens, generated)
    lap("float64")
    missing, theirs, comparison = missing_peer(at_hand) if peer else "not asked for", None, None
    if not missing:
        theirs = trace_transformers(at_hand, tokens)
        lap("transformers")
        ours = Dump(engine, dumps.metadata(at_hand, prompt, engine), "llorch")
        comparison = compare_dumps(Dump(theirs, {}, "transformers"), ours, at_hand.network)
        lap("comparison")
    results = []
    for i, tensor in enumerate(rungs.tensors(at_hand, len(tokens))):
        name = tensor.name
        results.append(
            TensorResult(
                tensor,
                differing_bits(engine[name], oracle[name]),
                error(tensor, oracle[name], exact[name]),
                comparison.rows[i] if comparison else None,
                error(tensor, theirs[name], exact[name]) if theirs and name in theirs else None,
            )
        )
    return Ladder(
        at_hand.path.name,
        at_hand.sha256,
        prompt,
        tokens,
        [int(id) for id in generated],
        at_hand.text(generated) or "",
        results,
        comparison,
        missing,
        seconds,
        versions(),
        at_hand.compute,
    )


SOURCES = {"llorch": trace_engine, "oracle": trace_oracle, "transformers": trace_transformers}


def dump(
    path: str | Path,
    model: str | Path | Model = "shakespeare-1m",
    prompt: str = PROMPT,
    *,
    ids: Sequence[int] | None = None,
    source: str = "llorch",
    plant: str | None = None,
    compute: str = "float32",
) -> Trace:
    """Writes every tensor of the ladder to a safetensors file, with names, shapes and types as docs/validator.md says.

    source : "llorch", "oracle" (the same bits, slowly) or "transformers". plant : of the latter, a mistake that is made
    in its modules first: a name of `plants.PLANTS`, with ":3" in that block alone. Its metadata: prompt,
    generated_text, model, model_sha256, config, compute, source, llorch (version), format and version, planted. Returns
    the tensors. compute and errors as `run_ladder`; ValueError for a plant that isn't known, or that the model can't
    have.
    """
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}, it must be one of {', '.join(SOURCES)}")
    if plant is not None and source != "transformers":
        raise ValueError(f"plant is {plant!r}, faults are planted in transformers alone")
    at_hand, prompt, tokens = prepare(model, prompt, ids, compute)
    if source == "transformers" and (absent := absent_packages(at_hand)):
        raise ModuleNotFoundError(f"transformers can't run here, install what it needs: pip install {' '.join(absent)}")
    if plant is None:
        trace: Trace = SOURCES[source](at_hand, tokens)
    else:
        key, colon, block = plant.partition(":")
        if colon and not block.isdecimal():
            raise ValueError(f"plant is {plant!r}, behind the colon must be the number of a block")
        layer = int(block) if colon else None
        trace = trace_transformers(at_hand, tokens, lambda peer: plants.plant(peer, key, layer))
    planted = {} if plant is None else {"planted": plant}
    dumps.write(path, trace, dumps.metadata(at_hand, prompt, trace, source) | planted)
    return trace
