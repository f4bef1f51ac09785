"""sentence-transformers' interface to llorch's encoders: a program runs on llorch with

    from llorch.sentence_transformers import CrossEncoder, SentenceTransformer

in the place of its import. The classes have the parameters of sentence-transformers 6; each is followed, or refused by
name with the reason. Results are llorch's: an embedding or a score has the same bits in any batch, in any order and on
any number of threads. Arrays need NumPy alone, tensors need PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch import _core
from llorch._text import printable, shown
from llorch.files.folder import EMBEDDED, find_model
from llorch.text.sentence_files import ACTIVATIONS
from llorch.text.tokenizer import checked

Array = NDArray[Any]

CARD = "a model's card is written where it is saved, and llorch saves none"
COMPUTES = "llorch computes, on the CPU"
FILES = "llorch reads the model's files as they are"
INFERS = "llorch computes embeddings and scores, it trains nothing"
PARTS = "llorch reads a model's parts from its files"
WRITES = "llorch writes no model; its files are in .model.path"

# What of sentence-transformers' classes isn't here, and why.
LEFT_OUT = {
    INFERS: "fit old_fit smart_batching_collate smart_batching_collate_text_only gradient_checkpointing_enable "
    "add_adapter load_adapter set_adapter delete_adapter active_adapter active_adapters enable_adapters "
    "disable_adapters get_adapter_state_dict has_peft_compatible_model check_peft_compatible_model merge",
    WRITES: "save save_pretrained push_to_hub save_to_hub",
    CARD: "model_card_data_class",
    "its layers are not PyTorch's; .model is llorch's": "forward compile config dtype transformers_model processor "
    "get_model_kwargs get_sentence_features set_pooling_include_prompt set_keep_in_fp32_modules "
    "get_default_activation_fn default_activation_function",
    COMPUTES: "cuda half bfloat16 float double get_backend clear_placement_cache",
    "inputs are texts": "is_singular_input modalities supports",
    "it has no meaning without sentence-transformers": "default_huggingface_organization model_type "
    "SUPPORTED_SIMILARITY_FN_NAMES",
}
WHY = {name: reason for reason, names in LEFT_OUT.items() for name in names.split()}


class _Card:
    """What sentence-transformers' evaluators write their results to."""

    base_model = None

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}

    def set_evaluation_metrics(self, evaluator: Any, metrics: Mapping[str, Any], epoch: int = 0, step: int = 0) -> None:
        self.metrics.update(metrics)


class _Model:
    """What both classes have. model : llorch's own."""

    ORGANIZATION: str
    KIND: type[llorch.TextEncoder] | type[llorch.CrossEncoder]
    model: Any

    def _open(self, name: str | Path | None, given: Mapping[str, Any]) -> None:
        """Takes the parameters of __init__ that both classes have, by their names."""
        _check_device(given["device"])
        for argument, allowed, why in (
            ("modules", (None,), PARTS),
            ("processor_kwargs", (None, {}), FILES),
            ("config_kwargs", (None, {}), FILES),
            ("model_card_data", (None,), CARD),
            ("backend", ("torch",), COMPUTES),
        ):
            _check(argument, given[argument], allowed, why)
        if name is None:
            raise ValueError(f"model_name_or_path must be given: {PARTS}")
        options: dict[str, Any] = {}
        for key, value in (given["model_kwargs"] or {}).items():
            if key in ("dtype", "torch_dtype"):
                options["dtype"] = None if value in (None, "auto") else str(value).removeprefix("torch.")
            elif key == "compute":
                options[key] = value
            else:
                raise ValueError(f"model_kwargs[{shown(repr(key))}] isn't supported, dtype and compute are")
        hub = {
            key: given[argument]
            for key, argument in (("cache_dir", "cache_folder"), ("revision", "revision"), ("token", "token"))
            if given[argument] is not None
        }
        if given["local_files_only"]:
            hub["local_files_only"] = True
        self.model = self.KIND.from_pretrained(_find(name, self.ORGANIZATION, hub), **options)
        self.model_card_data = _Card()

    def __getattr__(self, name: str) -> Any:
        why = f": {WHY[name]}" if name in WHY else ""
        raise AttributeError(f"llorch's {type(self).__name__} has no {name}{why}", name=name, obj=self)

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' tokenizer of the model's files. `.model.tokenizer` is llorch's."""
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise ImportError(
                'tokenizer needs the package transformers: pip install "llorch[sentence-transformers]" '
                "(.model.tokenizer is llorch's)"
            ) from None
        if self.model.source.kind != "hf":
            raise ValueError(
                f"{printable(str(self.model.path))} has no tokenizer of transformers' (see .model.tokenizer)"
            )
        return AutoTokenizer.from_pretrained(self.model.source.path)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> Any:
        """The ids of texts as the model gets them, and which are padding: tensors (n, longest) by their names."""
        _check_rest(kwargs, "preprocess")
        ids, types = self.model._inputs(self._texts(inputs, prompt))
        tokens = {"input_ids": ids} | ({} if types is None else {"token_type_ids": types})
        _torch("preprocess")
        return self.tokenizer.pad(tokens, return_tensors="pt")

    def tokenize(self, texts: Sequence[Any], **kwargs: Any) -> Any:
        """`preprocess`, by its old name."""
        return self.preprocess(texts, **kwargs)

    def _texts(self, inputs: Sequence[Any], prompt: str | None) -> list[Any]:
        raise NotImplementedError

    @property
    def max_seq_length(self) -> int:
        """Tokens at most, special ones too. May be set."""
        raise NotImplementedError

    def get_max_seq_length(self) -> int:
        return self.max_seq_length

    @property
    def device(self) -> Any:
        """torch.device("cpu")."""
        return _torch("device").device("cpu")

    def to(self, device: Any = None) -> _Model:
        _check_device(device)
        return self

    def cpu(self) -> _Model:
        return self

    def eval(self) -> _Model:
        return self

    def evaluate(self, evaluator: Any, output_path: str | None = None) -> Any:
        """What an evaluator of sentence-transformers' finds."""
        if output_path is not None:
            Path(output_path).mkdir(parents=True, exist_ok=True)
        return evaluator(self, output_path)

    def start_multi_process_pool(self, target_devices: Sequence[Any] | None = None) -> dict[str, Any]:
        """A pool without processes, which `encode` and `predict` take: threads of this process do the work."""
        _check_device(target_devices)
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: Mapping[str, Any]) -> None:
        pass


class SentenceTransformer(_Model):
    """`llorch.TextEncoder` with sentence-transformers' methods.

    model_name_or_path : a folder, a GGUF file or a hub id; a name without an organisation is looked for at
    sentence-transformers' first.
    device : None or "cpu". prompts, default_prompt_name, similarity_fn_name, truncate_dim : before those in the model's
    files. cache_folder, revision, local_files_only, token : for the hub. model_kwargs : dtype and compute, as
    `llorch.TextEncoder.from_pretrained` has them. trust_remote_code changes nothing: llorch runs no code of a model's.

    Attributes: model, the `llorch.TextEncoder`. ValueError, AttributeError for a method, says what llorch doesn't do.
    """

    ORGANIZATION, KIND = "sentence-transformers", llorch.TextEncoder
    model: llorch.TextEncoder

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        modules: Any = None,
        device: Any = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        use_auth_token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str = "torch",
        similarity_fn_name: Any = None,
        truncate_dim: int | None = None,
    ) -> None:
        given = dict(locals())
        self._open(model_name_or_path, given | {"token": use_auth_token if token is None else token})
        self.prompts = {"query": "", "document": ""} | dict(self.model.prompts) | dict(prompts or {})
        if default_prompt_name is not None:
            self.default_prompt_name = default_prompt_name
        if similarity_fn_name is not None:
            self.similarity_fn_name = similarity_fn_name
        if truncate_dim is not None:
            self.truncate_dim = truncate_dim

    # ---- what the model's files say, and may be set ----------------------------------------------------

    def _say(self, **entries: Any) -> None:
        self.model._sentences = dataclasses.replace(self.model._sentences, **entries)

    @property
    def prompts(self) -> Mapping[str, str]:
        """Texts by their names, a dict that may be written to. It has "query" and "document", as there."""
        return self.model.prompts

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        self._say(prompts={name: checked(text, f"prompts[{shown(repr(name))}]") for name, text in prompts.items()})

    @property
    def default_prompt_name(self) -> str | None:
        return self.model.default_prompt_name

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        if name is not None and name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ValueError(f"default_prompt_name is {shown(repr(name))}, the prompts are {printable(known)}")
        self._say(default_prompt_name=name)

    @property
    def similarity_fn_name(self) -> str:
        return self.model.similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: Any) -> None:
        wanted = getattr(name, "value", name)  # of sentence-transformers' SimilarityFunction
        if wanted not in ("cosine", "dot"):
            raise ValueError(f"similarity_fn_name is {shown(repr(wanted))}, llorch has 'cosine' and 'dot'")
        self._say(similarity=wanted)

    @property
    def truncate_dim(self) -> int | None:
        return self.model.truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, truncate_dim: int | None) -> None:
        self.model._cut(truncate_dim)
        self._say(truncate_dim=truncate_dim)

    @contextlib.contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Within it, embeddings have at most so many values."""
        before = self.truncate_dim
        self.truncate_dim = truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text at most, special ones too. May be set."""
        return self.model.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        self.model.max_seq_length = length

    def get_embedding_dimension(self) -> int:
        """Values of an embedding."""
        return self.model.embedding_dimension

    get_sentence_embedding_dimension = get_embedding_dimension

    # ---- embeddings ------------------------------------------------------------------------------------

    def encode(
        self,
        inputs: str | Iterable[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The embeddings of texts, by `llorch.TextEncoder.encode`, whose errors it has too.

        inputs : a str, or any iterable of them (`sentences`, by its old name). batch_size : no bit depends on it.
        output_value : "sentence_embedding"; or "token_embeddings", the hidden states of each text as a tensor (T, E).
        precision : "float32"; or "binary" and "ubinary", the signs of eight values in an int8 or uint8.
        normalize_embeddings : False leaves embeddings as the model's files make them, True divides each by its length.
        pool, chunk_size : are taken, and threads do the work.

        Returns a new array (n, E), (E,) for a str; with convert_to_tensor a tensor; without either a list of tensors.
        ValueError for an output_value of None, and for "int8" and "uint8", whose ranges are those of the other texts in
        the call.
        """
        texts: Any = _texts_of(inputs, kwargs, "encode")
        _check_device(device)
        _check("output_value", output_value, ("sentence_embedding", "token_embeddings"), "features stay in the kernels")
        _check(
            "precision",
            precision,
            (None, "float32", "binary", "ubinary"),
            "its ranges would be those of the other texts in the call. sentence_transformers.util.quantize_embeddings "
            "takes ranges that stay",
        )
        if output_value == "token_embeddings":
            before = self.model._prompt(prompt_name, prompt)
            single = isinstance(texts, str)
            ids, types = self.model._inputs(self._texts([texts] if single else texts, before))
            states = [_tensor(each) for each in self.model.forward_batch(ids, types)]
            return states[0] if single else states
        rows = self.model.encode(
            texts,
            batch_size=batch_size,
            show_progress_bar=bool(show_progress_bar),
            normalize_embeddings=normalize_embeddings or None,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate_dim=truncate_dim,
        )
        if precision in ("binary", "ubinary"):
            rows = np.packbits(rows > 0, axis=-1)
            rows = rows if precision == "ubinary" else (rows ^ 128).view(np.int8)
        if convert_to_tensor:
            return _tensor(rows)
        if convert_to_numpy:
            return rows
        return _tensor(rows) if rows.ndim == 1 else list(_tensor(rows))

    def encode_query(
        self, inputs: Any = None, prompt_name: str | None = None, prompt: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """`encode`, with the prompt "query" where no other is asked for."""
        return self.encode(inputs, prompt_name or self.model.query_prompt(), prompt, *args, **kwargs)

    def encode_document(
        self, inputs: Any = None, prompt_name: str | None = None, prompt: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """`encode`, with the prompt "document" where no other is asked for. Every model has one of that name, as in
        sentence-transformers, an empty one where its files have none; a model's "passage" is asked for by name."""
        return self.encode(inputs, prompt_name or self.model.document_prompt(), prompt, *args, **kwargs)

    for _method in (encode_query, encode_document):
        _method.__wrapped__ = encode  # type: ignore[attr-defined]  # whose parameters inspect shows
    del _method

    def encode_multi_process(self, sentences: Iterable[str], pool: Any, **kwargs: Any) -> Any:
        return self.encode(sentences, pool=pool, **kwargs)

    def _texts(self, inputs: Iterable[Any], prompt: str | None) -> list[Any]:
        return [(prompt or "") + checked(text, f"inputs[{i}]") for i, text in enumerate(inputs)]

    # ---- similarity ------------------------------------------------------------------------------------

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """How near embeddings are, as a float32 tensor (n, m): `llorch.TextEncoder.similarity`, which gives an array.
        Arrays, tensors and lists of them are taken; float64 is rounded to float32 first."""
        return _tensor(self.model.similarity(_array(embeddings1), _array(embeddings2)))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """How near embeddings1[i] is to embeddings2[i], as a tensor (n,), of two vectors (): the bits that `similarity`
        has at [i, i]."""
        given = [_array(each) for each in (embeddings1, embeddings2)]
        a, b = map(np.atleast_2d, given)
        if len(a) != len(b):
            raise ValueError(f"embeddings1 has {len(a)} rows, embeddings2 has {len(b)}")
        scores = [self.model.similarity(one, other)[0, 0] for one, other in zip(a, b, strict=True)]
        found = _tensor(np.array(scores, np.float32))
        return found[0] if all(each.ndim == 1 for each in given) else found

    @staticmethod
    def load(input_path: str) -> SentenceTransformer:
        return SentenceTransformer(input_path)


class CrossEncoder(_Model):
    """`llorch.CrossEncoder` with sentence-transformers' methods.

    Parameters are those of sentence-transformers' class. Those that `SentenceTransformer` has too are taken as there;
    prompts and default_prompt_name are refused. num_labels : as many as the model has. max_length : tokens of a pair at
    most. activation_fn : one of torch.nn's Identity, Sigmoid, Tanh, GELU, ReLU and SiLU, before the files'.

    Attributes: model, the `llorch.CrossEncoder`. ValueError, AttributeError for a method, says what llorch doesn't do.
    """

    ORGANIZATION, KIND = "cross-encoder", llorch.CrossEncoder
    model: llorch.CrossEncoder

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        modules: Any = None,
        device: Any = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str = "torch",
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Any = None,
        keep_in_fp32_modules: Sequence[str] | None = None,
    ) -> None:
        given = dict(locals())
        for name, value in (("prompts", prompts), ("default_prompt_name", default_prompt_name)):
            _check(name, value, (None, {}), NO_PROMPTS)
        _check("keep_in_fp32_modules", keep_in_fp32_modules, (None, []), "llorch computes every layer in float32")
        function = None if activation_fn is None else (_function(activation_fn),)
        self._open(model_name_or_path, given)
        self._named = self.model.activation if function is None else function[0]
        _check("num_labels", num_labels, (None, self.num_labels), f"the model has {self.num_labels}")
        if max_length is not None:
            self.max_length = max_length

    @property
    def num_labels(self) -> int:
        """Scores of a pair."""
        return self.model.labels

    @property
    def max_length(self) -> int:
        """Tokens of a pair at most, special ones too. May be set."""
        return self.model.max_length

    @max_length.setter
    def max_length(self, length: int) -> None:
        self.model.max_length = length

    @property
    def max_seq_length(self) -> int:
        """max_length, by another name."""
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        self.max_length = length

    def predict(
        self,
        inputs: Iterable[Sequence[str]] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Any = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The scores of pairs of texts, by `llorch.CrossEncoder.predict`, whose errors it has too.

        inputs : one pair, or any iterable of them (`sentences`, by its old name). batch_size : no bit depends on it.
        activation_fn : as for the class. apply_softmax : of a model with several labels. pool, chunk_size : are taken,
        and threads do the work.

        Returns a new array (n,), or (n, labels); of one pair without the first axis. With convert_to_tensor a tensor,
        without either a list of tensors.
        """
        pairs: Any = _texts_of(inputs, kwargs, "predict")
        _check_device(device)
        for name, value in (("prompt_name", prompt_name), ("prompt", prompt)):
            _check(name, value, (None,), NO_PROMPTS)
        function = self._named if activation_fn is None else _function(activation_fn)
        scores = np.asarray(self.model._scores(pairs, function, batch_size, bool(show_progress_bar)))
        if apply_softmax and self.num_labels > 1:
            scores = llorch.softmax(np.atleast_2d(scores)).reshape(scores.shape)
        single = scores.ndim == (self.num_labels > 1)
        if convert_to_tensor:
            return _tensor(scores)
        if convert_to_numpy:
            return scores[()]
        return _tensor(scores) if single else list(_tensor(scores))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Any = None,
        device: Any = None,
        pool: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Documents by their scores beside a query, the highest first, equals in their order: dicts of corpus_id, score
        and, with return_documents, text. ValueError for a model of more than one label; others as `predict`."""
        if self.num_labels != 1:
            raise ValueError(f"the model has {self.num_labels} labels, documents are ranked by one")
        texts = list(documents)
        scores = self.predict(
            [(query, text) for text in texts],
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            activation_fn,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
        ).tolist()
        found = [{"corpus_id": i, "score": scores[i]} for i in sorted(range(len(texts)), key=lambda i: -scores[i])]
        if return_documents:
            found = [each | {"text": texts[each["corpus_id"]]} for each in found]
        return found[:top_k]

    def _texts(self, inputs: Iterable[Any], prompt: str | None) -> list[Any]:
        _check("prompt", prompt, (None,), NO_PROMPTS)
        return [tuple(checked(text, f"inputs[{i}]") for text in pair) for i, pair in enumerate(inputs)]


NO_PROMPTS = "llorch's rerankers put nothing before a pair"


def __getattr__(name: str) -> Any:
    if name != "util":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from sentence_transformers import util
    except ImportError:
        raise ImportError("util is sentence-transformers' own: pip install sentence-transformers") from None
    return util


def _find(name: str | Path, organization: str, hub: Mapping[str, Any]) -> Path:
    """Where a model is. A name without an organisation is sentence-transformers' own first, then anybody's."""
    bare = isinstance(name, str) and "/" not in name and not name.endswith(".gguf")
    if bare and not Path(name).exists() and not (EMBEDDED / name).is_dir():
        with contextlib.suppress(FileNotFoundError):
            return find_model(f"{organization}/{name}", **hub)
    return find_model(name, **hub)


def _texts_of(inputs: Any, kwargs: dict[str, Any], method: str) -> Any:
    """inputs, or what came by its old name."""
    if inputs is None:
        inputs = kwargs.pop("sentences", None)
        if inputs is None:
            raise TypeError(f"{method} needs inputs, got none")
    _check_rest(kwargs, method)
    return inputs


def _check_rest(kwargs: Mapping[str, Any], method: str) -> None:
    """task chooses among a Router's modules, which no model has that llorch loads."""
    for name in kwargs:
        if name != "task":
            raise ValueError(f"{method} got {shown(repr(name))}, which llorch's models don't take")


def _check(name: str, value: Any, allowed: tuple[Any, ...], why: str) -> None:
    if not any(value is each or (type(value) is type(each) and value == each) for each in allowed):
        raise ValueError(f"{name}={shown(repr(value))} isn't supported: {why}")


def _check_device(device: Any) -> None:
    """None, "cpu", a torch.device of that type, or several of them."""
    for each in device if isinstance(device, list | tuple) else [device]:
        if each is not None and str(each).partition(":")[0] != "cpu":
            raise ValueError(f"device is {shown(str(each))}, llorch computes on the CPU: None or 'cpu'")


def _function(function: Any) -> str | None:
    """llorch's name of a module of torch.nn's."""
    kind = type(function)
    known = kind.__module__.startswith("torch.nn.") and kind.__name__ in ACTIVATIONS
    if not known or getattr(function, "approximate", "none") != "none":
        raise ValueError(
            f"activation_fn is {shown(repr(function))}, its bits must be llorch's: one of torch.nn's "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[kind.__name__]


def _torch(what: str) -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError(f'{what} needs the package torch: pip install "llorch[sentence-transformers]"') from None
    return torch


def _tensor(array: Array) -> Any:
    """A tensor of an array's memory."""
    return _torch("a tensor").from_numpy(array)


def _array(embeddings: Any) -> Array:
    """Of arrays, tensors, or lists of them or of numbers; none is float64."""
    if isinstance(embeddings, list | tuple):
        if embeddings and not hasattr(embeddings[0], "dtype"):
            return _float32(embeddings)
        return np.stack([_array(each) for each in embeddings])
    if hasattr(embeddings, "detach"):
        tensor = embeddings.detach().cpu()
        embeddings = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    array: Array = np.asarray(embeddings)
    return _float32(array) if array.dtype == np.float64 else array


def _float32(values: Any) -> Array:
    """Each rounded to nearest even, whatever the caller's thread is set to."""
    made: Array = _core._in_fpenv(np.asarray, values, np.float32)
    return made
