"""Every tensor of the ladder, from the oracle and from llorch's own engine; `peer` has it from transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

import llorch
from llorch import reference
from llorch.files import Reader
from llorch.files.folder import find_model
from llorch.files.tensor import BLOCKS
from llorch.models import loading, registry
from llorch.models.encoder_engine import Encoder
from llorch.models.graph import Graph, Step
from llorch.text import tokenizer_files
from llorch.text.causal_lm import CausalLM
from llorch.text.inputs import inputs_of
from llorch.text.tokenizer import Tokenizer
from llorch.validate.ladder import endings, rungs
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.endings import Ending
from llorch.validate.ladder.network import (
    Blocks,
    Float64,
    Network,
    Progress,
    Specified,
    Trace,
    greedy,
    position_bias,
    shared_heads,
    silent,
    visible,
)
from llorch.validate.ladder.rungs import block_name

HELLO = (15496, 13)  # "Hello." in GPT-2's own vocabulary, for a folder without a tokenizer
PROMPT = "Hello."


# ---- a model on disk -----------------------------------------------------------------------------------------


class Model:
    """A model's files in all the forms that are compared; each is made when it is first used.

    path_or_hub_id, compute : as `llorch.CausalLM.from_pretrained` takes them. The errors are its own.
    """

    def __init__(self, path_or_hub_id: str | Path = "shakespeare-1m", compute: str = "float32") -> None:
        loading.check_choices(None, compute)
        self.asked = compute
        self.source = registry.open_known(endings.transformer_of(path_or_hub_id))
        self.path = self.source.path
        self.family = registry.family_of(self.source)
        self.config = registry.config_of(self.source, self.family)
        self.folder = find_model(path_or_hub_id)  # where sentence-transformers' modules.json would be
        encodes = self.family.kind == "encoder"
        self.sentences = endings.sentences_of(path_or_hub_id, self.source) if encodes else None
        self.ending = None if self.sentences is None else Ending.of(self.sentences)

    @cached_property
    def stored(self) -> Graph:
        """Of what the transformer's files have."""
        return self.family.graph(self.config)

    @cached_property
    def graph(self) -> Graph:
        """With an encoder's embedding of the text."""
        return self.stored if self.ending is None else self.ending.behind(self.stored)

    @cached_property
    def engine(self) -> CausalLM | Encoder:
        kind: type[CausalLM | Encoder] = CausalLM if self.graph.decodes else Encoder
        return kind.from_pretrained(self.path, compute=self.asked)

    @property
    def compute(self) -> str:
        """The arithmetic of linear layers: "int16" where it was asked for and any weight is of blocks of integers."""
        return "int16" if self.blocks else "float32"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizer_files.load(self.source)

    @cached_property
    def tensors(self) -> Trace:
        """Every array of the file as float32, by its name in Hugging Face's files without the family's prefix, and with
        matrices in their layout; rows in the order of the graph's steps, and vectors as those take them."""
        reader, kind = Reader(), self.source.kind
        parameters = {name: parameter for name, _, parameter in self.stored.all_parameters()}
        found = {}
        for name, entry in loading.find(self.source, self.family, self.stored).entries.items():
            if entry.format in BLOCKS:
                values = reference.dequantize(reader.read(entry), entry.format, entry.shape)
            else:
                values = reference.widen(reader.array(entry)).copy()
            parameter = parameters[name]
            values = loading.whole(loading.arranged(values, parameter, self.graph, kind), parameter, kind)
            found[name] = values.T if kind == "gguf" and parameter.conv1d else values
        return found | ({} if self.sentences is None else endings.tensors_of(self.sentences))

    @cached_property
    def blocks(self) -> dict[str, tuple[Array, str]]:
        """Of the matrices that 16-bit integers are multiplied with, rows of blocks and their format, as `tensors` has
        their values."""
        reader, found = Reader(), {}
        parameters = {name: parameter for name, _, parameter in self.stored.all_parameters()}
        for name, entry in loading.find(self.source, self.family, self.stored).entries.items():
            if self.asked == "int16" and entry.format.lower() in loading.INTEGERS and len(entry.shape) == 2:
                rows = reader.rows(entry, 0, entry.shape[0])
                arranged = loading.arranged(rows, parameters[name], self.graph, self.source.kind)
                found[name] = arranged.reshape(-1).copy(), entry.format
        return found

    @cached_property
    def network(self) -> Network:
        entries = loading.find(self.source, self.family, self.stored).entries
        kept = {name: loading.PLAIN.get(entry.format, "float32") for name, entry in entries.items()}
        formats = {name: entry.format for name, entry in entries.items()}
        stored = {name: Blocks(*found, self.tensors[name]) for name, found in self.blocks.items()}
        network = Network.of(self.family.name, self.config, self.graph, self.tensors, kept, stored, formats)
        name = "pad_token_id" if self.source.kind == "hf" else "tokenizer.ggml.padding_token_id"
        pad = self.source.config.get(name, 0)
        network.ending = self.ending
        network.pad = pad if isinstance(pad, int) and 0 <= pad < self.config.vocab_size else 0
        return network

    @property
    def sha256(self) -> str:
        """Of the files of weights, one after the other in the order of their names."""
        return self.source.sha256

    def ids(self, prompt: str = PROMPT) -> list[int]:
        """Token ids of a text. A folder without a tokenizer, such as random weights, knows "Hello." alone."""
        try:
            if self.graph.decodes:
                ids = self.tokenizer.encode(prompt)
            else:  # which is trained with special tokens around a text
                assert self.sentences is not None
                length, lower = self.sentences.max_seq_length, self.sentences.lower
                (ids,) = inputs_of(self.source, self.config.context, 0, length=length, lower=lower)([prompt]).ids
        except FileNotFoundError:
            if prompt != PROMPT or self.config.vocab_size < max(HELLO):
                raise
            ids = list(HELLO)
        if not ids:
            raise ValueError("the prompt is empty, it must have at least one token")
        return ids

    def text(self, ids: Sequence[int] | Array) -> str | None:
        """The text of ids, None without a tokenizer."""
        try:
            return self.tokenizer.decode([int(id) for id in ids])
        except FileNotFoundError:
            return None


# ---- the two sources ---------------------------------------------------------------------------------------


def trace_oracle(model: Model, ids: Sequence[int], expected: Array | None = None, progress: Progress = silent) -> Trace:
    """Every tensor by the oracle, in specified bits.

    expected: new tokens that an engine found. The oracle then runs once, over the prompt and these: a row's bits don't
    depend on the rows below it, and they are greedy if each is the argmax of the row before it. Where one isn't, the
    oracle goes on by itself from there.
    """
    return greedy(model.network, ids, Specified(), expected, progress)


def trace_float64(
    model: Model, ids: Sequence[int], expected: Array | None = None, progress: Progress = silent
) -> Trace:
    """The same in plain float64."""
    return greedy(model.network, ids, Float64(), expected, progress)


def trace_engine(model: Model, ids: Sequence[int]) -> Trace:
    """Every tensor by llorch's engine.

    Its attention kernel doesn't keep scores: they are `llorch.linear` of its queries and its cache's keys, times scale,
    which is how the kernel's own are specified. Greedy tokens come one by one through the cache.
    """
    engine, graph, T = model.engine, model.graph, len(ids)
    trace: Trace = {"ids": np.asarray(ids, np.int64)}

    def keep(name: str, values: Array) -> None:
        trace[name] = values.copy()

    if isinstance(engine, Encoder):
        hidden = engine.forward(ids, trace=keep)
        _add_scores(trace, model)
        if model.sentences is not None:
            trace |= endings.by_kernels(hidden, model.sentences)
        return {tensor.name: trace[tensor.name] for tensor in rungs.tensors(model, T)}
    count = rungs.new_tokens(model.config, T)
    cache = engine.new_cache(T + max(count - 1, 0))
    trace["logits"] = engine.forward(ids, cache, trace=keep)
    for i, steps in enumerate(graph.blocks):
        kept = iter((cache.keys(i), cache.values(i)))
        for step in steps:
            if step.op == "cache":
                trace[block_name(i, step.name)] = next(kept)
    _add_scores(trace, model)
    logits = trace["last_logits"] = trace["logits"][-1].copy()
    trace["argmax"] = np.array(llorch.argmax(logits), np.int64)
    trace["probs"] = llorch.softmax(logits)
    found: list[int] = []
    while len(found) < count:
        found.append(int(llorch.argmax(logits)))
        if len(found) < count:
            logits = engine.step([[found[-1]]], [cache])[0]
    trace["generated"] = np.array(found, np.int64)
    return {tensor.name: trace[tensor.name] for tensor in rungs.tensors(model, T)}


def _add_scores(trace: Trace, model: Model) -> None:
    """Scores of every block, of its queries and keys."""
    for i, steps in enumerate(model.graph.blocks):
        for step in steps:
            if step.op == "scores":
                q, k = (trace[block_name(i, name)] for name in step.inputs)
                trace[block_name(i, step.name)] = _scores(q, k, step, model.network.weights)


def _scores(q: Array, k: Array, step: Step, weights: Trace) -> Array:
    """(H, T, D), (G, T, D) to (H, T, T), by llorch's kernels. weights : those outside the blocks."""
    options, T = step.options, q.shape[1]
    scale = 1 / np.sqrt(np.float64(q.shape[2])) if options["scale"] is None else options["scale"]
    factor = np.float32(scale)
    pairs = zip(q, shared_heads(k, len(q)), strict=True)
    with np.errstate(all="ignore"):
        scores = np.stack([llorch.linear(a, np.ascontiguousarray(b.T)) * factor for a, b in pairs])
        if options["softcap"] is not None:
            cap = np.float32(options["softcap"])
            scores = llorch.tanh(scores / cap) * cap
        if options.get("position_bias") is not None:
            scores = scores + position_bias(weights, options, T)
    return np.where(visible(T, options["causal"], options["window"]), scores, np.float32(-np.inf))
