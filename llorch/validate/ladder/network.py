"""A model as settings and taps, and the arithmetics that it runs in.

It is the forward pass of `llorch.reference.GPT2` written as a network of settings and taps, so that each
tensor can be seen and each step be broken on purpose (llorch.validate.ladder.faults). It runs in two arithmetics: the
specified one, whose bits are `llorch.reference.GPT2`'s own, and plain float64, which is fast, and so exact beside
float32 that the distance from it is an engine's error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch import reference
from llorch.models.config import ACTIVATIONS
from llorch.models.gpt2 import GPT2Config
from llorch.reference._gate import activation as specified_activation
from llorch.validate.ladder import rungs
from llorch.validate.ladder.rungs import block_name

Array = NDArray[Any]
Trace = dict[str, Array]
Progress = Callable[[int, int], object]  # done, of how many


def silent(done: int, of: int) -> None:
    pass


# ---- arithmetic ----------------------------------------------------------------------------------------------


class Arithmetic(Protocol):
    """What a forward pass is made of. Arrays come and go in `dtype`; weights are float32."""

    dtype: Any

    def norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array: ...
    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array: ...
    def activation(self, x: Array, name: str) -> Array: ...
    def scores(self, q: Array, k: Array, scale: float) -> Array: ...
    def attend(self, scores: Array, v: Array) -> Array: ...
    def softmax(self, x: Array) -> Array: ...


class Specified:
    """llorch.reference: float32, every bit specified."""

    dtype = np.float32

    def norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        return reference.layer_norm(x, weight, bias, eps=eps)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return reference.linear(x, weight, bias)

    def activation(self, x: Array, name: str) -> Array:
        return specified_activation(x, name)

    def scores(self, q: Array, k: Array, scale: float) -> Array:
        """(H, T, D), (H, S, D) to (H, T, S), without a mask."""
        factor = np.float32(scale)
        return np.stack([self.product(a, b.T) * factor for a, b in zip(q, k, strict=True)])

    def attend(self, scores: Array, v: Array) -> Array:
        """Masked scores (H, T, S), v (H, S, D) to (H, T, D).

        A masked position has weight +0, which adds nothing to a sum that began at +0: the bits are
        `reference.attention`'s.
        """
        e = weigh(scores, self.exp)
        with np.errstate(all="ignore"):
            o = np.stack([self.product(a, b) for a, b in zip(e, v, strict=True)])
            Z = reference.sum64(e.reshape(-1, e.shape[-1])).reshape(*e.shape[:-1], 1)
            y: Array = o / Z
        return y

    def product(self, a: Array, b: Array) -> Array:
        return reference.linear(a, b)

    def exp(self, x: Array) -> Array:
        return reference.exp(x)

    def softmax(self, x: Array) -> Array:
        return reference.softmax(x)


class Kernels(Specified):
    """The same bits by llorch's kernels, for where an oracle's time is too long."""

    def norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        return llorch.layer_norm(x, weight, bias, eps=eps)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return llorch.linear(x, np.ascontiguousarray(weight), bias)

    def activation(self, x: Array, name: str) -> Array:
        match ACTIVATIONS[name]:
            case "gelu_tanh":
                return llorch.gelu(x, approximate="tanh")
            case "gelu":
                return llorch.gelu(x)
            case "silu":
                return llorch.silu(x)
            case "tanh":
                return llorch.tanh(x)
        return super().activation(x, name)

    def product(self, a: Array, b: Array) -> Array:
        return llorch.linear(np.ascontiguousarray(a), np.ascontiguousarray(b))

    def exp(self, x: Array) -> Array:
        return llorch.exp(x)

    def softmax(self, x: Array) -> Array:
        return llorch.softmax(x)


class Float64:
    """Plain NumPy in float64. The formulas are written out once more on purpose: a second opinion."""

    dtype = np.float64

    def norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        d = x - x.mean(axis=-1, keepdims=True)
        y: Array = d / np.sqrt((d * d).mean(axis=-1, keepdims=True) + float(np.float32(eps))) * weight + bias
        return y

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y: Array = x @ weight.astype(np.float64)
        return y if bias is None else y + bias

    def activation(self, x: Array, name: str) -> Array:
        y: Array
        with np.errstate(over="ignore"):
            match ACTIVATIONS[name]:
                case "gelu_tanh":
                    y = x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
                case "gelu":
                    y = x * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))
                case "silu":
                    y = x / (1 + np.exp(-x))
                case "tanh":
                    y = np.tanh(x)
                case _:
                    y = np.where(x <= 0, 0.0, x)
        return y

    def scores(self, q: Array, k: Array, scale: float) -> Array:
        y: Array = q @ k.swapaxes(-1, -2) * scale
        return y

    def attend(self, scores: Array, v: Array) -> Array:
        e = weigh(scores, np.exp)
        y: Array = e @ v / e.sum(axis=-1, keepdims=True)
        return y

    def softmax(self, x: Array) -> Array:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        y: Array = e / e.sum(axis=-1, keepdims=True)
        return y


class Rough(Float64):
    """Float64 but for its matrix products, which are NumPy's in float32: ten times as fast on a large model, whose
    weights needn't be widened."""

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y: Array = (x.astype(np.float32) @ weight).astype(np.float64)
        return y if bias is None else y + bias


def weigh(scores: Array, exp: Callable[[Array], Array]) -> Array:
    """exp(score - largest), +0 where masked; a row that sees nothing weighs all alike, as a finite mask would."""
    blind = ~(scores > -np.inf).any(axis=-1, keepdims=True) & ~np.isnan(scores).any(axis=-1, keepdims=True)
    s = np.where(blind, scores.dtype.type(0), scores)
    with np.errstate(all="ignore"):
        return exp(s - s.max(axis=-1, keepdims=True))


# ---- the network: a model as settings that can be changed ----------------------------------------------------


@dataclass
class State:
    """What a tap may look at: the tensors of the block so far (and its "input"), its settings, the arithmetic."""

    tensors: Trace
    block: Block | None
    network: Network
    arithmetic: Arithmetic


Tap = Callable[[Array, State], Array]


@dataclass
class Block:
    """The settings of one block.

    weights : arrays by their names within the block, "ln_1.weight". taps : what is made of a tensor as it appears, by
    its kind; "*" for every one. visible : for T positions, bool (T, T), whether query t sees position s. split : of
    the c_attn output (T, 3E), into q, k, v (H, T, D).
    """

    weights: Trace
    eps: float
    heads: int
    scale: float
    activation: str
    taps: dict[str, Tap] = field(default_factory=dict)
    visible: Callable[[int], Array] = lambda T: np.tri(T, dtype=bool)
    split: Callable[[Array, int], tuple[Array, Array, Array]] = lambda x, heads: split_heads(x, heads)

    def norm(self, x: Array, name: str, a: Arithmetic) -> Array:
        return a.norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.eps)

    def linear(self, x: Array, name: str, a: Arithmetic) -> Array:
        return a.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


@dataclass
class Network:
    """A model as settings. weights : wte, wpe, ln_f and the head, by name. taps : as a block's, outside the blocks.

    later : what is added to the positions of tokens behind the prompt, 0 in a right model.
    """

    config: GPT2Config
    weights: Trace
    blocks: list[Block]
    eps: float
    taps: dict[str, Tap] = field(default_factory=dict)
    later: int = 0

    @classmethod
    def of(cls, config: GPT2Config, tensors: Trace) -> Network:
        """tensors: float32, by the names of model.safetensors without "transformer."."""
        inner = {
            i: {name.removeprefix(f"h.{i}."): values for name, values in tensors.items() if name.startswith(f"h.{i}.")}
            for i in range(config.n_layer)
        }
        blocks = [
            Block(
                inner[i],
                config.layer_norm_epsilon,
                config.n_head,
                config.scale(i),
                config.activation_function,
            )
            for i in range(config.n_layer)
        ]
        outer = {name: values for name, values in tensors.items() if not name.startswith("h.")}
        outer.setdefault("lm_head.weight", outer["wte.weight"])
        return cls(config, outer, blocks, config.layer_norm_epsilon)

    def copy(self) -> Network:
        """A network whose settings can be changed without changing this one's; arrays are shared."""
        blocks = [replace(block, weights=dict(block.weights), taps=dict(block.taps)) for block in self.blocks]
        return replace(self, weights=dict(self.weights), blocks=blocks, taps=dict(self.taps))

    def embed(self, ids: Array, a: Arithmetic, prompt: int | None = None) -> Trace:
        """ids and embed; `prompt` of the tokens are the prompt's (None: all)."""
        state = State({"ids": ids}, None, self, a)
        positions = np.arange(len(ids))
        if prompt is not None:
            positions[prompt:] += self.later
        wte, wpe = self.weights["wte.weight"], self.weights["wpe.weight"]
        self._put(state, "embed", wte[ids].astype(a.dtype) + wpe[positions].astype(a.dtype))
        return state.tensors

    def block(self, layer: int, x: Array, a: Arithmetic) -> Trace:
        """The tensors of block `layer` on x (T, E), by kind; its output is "", x itself "input"."""
        b = self.blocks[layer]
        state = State({"input": x}, b, self, a)
        t = state.tensors

        def put(kind: str, value: Array) -> Array:
            return self._put(state, kind, value, b.taps)

        with np.errstate(all="ignore"):
            put("ln_1", b.norm(x, "ln_1", a))
            q, k, v = b.split(b.linear(t["ln_1"], "attn.c_attn", a), b.heads)
            put("attn.q", q)
            put("attn.k", k)
            put("attn.v", v)
            put("attn.cache_k", t["attn.k"])
            put("attn.cache_v", t["attn.v"])
            s = a.scores(t["attn.q"], t["attn.cache_k"], b.scale)
            put("attn.scores", np.where(b.visible(len(x)), s, a.dtype(-np.inf)))
            put("attn.context", merge_heads(a.attend(t["attn.scores"], t["attn.cache_v"])))
            put("attn.c_proj", b.linear(t["attn.context"], "attn.c_proj", a))
            put("residual", x + t["attn.c_proj"])
            put("ln_2", b.norm(t["residual"], "ln_2", a))
            put("mlp.c_fc", b.linear(t["ln_2"], "mlp.c_fc", a))
            put("mlp.act", a.activation(t["mlp.c_fc"], b.activation))
            put("mlp.c_proj", b.linear(t["mlp.act"], "mlp.c_proj", a))
            put("", t["residual"] + t["mlp.c_proj"])
        return t

    def head(self, x: Array, a: Arithmetic) -> Trace:
        """ln_f, logits, last_logits, argmax and probs of the last block's output x (T, E)."""
        state = State({"input": x}, None, self, a)
        t = state.tensors
        with np.errstate(all="ignore"):
            self._put(state, "ln_f", a.norm(x, self.weights["ln_f.weight"], self.weights["ln_f.bias"], self.eps))
            self._put(state, "logits", a.linear(t["ln_f"], self.weights["lm_head.weight"].T))
            self._put(state, "last_logits", t["logits"][-1])
            self._put(state, "argmax", np.array(np.argmax(t["last_logits"]), np.int64))
            self._put(state, "probs", a.softmax(t["last_logits"]))
        return t

    def parts(
        self,
        ids: Sequence[int] | Array,
        a: Arithmetic,
        start: int = -1,
        x: Array | None = None,
        prompt: int | None = None,
    ) -> Iterator[Trace]:
        """The tensors by the ladder's names: embeddings, each block, the head; each when it is asked for.

        start: the first block to compute, with its input x; -1 begins at the embeddings.
        """
        tokens = np.asarray(ids, np.int64)
        if start < 0 or x is None:
            t = self.embed(tokens, a, prompt)
            yield t
            start, x = 0, t["embed"]
        x = x.astype(a.dtype)
        for layer in range(start, len(self.blocks)):
            t = self.block(layer, x, a)
            yield {block_name(layer, kind): values for kind, values in t.items() if kind != "input"}
            x = t[""]
        t = self.head(x, a)
        del t["input"]
        yield t

    def run(
        self, ids: Sequence[int] | Array, a: Arithmetic, progress: Progress = silent, prompt: int | None = None
    ) -> Trace:
        """All tensors but `generated`."""
        trace: Trace = {}
        for done, part in enumerate(self.parts(ids, a, prompt=prompt), 1):
            trace |= part
            progress(done, len(self.blocks) + 2)
        return trace

    def _put(self, state: State, kind: str, value: Array, taps: dict[str, Tap] | None = None) -> Array:
        taps = self.taps if taps is None else taps
        for key in (kind, "*"):
            if key in taps and not (key == "*" and value.dtype.kind != "f"):
                value = taps[key](value, state)
        state.tensors[kind] = value
        return value


def split_heads(x: Array, heads: int) -> tuple[Array, Array, Array]:
    """c_attn's output (T, 3E) as q, k, v (H, T, D)."""
    T, width = x.shape
    q, k, v = x.reshape(T, 3, heads, width // (3 * heads)).transpose(1, 2, 0, 3)
    return q, k, v


def merge_heads(x: Array) -> Array:
    """(H, T, D) as (T, E), the heads side by side."""
    H, T, D = x.shape
    return x.transpose(1, 0, 2).reshape(T, H * D)


# ---- greedy tokens ---------------------------------------------------------------------------------------------


def greedy(
    network: Network,
    ids: Sequence[int],
    a: Arithmetic,
    expected: Array | None = None,
    progress: Progress = silent,
) -> Trace:
    """`Network.run` and the greedy tokens behind it."""
    T, count = len(ids), rungs.new_tokens(network.config, len(ids))
    guesses = [] if expected is None else [int(id) for id in expected][:count]
    fed = [*ids, *guesses][: T + max(count - 1, 0)]
    whole = network.run(fed, a, progress, T)
    trace = {
        name: values[..., :T, :T] if name.endswith("scores") else _rows(name, values, T)
        for name, values in whole.items()
    }
    trace["last_logits"] = whole["logits"][T - 1]
    trace["argmax"] = np.array(np.argmax(trace["last_logits"]), np.int64)
    trace["probs"] = a.softmax(trace["last_logits"])
    found = [int(np.argmax(row)) for row in whole["logits"][T - 1 :]][:count]
    good = next((i for i, (x, y) in enumerate(zip(found, guesses, strict=False)) if x != y), len(found) - 1)
    found = found[: good + 1]  # what follows a wrong guess was fed something else
    while len(found) < count:
        found.append(int(network.run([*ids, *found], a, prompt=T)["argmax"]))
    trace["generated"] = np.array(found, np.int64)
    return trace


def _rows(name: str, values: Array, T: int) -> Array:
    """The first T positions of a tensor: axis -2, or the only one of ids."""
    if name == "ids":
        return values[:T]
    return values[..., :T, :] if values.ndim >= 2 else values
