"""Faults of attention between the rotation and the output projection: cache, scores, mask, softmax, groups of heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from llorch.models.graph import Step
from llorch.validate.ladder.distance import Array
from llorch.validate.ladder.faults.change import (
    ROUNDED,
    Change,
    Evidence,
    Fault,
    Part,
    Solved,
    earlier,
    float16,
    options,
    setting,
    several,
    tap,
)
from llorch.validate.ladder.network import Network, State, merge_heads, position_bias


def of(part: Part) -> Iterator[Fault]:
    if part.where != "block":
        return
    scores = part.of_op("scores")
    if len(scores) != 1:
        return
    yield from _cache(part)
    yield from _heads(part, scores[0])
    yield from _mask(part, scores[0])
    yield from _scores(part, scores[0])
    yield from _softmax(part, part.of_op("attend")[0])


# ---- the cache ---------------------------------------------------------------------------------------------------


def _cache(part: Part) -> Iterator[Fault]:
    caches = part.of_op("cache")
    if len(caches) != 2:
        return
    k, v = caches

    def both(change: Callable[[Array], Array]) -> Change:
        return several(*(tap(part, step.name, lambda x, state: change(x)) for step in caches))

    says = "the cache is written one slot too far"
    yield from part.fault("cache-next-slot", says, k.name, both(_next_slot))
    says = "the last position is not written to the cache"
    yield from part.fault("cache-no-last", says, k.name, both(_without(-1)))
    yield from part.fault("cache-no-first", "position 0 is not written to the cache", k.name, both(_without(0)))
    swap = several(tap(part, k.name, earlier(v.inputs[0])), tap(part, v.name, earlier(k.inputs[0])))
    yield from part.fault("cache-exchanged", "keys and values are exchanged in the cache", k.name, swap)
    raw = part.named(k.inputs[0])
    if raw.op == "rope":
        says = "keys go to the cache before their rotation"
        change = tap(part, k.name, earlier(raw.inputs[0]))
        yield from part.fault("cache-not-rotated", says, k.name, change, only=None)
    for name, rounding in ROUNDED.items():
        yield from part.fault(f"cache-{name}", f"the cache is kept in {name}", k.name, both(rounding), grid=rounding)


def _without(place: int) -> Callable[[Array], Array]:
    def change(x: Array) -> Array:
        y = x.copy()
        y[:, place] = 0
        return y

    return change


def _next_slot(x: Array) -> Array:
    """Position t in slot t + 1, the first slot never written."""
    y = np.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    return y


# ---- heads -------------------------------------------------------------------------------------------------------


def _heads(part: Part, scores: Step) -> Iterator[Fault]:
    sizes = part.network.graph.sizes
    H, G, E = sizes["H"], sizes["G"], sizes["H"] * sizes["D"]
    plain = G == H and not part.of_op("rope") and not scores.options.get("position_bias")
    plain = plain and not any(step.axes in ("HTD", "GTD") for step in part.of_op("layer_norm", "rms_norm"))
    for other in (H * 2, H // 2) if plain else ():
        if other and E % other == 0:
            says = f"there are {other} heads, not {H}"
            yield from part.fault(f"heads-{other}", says, scores.name, _head_count(part, scores.name, other), late=True)
    if 1 < G < H:
        says = "keys and values are repeated as a whole (tiled), not each beside itself"
        yield from part.fault("groups-tiled", says, scores.name, setting(part, groups=lambda H, G: np.arange(H) % G))
        says = "heads have the keys and values of the next group"
        change = setting(part, groups=lambda H, G: (np.arange(H) // (H // G) + 1) % G)
        yield from part.fault("groups-next", says, scores.name, change)
        says = "all heads have the keys and values of the first group"
        change = setting(part, groups=lambda H, G: np.zeros(H, int))
        yield from part.fault("groups-first", says, scores.name, change)


def _head_count(part: Part, scores: str, heads: int) -> Change:
    def put(network: Network, layer: int) -> None:
        b = part.at(network, layer)
        scale = b.options(b.step(scores))["scale"]
        if scale is None:
            scale = 1 / math.sqrt(network.graph.sizes["D"])
        b.heads = heads
        b.change(scores, scale=scale * math.sqrt(heads / network.graph.sizes["H"]))

    return put


# ---- masks and windows -------------------------------------------------------------------------------------------


def _mask(part: Part, scores: Step) -> Iterator[Fault]:
    name = scores.name

    def seen(change: Callable[[int], Array]) -> Change:
        return setting(part, visible=change)

    def causal(shift: int) -> Change:
        def put(network: Network, layer: int) -> None:
            block = part.at(network, layer)
            own = block.options(block.step(name))
            window = own["window"]

            def change(T: int) -> Array:
                sees = np.tri(T, k=shift, dtype=bool)
                return sees if window is None else sees & ~np.tri(T, k=-window, dtype=bool)

            block.visible = change

        return put

    if scores.options["causal"]:
        says = "the mask is off by one: a query sees the position after its own"
        yield from part.fault("mask-plus-1", says, name, causal(1))
        says = "the mask is off by one: a query doesn't see its own position"
        yield from part.fault("mask-minus-1", says, name, causal(-1))
        says = "there is no causal mask"
        yield from part.fault("no-mask", says, name, seen(lambda T: np.ones((T, T), bool)))
        says = "the mask is upside down: a query sees only what comes after it"
        yield from part.fault("mask-reversed", says, name, seen(lambda T: np.tri(T, dtype=bool).T))
    else:
        says = "there is a causal mask: each position of an encoder sees all"
        yield from part.fault("mask-causal", says, name, options(part, name, causal=True, window=None))

    windows = {step.options["window"] for steps in part.network.graph.blocks for step in steps if step.op == "scores"}
    for window in sorted(windows - {None}):
        if len(windows) > 1:
            says = f"there is a window of {window} positions, on a layer that has none"
            change = options(part, name, window=window)
            yield from part.fault("window-too", says, name, change, only=lambda step: step.options["window"] is None)


def _scores(part: Part, scores: Step) -> Iterator[Fault]:
    graph, name = part.network.graph, scores.name
    D, E = graph.sizes["D"], graph.sizes["E"]
    listed = (("no-scale", "scores are not scaled", 1.0),
              ("scale-head-dim", "scores are divided by head_dim, not its root", 1 / D),
              ("scale-root", "scores are divided by sqrt(head_dim), as is usual", D**-0.5),
              ("scale-n_embd", "scores are divided by sqrt(n_embd), not sqrt(head_dim)", E**-0.5))  # fmt: skip
    for key, says, scale in listed:

        def other(step: Step, scale: float = scale) -> bool:
            own = step.options["scale"]
            return abs(scale / float(D**-0.5 if own is None else own) - 1) > 1e-3

        yield from part.fault(key, says, name, options(part, name, scale=scale), only=other)
    if scores.options["softcap"] is not None:
        says = f"scores have no softcap, of {scores.options['softcap']:g}"
        yield from part.fault("no-softcap", says, name, options(part, name, softcap=None))
    if scores.options.get("position_bias"):
        says = "the bias of the distance is not added to scores"
        yield from part.fault("no-position-bias", says, name, options(part, name, position_bias=None))
        says = "the bias of the distance is of query less key: the other way round"
        change = options(part, name, buckets=tuple(reversed(scores.options["buckets"])))
        yield from part.fault("position-bias-reversed", says, name, change)


# ---- the softmax -------------------------------------------------------------------------------------------------


def _softmax(part: Part, attend: Step) -> Iterator[Fault]:
    name = attend.name
    H = part.network.graph.sizes["H"]
    values = attend.inputs[1]

    def context_of(weights: Callable[[Array], Array]) -> Change:
        """The context with other weights: of the masked scores (H, T, S)."""

        def change(context: Array, state: State) -> Array:
            with np.errstate(all="ignore"):
                p = weights(state.tensors[attend.inputs[0]].astype(np.float64))
                y = p @ state.block.shared(state.tensors[values], len(p)).astype(np.float64)
            return merge_heads(y).astype(context.dtype)

        return tap(part, name, change)

    says = "the softmax is in float16"
    yield from part.fault("softmax-float16", says, name, context_of(softmax16(True)))
    says = "the softmax is in float16 and doesn't subtract the maximum"
    yield from part.fault("softmax-float16-unshifted", says, name, context_of(softmax16(False)))
    says = "the softmax goes over the queries, not the positions"
    yield from part.fault("softmax-axis", says, name, context_of(_over_queries))
    yield from part.fault("softmax-unnormalised", "the weights are not divided by their sum", name, context_of(_whole))
    if H > 1:
        says = "heads are put together without transposing: (H, T, D) is taken for (T, n_embd)"
        yield from part.fault("heads-not-merged", says, name, tap(part, name, _not_merged))


def softmax16(shifted: bool) -> Callable[[Array], Array]:
    """A softmax in float16, with the maximum taken off first or not."""

    def weights(s: Array) -> Array:
        s = float16(s)
        e = float16(np.exp(s - s.max(axis=-1, keepdims=True) if shifted else s))
        return float16(e / float16(e.sum(axis=-1, keepdims=True)))

    return weights


def _over_queries(s: Array) -> Array:
    e: Array = np.exp(s - s.max(axis=-2, keepdims=True))
    e = e / e.sum(axis=-2, keepdims=True)
    return e


def _whole(s: Array) -> Array:
    e: Array = np.exp(s - s.max(axis=-1, keepdims=True))
    return e


def _not_merged(context: Array, state: State) -> Array:
    """(H, T, D) taken for (T, H D)."""
    T, width = context.shape
    H = state.network.graph.sizes["H"]
    return context.reshape(T, H, width // H).transpose(1, 0, 2).reshape(T, width)


# ---- numbers -----------------------------------------------------------------------------------------------------


def solvable(part: Part) -> Iterator[Solved]:
    if part.where != "block":
        return
    found = part.of_op("scores")
    if len(found) != 1:
        return
    step = found[0]
    name, D = step.name, part.network.graph.sizes["D"]

    def scale_of(one: Step) -> float:
        own = one.options["scale"]
        return D**-0.5 if own is None else float(own)

    def solve_scale(evidence: Evidence) -> Iterable[float]:
        options = evidence.part.options(evidence.part.step(name))
        own = D**-0.5 if options["scale"] is None else options["scale"]
        theirs, right, finite = evidence.theirs, evidence.right, evidence.finite & np.isfinite(evidence.theirs)
        if options.get("position_bias"):
            bias = position_bias(evidence.network.weights, options, theirs.shape[-1])[..., -theirs.shape[-2] :, :]
            theirs, right = theirs - bias, right - bias
        if cap := options["softcap"]:
            finite = finite & (np.abs(theirs) < 0.99 * cap)
            with np.errstate(all="ignore"):
                theirs, right = np.arctanh(theirs / cap), np.arctanh(right / cap)
        a, b = theirs[finite], right[finite]
        if (b * b).sum() > 0:
            yield float((a * b).sum() / (b * b).sum()) * own

    usual = scale_of(step)
    yield from part.solved(
        "scale", name, lambda value: f"scores are multiplied by {value:.6g}, not {usual:.6g}",
        lambda value: options(part, name, scale=value), solve_scale, (usual * 1.37, usual * 0.6), near=usual,
    )  # fmt: skip

    def has_cap(one: Step) -> bool:
        return one.options["softcap"] is not None

    if has_cap(step):
        cap = step.options["softcap"]
        yield from part.solved(
            "softcap", name, lambda value: f"the softcap of scores is {value:.6g}, not {cap:g}",
            lambda value: options(part, name, softcap=value), lambda e: solve_cap(e, cap), (cap * 1.7, cap * 0.7),
            near=cap, only=has_cap,
        )  # fmt: skip

    windows = {one.options["window"] for steps in part.network.graph.blocks for one in steps if one.op == "scores"}
    for window in windows - {None}:
        same = lambda one, window=window: one.options["window"] == window  # noqa: E731

        def says(value: float, window: int = window) -> str:
            if value > 10**6:
                return f"there is no window, of {window} positions"
            near = ": off by one" if abs(value - window) == 1 else ""
            return f"the window has {int(value)} positions, not {window}{near}"

        def solve(evidence: Evidence, window: int = window) -> Iterable[float]:
            return _windows(evidence, window)

        def change(value: float) -> Change:
            return options(part, name, window=int(value))

        samples = window + 1, window - 1, 10**7
        yield from part.solved(f"window-{window}", name, says, change, solve, samples, only=same)


def solve_cap(evidence: Evidence, cap: float) -> Iterable[float]:
    """By the slope at their largest values: theirs = c tanh(raw / c), raw = cap atanh(ours / cap)."""
    from llorch.validate.ladder.faults.rotation import golden

    finite = evidence.finite & np.isfinite(evidence.theirs) & (np.abs(evidence.right) < 0.999 * cap)
    with np.errstate(all="ignore"):
        raw = cap * np.arctanh(evidence.right[finite] / cap)
    theirs = evidence.theirs[finite]
    if theirs.size:
        far = lambda log: float(np.square(math.exp(log) * np.tanh(raw / math.exp(log)) - theirs).sum())  # noqa: E731
        yield math.exp(golden(far, math.log(cap / 50), math.log(cap * 50)))


def _windows(evidence: Evidence, window: int) -> Iterable[float]:
    """As far as their queries see; where scores aren't there, what is usual."""
    if evidence.tensors and evidence.theirs.ndim == 3 and evidence.name.endswith("scores"):
        last = evidence.theirs[0, -1]
        seen = int(np.isfinite(last).sum())
        causal = evidence.part.options(next(s for s in evidence.part.steps if s.op == "scores"))["causal"]
        reach = seen if causal else seen - 1
        yield from (reach,) if reach < len(last) - (not causal) else (10**7,)
    else:
        yield from (window + 1, window - 1, 10**7)
