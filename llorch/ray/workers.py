"""The classes for `Dataset.map_batches`. A row's results depend on the row alone: blocks, batches, workers and what was
killed on the way change no bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
import pyarrow
import ray
from ray.data.block import BlockAccessor

import llorch
from llorch import receipts
from llorch._text import shown
from llorch.ray.rows import is_key, names_of, seed_of, values_of
from llorch.text import batch as batches
from llorch.text.batch import Batch, Request
from llorch.text.generate import Options
from llorch.text.sampling import SamplingParameters, whole

Rows = Any  # a pyarrow.Table, or a mapping of names to NumPy's columns
Columns = dict[str, Any]

OF_A_ROW = (TypeError, ValueError, IndexError)  # what a row can be wrong by; anything else is the job's
ERRORS = ("raise", "column")


class RowError(ValueError):
    """A row that can't be computed. The message has its key."""


class _Worker:
    """What the three have in common: a model, the column that it takes, and what becomes of a bad row.

    Parameters
    ----------
    model, dtype, compute
        As `from_pretrained` takes them. Every node must find the model: a hub id, or a path that all have.
    key : str, optional
        The column that names a row, of integers, texts or bytes: errors tell it, and `Generate` draws tokens by it.
        Other types end the job: so do floats, which Ray's NumPy batches make of integers beside a null.
    errors : "raise" or "column"
        What a bad row does, such as one without a text or with more tokens than the context. "raise" ends the job by a
        `RowError` that has the row's key. "column" goes on: the column `error` has what is wrong, "" for other rows.
    threads : int, optional
        None: as many as the CPUs that Ray gave the actor, at least 1; outside an actor llorch's stay as they are.
    """

    KIND: ClassVar[Any] = llorch.CausalLM

    def __init__(
        self,
        model: str | os.PathLike[str],
        column: str,
        key: str | None,
        errors: str,
        dtype: str | None,
        compute: str,
        threads: int | None,
    ) -> None:
        if errors not in ERRORS:
            raise ValueError(f"errors must be 'raise' or 'column', got {errors!r}")
        given = _given_threads() if threads is None else whole(threads, "threads", 1)
        if given is not None:
            llorch.set_num_threads(given)
            os.environ.setdefault("RAYON_NUM_THREADS", str(given))  # the tokenizers library's, before its first use
        self.column, self.key, self.errors = column, key, errors
        self.model = type(self).KIND.from_pretrained(os.fspath(model), dtype, compute)

    def _begin(self, rows: Rows, new: Sequence[str]) -> tuple[list[Any], list[Any] | None]:
        """The column's values and the rows' keys. What is wrong here is wrong with all rows."""
        if not isinstance(rows, Mapping | pyarrow.Table):
            raise TypeError(
                f"{type(self).__name__} takes rows as an Arrow table or as columns of NumPy, got a "
                f'{type(rows).__name__}: let the batch_format of map_batches be "pyarrow"'
            )
        names = names_of(rows)
        for name in (self.column, *([] if self.key is None else [self.key])):
            if name not in names:
                raise ValueError(f"the rows have no column {name!r}, they have {', '.join(map(repr, names))}")
        for name in new:
            if name in names:
                raise ValueError(f"the rows have a column {name!r} already: results need another name")
        return list(values_of(rows, self.column)), None if self.key is None else self._keys(values_of(rows, self.key))

    def _keys(self, keys: Sequence[Any]) -> list[Any]:
        """A null is that row's fault. Another type is the column's, and so all rows'."""
        for key in keys:
            if key is not None and not is_key(key):
                raise TypeError(
                    f"{self.key} must be integers, texts or bytes, got {_shown(key)}. If it has integers and nulls, "
                    'Ray\'s NumPy batches made floats of them: let the batch_format of map_batches be "pyarrow", as '
                    "llorch.ray.pool() has it"
                )
        return list(keys)

    def _each(
        self, values: list[Any], keys: list[Any] | None, work: Callable[[int], Any]
    ) -> tuple[list[Any], list[str]]:
        """work of each row's place, and what was wrong with it; None for a bad row."""
        made, wrong = [], [""] * len(values)
        for i in range(len(values)):
            try:
                if values[i] is None:
                    raise ValueError(f"{self.column} is null")
                made.append(work(i))
            except OF_A_ROW as error:
                self._bad(values, keys, wrong, i, error)
                made.append(None)
        return made, wrong

    def _bad(self, values: list[Any], keys: list[Any] | None, wrong: list[str], i: int, error: Exception) -> None:
        """Raises, or notes what is wrong with a row."""
        if self.errors == "raise":
            name = f"with {self.column} {_shown(values[i])}" if keys is None else _shown(keys[i])
            raise RowError(f"row {name}: {error}") from error
        wrong[i] = str(error) or type(error).__name__

    def _end(self, rows: Rows, new: Columns, wrong: list[str]) -> Rows:
        if self.errors == "column":
            new = new | {"error": np.array(wrong, object)}
        if not isinstance(rows, pyarrow.Table):
            return {**rows, **new}
        for name, column in zip(new, BlockAccessor.batch_to_arrow_block(new).columns, strict=True):
            rows = rows.append_column(name, column)
        return rows

    def _new(self, *names: str) -> list[str]:
        return [*names, *(["error"] if self.errors == "column" else [])]


class Generate(_Worker):
    """New text for a column of prompts: for each row what `llorch.CausalLM.generate` gives for it alone, bit for bit.

    Parameters
    ----------
    model, key, errors, dtype, compute, threads
        As all workers have them: see docs/ray.md.
    prompt, output : str
        The columns of prompts (texts, or lists of ids), and of new texts (or lists of ids); null for a bad row.
    max_new_tokens, stop, temperature, top_k, top_p, repetition_penalty, presence_penalty, frequency_penalty
        As `llorch.CausalLM.generate` has them.
    seed : int in [0, 2**64)
        The job's. Where tokens are drawn (temperature more than 0) a row's own is `llorch.ray.seed_of(seed, key)`, and
        key must be given: so the row has the same text in any split of the job.
    sequences : int, at least 1
        Rows that go through the model at a time. It changes speed and memory, no bit.
    receipt : bool
        The column `receipt` has each row's receipt, as JSON; "" for a bad row.

    Raises
    ------
    TypeError, ValueError
        An argument that is out of range. When called: a column that is missing, or there already; `RowError`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        max_new_tokens: int,
        *,
        prompt: str = "prompt",
        output: str = "generated",
        key: str | None = None,
        seed: int = 0,
        sequences: int = batches.SEQUENCES,
        receipt: bool = False,
        errors: str = "raise",
        dtype: str | None = None,
        compute: str = "float32",
        threads: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        sampling: Any = {**options}
        self.stop = sampling.pop("stop", None)
        self.parameters = SamplingParameters().having(sampling)
        self.seed = whole(seed, "seed", 0, 2**64)
        self.sequences = whole(sequences, "sequences", 1)
        self.drawn = self.parameters.temperature != 0
        if self.drawn and key is None:
            raise ValueError("tokens are drawn by a seed of each row's key: key must be the name of a column")
        self.most, self.output, self.receipt = max_new_tokens, output, receipt
        super().__init__(model, prompt, key, errors, dtype, compute, threads)
        # What is wrong with these arguments is no row's fault: it shows with a prompt that no row is shorter than.
        whole_job = batches.Sequence(self.model, Request([0], self.most, stop=self.stop, as_text=True))
        self.ends_at_text = bool(whole_job.strings)

    def __call__(self, rows: Rows) -> Rows:
        """The rows, with the new columns."""
        new = self._new(self.output, *(["receipt"] if self.receipt else []))
        prompts, keys = self._begin(rows, new)
        if self.ends_at_text and any(isinstance(one, np.ndarray | list) for one in prompts):
            raise TypeError(f"stop has a string, but {self.column} is ids: stop at ids, or give text")
        batch = Batch(self.model, self.sequences, self.sequences + batches.CHUNK)
        places = {}

        def begin(i: int) -> batches.Sequence:
            parameters = self.parameters
            if self.drawn and keys is not None:
                parameters = parameters.having({"seed": seed_of(self.seed, keys[i])})
            request = Request(prompts[i], self.most, parameters, self.stop, self.column, links=self.receipt)
            sequence = batches.Sequence(self.model, request)
            places[batch.admit(sequence)] = i
            return sequence

        sequences, wrong = self._each(prompts, keys, begin)
        while batch:
            for event in batch.step():
                if event.error is not None:
                    self._bad(prompts, keys, wrong, places[event.id], event.error)
                    sequences[places[event.id]] = None
        made = [None if one is None else one.new_ids if one.text is None else one.told for one in sequences]
        columns = {self.output: _column(made)}
        if self.receipt:
            columns["receipt"] = _column([_receipt(self.model, one) for one in sequences])
        return self._end(rows, columns, wrong)


class Score(_Worker):
    """How likely a model finds each text of a column: `llorch.CausalLM.score`.

    Parameters
    ----------
    model, key, errors, dtype, compute, threads
        As all workers have them: see docs/ray.md.
    text, output, tokens : str
        The columns of texts (or lists of ids); of log-likelihoods, float64, natural logarithms, NaN for a bad row; and
        of how many tokens were scored, all but the first.
    by_token : str, optional
        A column for the log-probability of each token that was scored.
    stride : int, optional
        For texts longer than the context: as `score` has it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        text: str = "text",
        output: str = "log_likelihood",
        tokens: str = "scored_tokens",
        by_token: str | None = None,
        key: str | None = None,
        stride: int | None = None,
        errors: str = "raise",
        dtype: str | None = None,
        compute: str = "float32",
        threads: int | None = None,
    ) -> None:
        self.output, self.tokens, self.by_token, self.stride = output, tokens, by_token, stride
        super().__init__(model, text, key, errors, dtype, compute, threads)
        if stride is not None:
            self.model.score([0, 0], stride=stride)  # as if a row were wrong, but it would be all of them

    def __call__(self, rows: Rows) -> Rows:
        """The rows, with the new columns."""
        new = self._new(self.output, self.tokens, *([] if self.by_token is None else [self.by_token]))
        texts, keys = self._begin(rows, new)
        if any(isinstance(text, str) for text in texts):
            self.model.tokenizer  # noqa: B018  what is wrong with its files is no row's fault
        scores, wrong = self._each(texts, keys, lambda i: self.model.score(texts[i], stride=self.stride))
        none = np.empty(0)
        logs = [none if score is None else score.log_probabilities for score in scores]
        columns = {
            self.output: np.array([np.nan if one is None else one.log_likelihood for one in scores], np.float64),
            self.tokens: np.array([len(each) for each in logs], np.int64),
        }
        if self.by_token is not None:
            columns[self.by_token] = _column(logs)
        return self._end(rows, columns, wrong)


class Embed(_Worker):
    """The embedding of each text of a column: `llorch.TextEncoder.encode`.

    Parameters
    ----------
    model, key, errors, dtype, compute, threads
        As all workers have them: see docs/ray.md.
    text, output : str
        The columns of texts, and of embeddings (arrays of E values; NaN throughout for a bad row).
    sequences : int, at least 1
        Texts that go through the model at a time, `encode`'s batch_size. It changes speed and memory, no bit.
    normalize_embeddings, prompt_name, prompt
        As `encode` has them.
    output_dtype : "float32" or "float16"
    """

    KIND: ClassVar[Any] = llorch.TextEncoder

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        text: str = "text",
        output: str = "embedding",
        key: str | None = None,
        sequences: int = batches.SEQUENCES,
        normalize_embeddings: bool | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        output_dtype: str = "float32",
        errors: str = "raise",
        dtype: str | None = None,
        compute: str = "float32",
        threads: int | None = None,
    ) -> None:
        if output_dtype not in ("float32", "float16"):
            raise ValueError(f"output_dtype must be 'float32' or 'float16', got {output_dtype!r}")
        self.output, self.output_dtype = output, output_dtype
        self.options = {
            "batch_size": whole(sequences, "sequences", 1),
            "normalize_embeddings": normalize_embeddings,
            "prompt_name": prompt_name,
            "prompt": prompt,
            "output_dtype": output_dtype,
        }
        super().__init__(model, text, key, errors, dtype, compute, threads)
        self.model.encode([], **self.options)  # what is wrong with these is no row's fault

    def __call__(self, rows: Rows) -> Rows:
        """The rows, with the new columns."""
        texts, keys = self._begin(rows, self._new(self.output))
        try:
            made, wrong = self.model.encode(texts, **self.options), [""] * len(texts)
        except OF_A_ROW:  # which one? Alone a text has the same bits
            found, wrong = self._each(texts, keys, lambda i: self.model.encode([texts[i]], **self.options)[0])
            bad = np.full(self.model.embedding_dimension, np.nan, self.output_dtype)
            made = np.stack([bad if one is None else one for one in found])
        return self._end(rows, {self.output: made}, wrong)


def _given_threads() -> int | None:
    """The CPUs that Ray gave this actor; None outside of one."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        return None
    return max(1, int(context.get_assigned_resources().get("CPU", 0)))


def _receipt(model: Any, sequence: batches.Sequence | None) -> str:
    return "" if sequence is None else receipts.dumps(receipts.make(model, sequence))


def _column(values: list[Any]) -> Any:
    """As NumPy's array of objects, whatever their lengths are."""
    made = np.empty(len(values), object)
    for i, value in enumerate(values):
        made[i] = value
    return made


def _shown(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    return shown(repr(value))
