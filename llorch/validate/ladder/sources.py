"""Every tensor of the ladder, from three sources: the oracle, llorch's own engine, and transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import llorch
from llorch import reference
from llorch.files import Reader
from llorch.files.tensor import BLOCKS
from llorch.models import loading, registry
from llorch.models.encoder_engine import Encoder
from llorch.models.graph import Graph, Step
from llorch.text import tokenizer_files
from llorch.text.causal_lm import CausalLM
from llorch.text.inputs import inputs_of
from llorch.text.tokenizer import Tokenizer
from llorch.validate.ladder import rungs
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.network import (
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

    path_or_hub_id : as `llorch.CausalLM.from_pretrained` takes it. The errors are its own.
    """

    def __init__(self, path_or_hub_id: str | Path = "shakespeare-1m") -> None:
        self.source = registry.open_known(path_or_hub_id)
        self.path = self.source.path
        self.family = registry.family_of(self.source)
        self.config = registry.config_of(self.source, self.family)

    @cached_property
    def graph(self) -> Graph:
        return self.family.graph(self.config)

    @cached_property
    def engine(self) -> CausalLM | Encoder:
        kind: type[CausalLM | Encoder] = CausalLM if self.graph.decodes else Encoder
        return kind.from_pretrained(self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizer_files.load(self.source)

    @cached_property
    def tensors(self) -> Trace:
        """Every array of the file as float32, by its name in Hugging Face's files without the family's prefix, and with
        matrices in their layout; rows in the order of the graph's steps, and vectors as those take them."""
        reader, kind = Reader(), self.source.kind
        parameters = {name: parameter for name, _, parameter in self.graph.all_parameters()}
        found = {}
        for name, entry in loading.find(self.source, self.family, self.graph).entries.items():
            if entry.format in BLOCKS:
                values = reference.dequantize(reader.read(entry), entry.format, entry.shape)
            else:
                values = reference.widen(reader.array(entry)).copy()
            parameter = parameters[name]
            values = loading.whole(loading.arranged(values, parameter, self.graph, kind), parameter, kind)
            found[name] = values.T if kind == "gguf" and parameter.conv1d else values
        return found

    @cached_property
    def network(self) -> Network:
        entries = loading.find(self.source, self.family, self.graph).entries
        kept = {name: loading.PLAIN.get(entry.format, "float32") for name, entry in entries.items()}
        return Network.of(self.family.name, self.config, self.graph, self.tensors, kept)

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
                (ids,) = inputs_of(self.source, self.config.context, 0)([prompt]).ids
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


# ---- the three sources ---------------------------------------------------------------------------------------


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
        engine.forward(ids, trace=keep)
        _add_scores(trace, model)
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


# ---- transformers --------------------------------------------------------------------------------------------

# Their names for a block's activation, which has no weight.
ACTIVATION_MODULES = "mlp.act", "mlp.act_fn", "mlp.activation_fn"


def transformers_class(model: Model) -> Any:
    """The class of transformers that reads the folder, None if it has none. ModuleNotFoundError without it."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    classes = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if model.graph.decodes else auto.MODEL_MAPPING_NAMES
    kinds = (model.source.config.get("model_type"), *model.family.model_types)
    name = next((classes[kind] for kind in kinds if kind in classes), None)
    return None if name is None else getattr(transformers, name)


def trace_transformers(model: Model, ids: Sequence[int]) -> Trace:
    """The tensors of the ladder that transformers shows, in float32 with eager attention, taken by forward hooks.

    A step with a weight is the output of the module of that name, and what goes into it is the step that it takes.
    Queries and scores are what goes into its first product and its softmax. ModuleNotFoundError without torch or
    transformers; ValueError for a model that it doesn't read.
    """
    import torch
    import transformers
    from torch.overrides import TorchFunctionMode

    made = transformers_class(model) if model.source.kind == "hf" else None
    if made is None:
        raise ValueError(f"transformers doesn't read {model.path}")
    transformers.utils.logging.disable_progress_bar()
    peer = made.from_pretrained(model.path, attn_implementation="eager").float().eval()
    graph, T = model.graph, len(ids)
    trace: Trace = {}
    scores: list[Any] = []
    queries: list[Any] = []

    class SeeAttention(TorchFunctionMode):  # type: ignore[misc]
        """Of each layer what goes into its softmax, and the queries of the product before it."""

        product: Any = None

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__) and args[0].ndim == 4:
                self.product = args[0]
            if function is torch.nn.functional.softmax:
                scores.append(args[0])
                queries.append(self.product)
            return function(*args, **(kwargs or {}))

    def numpy(value: Any) -> Array:
        array: Array = value.detach().float().numpy()[0].copy()
        return array

    def keep(name: str, *, of_input: bool = False) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            value = inputs[0] if of_input else output
            trace.setdefault(name, numpy(value[0] if isinstance(value, tuple) else value))

        return hook

    modules, hooks = dict(peer.named_modules()), []

    def module_of(name: str) -> Any:
        return next((modules[p + name] for p in ("", *model.family.prefixes) if p + name in modules), None)

    def watch(steps: Sequence[Step], name_of: Callable[[str], str], prefix: str) -> None:
        """Hooks on the modules of a part's steps. An embedding is looked up in one module, a tied head is another."""
        for step in steps:
            module = module_of(prefix + step.weight) if step.weight else None
            if module is None and step.op == "activation":
                module = next((m for n in ACTIVATION_MODULES if (m := module_of(prefix + n)) is not None), None)
            if module is None:
                continue
            hooks.append(module.register_forward_hook(keep(name_of(step.name))))
            if step.op != "embedding" and step.inputs[0] != "x":
                hooks.append(module.register_forward_hook(keep(name_of(step.inputs[0]), of_input=True)))

    watch(graph.before[:-1], str, "")  # the last of them is what goes into the first block: some scale it in between
    watch(graph.after, str, "")
    for i, steps in enumerate(graph.blocks):
        watch(steps, lambda name, i=i: block_name(i, name), graph.prefix(i))  # type: ignore[misc]
        block = module_of(graph.prefix(i)[:-1])
        if block is None:  # a family whose files have other names than transformers' modules
            continue
        hooks.append(block.register_forward_hook(keep(block_name(i, steps[-1].name))))
        if i == 0:
            hooks.append(block.register_forward_hook(keep(graph.before[-1].name, of_input=True)))

    by_head = {p.name.removesuffix(".weight"): p for p in graph.block_parameters if p.by_head}

    # A cache that isn't told of windows keeps all positions.
    argument = "cache" if "cache" in inspect.signature(peer.forward).parameters else "past_key_values"
    cache = transformers.DynamicCache()
    caching = {"use_cache": True, argument: cache} if graph.decodes else {}

    with torch.no_grad():
        with SeeAttention():
            out = peer(torch.tensor([list(ids)]), **caching)
        for hook in hooks:
            hook.remove()
        if graph.decodes:
            trace["logits"] = numpy(out.logits)
        for i, steps in enumerate(graph.blocks):
            kept = iter((cache.layers[i].keys, cache.layers[i].values) if graph.decodes else ())
            for step in steps:
                name = block_name(i, step.name)
                if step.weight in by_head and name in trace:
                    trace[name] = loading.arranged(trace[name].T, by_head[step.weight], graph, "hf").T
                if step.op == "heads":
                    flat = trace.get(block_name(i, step.inputs[0]))
                    if flat is not None:
                        trace[name] = _columns(flat, step, graph.sizes["D"])
                elif step.op == "columns":
                    flat = trace.get(block_name(i, step.inputs[0]))
                    if flat is not None:
                        first, count = step.options["first"], step.options["count"]
                        trace[name] = flat[:, first : first + count].copy()
                elif step.axes in ("HTD", "GTD") and step.op in ("layer_norm", "rms_norm"):
                    _turn(trace, name, (graph.sizes[step.axes[0]], T, graph.sizes["D"]))
                elif step.op == "cache":
                    trace[name] = numpy(next(kept))
                    trace.setdefault(block_name(i, step.inputs[0]), trace[name].copy())
                elif step.op == "scores":
                    s = numpy(scores[i])
                    # Its mask is the most negative float32, added: what that leaves is masked.
                    trace[name] = np.where(s <= np.finfo(np.float32).min / 2, np.float32(-np.inf), s)
                    if queries[i] is not None:
                        trace.setdefault(block_name(i, step.inputs[0]), numpy(queries[i]))
        trace["ids"] = np.asarray(ids, np.int64)
        if not graph.decodes:
            end = graph.after[-1].name if graph.after else block_name(len(graph.blocks) - 1, graph.blocks[-1][-1].name)
            trace[end] = numpy(out.last_hidden_state)
            return {tensor.name: trace[tensor.name] for tensor in rungs.tensors(model, T) if tensor.name in trace}
        last = out.logits[0, -1]
        trace["last_logits"] = last.numpy().copy()
        trace["argmax"] = np.array(int(last.argmax()), np.int64)
        trace["probs"] = torch.softmax(last, -1).numpy()
        found: list[int] = []
        while len(found) < rungs.new_tokens(model.config, T):
            found.append(int(out.logits[0, -1].argmax()))
            out = peer(torch.tensor([[found[-1]]]), **caching)
    trace["generated"] = np.array(found, np.int64)
    return {tensor.name: trace[tensor.name] for tensor in rungs.tensors(model, T) if tensor.name in trace}


def _turn(trace: Trace, name: str, shape: tuple[int, int, int]) -> None:
    """A norm of heads, seen as (heads, T, D) or (T, heads, D), as the former; left out where nothing tells which."""
    heads, T, D = shape
    if name in trace and heads == T > 1:
        del trace[name]
    elif name in trace and trace[name].shape == (T, heads, D):
        trace[name] = trace[name].transpose(1, 0, 2).copy()


def _columns(flat: Array, step: Step, D: int) -> Array:
    """The heads of a projection's output (T, width) that a step takes."""
    first, count = step.options["first"], step.options["count"]
    part = flat[:, first * D : (first + count) * D]
    return part.reshape(len(flat), count, D).transpose(1, 0, 2).copy()
