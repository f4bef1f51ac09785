"""Faults that ports of GPT-2 really have, each a small change to the traced oracle's settings.

`compare` tries them on what diverges, `self_test` injects them to see that they are found. A fault says what it is,
and in which tensor it first shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llorch.models.config import ACTIVATIONS
from llorch.models.gpt2 import GPT2Config
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.network import Block, Network, State, Tap, merge_heads, split_heads

OUTSIDE = -1  # the layer of a fault that isn't in a block


@dataclass(frozen=True)
class Fault:
    """One mistake.

    key : short name. says : the diagnosis. shows : the kind of tensor in which it first shows. change : makes the
    mistake in a network's settings, in block `layer` (ignored outside the blocks). in_block : whether it is in a block.
    decoding : it shows only where new tokens come one by one.
    """

    key: str
    says: str
    shows: str
    change: Callable[[Network, int], object]
    in_block: bool = True
    decoding: bool = False

    def inject(self, network: Network, *layers: int) -> Network:
        """A network with the fault in these blocks, or outside them; the given one stays as it is."""
        faulty = network.copy()
        for layer in layers if self.in_block else (OUTSIDE,):
            self.change(faulty, layer)
        return faulty


def of(network: Network) -> list[Fault]:
    """The faults that a model of this configuration can have; none for a family that has no list."""
    listed = FAMILIES.get(network.family)
    return [] if listed is None else listed(network)


def of_gpt2(network: Network) -> list[Fault]:
    return [*before(), *in_block(network), *after(network)]


FAMILIES: dict[str, Callable[[Network], list[Fault]]] = {"GPT-2": of_gpt2}


def gpt2_config(network: Network) -> GPT2Config:
    assert isinstance(network.config, GPT2Config)
    return network.config


def by_key(network: Network) -> dict[str, Fault]:
    return {fault.key: fault for fault in of(network)}


# ---- how faults are made ------------------------------------------------------------------------------------


def tap(kind: str, change: Tap) -> Callable[[Network, int], None]:
    """Puts `change` behind a tensor of a block, or outside the blocks."""

    def put(network: Network, layer: int) -> None:
        taps = network.taps if layer == OUTSIDE else network.blocks[layer].taps
        taps[kind] = change

    return put


def setting(**changes: Any) -> Callable[[Network, int], None]:
    def put(network: Network, layer: int) -> None:
        for name, value in changes.items():
            setattr(network.blocks[layer], name, value)

    return put


def options(step: str, **changes: Any) -> Callable[[Network, int], None]:
    """Other options for a step of a block."""

    def put(network: Network, layer: int) -> None:
        network.blocks[layer].change(step, **changes)

    return put


def eps_of(block: Block) -> float:
    found: float = block.options(block.step("ln_1"))["eps"]
    return found


def norms_eps(eps: float) -> Callable[[Network, int], None]:
    return several(*(options(norm, eps=eps) for norm in NORMS))


NORMS = "ln_1", "ln_2"


def weight(name: str, change: Callable[[Array], Array]) -> Callable[[Network, int], None]:
    def put(network: Network, layer: int) -> None:
        into = network.weights if layer == OUTSIDE else network.blocks[layer].weights
        into[name] = np.ascontiguousarray(change(into[name]))

    return put


def every_weight(change: Callable[[Array], Array]) -> Callable[[Network, int], None]:
    def put(network: Network, layer: int) -> None:
        into = network.weights if layer == OUTSIDE else network.blocks[layer].weights
        for name in into:
            into[name] = change(into[name])

    return put


def several(*changes: Callable[[Network, int], None]) -> Callable[[Network, int], None]:
    def put(network: Network, layer: int) -> None:
        for change in changes:
            change(network, layer)

    return put


def block_of(state: State) -> Block:
    assert state.block is not None
    return state.block


def float16(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(x.dtype)


def bfloat16(x: Array) -> Array:
    """float32 or float64 rounded to bfloat16, kept in its own type."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x).astype(x.dtype)


def read_transposed(w: Array) -> Array:
    """The file's values, row by row, taken for (out, in)."""
    return w.reshape(w.shape[::-1]).T


ROUNDED = {"float16": float16, "bfloat16": bfloat16}


def rounded(name: str) -> Tap:
    return lambda x, state: ROUNDED[name](x)


def earlier(kind: str) -> Tap:
    """An earlier tensor in place of this one."""
    return lambda y, state: state.tensors[kind]


# ---- before the blocks ---------------------------------------------------------------------------------------


def position(places: Callable[[Array], Array]) -> Tap:
    """embed with other positions."""

    def change(embed: Array, state: State) -> Array:
        ids, w = state.tensors["ids"], state.network.weights
        at = np.clip(places(np.arange(len(ids))), 0, len(w["wpe.weight"]) - 1)
        dtype = state.arithmetic.dtype
        y: Array = w["wte.weight"][ids].astype(dtype) + w["wpe.weight"][at].astype(dtype)
        return y

    return change


def no_positions(embed: Array, state: State) -> Array:
    return state.network.weights["wte.weight"][state.tensors["ids"]].astype(embed.dtype)


def scaled_tokens(embed: Array, state: State) -> Array:
    tokens = no_positions(embed, state)
    y: Array = embed + tokens * embed.dtype.type(math.sqrt(embed.shape[-1]) - 1)
    return y


def before() -> Iterator[Fault]:
    def outside(key: str, says: str, change: Tap) -> Fault:
        return Fault(key, says, "embed", tap("embed", change), in_block=False)

    yield outside("position-plus-1", "positions begin at 1: wpe is read one row too far", position(lambda p: p + 1))
    yield outside("position-0", "every token has position 0", position(lambda p: p * 0))
    yield outside("no-wpe", "wpe is not added", no_positions)
    yield outside("wte-scaled", "token embeddings are multiplied by sqrt(n_embd)", scaled_tokens)
    for name in ROUNDED:
        yield outside(f"embed-{name}", f"embeddings are {name}", rounded(name))


# ---- in a block ----------------------------------------------------------------------------------------------


def rms_norm(right: Array, state: State) -> Array:
    x, b = state.tensors["x"], block_of(state)
    r = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(eps_of(b)))
    y: Array = (x * r * b.weights["ln_1.weight"] + b.weights["ln_1.bias"]).astype(x.dtype)
    return y


def unbiased(network: Network, layer: int) -> None:
    """sum / (n - 1) for sum / n: with f = n / (n - 1), w / sqrt(f var + eps) is w / sqrt(f) / sqrt(var + eps / f)."""
    block = network.blocks[layer]
    n = gpt2_config(network).n_embd
    eps = eps_of(block) * (n - 1) / n
    for norm in NORMS:
        block.change(norm, eps=eps)
        name = f"{norm}.weight"
        block.weights[name] = (block.weights[name] * np.sqrt((n - 1) / n)).astype(np.float32)


def post_norm(seen: bool) -> Callable[[Network, int], None]:
    """x = ln_1(x + attn(x)), x = ln_2(x + mlp(x)). seen: the dump's ln_1 is that, else what attention got."""

    def after_attention(x: Array, state: State) -> Array:
        y = block_of(state).norm(x, "ln_1", state.arithmetic)
        if seen:
            state.tensors["ln_1"] = y
        return y

    return several(
        tap("ln_1", earlier("x")),
        tap("residual", after_attention),
        tap("ln_2", earlier("residual")),
        tap("", lambda y, state: block_of(state).norm(y, "ln_2", state.arithmetic)),
    )


def exchange_norms(network: Network, layer: int) -> None:
    w = network.blocks[layer].weights
    for part in ("weight", "bias"):
        w[f"ln_1.{part}"], w[f"ln_2.{part}"] = w[f"ln_2.{part}"], w[f"ln_1.{part}"]


def exchange_blocks(network: Network, layer: int) -> None:
    """The weights of block `layer` and the next (of the last: the one before)."""
    other = layer + 1 if layer + 1 < len(network.blocks) else layer - 1
    a, b = network.blocks[layer], network.blocks[other]
    a.weights, b.weights = b.weights, a.weights


def order_of(order: tuple[int, ...]) -> Callable[[Array, int], tuple[Array, Array, Array]]:
    """The thirds of c_attn's output taken for q, k, v in another order."""

    def split(x: Array, heads: int) -> tuple[Array, Array, Array]:
        parts = split_heads(x, heads)
        return parts[order[0]], parts[order[1]], parts[order[2]]

    return split


def heads_last(x: Array, heads: int) -> tuple[Array, Array, Array]:
    """(T, 3, D, H): every H-th value belongs to a head."""
    T, width = x.shape
    q, k, v = x.reshape(T, 3, width // (3 * heads), heads).transpose(1, 3, 0, 2)
    return q, k, v


def heads_first(x: Array, heads: int) -> tuple[Array, Array, Array]:
    """(T, H, 3, D): q, k and v of each head side by side, as GPT-NeoX has them."""
    T, width = x.shape
    q, k, v = x.reshape(T, heads, 3, width // (3 * heads)).transpose(2, 1, 0, 3)
    return q, k, v


def no_transpose(x: Array, heads: int) -> tuple[Array, Array, Array]:
    """(T, E) taken for (H, T, D) without transposing."""
    T, width = x.shape
    q, k, v = (part.reshape(heads, T, width // (3 * heads)) for part in x.reshape(T, 3, width // 3).transpose(1, 0, 2))
    return q, k, v


def both_caches(change: Callable[[Array], Array]) -> Callable[[Network, int], None]:
    return several(*(tap(f"attn.cache_{letter}", lambda x, state: change(x)) for letter in "kv"))


def without(place: int) -> Callable[[Array], Array]:
    def change(x: Array) -> Array:
        y = x.copy()
        y[:, place] = 0
        return y

    return change


def next_slot(x: Array) -> Array:
    """Position t in slot t + 1, the first slot never written."""
    y = np.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    return y


def scaled(factor: Callable[[int, int], float]) -> Callable[[Network, int], None]:
    """Scores times factor(E, D), instead of the model's scale."""

    def put(network: Network, layer: int) -> None:
        c = gpt2_config(network)
        network.blocks[layer].change("attn.scores", scale=factor(c.n_embd, c.head_dim))

    return put


def context_of(weights: Callable[[Array], Array]) -> Tap:
    """context with other weights: of the masked scores (H, T, S)."""

    def change(context: Array, state: State) -> Array:
        with np.errstate(all="ignore"):
            p = weights(state.tensors["attn.scores"].astype(np.float64))
            y = p @ state.tensors["attn.cache_v"].astype(np.float64)
        return merge_heads(y).astype(context.dtype)

    return change


def softmax16(shifted: bool) -> Callable[[Array], Array]:
    """A softmax in float16, with the maximum taken off first or not."""

    def weights(s: Array) -> Array:
        s = float16(s)
        e = float16(np.exp(s - s.max(axis=-1, keepdims=True) if shifted else s))
        return float16(e / float16(e.sum(axis=-1, keepdims=True)))

    return weights


def softmax_over_queries(s: Array) -> Array:
    e: Array = np.exp(s - s.max(axis=-2, keepdims=True))
    e = e / e.sum(axis=-2, keepdims=True)
    return e


def unnormalised(s: Array) -> Array:
    e: Array = np.exp(s - s.max(axis=-1, keepdims=True))
    return e


def merged_without_transposing(context: Array, state: State) -> Array:
    """(H, T, D) taken for (T, E)."""
    T, E = context.shape
    H = state.network.graph.sizes["H"]
    return context.reshape(T, H, E // H).transpose(1, 0, 2).reshape(T, E)


def parallel(kind: str) -> Tap:
    """The feed-forward layer beside attention: its norm is of the block's input."""
    return lambda y, state: block_of(state).norm(state.tensors["x"], kind, state.arithmetic)


def quick_gelu(y: Array, state: State) -> Array:
    x = state.tensors["mlp.c_fc"]
    with np.errstate(over="ignore"):
        gated: Array = (x / (1 + np.exp(-1.702 * x.astype(np.float64)))).astype(x.dtype)
    return gated


def head_count(heads: int) -> Callable[[Network, int], None]:
    def put(network: Network, layer: int) -> None:
        b = network.blocks[layer]
        scale = b.options(b.step("attn.scores"))["scale"]
        b.heads = heads
        b.change("attn.scores", scale=scale * math.sqrt(heads / gpt2_config(network).n_head))

    return put


def in_block(network: Network) -> Iterator[Fault]:
    config = gpt2_config(network)
    eps, H, E = config.layer_norm_epsilon, config.n_head, config.n_embd
    for wrong in (1e-12, 1e-6, 1e-5, 1e-4, 1e-3):
        if not math.isclose(wrong, eps, rel_tol=1e-3):
            named = "next to nothing (1e-8 or less)" if wrong < 1e-8 else f"{wrong:g}"  # no data tells those apart
            yield Fault(f"eps-{wrong:g}", f"eps is {named}, not {eps:g}", "ln_1", norms_eps(wrong))
    yield Fault("unbiased", "the variance is divided by n - 1, not n", "ln_1", unbiased)
    yield Fault("rms-norm", "ln_1 doesn't subtract the mean: it is an RMSNorm", "ln_1", tap("ln_1", rms_norm))
    for norm in ("ln_1", "ln_2"):
        yield Fault(f"{norm}-no-weight", f"{norm}.weight is not applied", norm, weight(f"{norm}.weight", np.ones_like))
        yield Fault(f"{norm}-no-bias", f"{norm}.bias is not added", norm, weight(f"{norm}.bias", np.zeros_like))
        skipped = tap(norm, earlier("x" if norm == "ln_1" else "residual"))
        yield Fault(f"{norm}-skipped", f"{norm} is skipped", norm, skipped)
    yield Fault("post-norm", "norms come after the residual sums (post-LN), not before", "ln_1", post_norm(False))
    yield Fault("post-norm-seen", "norms come after the residual sums (post-LN), not before", "ln_1", post_norm(True))
    yield Fault("norms-exchanged", "ln_1 and ln_2 are exchanged", "ln_1", exchange_norms)
    if config.n_layer > 1:
        yield Fault("blocks-exchanged", "it has the weights of a neighbouring block", "ln_1", exchange_blocks)
    for name, rounding in ROUNDED.items():
        change = tap("*", rounded(name))
        yield Fault(f"activations-{name}", f"activations are rounded to {name}", "ln_1", change)
        change = every_weight(rounding)
        yield Fault(f"weights-{name}", f"weights were rounded to {name}", "ln_1", change)

    yield Fault(
        "c_attn-transposed",
        "attn.c_attn.weight is read as (out, in): GPT-2's Conv1D has (in, out)",
        "attn.q",
        weight("attn.c_attn.weight", read_transposed),
    )
    yield Fault("c_attn-no-bias", "attn.c_attn.bias is not added", "attn.q", weight("attn.c_attn.bias", np.zeros_like))
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            found = "".join("qkv"[part] for part in order)
            first = next(place for place in range(3) if order[place] != place)
            says = f"c_attn's output is split in the wrong order: {', '.join(found)} are taken for q, k, v"
            yield Fault(f"split-{found}", says, f"attn.{'qkv'[first]}", setting(split=order_of(order)))
    if H > 1:
        says = "heads are interleaved: a head takes every n_head-th value"
        yield Fault("heads-interleaved", says, "attn.q", setting(split=heads_last))
        says = "c_attn's output is split by head first, (T, H, 3, D), as GPT-NeoX does"
        yield Fault("heads-first", says, "attn.q", setting(split=heads_first))
        says = "(T, n_embd) is taken for (heads, T, head_dim) without transposing"
        yield Fault("heads-not-transposed", says, "attn.q", setting(split=no_transpose))
    for other in (H * 2, H // 2):
        if other and E % other == 0:
            yield Fault(f"heads-{other}", f"there are {other} heads, not {H}", "attn.scores", head_count(other))

    yield Fault("cache-next-slot", "the cache is written one slot too far", "attn.cache_k", both_caches(next_slot))
    yield Fault(
        "cache-no-last", "the last position is not written to the cache", "attn.cache_k", both_caches(without(-1))
    )
    yield Fault("cache-no-first", "position 0 is not written to the cache", "attn.cache_k", both_caches(without(0)))
    yield Fault(
        "cache-exchanged",
        "keys and values are exchanged in the cache",
        "attn.cache_k",
        several(
            tap("attn.cache_k", earlier("attn.v")),
            tap("attn.cache_v", earlier("attn.k")),
        ),
    )
    for name, rounding in ROUNDED.items():
        yield Fault(f"cache-{name}", f"the cache is kept in {name}", "attn.cache_k", both_caches(rounding))

    yield Fault("no-scale", "scores are not scaled", "attn.scores", scaled(lambda E, D: 1.0))
    yield Fault(
        "scale-head-dim", "scores are divided by head_dim, not its root", "attn.scores", scaled(lambda E, D: 1 / D)
    )
    if H > 1:
        says = "scores are divided by sqrt(n_embd), not sqrt(head_dim)"
        yield Fault("scale-n_embd", says, "attn.scores", scaled(lambda E, D: 1 / math.sqrt(E)))
    says = "the mask is off by one: a query sees the position after its own"
    yield Fault("mask-plus-1", says, "attn.scores", setting(visible=lambda T: np.tri(T, k=1, dtype=bool)))
    says = "the mask is off by one: a query doesn't see its own position"
    yield Fault("mask-minus-1", says, "attn.scores", setting(visible=lambda T: np.tri(T, k=-1, dtype=bool)))
    yield Fault("no-mask", "there is no causal mask", "attn.scores", setting(visible=lambda T: np.ones((T, T), bool)))
    says = "the mask is upside down: a query sees only what comes after it"
    yield Fault("mask-reversed", says, "attn.scores", setting(visible=lambda T: np.tri(T, dtype=bool).T))

    for shifted, key, says in (
        (True, "softmax-float16", "the softmax is in float16"),
        (False, "softmax-float16-unshifted", "the softmax is in float16 and doesn't subtract the maximum"),
    ):
        yield Fault(key, says, "attn.context", tap("attn.context", context_of(softmax16(shifted))))
    says = "the softmax goes over the queries, not the positions"
    yield Fault("softmax-axis", says, "attn.context", tap("attn.context", context_of(softmax_over_queries)))
    says = "the weights are not divided by their sum"
    yield Fault("softmax-unnormalised", says, "attn.context", tap("attn.context", context_of(unnormalised)))
    if H > 1:
        says = "heads are put together without transposing: (H, T, D) is taken for (T, n_embd)"
        yield Fault("heads-not-merged", says, "attn.context", tap("attn.context", merged_without_transposing))

    for name, shows, shape in (
        ("attn.c_proj", "attn.c_proj", "a square matrix, so no shape shows it"),
        ("mlp.c_fc", "mlp.c_fc", "GPT-2's Conv1D has (in, out)"),
        ("mlp.c_proj", "mlp.c_proj", "GPT-2's Conv1D has (in, out)"),
    ):
        key, says = name.replace(".", "-"), f"{name}.weight is read as (out, in): {shape}"
        yield Fault(f"{key}-transposed", says, shows, weight(f"{name}.weight", read_transposed))
        yield Fault(f"{key}-no-bias", f"{name}.bias is not added", shows, weight(f"{name}.bias", np.zeros_like))
    says = "the sum with the block's input is missing after attention"
    yield Fault("no-residual-attn", says, "residual", tap("residual", earlier("attn.c_proj")))
    says = "the feed-forward layer stands beside attention: ln_2 is of the block's input"
    yield Fault("parallel", says, "ln_2", tap("ln_2", parallel("ln_2")))
    for other_name in ("gelu", "gelu_new", "relu", "silu", "tanh"):
        kind = {"gelu": "gelu (erf)", "gelu_new": "gelu_new (tanh)"}.get(other_name, other_name)
        if other_name != config.activation_function and other_name != config.activation:
            says = f"the activation is {kind}, not {config.activation_function}"
            yield Fault(
                f"activation-{other_name}", says, "mlp.act", options("mlp.act", function=ACTIVATIONS[other_name])
            )
    says = f"the activation is x sigmoid(1.702 x), not {config.activation_function}"
    yield Fault("activation-quick-gelu", says, "mlp.act", tap("mlp.act", quick_gelu))
    says = "the sum with what came before is missing after the feed-forward layer"
    yield Fault("no-residual-mlp", says, "", tap("", earlier("mlp.c_proj")))
    says = "the sum after the feed-forward layer is with the block's input, not with what attention made of it"
    yield Fault(
        "residual-from-input",
        says,
        "",
        tap("", lambda y, state: state.tensors["x"] + state.tensors["mlp.c_proj"]),
    )


# ---- after the blocks ----------------------------------------------------------------------------------------


def fresh(w: Array) -> Array:
    """A matrix that was never loaded: as transformers initialises it."""
    random = np.random.default_rng(20261125)
    return random.standard_normal(w.shape).astype(np.float32) * np.float32(0.02)


def probabilities16(p: Array, state: State) -> Array:
    with np.errstate(all="ignore"):
        return softmax16(False)(state.tensors["last_logits"].astype(np.float64)).astype(p.dtype)


FRESH = "head-fresh"


def after(network: Network) -> Iterator[Fault]:
    def outside(key: str, says: str, shows: str, change: Callable[[Network, int], None]) -> Fault:
        return Fault(key, says, shows, change, in_block=False)

    yield outside("ln_f-skipped", "ln_f is skipped", "ln_f", tap("ln_f", earlier("x")))
    yield outside("ln_f-no-weight", "ln_f.weight is not applied", "ln_f", weight("ln_f.weight", np.ones_like))
    yield outside("ln_f-no-bias", "ln_f.bias is not added", "ln_f", weight("ln_f.bias", np.zeros_like))
    says = "the head is not tied to wte: a matrix that was never loaded, independent values of one spread"
    yield outside(FRESH, says, "logits", weight("lm_head.weight", fresh))
    yield outside(
        "head-zero", "the head is zero: it was not tied to wte", "logits", weight("lm_head.weight", np.zeros_like)
    )
    says = "wte is read as (n_embd, vocab_size) for the head, instead of transposed"
    yield outside("head-not-transposed", says, "logits", weight("lm_head.weight", read_transposed))

    def tie(network: Network, layer: int) -> None:
        network.weights["lm_head.weight"] = network.weights["wte.weight"]

    if network.weights["lm_head.weight"] is not network.weights["wte.weight"]:
        yield outside("head-tied", "the head is wte, the file has its own lm_head.weight", "logits", tie)
    for name, rounding in ROUNDED.items():
        change = weight("lm_head.weight", rounding)
        yield outside(f"head-{name}", f"the head's weights were rounded to {name}", "logits", change)
        change = tap("logits", rounded(name))
        yield outside(f"logits-{name}", f"logits are rounded to {name}", "logits", change)
    for place, which in ((0, "first"), (-2, "last but one")):
        change = tap("last_logits", row(place))
        yield outside(f"row-{place}", f"the row of the {which} position is taken for the last", "last_logits", change)
    says = "the smallest logit's id is taken"
    yield outside("argmin", says, "argmax", tap("argmax", argmin))
    says = "the softmax is in float16 and doesn't subtract the maximum"
    yield outside("probs-float16", says, "probs", tap("probs", probabilities16))

    def later(by: int) -> Callable[[Network, int], None]:
        def put(network: Network, layer: int) -> None:
            network.later = by

        return put

    for by, says in ((1, "are one too far"), (-1, "are one too near: the first new token has the prompt's last")):
        says = f"positions of new tokens {says}"
        yield Fault(f"decode-position{by:+d}", says, "generated", later(by), in_block=False, decoding=True)


def row(place: int) -> Tap:
    def change(last: Array, state: State) -> Array:
        logits = state.tensors["logits"]
        y: Array = logits[max(place, -len(logits))]
        return y

    return change


def argmin(best: Array, state: State) -> Array:
    return np.array(np.argmin(state.tensors["last_logits"]), np.int64)
