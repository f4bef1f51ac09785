"""The engine: any family's graph, compiled into plans of kernel calls, on caches of its own."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch import _core
from llorch._core import Plan, SequenceCache
from llorch._text import counted, printable
from llorch.files import Source
from llorch.models import loading, registry
from llorch.models.compile import Compiler, Weights
from llorch.models.config import ModelConfig
from llorch.models.graph import Graph, Rope
from llorch.models.registry import Family

Array = NDArray[Any]
Ids = Sequence[int] | Array
Trace = Callable[[str, Array], object]
Cache = SequenceCache

KINDS = {  # of families, for people: what they are, and what runs them
    "decoder": ("a decoder, which gives the next token", "llorch.CausalLM (`llorch generate`)"),
    "encoder": ("an encoder, which gives a hidden state", "llorch.TextEncoder (`llorch embed`)"),
}
FIRST_POSITIONS = 512  # rows of a table of rotations that are made at once; it doubles as positions are met


class Engine:
    """What engines of all kinds have in common: a model from its files, checks, plans, a trace.

    KIND : of the families that it runs. RESULT : what comes of it, for people. ROWS : as `Compiler` has it, whose plan
    is made with the model; others are when they are first needed. Attributes are those of `Decoder`.
    """

    KIND: ClassVar[str]
    RESULT: ClassVar[str]
    ROWS: ClassVar[str]
    asked: tuple[str | None, str] = (None, "float32")  # dtype and compute that from_pretrained was given

    def __new__(cls, *parts: Any, **named: Any) -> Self:
        if parts and isinstance(parts[0], str | Path):  # as other libraries' classes are called
            raise TypeError(f"a {cls.__name__} is made by {cls.__name__}.from_pretrained(path_or_hub_id)")
        return super().__new__(cls)

    def __init__(
        self,
        source: Source,
        family: Family,
        config: ModelConfig,
        graph: Graph,
        weights: Weights,
        left_out: Sequence[str],
    ) -> None:
        self.source, self.family, self.config, self.graph = source, family, config, graph
        self.path, self.left_out = source.path, tuple(left_out)
        self.dtype, self.compute = weights.dtype, weights.compute
        self.nbytes, self.step_nbytes = weights.nbytes, weights.step_nbytes
        self._weights = weights
        self._traced: tuple[Plan, list[list[tuple[str, int, int, int, int]]]] | None = None
        self._tables = Tables(graph.ropes, config.context)
        self._plans: dict[str, Plan] = {}
        self._plan(self.ROWS)

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, dtype: str | None = None, compute: str = "float32") -> Self:
        """A model from a folder in Hugging Face's format, a GGUF file, or Hugging Face's hub.

        Parameters
        ----------
        path_or_hub_id : str or pathlib.Path
            A folder with config.json and model.safetensors (or the files that model.safetensors.index.json names); a
            .gguf file (of a split model: any part); "shakespeare-1m", the small model that comes with llorch; or a hub
            id, such as "openai-community/gpt2", which huggingface-hub downloads and keeps.
        dtype : None, "float32", "bfloat16", "float16", or "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k" ... "q6_k"
            How weights are kept. None keeps every tensor in the file's type, blocks of integers too. "float32" widens
            them, exactly; a 16-bit type rounds every parameter once, to nearest even. A type of blocks quantises the
            matrices that are floats in the file, as `llorch.quantize` does it; rows that aren't whole blocks, and
            blocks of other formats, stay what they are.
        compute : "float32" or "int16"
            The arithmetic of linear layers. "float32" has the bits of the weights' values whatever they are kept in.
            "int16" is another function, of weights in blocks of integers alone, and faster: activations become 16-bit
            integers, 128 together, and sums of products are exact. Layers of other weights stay "float32".

        Raises
        ------
        FileNotFoundError
            There is no such folder or file, and the hub doesn't give it; or a file of it is missing.
        ValueError, TypeError
            Another dtype or compute; a file that is cut off or contradicts itself, a tensor that is missing, unknown,
            or of another shape or type than the configuration asks for (each is named); a family or a configuration
            that isn't supported; weights that are only there as a pickle, which could run any code.
        ModuleNotFoundError
            A package of llorch[models] is needed and missing.
        """
        loading.check_choices(dtype, compute)
        model: Self = _core._in_fpenv(cls._load, path_or_hub_id, dtype, compute)
        if model.left_out:
            warnings.warn(
                f"{printable(str(model.path))}: left out, as they belong to another task than {model.RESULT}: "
                f"{loading.some(model.left_out)}",
                stacklevel=2,
            )
        if dtype in loading.INTEGERS and (others := model._weights.others(dtype)):
            count, total, formats = others
            warnings.warn(
                f"{printable(str(model.path))}: {count} of {total} matrices stay {formats}, not {dtype}: their rows "
                "aren't whole blocks, or they were blocks before",
                stacklevel=2,
            )
        if model.compute != compute:
            warnings.warn(
                f"{printable(str(model.path))}: no weight is in blocks of integers, which compute={compute!r} needs: "
                "everything is computed in float32 (dtype='q8_0' makes such blocks)",
                stacklevel=2,
            )
        return model

    @classmethod
    def _load(cls, path_or_hub_id: str | Path, dtype: str | None, compute: str) -> Self:
        """In the contract's floating-point environment: the file's numbers are read and computed with here."""
        source = registry.open_known(path_or_hub_id)
        family = registry.family_of(source)
        cls._check_family(source, family)
        config = registry.config_of(source, family)
        graph = cls._graph(family, config)
        found = loading.find(source, family, graph)
        registry.check_ropes(source, config, graph)
        model = cls(source, family, config, graph, loading.load(source, graph, found, dtype, compute), found.heads)
        model.asked = dtype, compute
        return model

    @classmethod
    def _check_family(cls, source: Source, family: Family) -> None:
        """ValueError for a family whose models give something else."""
        if family.kind != cls.KIND:
            (found, runs), (wanted, _) = KINDS[family.kind], KINDS[cls.KIND]
            raise ValueError(
                f"{printable(str(source.path))}: {family.name} is {found}, not {wanted}: it is run by {runs}"
            )

    @classmethod
    def _graph(cls, family: Family, config: ModelConfig) -> Graph:
        return family.graph(config)

    def __repr__(self) -> str:
        c, sizes = self.config, self.graph.sizes
        heads = f"{sizes['H']} heads" + (f" ({sizes['G']} of keys)" if sizes["G"] != sizes["H"] else "")
        return (
            f"{self.family.name}({c.layers} blocks, {sizes['E']} wide, {heads}, {c.context} positions, "
            f"{c.vocab_size} tokens, {self.dtype}, {self.nbytes / 1e6:.1f} MB"
            f"{'' if self.compute == 'float32' else f', compute={self.compute!r}'})"
        )

    def __reduce__(self) -> Any:
        raise TypeError("a model can't be pickled or copied: load it again from its path")

    # ---- checks ----------------------------------------------------------------------------------------

    def _ids(self, ids: Ids, name: str) -> Array:
        if _core._ids_fit(ids, self.config.vocab_size):  # as nearly always, and a step has many
            return ids  # type: ignore[return-value]
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
            what = "texts" if given.dtype.kind in "US" else given.dtype.name
            raise TypeError(f"{name} must be ints, got {what}")
        if (place := _core._bool_at(ids)) is not None:
            raise TypeError(f"{name}[{place[0]}] is {ids[place[0]]}, ids must be ints")
        low, high = given.min(), given.max()
        if low < 0 or high >= self.config.vocab_size:
            wrong = int(np.flatnonzero((given < 0) | (given >= self.config.vocab_size))[0])
            raise IndexError(f"{name}[{wrong}] is {given[wrong]}, ids must be in [0, {self.config.vocab_size})")
        return given

    # ---- the computation -------------------------------------------------------------------------------

    def _plan(self, rows: str) -> Plan:
        """The plan for these rows of the result, made once. Of two threads that make it, the first one's stays."""
        found = self._plans.get(rows)
        if found is None:
            made = _core._in_fpenv(Compiler(self.graph, self._weights, rows=rows).run)
            self._tables.add(made)
            found = self._plans.setdefault(rows, made)
        return found

    def _run(
        self,
        plan: Plan,
        chunks: list[Any],
        caches: list[Cache] | None,
        all_rows: bool,
        check: Callable[[Any, int], Array],
        trace: Any = None,
        types: list[Array] | None = None,
        skip: int = 0,
    ) -> Array:
        grow = self._tables.grow if self.graph.ropes else None
        return plan.run(chunks, caches, all_rows, self.config.vocab_size, check, grow, trace, types, skip)

    def _forward(
        self,
        ids: Any,
        caches: list[Cache] | None,
        check: Callable[[Any, int], Array],
        trace: Trace | None,
        types: list[Array] | None = None,
    ) -> Array:
        """The result of every row, and what a trace sees on the way."""
        if not callable(trace) and trace is not None:
            raise TypeError(f"trace must be a function of (name, array), got {type(trace).__name__}")
        if trace is None:
            return self._run(self._plan("all"), [ids], caches, True, check, types=types)
        if self._traced is None:
            made = _core._in_fpenv(_traced, self.graph, self._weights)
            self._tables.add(made[0])
            self._traced = made
        plan, tensors = self._traced
        seen = trace

        def see(call: int, array: Callable[[int, int, int], Array]) -> None:
            for name, buffer, column, width, heads in tensors[call]:
                values = array(buffer, column, width)
                if heads:
                    values = values.reshape(len(values), heads, width // heads).transpose(1, 0, 2)
                seen(name, values)

        return self._run(plan, [ids], caches, True, check, see, types)


class Decoder(Engine):
    """A model whose every logit is specified: the text of its family in `llorch.reference` has the same bits.

    A sequence's logits depend on its own tokens alone: not on what else is in the batch, on how the tokens were cut
    into chunks, on cache, threads or processor. May be used from several threads at once, each with its own caches.

    Attributes
    ----------
    config : the family's configuration, such as `llorch.models.gpt2.GPT2Config`
    family : llorch.models.registry.Family
    graph : llorch.models.graph.Graph
        What is computed, step by step.
    dtype : str
        How the matrices are kept: "float32", "bfloat16", "q4_0" ... Where it isn't one way, all of them, that of most
        bytes first: "q4_k+q6_k".
    compute : "float32" or "int16"
        The arithmetic of linear layers whose weights are blocks of integers. All else is computed in float32.
    nbytes, step_nbytes : int
        Memory of the weights, and what of it every step reads.
    path : pathlib.Path
        The folder or file it came from.
    source : llorch.files.Source
    left_out : tuple of str
        Tensors of the file that belong to other tasks.
    """

    KIND, RESULT = "decoder", "the next token"
    ROWS = "last"

    def new_cache(self, capacity: int | None = None) -> Cache:
        """An empty cache for one sequence of up to `capacity` positions (None: the context, the most there can be).

        Memory is taken as positions arrive, 128 at a time: in each layer and head of keys, 4 bytes for every value of a
        key, and for every value of a value, rounded up to a multiple of 16. TypeError or ValueError for a capacity that
        is no number of positions, or more than the context; MemoryError.
        """
        most, sizes = self.config.context, self.graph.sizes
        capacity = most if capacity is None else capacity
        cache = SequenceCache(self, self.config.layers, sizes["G"], sizes["D"], capacity)
        if cache.capacity > most:
            raise ValueError(f"capacity is {capacity}, the model has {most} positions")
        return cache

    def cache_nbytes(self, positions: int) -> int:
        """Memory of a cache that holds so many positions, in bytes."""
        sizes, blocks = self.graph.sizes, -(-positions // 128)
        values = sizes["D"] + -(-sizes["D"] // 16) * 16
        return blocks * 128 * 4 * values * sizes["G"] * self.config.layers

    def forward(self, ids: Ids, cache: Cache | None = None, *, trace: Trace | None = None) -> Array:
        """The logits of every position of `ids`.

        Parameters
        ----------
        ids : sequence or array of T >= 1 ints in [0, vocab_size)
        cache : Cache of this model, optional
            What came before; ids are appended to it. Without one, ids are the whole text.
        trace : function of (name, array), optional
            Called with inner tensors as they are computed: every step of `graph` but the scores, by its name: embed,
            h.0.ln_1, h.0.attn.q, and so on. Each is (T, its width) float32, or (heads, T, D), in memory that is used
            again: copy it to keep it. What it raises ends the call. docs/validator.md says what each is.

        Returns
        -------
        New float32 array (T, vocab_size).

        Raises
        ------
        TypeError, ValueError, IndexError
            ids that aren't ints, none at all, more than the context or the cache has room for; an id out of range; a
            cache of another model. Nothing has been computed then, and the cache is as it was.
        """
        ids = ids if type(ids) is list else self._ids(ids, "ids")
        if not len(ids):
            self._ids(ids, "ids")
        if cache is not None:
            self._check_cache(cache, "cache", len(ids), "ids")
        elif len(ids) > self.config.context:
            raise ValueError(f"ids has {counted(len(ids), 'token')}, the model has {self.config.context} positions")
        caches = None if cache is None else [cache]

        def check(chunk: Ids, place: int) -> Array:
            return self._ids(chunk, "ids")

        return self._forward(ids, caches, check, trace)

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
        chunks, caches = self._check_chunks(chunks, caches)
        if not chunks:
            return np.empty((0, self.config.vocab_size), np.float32)
        return self._run(self._plan("last"), chunks, caches, False, self._chunk)

    def forward_batch(self, chunks: Sequence[Ids], caches: Sequence[Cache]) -> Array:
        """Appends to several sequences at once; the logits of every position. Parameters and errors are `step`'s.

        New float32 array (T of all chunks together, vocab_size): the rows of a chunk after those of the one before.
        """
        chunks, caches = self._check_chunks(chunks, caches)
        if not chunks:
            return np.empty((0, self.config.vocab_size), np.float32)
        return self._run(self._plan("all"), chunks, caches, True, self._chunk)

    def _check_chunks(self, chunks: Sequence[Ids], caches: Sequence[Cache]) -> tuple[list[Any], list[Cache]]:
        for name, given in (("chunks", chunks), ("caches", caches)):
            if not isinstance(given, Iterable):
                raise TypeError(f"{name} must be a sequence, got {type(given).__name__}")
        chunks, caches = list(chunks), list(caches)
        if len(chunks) != len(caches):
            raise ValueError(f"there are {len(chunks)} chunks and {len(caches)} caches, they must be as many")
        for i, ids in enumerate(chunks):
            if type(ids) is not list:
                chunks[i] = self._ids(ids, f"chunks[{i}]")
            elif not ids:
                self._ids(ids, f"chunks[{i}]")
            self._check_cache(caches[i], f"caches[{i}]", len(chunks[i]), f"chunks[{i}]")
        if len(caches) > 1 and len({id(cache) for cache in caches}) < len(caches):
            raise ValueError("caches has the same Cache twice: each sequence needs one of its own, see Cache.fork")
        return chunks, caches

    def _chunk(self, ids: Ids, place: int) -> Array:
        return self._ids(ids, f"chunks[{place}]")

    def _check_cache(self, cache: Cache, name: str, more: int, of: str) -> None:
        if not isinstance(cache, SequenceCache):
            raise TypeError(f"{name} must be a Cache made by new_cache, got {type(cache).__name__}")
        if cache.model is not self:
            raise ValueError(f"{name} is a cache of another model, make one by this model's new_cache")
        if more > cache.capacity - cache.length:
            raise ValueError(
                f"{of} has {counted(more, 'token')}, but {name} holds {cache.length} of at most {cache.capacity} "
                "positions"
            )


class Tables:
    """cos and sin of every rope of a model, up to the positions that have been met; and the plans that use them."""

    def __init__(self, ropes: Mapping[str, Rope], context: int) -> None:
        self.ropes, self.context = list(ropes.values()), context
        self.plans: list[Plan] = []
        self.length = 0
        self.arrays: tuple[tuple[Array, Array], ...] = ()
        self._lock = threading.Lock()

    def add(self, plan: Plan) -> None:
        """One more plan that uses them."""
        with self._lock:
            plan.tables = self.arrays
            self.plans.append(plan)

    def grow(self, positions: int) -> None:
        """Makes them long enough for so many positions. Plans that run keep the arrays that they began with."""
        if positions <= self.length:
            return
        with self._lock:
            if positions <= self.length:
                return
            length = max(positions, min(max(2 * self.length, FIRST_POSITIONS), self.context))
            # What there is, not self.length: an interrupt may have come between the two.
            have = len(self.arrays[0][0]) if self.arrays else 0
            more = np.arange(have, max(have, length))
            made = [llorch.rope_table(rope.width, more, base=rope.base, scaling=rope.scaling) for rope in self.ropes]
            if self.arrays:
                made = [
                    (np.concatenate([cos, c]), np.concatenate([sin, s]))
                    for (cos, sin), (c, s) in zip(self.arrays, made, strict=True)
                ]
            self.arrays = tuple(made)
            for plan in self.plans:
                plan.tables = self.arrays
            self.length = max(have, length)  # last: who sees it finds the tables in every plan


def _traced(graph: Graph, weights: Weights) -> tuple[Plan, list[list[tuple[str, int, int, int, int]]]]:
    """A plan in which every tensor of the graph is there for a moment; and of each call what is there after it: name,
    buffer, column, width, heads (0 for rows)."""
    compiler = Compiler(graph, weights, fuse=False)
    plan = compiler.run()
    made = [
        [
            (
                _name(value.layer, value.step.name, len(graph.blocks)),
                value.buffer,
                value.column,
                value.width,
                graph.sizes[value.step.axes[0]] if value.step.axes[0] in "HG" else 0,
            )
            for value in values
        ]
        for values in compiler.made
    ]
    return plan, made


def _name(layer: int, name: str, layers: int) -> str:
    """A tensor's name on the ladder."""
    if not 0 <= layer < layers:
        return name
    return f"h.{layer}.{name}" if name else f"h.{layer}"
