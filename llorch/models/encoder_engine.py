"""The engine of encoders: hidden states, or the labels of a classifier, of any number of texts together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llorch import _core
from llorch._text import counted, printable
from llorch.files import Source
from llorch.models.config import ModelConfig
from llorch.models.engine import Engine, Ids, Trace
from llorch.models.graph import Graph
from llorch.models.registry import Family

Array = NDArray[Any]
Types = Sequence[Sequence[int] | Array | None] | None

TOGETHER = 24 << 20  # bytes of working memory of the texts that go through the kernels at a time


class TokenEngine(Engine):
    """What both engines of encoders have: texts with types of tokens, many at a time.

    All tokens of the texts go through the kernels one below the other, without padding, and no text sees another: its
    bits are the same alone and in any batch, in any order, by any number of threads.

    AXIS : of a text's vector, whose length is the graph's.
    """

    KIND = "encoder"
    AXIS: ClassVar[str]

    @property
    def types(self) -> int:
        """How many types of tokens there are; 0 where the model has none."""
        return self.graph.sizes["Y"]

    def _checked(self, ids: Any, token_types: Any, place: int | None = None) -> tuple[Any, Array | None]:
        """ids and their types, None for all of type 0. The errors of `forward`."""
        at = "" if place is None else f"[{place}]"
        if type(ids) is not list:
            ids = self._ids(ids, f"ids{at}")
        elif not ids:
            self._ids(ids, f"ids{at}")
        if len(ids) > self.config.context:
            raise ValueError(f"ids{at} has {counted(len(ids), 'token')}, the model has {self.config.context} positions")
        if token_types is None:
            return ids, None
        name = f"token_types{at}"
        if isinstance(token_types, str | bytes):
            raise TypeError(f"{name} must be ints, got a {type(token_types).__name__}")
        given = np.asarray(token_types)
        if given.shape != (len(ids),):
            raise ValueError(f"{name} has shape {given.shape}, it must be that of ids{at}, ({len(ids)},)")
        if given.dtype.kind not in "iu":
            raise TypeError(f"{name} must be ints, got {given.dtype.name}")
        if (wrong_at := _core._bool_at(token_types)) is not None:
            raise TypeError(f"{name}[{wrong_at[0]}] is {token_types[wrong_at[0]]}, types must be ints")
        wrong = (given < 0) | (given >= max(self.types, 1))  # of none, all tokens are of type 0
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise IndexError(f"{name}[{first}] is {given[first]}, types must be in [0, {max(self.types, 1)})")
        return ids, given.astype(np.int64)

    def _results(
        self, ids: Sequence[Any], token_types: Types, rows: str, skip: int = 0
    ) -> Iterator[tuple[list[Any], Array]]:
        """The texts in parts that go through the kernels together, each with its result, by the plan of `rows`. skip :
        tokens at a text's beginning that stay out of its mean, fewer than any text has."""
        for name, value in (("ids", ids), ("token_types", [] if token_types is None else token_types)):
            if isinstance(value, str | bytes) or not isinstance(value, Iterable):
                raise TypeError(f"{name} must be a sequence, an entry for each text, got {type(value).__name__}")
        texts = list(ids)
        given = [None] * len(texts) if token_types is None else list(token_types)
        if len(given) != len(texts):
            raise ValueError(
                f"there are {len(texts)} texts in ids and {len(given)} in token_types, they must be as many"
            )
        checked = [self._checked(one, types, i) for i, (one, types) in enumerate(zip(texts, given, strict=True))]
        plan = self._plan(rows)
        most = max(1, TOGETHER // (4 * plan.row_floats))
        first = 0
        while first < len(checked):
            end, count = first + 1, len(checked[first][0])
            while end < len(checked) and count + len(checked[end][0]) <= most:
                count += len(checked[end][0])
                end += 1
            part = checked[first:end]
            chunks, types = [one for one, _ in part], self._filled(part)
            check = self._check_from(first)
            yield chunks, self._run(plan, chunks, None, rows == "all", check, types=types, skip=skip)
            first = end

    def _vectors(self, ids: Sequence[Ids], token_types: Types, rows: str, skip: int = 0) -> Array:
        """One vector of each text (n, AXIS), by the plan of `rows`; skip as `_results` has it."""
        parts = [made for _, made in self._results(ids, token_types, rows, skip)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.graph.sizes[self.AXIS]), np.float32)

    def _filled(self, part: Sequence[tuple[Any, Array | None]]) -> list[Array] | None:
        """The types of tokens of each text, None where all are of type 0."""
        if not self.types or all(types is None for _, types in part):
            return None
        return [np.zeros(len(ids), np.int64) if types is None else types for ids, types in part]

    def _check_from(self, first: int) -> Callable[[Ids, int], Array]:
        return lambda ids, place: self._ids(ids, f"ids[{first + place}]")


class Encoder(TokenEngine):
    """A model that gives a vector for each token of a text, whose every bit is specified: the text of its family in
    `llorch.reference` has the same bits. Several threads may use it at once.

    Attributes: those of `llorch.models.engine.Decoder`.
    """

    RESULT, AXIS = "the hidden state", "E"
    ROWS = "all"

    def forward(self, ids: Ids, token_types: Ids | None = None, *, trace: Trace | None = None) -> Array:
        """The last hidden state of a text.

        Parameters
        ----------
        ids : sequence or array of T >= 1 ints in [0, vocab_size)
        token_types : sequence or array of T ints, optional
            Of each token, as a pair of texts has 0 and 1. Without them all are 0.
        trace : function of (name, array), optional
            As `llorch.CausalLM.forward` has it.

        Returns
        -------
        New float32 array (T, E).

        Raises
        ------
        TypeError, ValueError, IndexError
            ids or types that aren't ints, or not as many; none at all, or more than the model has positions; an id or a
            type out of range.
        """
        checked, types = self._checked(ids, token_types)
        filled = self._filled([(checked, types)])
        return self._forward(checked, None, lambda chunk, place: self._ids(chunk, "ids"), trace, filled)

    def forward_batch(self, ids: Sequence[Ids], token_types: Types = None) -> list[Array]:
        """The last hidden state (T, E) of each of several texts, in their order: the bits of `forward`.

        ids, token_types : of each text, as `forward` takes them; a text's types may be None. The errors are those of
        `forward`, naming the text. Working memory is bounded: very many texts go through the kernels in parts, whose
        results are views of one array each.
        """
        found: list[Array] = []
        for texts, rows in self._results(ids, token_types, "all"):
            found += np.split(rows, np.cumsum([len(text) for text in texts])[:-1])
        return found

    def first_batch(self, ids: Sequence[Ids], token_types: Types = None) -> Array:
        """The last hidden state of the first token of each of several texts, as an array (n, E): the first rows of
        `forward`, without the work of the others' in the last block."""
        return self._vectors(ids, token_types, "first")


class Classifier(TokenEngine):
    """An encoder with a classifier of texts or of pairs of texts, as rerankers are. Several threads may use it at once.

    Attributes: those of `llorch.models.engine.Decoder`.
    """

    RESULT, AXIS = "labels of a text", "C"
    ROWS = "first"

    @classmethod
    def _graph(cls, family: Family, config: ModelConfig) -> Graph:
        assert family.classifier is not None  # as _check_family has seen
        return family.classifier(config)

    @classmethod
    def _check_family(cls, source: Source, family: Family) -> None:
        super()._check_family(source, family)
        if family.classifier is None or source.kind == "gguf":
            of = family.name + (" from GGUF" if source.kind == "gguf" else "")
            raise ValueError(f"{printable(str(source.path))}: a classifier of a {of} isn't supported")

    def forward(self, ids: Ids, token_types: Ids | None = None) -> Array:
        """The labels of a text, before any function: a new float32 array (num_labels,). Arguments and errors are those
        of `Encoder.forward`."""
        checked, types = self._checked(ids, token_types)
        labels: Array = self.forward_batch([checked], [types])[0]
        return labels

    def forward_batch(self, ids: Sequence[Ids], token_types: Types = None) -> Array:
        """The labels of each of several texts, (n, num_labels) float32: the bits of `forward`. Arguments and errors are
        those of `Encoder.forward_batch`."""
        return self._vectors(ids, token_types, "first")
