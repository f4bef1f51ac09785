"""`llorch.CrossEncoder`: how well two texts go together, by an encoder that reads both at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch import _core
from llorch.files.folder import find_model, read_config
from llorch.models.encoder_engine import Classifier
from llorch.text import sentence_files, tokenizer_files
from llorch.text.inputs import Inputs, Tokens, in_batches, inputs_of, pair_of
from llorch.text.sampling import whole
from llorch.text.tokenizer import Tokenizer, checked

Array = NDArray[Any]


class Ranked(NamedTuple):
    """A document's place in the list that was given, and its score."""

    place: int
    score: float


class CrossEncoder(Classifier):
    """Scores of pairs of texts, as rerankers give them, whose every bit is specified. A pair's score is the same alone
    and in any batch, in any order, by any number of threads. Several threads may use a model at once.

    `from_pretrained` takes folders and hub ids of models for sequence classification. A model is pickled, and copied,
    as the path and the arguments that it was loaded with: the weights come from the files again, which must still be
    there.

    Attributes: those of `llorch.models.engine.Decoder`.
    """

    _function: str | None

    @classmethod
    def _load(cls, path_or_hub_id: str | Path, dtype: str | None, compute: str) -> Self:
        model = super()._load(find_model(path_or_hub_id), dtype, compute)
        model._function = _function(model.path, model.source.config, model.graph.sizes["C"])
        return model

    def __reduce__(self) -> Any:
        return type(self).from_pretrained, (self.path.absolute(), *self.asked), self.max_length

    def __setstate__(self, length: int) -> None:
        self.max_length = length

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back, nothing added or cut. ImportError, FileNotFoundError, ValueError as
        `llorch.text.tokenizer_files.load`."""
        return tokenizer_files.load(self.source)

    @cached_property
    def _inputs(self) -> Inputs:
        return inputs_of(self.source, self.config.context, self.types, pairs=True)

    @property
    def max_length(self) -> int:
        """Tokens of a pair at most, special ones too; the longer text of the two loses its end first. May be set, to at
        most the positions that the model has."""
        return self._inputs.length

    @max_length.setter
    def max_length(self, length: int) -> None:
        if whole(length, "max_length", 1) > self.config.context:
            raise ValueError(f"max_length is {length}, the model has {self.config.context} positions")
        self._inputs.length = length

    @property
    def activation(self) -> str | None:
        """llorch's name of the function that the files put on the labels, such as "sigmoid"; None for none."""
        return self._function

    @property
    def labels(self) -> int:
        """Scores of a pair."""
        return self.graph.sizes["C"]

    def predict(
        self, pairs: Iterable[Sequence[str]], *, batch_size: int = 32, show_progress_bar: bool = False
    ) -> Array:
        """The scores of pairs of texts.

        Parameters
        ----------
        pairs : iterable of pairs of str, or one pair; NumPy's arrays (n, 2) and (2,) of them too
        batch_size : int
            Pairs that go through the kernels together. It changes speed and memory, no bit.
        show_progress_bar : bool
            On stderr, where that is a terminal, from the second second on.

        Returns
        -------
        New float32 array (n,) for a model of one label, (n, labels) for others; of one pair without the first axis. The
        function that the model's files name is applied, which is the sigmoid for one label and none for more where they
        name none.

        Raises
        ------
        TypeError, ValueError
            A pair that isn't two strs of whole characters (it is named); a batch_size below 1.
        ImportError, FileNotFoundError, ValueError
            The tokenizer, at the first call: as `llorch.text.tokenizer_files.load`.
        """
        return self._scores(pairs, self._function, batch_size, show_progress_bar)

    def _scores(
        self, pairs: Iterable[Sequence[str]], function: str | None, batch_size: int, show_progress_bar: bool
    ) -> Array:
        """`predict`, by llorch's function of that name on the labels."""
        given: Any = pairs.tolist() if isinstance(pairs, np.ndarray) else pairs
        single = isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(each, str) for each in given)
        inputs = self._inputs

        def work(made: Tokens) -> Array:
            return self.forward_batch(*made)

        batches = in_batches(
            [given] if single else given, batch_size, pair_of, inputs, work, "scoring", "pairs", show_progress_bar
        )
        parts = list(batches)
        labels = np.concatenate(parts) if parts else np.empty((0, self.labels), np.float32)
        scores: Array = getattr(llorch, function)(labels) if function else labels
        if scores.shape[1] == 1:
            scores = scores[:, 0]
        return scores[0] if single else scores

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> list[Ranked]:
        """Documents by their scores beside a query, the highest first, equals in their order.

        query : str. documents : iterable of str. top_k : how many are given at most; None for all. The others, and the
        errors, are those of `predict`; ValueError for a model of more than one label.

        Returns a list of (place, score).
        """
        if self.labels != 1:
            raise ValueError(f"the model has {self.labels} labels, documents are ranked by one")
        if top_k is not None:
            whole(top_k, "top_k", 1)
        first = checked(query, "query")
        if isinstance(documents, str):
            raise TypeError("documents must be an iterable of str, got one str")
        pairs = ((first, checked(each, f"documents[{i}]")) for i, each in enumerate(documents))
        scores = self.predict(pairs, batch_size=batch_size, show_progress_bar=show_progress_bar)
        return _core._in_fpenv(_ranked, scores, top_k)


def _ranked(scores: Array, most: int | None) -> list[Ranked]:
    order = np.argsort(-scores, kind="stable")[:most]
    return [Ranked(int(i), float(scores[i])) for i in order]


def _function(path: Path, config: dict[str, Any], labels: int) -> str | None:
    """llorch's name of the function that the files name, None for none."""
    settings = path / sentence_files.SETTINGS
    entries = read_config(settings) if settings.is_file() else {}
    ours = config.get("sentence_transformers")
    for place, entry, named in (
        (path / "config.json", "activation_fn", ours.get("activation_fn") if isinstance(ours, dict) else None),
        (path / "config.json", OLD, config.get(OLD)),
        (settings, "activation_fn", entries.get("activation_fn")),
    ):
        if named is not None:
            return sentence_files.activation(named, place, entry)
    return "sigmoid" if labels == 1 else None


OLD = "sbert_ce_default_activation_function"
