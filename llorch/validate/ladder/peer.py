"""transformers as a source of the ladder: its modules by the graph's names, and what its hooks see."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from llorch.files import Reader
from llorch.files.tensor import Entry
from llorch.models import loading
from llorch.models.graph import Parameter, Step
from llorch.text.sentence_files import MODULES
from llorch.validate.ladder import rungs
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.endings import tensors_of
from llorch.validate.ladder.network import Trace
from llorch.validate.ladder.rungs import block_name
from llorch.validate.ladder.sources import Model

# What they call a block's activation, which has no weight.
ACTIVATIONS = "act", "act_fn", "activation_fn", "activation", "intermediate_act_fn"


# What transformers reads a GGUF file with; and the architectures of which it reads all that such a file says, but for
# heads of another width and the factors of the rotation, where it knows how many tokens there are. Of others it leaves
# out softcaps, scales or biases too.
FOR_GGUF = "gguf", "accelerate"
GGUF_ARCHITECTURES = "llama", "qwen2", "stablelm"
FACTORS = "rope_freqs.weight"


def reads_file(model: Model) -> bool:
    """Whether transformers reads all of a GGUF file."""
    source, sizes = model.source, model.graph.sizes
    of = source.config.get("general.architecture")
    return (
        of in GGUF_ARCHITECTURES
        and len(source.files) == 1
        and sizes["H"] * sizes["D"] == sizes["E"]
        and FACTORS not in source.tensors
        and bool({f"{of}.vocab_size", "tokenizer.ggml.tokens"} & source.config.keys())
    )


def transformers_class(model: Model) -> Any:
    """The class of transformers that reads the files, None if it has none. ModuleNotFoundError without it."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    if model.source.kind == "gguf" and not reads_file(model):
        return None
    classes = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if model.graph.decodes else auto.MODEL_MAPPING_NAMES
    kinds = (model.source.config.get("model_type"), *model.family.model_types)
    name = next((classes[kind] for kind in kinds if kind in classes), None)
    return None if name is None else getattr(transformers, name)


class Peer:
    """A model of transformers in float32 with eager attention, and its modules by the names of the graph's weights.

    ModuleNotFoundError without torch or transformers, and for a GGUF file gguf or accelerate; ValueError for a model
    that it doesn't read.
    """

    def __init__(self, model: Model) -> None:
        import torch
        import transformers

        made = transformers_class(model)
        if made is None:
            raise ValueError(f"transformers doesn't read {model.path}")
        transformers.utils.logging.disable_progress_bar()
        before = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity_error()  # a pooler that the files don't have is no news
        try:
            where = {} if model.source.kind == "hf" else {"gguf_file": model.path.name}
            folder = model.path.parent if where else model.path
            with contextlib.redirect_stderr(io.StringIO() if where else sys.stderr):  # of files it shows a bar, always
                self.module = made.from_pretrained(
                    folder, attn_implementation="eager", dtype=torch.float32, **where
                ).eval()
        finally:
            transformers.utils.logging.set_verbosity(before)
        self.model, self.graph = model, model.stored
        # How an embedding is made of the hidden state; and tokens of padding behind the prompt, without a mask.
        self.ending, self.normalises, self.padding = model.ending, True, 0
        self.modules = dict(self.module.named_modules())
        self._found: dict[tuple[str, int, int | None], Any] = {}
        self.parameters: dict[str, Parameter] = {name: p for name, _, p in self.graph.all_parameters()}

    def named(self, name: str) -> Any:
        """The module of this name, behind one of the family's prefixes; None if there is none."""
        prefixes = "", *self.model.family.prefixes
        return next((self.modules[p + name] for p in prefixes if p + name in self.modules), None)

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        return loading.find(self.model.source, self.model.family, self.graph).entries

    def of_weight(self, name: str, first: int = 0, count: int | None = None) -> Any:
        """The module of a weight. Where it has another name than the files, the one module whose weight has their
        values, or some of their rows; None for none. What was found once stays so, whatever is done to the weight."""
        key = name, first, count
        if key not in self._found:
            self._found[key] = self._of_weight(name, first, count)
        return self._found[key]

    def _of_weight(self, name: str, first: int, count: int | None) -> Any:
        if count is None and (found := self.named(name)) is not None:
            return found
        entry = self._entries.get(f"{name}.weight")
        if entry is None or self.parameters[f"{name}.weight"].by_head:
            return None
        values = np.array(Reader().array(entry)).astype(np.float32)
        values = values if count is None else values[first : first + count]
        alike = [
            module
            for module in self.modules.values()
            if getattr(module, "weight", None) is not None
            and tuple(module.weight.shape) == values.shape
            and np.array_equal(module.weight.detach().numpy(), values)
        ]
        return alike[0] if len(alike) == 1 else None

    def activation(self, layer: int) -> Any:
        """The module of a block's activation, None where it is a function alone."""
        for step in self.graph.blocks[layer]:
            if step.op != "activation":
                continue
            source = next(one for one in self.graph.blocks[layer] if one.name == step.inputs[0])
            prefix = self.graph.prefix(layer)
            paths = [f"{prefix}mlp.", *(path for path in [self._folder(prefix + source.weight)] if path)]
            for path in paths:
                for name in ACTIVATIONS:
                    if (found := self.named(path + name)) is not None:
                        return found
        return None

    def _folder(self, weight: str) -> str:
        """The name of the module that holds that of a weight, with a dot."""
        module = self.of_weight(weight)
        name = next((name for name, one in self.modules.items() if one is module and module is not None), "")
        return name.rpartition(".")[0] + "." if "." in name else ""

    def embedding(self, hidden: Any) -> Trace:
        """What is made of the hidden state (1, T, E) of a text: by sentence-transformers' modules where it is installed
        and the folder is its own, else by the functions of torch that those call."""
        import torch

        if self.ending is None or self.model.sentences is None:
            return {}
        steps = self.ending.behind(self.graph).after[len(self.graph.after) :]
        made: dict[str, Any] = {}
        right = self.normalises and self.ending == self.model.ending
        if right and self._of_sentences is not None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.int64)
            features = {"token_embeddings": hidden, "attention_mask": mask}
            ends = [step for step, then in zip(steps, (*steps[1:], None), strict=True)
                    if then is None or then.op != "activation"]  # fmt: skip
            for step, module in zip(ends, self._of_sentences, strict=True):
                features = module(features)
                made[step.name] = features["sentence_embedding"]
        else:
            weights = {name: torch.from_numpy(array) for name, array in tensors_of(self.model.sentences).items()}
            x = hidden
            for step in steps:
                x = x if step.op == "normalize" and not self.normalises else _by_torch(step, x, weights)
                made[step.name] = x
        return {name: values.detach().float().numpy()[0].copy() for name, values in made.items()}

    @cached_property
    def _of_sentences(self) -> list[Any] | None:
        """The modules behind the transformer, None without sentence-transformers."""
        folder = self.model.folder
        if not (folder / MODULES).is_file() or importlib.util.find_spec("sentence_transformers") is None:
            return None
        from sentence_transformers import SentenceTransformer

        return list(SentenceTransformer(str(folder), device="cpu"))[1:]

    def block(self, layer: int) -> Any:
        """None for a family whose files have other names than the modules."""
        return self.named(self.graph.prefix(layer)[:-1])

    def parts(self, layer: int, step: Step) -> list[tuple[Any, int]]:
        """Of a layer whose outputs several steps share, and that transformers has in parts: the module of each, and how
        many outputs; none where it has the whole."""
        D, found = self.graph.sizes["D"], []
        for one in self.graph.blocks[layer]:
            if one.inputs == (step.name,) and one.op in ("heads", "columns"):
                unit = D if one.op == "heads" else 1
                first, count = one.options["first"] * unit, one.options["count"] * unit
                found.append((self.of_weight(self.graph.prefix(layer) + step.weight, first, count), count))
        return found if len(found) > 1 and all(module is not None for module, _ in found) else []


def _by_torch(step: Step, x: Any, weights: Mapping[str, Any]) -> Any:
    """A step behind the hidden state (1, T, E), as sentence-transformers has it."""
    import torch

    match step.op:
        case "pool":
            first = 0 if step.options["by"] == "cls" else -1
            return x.sum(1) / x.shape[1] if step.options["by"] == "mean" else x[:, first]
        case "linear":
            return torch.nn.functional.linear(x, weights[f"{step.weight}.weight"], weights.get(f"{step.weight}.bias"))
        case "normalize":
            return torch.nn.functional.normalize(x, p=2, dim=1)
    name = step.options["function"]
    return getattr(torch, name)(x) if name in ("tanh", "sigmoid") else getattr(torch.nn.functional, name)(x)


def trace_transformers(model: Model, ids: Sequence[int], change: Callable[[Peer], object] | None = None) -> Trace:
    """The tensors of the ladder that transformers shows, in float32 with eager attention, taken by forward hooks.

    A step with a weight is the output of the module of that name, and what goes into it is the step that it takes.
    Queries, keys and scores are what goes into its first product and its softmax. change : of the modules, before they
    run. The errors are Peer's.
    """
    import torch
    import transformers
    from torch.overrides import TorchFunctionMode

    held = Peer(model)
    peer = held.module
    if change is not None:
        change(held)
    pad = model.network.padding_id if held.padding else 0
    ids = [*ids, *[pad] * held.padding]
    graph, T = held.graph, len(ids)
    trace: Trace = {}
    scores: list[Any] = []
    products: list[Any] = []
    joined: dict[str, int] = {}

    class SeeAttention(TorchFunctionMode):  # type: ignore[misc]
        """Of each layer what goes into its softmax, and the queries and keys of the product before it."""

        product: Any = None

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__) and args[0].ndim == 4:
                self.product = args
            if function is torch.nn.functional.softmax:
                scores.append(args[0])
                products.append(self.product)
            return function(*args, **(kwargs or {}))

    def numpy(value: Any) -> Array:
        array: Array = value.detach().float().numpy()[0].copy()
        return array

    def keep(name: str, *, of_input: bool = False) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            value = inputs[0] if of_input else output
            trace.setdefault(name, numpy(value[0] if isinstance(value, tuple) else value))

        return hook

    hooks = []

    def watch(steps: Sequence[Step], name_of: Callable[[str], str], prefix: str, layer: int | None = None) -> None:
        """Hooks on the modules of a part's steps. An embedding is looked up in one module, a tied head is another."""
        for step in steps:
            module = held.of_weight(prefix + step.weight) if step.weight else None
            if module is None and step.op == "activation" and layer is not None:
                module = held.activation(layer)
            if module is None and step.op == "linear" and layer is not None:
                for i, (part, _) in enumerate(held.parts(layer, step)):
                    joined[name_of(step.name)] = i + 1
                    hooks.append(part.register_forward_hook(keep(f"{name_of(step.name)}#{i}")))
            if module is None:
                continue
            hooks.append(module.register_forward_hook(keep(name_of(step.name))))
            if step.op != "embedding" and step.inputs[0] != "x":
                hooks.append(module.register_forward_hook(keep(name_of(step.inputs[0]), of_input=True)))

    # The last of them is what goes into the first block: some scale it in between, but not what a norm made.
    watch(graph.before if graph.before[-1].op != "embedding" else graph.before[:-1], str, "")
    watch(graph.after, str, "")
    for i, steps in enumerate(graph.blocks):
        watch(steps, lambda name, i=i: block_name(i, name), graph.prefix(i), i)  # type: ignore[misc]
        block = held.block(i)
        if block is None:
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
        for name, count in joined.items():
            trace[name] = np.concatenate([trace.pop(f"{name}#{i}") for i in range(count)], axis=1)
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
                    if products[i] is not None:
                        q, k = numpy(products[i][0]), numpy(products[i][1].transpose(-1, -2))
                        trace.setdefault(block_name(i, step.inputs[0]), q)
                        trace.setdefault(block_name(i, step.inputs[1]), k[:: len(k) // graph.sizes["G"]].copy())
        trace["ids"] = np.asarray(ids, np.int64)
        if not graph.decodes:
            end = graph.after[-1].name if graph.after else block_name(len(graph.blocks) - 1, graph.blocks[-1][-1].name)
            trace[end] = numpy(out.last_hidden_state)
            trace |= held.embedding(out.last_hidden_state)
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
