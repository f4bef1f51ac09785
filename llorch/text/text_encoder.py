"""`llorch.TextEncoder`: embeddings of texts, by an encoder's engine and what the model's files say about pooling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch._text import printable, shown
from llorch.files.folder import find_model
from llorch.models.encoder_engine import Encoder
from llorch.text import sentence_files, tokenizer_files
from llorch.text.inputs import Inputs, Tokens, in_batches, inputs_of, length_of
from llorch.text.sampling import whole
from llorch.text.sentence_files import Dense, Sentences
from llorch.text.tokenizer import Tokenizer, checked

Array = NDArray[Any]

GROWTH = 16 << 20  # bytes by which the result of texts that aren't counted grows
SETTINGS = "prompts", "default_prompt_name", "similarity", "truncate_dim"  # of Sentences, which may change
ROWS_OF = {"mean": "mean", "cls": "first", "last": "last"}  # by the pooling, what a plan gives
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")  # names of prompts, the first that is there


class TextEncoder(Encoder):
    """Embeddings of texts, whose every bit is specified: the hidden states of `llorch.reference`, and section 18 of
    docs/numerics.md. A text's embedding is the same alone and in any batch, in any order, by any number of threads.

    `from_pretrained` takes sentence-transformers' folders, plain ones of Hugging Face (the mean over the positions, as
    there), GGUF files and hub ids. Several threads may use a model at once.

    It is pickled, and copied, as the path and the arguments that it was loaded with: the weights come from the files
    again, which must still be there.

    Attributes: those of `llorch.models.engine.Decoder`, and

    prompts : mapping of names to texts
    default_prompt_name : str or None
    similarity_fn_name : str
    truncate_dim : int or None
        As the model's config_sentence_transformers.json has them.
    """

    _opened: Path  # of which `path` may be a folder
    _sentences: Sentences
    _width: int

    @classmethod
    def _load(cls, path_or_hub_id: str | Path, dtype: str | None, compute: str) -> Self:
        opened = find_model(path_or_hub_id)
        found = sentence_files.load(opened)
        model = super()._load(found.folder, dtype, compute)
        model._opened = opened.absolute()
        model._sentences = sentence_files.with_metadata(found, model.source)
        width = model.graph.sizes["E"]
        for module in model._sentences.after:
            if isinstance(module, Dense):
                if module.layer.in_features != width:
                    takes = module.layer.in_features
                    raise ValueError(f"{printable(str(found.folder))}: a Dense takes {takes} values, it gets {width}")
                width = module.width
        model._width = width
        model._plan(ROWS_OF[model._sentences.pooling])
        return model

    def __reduce__(self) -> Any:
        said = {name: getattr(self._sentences, name) for name in SETTINGS}
        return type(self).from_pretrained, (self._opened, *self.asked), (said, self.max_seq_length)

    def __setstate__(self, state: tuple[dict[str, Any], int]) -> None:
        said, self.max_seq_length = state
        self._sentences = dataclasses.replace(self._sentences, **said | {"prompts": dict(said["prompts"])})

    @property
    def prompts(self) -> Mapping[str, str]:
        return self._sentences.prompts

    @property
    def default_prompt_name(self) -> str | None:
        return self._sentences.default_prompt_name

    @property
    def similarity_fn_name(self) -> str:
        return self._sentences.similarity

    @property
    def truncate_dim(self) -> int | None:
        return self._sentences.truncate_dim

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back, nothing added or cut. ImportError, FileNotFoundError, ValueError as
        `llorch.text.tokenizer_files.load`."""
        return tokenizer_files.load(self.source)

    @property
    def _inputs(self) -> Inputs:
        """Made once. Of two threads that make it, the first one's stays: a length may have been set in it."""
        made: Inputs | None = self.__dict__.get("_made")
        if made is None:
            found, context = self._sentences, self.config.context
            made = inputs_of(self.source, context, self.types, length=found.max_seq_length, lower=found.lower)
            made = self.__dict__.setdefault("_made", made)
        return made

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text at most, special ones too; what is longer loses its end. May be set, to at most the
        positions that the model has."""
        return self._inputs.length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        if whole(length, "max_seq_length", 1) > self.config.context:
            raise ValueError(f"max_seq_length is {length}, the model has {self.config.context} positions")
        self._inputs.length = length

    @property
    def embedding_dimension(self) -> int:
        """Values of an embedding."""
        return self._cut(None)

    def _cut(self, truncate_dim: int | None) -> int:
        """Values of an embedding that is cut to so many, None for as the files say."""
        wanted = self.truncate_dim if truncate_dim is None else whole(truncate_dim, "truncate_dim", 1)
        return self._width if wanted is None else min(self._width, wanted)

    # ---- embeddings ------------------------------------------------------------------------------------

    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        normalize_embeddings: bool | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        output_dtype: str = "float32",
    ) -> Array:
        """The embeddings of texts.

        Parameters
        ----------
        sentences : str, or iterable of str
            Any iterable is read as it goes; no text is kept.
        batch_size : int
            Texts that go through the kernels together, end to end without padding. It changes speed and memory, no bit.
        show_progress_bar : bool
            On stderr, where that is a terminal, from the second second on.
        normalize_embeddings : bool, optional
            True divides each embedding by its length, once. False leaves it as the model's modules give it, which may
            have a Normalize of their own. None is False, but for GGUF files: they don't say it, and llama.cpp divides.
        prompt_name : str, optional
            Of `prompts`: the text that goes before each sentence. Without it `default_prompt_name`'s, if there is one.
        prompt : str, optional
            The text itself; prompt_name is then passed over.
        truncate_dim : int of at least 1, optional
            So many values of each embedding at most, its first ones, as Matryoshka models are made for. They are cut
            after the model's modules and before normalize_embeddings. None cuts as the model's files say.
        output_dtype : "float32", "float16" or "bfloat16"
            A 16-bit type rounds each value once, to nearest even; bfloat16 needs the package ml_dtypes.

        Returns
        -------
        New array (n, E), in the order of the sentences; (E,) for one str.

        Raises
        ------
        TypeError, ValueError
            A sentence that isn't a str of whole characters (it is named); a batch_size below 1; a prompt_name that
            isn't in `prompts`; another output_dtype; a prompt that is to stay out of the mean and leaves no token.
        ImportError, FileNotFoundError, ValueError
            The tokenizer, at the first call: as `llorch.text.tokenizer_files.load`.
        """
        if isinstance(sentences, str):  # without what is for many, which takes a tenth of a short text's time
            whole(batch_size, "batch_size", 1)
            tokens, work = self._steps(normalize_embeddings, prompt_name, prompt, truncate_dim, output_dtype)
            row: Array = work(tokens([checked(sentences, "sentences[0]")]))[0]
            return row
        batches = self.encode_stream(
            sentences,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            normalize_embeddings=normalize_embeddings,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate_dim=truncate_dim,
            output_dtype=output_dtype,
        )
        kind, known = _dtype(output_dtype), length_of(sentences) or 0
        width = self._cut(truncate_dim)
        rows, count = np.empty((known, width), kind), 0
        for batch in batches:
            if count + len(batch) > len(rows):  # grown in place, so that there is never a second copy
                step = max(GROWTH, rows.nbytes // 16) // (width * kind.itemsize) + len(batch)
                rows.resize((len(rows) + step, width), refcheck=False)
            rows[count : count + len(batch)] = batch
            count += len(batch)
        rows.resize((count, width), refcheck=False)
        return rows

    def encode_stream(
        self,
        sentences: Iterable[str],
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        normalize_embeddings: bool | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        output_dtype: str = "float32",
    ) -> Iterator[Array]:
        """The embeddings of texts as they are computed, in bounded memory: arrays (batch_size, E) in the order of the
        sentences, of which the last may have fewer rows.

        Parameters and errors are those of `encode`; those of the other arguments than sentences come at the call.
        """
        if isinstance(sentences, str):
            raise TypeError("sentences must be an iterable of str, got one str: encode takes that")
        tokens, work = self._steps(normalize_embeddings, prompt_name, prompt, truncate_dim, output_dtype)
        return in_batches(sentences, batch_size, checked, tokens, work, "embedding", "sentences", show_progress_bar)

    def _steps(
        self,
        normalize_embeddings: bool | None,
        prompt_name: str | None,
        prompt: str | None,
        truncate_dim: int | None,
        output_dtype: str,
    ) -> tuple[Callable[[list[str]], Tokens], Callable[[Tokens], Array]]:
        """From texts to their tokens, and from those to embeddings, as the arguments of `encode` have it."""
        before = self._prompt(prompt_name, prompt)
        _dtype(output_dtype)
        found, inputs = self._sentences, self._inputs
        skip = inputs.prefix(before) if before and not found.include_prompt and found.pooling == "mean" else 0
        wanted = found.normalized if normalize_embeddings is None else normalize_embeddings
        width = self._cut(truncate_dim)
        again = wanted and not (found.ends_normalized and width == self._width)

        def tokens(texts: list[str]) -> Tokens:
            return inputs([before + text for text in texts] if before else texts)

        def work(made: Tokens) -> Array:
            rows = self._pooled(made, skip)
            for module in found.after:
                rows = module(rows)
            if width < rows.shape[1]:
                rows = np.ascontiguousarray(rows[:, :width])
            if again:
                rows = llorch.normalize(rows, out=rows)
            return rows if output_dtype == "float32" else llorch.cast(rows, output_dtype)

        return tokens, work

    def _pooled(self, made: Tokens, skip: int) -> Array:
        """One row a text, of the hidden states of its tokens."""
        least = min(map(len, made.ids))
        if least <= skip:
            raise ValueError(
                f"a text has {least} tokens with its prompt, of which the prompt's {skip} stay out of the mean: none "
                "is left"
            )
        return self._vectors(made.ids, made.told_apart(), ROWS_OF[self._sentences.pooling], skip)

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return checked(prompt, "prompt")
        if name is None:
            name = self.default_prompt_name
            # None of that name: as in sentence-transformers, whose prompts may be set without it.
            return "" if name is None else self.prompts.get(name, "")
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ValueError(f"prompt_name is {shown(repr(name))}, the model's prompts are {printable(known)}")
        return self.prompts[name]

    def query_prompt(self) -> str | None:
        """The prompt_name for what is looked for, where the model has one."""
        return next((name for name in QUERY if name in self.prompts), None)

    def document_prompt(self) -> str | None:
        """The prompt_name for what is searched, where the model has one."""
        return next((name for name in DOCUMENT if name in self.prompts), None)

    def similarity(self, a: Array, b: Array) -> Array:
        """How near embeddings are: a new float32 array (n, m) of a (n, E) and b (m, E), either of which may be (E,). Of
        embeddings that were cut, E is less than the model's.

        By `similarity_fn_name`: "cosine", the product of rows divided by their lengths, or "dot", of the rows as they
        are. ValueError for another, and for arrays of another shape; TypeError for elements of another type.
        """
        if self.similarity_fn_name not in ("cosine", "dot"):
            raise ValueError(f"similarity_fn_name is {self.similarity_fn_name!r}, llorch has 'cosine' and 'dot'")
        rows: list[Array] = []
        for name, given in (("a", a), ("b", b)):
            array = np.asarray(given)
            if array.dtype.name not in ("float32", "float16", "bfloat16"):
                raise TypeError(f"{name} is {array.dtype.name}, it must be float32, float16 or bfloat16")
            if array.ndim not in (1, 2) or not 0 < array.shape[-1] <= self._width:
                raise ValueError(
                    f"{name} has shape {array.shape}, it must be (n, E) or (E,) with E up to {self._width}"
                )
            if rows and array.shape[-1] != rows[0].shape[1]:
                raise ValueError(f"a has {rows[0].shape[1]} values a row, b has {array.shape[-1]}")
            wide = llorch.cast(np.atleast_2d(array), "float32")
            rows.append(llorch.normalize(wide) if self.similarity_fn_name == "cosine" else wide)
        return llorch.linear(rows[0], rows[1].T)


def _dtype(name: Any) -> np.dtype[Any]:
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError("bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from None
        made: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return made
    if name not in ("float32", "float16"):
        raise ValueError(f"output_dtype must be 'float32', 'float16' or 'bfloat16', got {name!r}")
    return np.dtype(np.float32 if name == "float32" else np.float16)
