"""The model: what GPT-2 computes, and the cache that remembers keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llorch import _core
from llorch._core import KVCache
from llorch.models import loading as _weights
from llorch.models.gpt2 import GPT2Config

Array = NDArray[Any]
Ids = Sequence[int] | Array
Trace = Callable[[str, Array], object]

FUSED = ("gelu_tanh", "gelu", "silu")  # activations that linear applies by itself
KEPT_ROWS = 64  # a workspace of more rows is not kept for the next call
KEPT = 8


class Cache:
    """Keys and values of one sequence in every block of a model. Made by `GPT2.new_cache`.

    Attributes
    ----------
    length : int
        Positions it holds.
    capacity : int
        The most positions it can hold.
    nbytes : int
        Memory it has taken so far, that shared with forks included.
    """

    __slots__ = ("_layers", "_model")

    def __init__(self, model: GPT2, layers: tuple[KVCache, ...]) -> None:
        self._model = model
        self._layers = layers

    @property
    def length(self) -> int:
        return len(self._layers[0])

    @property
    def capacity(self) -> int:
        return self._layers[0].capacity

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers)

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on. ValueError unless 0 <= length <= self.length."""
        for layer in self._layers:
            layer.truncate(length)

    def fork(self) -> Cache:
        """A cache with the same positions that goes its own way; the memory of what both have is shared."""
        return Cache(self._model, tuple(layer.fork() for layer in self._layers))

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"Cache: {self.length} of {self.capacity} positions"


class _Workspace:
    """Memory and views for sequences of these lengths together: made once, then used for every block."""

    def __init__(self, config: GPT2Config, lengths: tuple[int, ...]) -> None:
        rows, E, H, D = sum(lengths), config.n_embd, config.n_head, config.head_dim
        self.h, self.a, self.context = (np.empty((rows, E), np.float32) for _ in range(3))
        self.qkv = np.empty((rows, 3 * E), np.float32)
        self.f = np.empty((rows, config.inner), np.float32)
        ends = np.cumsum(lengths)
        heads = [(H, T, D) for T in lengths]
        self.views = []  # q, k, v, out of each sequence: (H, T, D), where they lie
        for (_, T, _), end in zip(heads, ends, strict=True):
            q, k, v = self.qkv[end - T : end].reshape(T, 3, H, D).transpose(1, 2, 0, 3)
            self.views.append((q, k, v, self.context[end - T : end].reshape(T, H, D).transpose(1, 0, 2)))

        # The last block, when only the last positions' logits are asked for: beyond keys and values, those rows alone.
        self.last_rows = ends - 1
        count = len(lengths)
        self.last_h, self.last_a, self.last_f = self.h, self.a, self.f
        self.last_context, self.last_views = self.context, self.views
        if rows > count:
            self.last_h = np.empty((count, E), np.float32)
            self.last_a, self.last_f, self.last_context = self.a[:count], self.f[:count], self.context[:count]
            self.last_views = [
                (q[:, -1:], k, v, self.last_context[i].reshape(H, 1, D)) for i, (q, k, v, _) in enumerate(self.views)
            ]


class GPT2:
    """A GPT-2 whose every logit is specified: `llorch.reference.GPT2` has the same bits.

    A sequence's logits depend on its own tokens alone: not on what else is in the batch, on how the tokens were cut
    into chunks, on cache, threads or processor. May be used from several threads at once, each with its own caches.

    Attributes
    ----------
    config : GPT2Config
    dtype : "float32", "bfloat16" or "float16"
        How the weights are kept. Everything is computed in float32.
    nbytes : int
        Memory of the weights.
    path : pathlib.Path
        The folder it came from.
    """

    def __init__(self, config: GPT2Config, weights: _weights.Weights, path: Path) -> None:
        self.config, self.path = config, path
        self.dtype, self.nbytes = weights.dtype, weights.nbytes
        self._wte, self._wpe, self._lm_head = weights.wte, weights.wpe, weights.lm_head
        self._ln_f = weights.ln_f_weight, weights.ln_f_bias
        usual = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx  # attention's own default
        self._layers = [
            (*layer, None if usual else _core._in_fpenv(config.scale, i)) for i, layer in enumerate(weights.layers)
        ]
        self._fused = config.activation if config.activation in FUSED else None
        self._apply: Callable[[Array], object] | None = {"relu": _relu, "tanh": _tanh}.get(config.activation)
        self._spare: dict[tuple[int, ...], _Workspace] = {}

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, *, dtype: str | None = None) -> Self:
        """A model from a folder in Hugging Face's format, or from its hub.

        Parameters
        ----------
        path_or_hub_id : str or pathlib.Path
            A folder with config.json and model.safetensors (or the files that model.safetensors.index.json names);
            "shakespeare-1m", the small model that comes with llorch; or a hub id, such as "openai-community/gpt2",
            which huggingface-hub downloads and keeps.
        dtype : None, "float32", "bfloat16" or "float16"
            None keeps the file's type (float32 if it has several). A 16-bit type rounds every parameter once, to
            nearest even.

        Raises
        ------
        FileNotFoundError
            There is no such folder, and the hub doesn't give it; or a file of it is missing.
        ValueError, TypeError
            A file that is cut off or contradicts itself, a tensor that is missing, unknown, or of another shape or type
            than config.json asks for (each is named); a configuration that isn't supported; weights that are only there
            as a pickle, which could run any code.
        ModuleNotFoundError
            A package of llorch[gpt2] is needed and missing.
        """
        folder = _weights.find_folder(path_or_hub_id)
        config = GPT2Config.from_file(folder / "config.json")
        return cls(config, _weights.load(folder, config, dtype), folder)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"GPT2({c.n_layer} blocks, {c.n_embd} wide, {c.n_head} heads, {c.n_positions} positions, "
            f"{c.vocab_size} tokens, {self.dtype}, {self.nbytes / 1e6:.1f} MB)"
        )

    def __reduce__(self) -> Any:
        raise TypeError("a GPT2 can't be pickled or copied: load it again from its path")

    def new_cache(self, capacity: int | None = None) -> Cache:
        """An empty cache for one sequence of up to `capacity` positions (None: n_positions, the most there can be).

        Memory is taken as positions arrive: 128 at a time, 8 * n_layer * n_embd bytes each.
        """
        config = self.config
        most = config.n_positions
        if capacity is None:
            capacity = most
        caches = tuple(KVCache(config.n_head, config.head_dim, capacity) for _ in range(config.n_layer))
        if caches[0].capacity > most:
            raise ValueError(f"capacity is {capacity}, the model has {most} positions")
        return Cache(self, caches)

    def forward(self, ids: Ids, cache: Cache | None = None, *, trace: Trace | None = None) -> Array:
        """The logits of every position of `ids`.

        Parameters
        ----------
        ids : sequence or array of T >= 1 ints in [0, vocab_size)
        cache : Cache of this model, optional
            What came before; ids are appended to it. Without one, ids are the whole text.
        trace : function of (name, array), optional
            Called with inner tensors as they are computed: embed; h.0.ln_1, h.0.attn.c_attn, h.0.attn.context,
            h.0.attn.c_proj, h.0.residual, h.0.ln_2, h.0.mlp.c_fc, h.0.mlp.act, h.0.mlp.c_proj, h.0 and so on for every
            block; ln_f. Each is (T, its width) float32, in memory that is used again: copy it to keep it. What it
            raises ends the call. docs/validator.md says what each is.

        Returns
        -------
        New float32 array (T, vocab_size).

        Raises
        ------
        TypeError, ValueError, IndexError
            ids that aren't ints, none at all, more than the context or the cache has room for; an id out of range; a
            cache of another model. Nothing has been computed then, and the cache is as it was.
        """
        chunk = self._ids(ids, "ids")
        if cache is not None:
            self._check_cache(cache, "cache", len(chunk), "ids")
        elif len(chunk) > self.config.n_positions:
            raise ValueError(f"ids has {len(chunk)} tokens, the model has {self.config.n_positions} positions")
        return self._run([chunk], None if cache is None else [cache], last=False, trace=trace)

    def step(self, chunks: Sequence[Ids], caches: Sequence[Cache]) -> Array:
        """Appends to several sequences at once; the logits of the last position of each.

        Parameters
        ----------
        chunks : sequence of sequences of ints
            What comes next in each sequence: T >= 1 ids in [0, vocab_size) each, T differing freely.
        caches : sequence of as many Caches of this model, no two the same

        Returns
        -------
        New float32 array (len(chunks), vocab_size).

        Raises
        ------
        TypeError, ValueError, IndexError
            As `forward`, naming the chunk or the cache. Nothing has been appended to any cache then.
        """
        chunks, caches = list(chunks), list(caches)
        if len(chunks) != len(caches):
            raise ValueError(f"there are {len(chunks)} chunks and {len(caches)} caches, they must be as many")
        if not chunks:
            return np.empty((0, self.config.vocab_size), np.float32)
        arrays = [self._ids(ids, f"chunks[{i}]") for i, ids in enumerate(chunks)]
        for i, (cache, ids) in enumerate(zip(caches, arrays, strict=True)):
            self._check_cache(cache, f"caches[{i}]", len(ids), f"chunks[{i}]")
        if len({id(cache) for cache in caches}) < len(caches):
            raise ValueError("caches has the same Cache twice: each sequence needs one of its own, see Cache.fork")
        return self._run(arrays, caches, last=True)

    # ---- checks ----------------------------------------------------------------------------------------

    def _ids(self, ids: Ids, name: str) -> Array:
        if isinstance(ids, str | bytes):
            raise TypeError(f"{name} must be token ids, got a {type(ids).__name__}: encode it by model.tokenizer")
        try:
            given = np.asarray(ids)
        except ValueError:  # sequences of several lengths
            raise ValueError(f"{name} must be one sequence of token ids, it holds several") from None
        if given.ndim != 1:
            raise ValueError(f"{name} has shape {given.shape}, it must be one sequence of token ids")
        if not given.size:
            raise ValueError(f"{name} is empty, at least one token id is needed")
        if given.dtype.kind not in "iu":
            raise TypeError(f"{name} must be ints, got {given.dtype.name}")
        low, high = given.min(), given.max()
        if low < 0 or high >= self.config.vocab_size:
            wrong = int(np.flatnonzero((given < 0) | (given >= self.config.vocab_size))[0])
            raise IndexError(f"{name}[{wrong}] is {given[wrong]}, ids must be in [0, {self.config.vocab_size})")
        return given

    def _check_cache(self, cache: Cache, name: str, more: int, of: str) -> None:
        if not isinstance(cache, Cache):
            raise TypeError(f"{name} must be a Cache made by new_cache, got {type(cache).__name__}")
        if cache._model is not self:
            raise ValueError(f"{name} is a cache of another model, make one by this model's new_cache")
        if more > cache.capacity - cache.length:
            raise ValueError(
                f"{of} has {more} tokens, but {name} holds {cache.length} of at most {cache.capacity} positions"
            )

    # ---- the computation -------------------------------------------------------------------------------

    def _run(self, chunks: list[Array], caches: list[Cache] | None, *, last: bool, trace: Trace | None = None) -> Array:
        lengths = tuple(map(len, chunks))
        workspace = self._spare.pop(lengths, None) or _Workspace(self.config, lengths)  # no one else's meanwhile
        if caches is None:
            logits = self._forward(chunks, workspace, None, [0], last, trace)
        else:
            before = [cache.length for cache in caches]
            try:
                logits = self._forward(chunks, workspace, [cache._layers for cache in caches], before, last, trace)
            except BaseException:  # out of memory, or an interrupt between blocks
                for cache, length in zip(caches, before, strict=True):
                    for layer in cache._layers:
                        layer.truncate(min(length, len(layer)))
                raise
        if sum(lengths) <= KEPT_ROWS:
            if len(self._spare) >= KEPT:
                self._spare.clear()
            self._spare[lengths] = workspace
        return logits

    def _forward(
        self,
        chunks: list[Array],
        w: _Workspace,
        caches: list[tuple[KVCache, ...]] | None,
        starts: list[int],
        last: bool,
        trace: Trace | None,
    ) -> Array:
        """The rows of all sequences one below the other: every matrix is read once for all of them."""
        eps, fused, apply = self.config.layer_norm_epsilon, self._fused, self._apply
        layer_norm = _core.layer_norm
        h, a, qkv, context, f, views = w.h, w.a, w.qkv, w.context, w.f, w.views
        final = len(self._layers) - 1 if last else -1

        # h = wte[token] + wpe[position]; the sum is left to the first block's norm
        row, column = 0, self._wte.column
        positions = context  # not needed before the first attention
        for ids, start in zip(chunks, starts, strict=True):
            positions[row : row + len(ids)] = self._wpe[start : start + len(ids)]
            for token in ids.tolist():
                h[row] = column(token)
                row += 1

        for i, (w1, b1, c_attn, c_proj, w2, b2, c_fc, c_out, scale) in enumerate(self._layers):
            # h = h + c_proj(attention(c_attn(layer_norm(h))))
            if i == 0:
                _core.add_layer_norm(h, positions, w1, b1, eps=eps, out=a, sum_out=h)
            else:
                layer_norm(h, w1, b1, eps=eps, out=a)
            if trace is not None:
                if i == 0:
                    trace("embed", h)
                trace(f"h.{i}.ln_1", a)
            c_attn(a, out=qkv)
            if trace is not None:
                trace(f"h.{i}.attn.c_attn", qkv)
            if i == final:
                views = w.last_views
            if caches is None:
                q, k, v, o = views[0]
                _core.attention(q, k, v, scale=scale, out=o)
            else:
                for (q, k, v, o), layers in zip(views, caches, strict=True):
                    cache = layers[i]
                    cache.append(k, v)
                    cache.attention(q, scale=scale, out=o)
            if i == final and w.last_h is not h:
                np.take(h, w.last_rows, axis=0, out=w.last_h)
                h, a, context, f = w.last_h, w.last_a, w.last_context, w.last_f
            if trace is not None:
                trace(f"h.{i}.attn.context", context)
                trace(f"h.{i}.attn.c_proj", c_proj(context))
            c_proj(context, residual=h, out=h)

            # h = h + c_proj(activation(c_fc(layer_norm(h))))
            layer_norm(h, w2, b2, eps=eps, out=a)
            if trace is not None:
                trace(f"h.{i}.residual", h)
                trace(f"h.{i}.ln_2", a)
                trace(f"h.{i}.mlp.c_fc", c_fc(a))
            c_fc(a, activation=fused, out=f)
            if apply is not None:
                apply(f)
            if trace is not None:
                trace(f"h.{i}.mlp.act", f)
                trace(f"h.{i}.mlp.c_proj", c_out(f))
            c_out(f, residual=h, out=h)
            if trace is not None:
                trace(f"h.{i}", h)

        layer_norm(h, *self._ln_f, eps=eps, out=a)
        if trace is not None:
            trace("ln_f", a)
        return self._lm_head(a)


def _relu(f: Array) -> None:
    """max(f, +0) in place; a NaN stays. On the encodings: a comparison of floats may take subnormals for zero in a
    process that asked for that."""
    encoding = f.view(np.uint32)
    encoding[(encoding >= 0x80000000) & (encoding <= 0xFF800000)] = 0


def _tanh(f: Array) -> None:
    _core.tanh(f, out=f)
