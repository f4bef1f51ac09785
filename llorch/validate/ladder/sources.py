"""Every tensor of the ladder, from three sources: the oracle, llorch's own engine, and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import llorch
from llorch import reference
from llorch.files import Reader, open_model
from llorch.models import loading, registry
from llorch.models.gpt2 import GPT2Config
from llorch.text.causal_lm import CausalLM
from llorch.validate.ladder import rungs
from llorch.validate.ladder.network import (
    Array,
    Float64,
    Network,
    Progress,
    Specified,
    Trace,
    greedy,
    silent,
    split_heads,
)
from llorch.validate.ladder.rungs import block_name

HELLO = (15496, 13)  # "Hello." in GPT-2's own vocabulary, for a folder without a tokenizer
PROMPT = "Hello."


# ---- a model on disk -----------------------------------------------------------------------------------------


class Model:
    """A folder's model in all the forms that are compared; each is made when it is first used.

    path_or_hub_id : as `llorch.GPT2.from_pretrained` takes it. The errors are its own.
    """

    def __init__(self, path_or_hub_id: str | Path = "shakespeare-1m") -> None:
        self.source = open_model(path_or_hub_id)
        self.folder = self.source.path
        self.family = registry.family_of(self.source)
        config = registry.config_of(self.source, self.family)
        if not isinstance(config, GPT2Config):
            raise ValueError(f"the ladder is of GPT-2, {self.folder} is a {self.family.name}")
        self.config: GPT2Config = config

    @cached_property
    def engine(self) -> CausalLM:
        return CausalLM.from_pretrained(self.folder)

    @cached_property
    def tensors(self) -> Trace:
        """Every array of the file as float32, by its name without "transformer."."""
        reader, graph = Reader(), self.family.graph(self.config)
        found = loading.find(self.source, self.family, graph).entries
        return {name: reference.widen(reader.array(entry)).copy() for name, entry in found.items()}

    @cached_property
    def network(self) -> Network:
        return Network.of(self.config, self.tensors)

    @cached_property
    def sha256(self) -> str:
        """Of the files of weights, one after the other in the order of their names."""
        return self.source.sha256

    def ids(self, prompt: str = PROMPT) -> list[int]:
        """Token ids of a text. A folder without a tokenizer, such as random weights, knows "Hello." alone."""
        try:
            ids = self.engine.tokenizer.encode(prompt)
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
            return self.engine.tokenizer.decode(int(id) for id in ids)
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

    Its attention kernel doesn't keep scores: they are `llorch.linear` of its q and its cache's keys, times scale, which
    is how the kernel's own are specified. Greedy tokens come one by one through the cache.
    """
    engine, config, T = model.engine, model.config, len(ids)
    trace: Trace = {"ids": np.asarray(ids, np.int64)}

    def keep(name: str, values: Array) -> None:
        trace[name] = values.copy()

    count = rungs.new_tokens(config, T)
    cache = engine.new_cache(T + max(count - 1, 0))
    trace["logits"] = engine.forward(ids, cache, trace=keep)
    for i in range(config.n_layer):
        name = block_name(i, "attn.")
        trace[name + "cache_k"], trace[name + "cache_v"] = cache.keys(i), cache.values(i)
        factor = np.float32(config.scale(i))
        pairs = zip(trace[name + "q"], trace[name + "cache_k"], strict=True)
        with np.errstate(all="ignore"):
            scores = np.stack([llorch.linear(q, np.ascontiguousarray(k.T)) * factor for q, k in pairs])
        trace[name + "scores"] = np.where(np.tri(T, dtype=bool), scores, np.float32(-np.inf))
    logits = trace["last_logits"] = trace["logits"][-1].copy()
    trace["argmax"] = np.array(llorch.argmax(logits), np.int64)
    trace["probs"] = llorch.softmax(logits)
    found: list[int] = []
    while len(found) < count:
        found.append(int(llorch.argmax(logits)))
        if len(found) < count:
            logits = engine.step([[found[-1]]], [cache])[0]
    trace["generated"] = np.array(found, np.int64)
    return trace


def trace_transformers(model: Model, ids: Sequence[int]) -> Trace:
    """Every tensor by transformers, in float32 with eager attention, taken by forward hooks.

    Scores are what goes into its softmax. ModuleNotFoundError without torch or transformers.
    """
    import torch
    import transformers
    from torch.overrides import TorchFunctionMode

    transformers.utils.logging.disable_progress_bar()
    gpt2 = transformers.GPT2LMHeadModel.from_pretrained(model.folder, attn_implementation="eager").float().eval()
    T, trace, scores = len(ids), {"ids": np.asarray(ids, np.int64)}, []

    class SeeSoftmax(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.nn.functional.softmax:
                scores.append(args[0])
            return function(*args, **(kwargs or {}))

    def numpy(value: Any) -> Array:
        array: Array = value.detach().float().numpy()[0].copy()
        return array

    def keep(name: str, *, of_input: bool = False) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            value = inputs[0] if of_input else output
            value = numpy(value[0] if isinstance(value, tuple) else value)
            if name.endswith("c_attn"):
                for part, heads in zip("qkv", split_heads(value, model.config.n_head), strict=True):
                    trace[name.removesuffix("c_attn") + part] = heads.copy()
            else:
                trace[name] = value

        return hook

    base, hooks = gpt2.transformer, []
    hooks.append(base.h[0].register_forward_hook(keep("embed", of_input=True)))
    for i, block in enumerate(base.h):
        places = {
            "ln_1": block.ln_1,
            "attn.c_attn": block.attn.c_attn,
            "attn.c_proj": block.attn.c_proj,
            "ln_2": block.ln_2,
            "mlp.c_fc": block.mlp.c_fc,
            "mlp.act": block.mlp.act,
            "mlp.c_proj": block.mlp.c_proj,
            "": block,
        }
        hooks += [module.register_forward_hook(keep(block_name(i, kind))) for kind, module in places.items()]
        hooks += [
            block.attn.c_proj.register_forward_hook(keep(block_name(i, "attn.context"), of_input=True)),
            block.ln_2.register_forward_hook(keep(block_name(i, "residual"), of_input=True)),
        ]
    hooks += [base.ln_f.register_forward_hook(keep("ln_f")), gpt2.lm_head.register_forward_hook(keep("logits"))]

    def cache_of(out: Any) -> Any:
        return out.cache if getattr(out, "cache", None) is not None else out.past_key_values

    with torch.no_grad():
        with SeeSoftmax():
            out = gpt2(torch.tensor([list(ids)]), use_cache=True)
        for hook in hooks:
            hook.remove()
        for i, value in enumerate(scores):
            s = numpy(value)
            # Its mask is the most negative float32, added: what that leaves is masked.
            trace[block_name(i, "attn.scores")] = np.where(s <= np.finfo(np.float32).min / 2, np.float32(-np.inf), s)
        for i, layer in enumerate(cache_of(out).layers):
            trace[block_name(i, "attn.cache_k")] = numpy(layer.keys)
            trace[block_name(i, "attn.cache_v")] = numpy(layer.values)
        last = out.logits[0, -1]
        trace["last_logits"] = last.numpy().copy()
        trace["argmax"] = np.array(int(last.argmax()), np.int64)
        trace["probs"] = torch.softmax(last, -1).numpy()
        found: list[int] = []
        argument = "cache" if getattr(out, "cache", None) is not None else "past_key_values"
        while len(found) < rungs.new_tokens(model.config, T):
            found.append(int(out.logits[0, -1].argmax()))
            out = gpt2(torch.tensor([[found[-1]]]), use_cache=True, **{argument: cache_of(out)})
    trace["generated"] = np.array(found, np.int64)
    return trace
