"""A decoding step of llorch beside the sum of its kernels, each called by itself.

The kernels are those of the model's plan, by the public functions with `out=`: same shapes, same packed weights, a
cache of the same depth. Calls of one kind (a projection of all layers, say) make up a pass, which is timed as a whole;
passes and steps take turns. So between two uses of a weight every other weight is read, as between two steps, and
caches are as cold. What Python needs to make a call is in the sum, once a kernel; of a step it is there once.
"""

import statistics
import time
from functools import partial

import numpy as np

import llorch


class Pass:
    """Calls of one kind. after: what has to be done behind each pass, and isn't timed."""

    def __init__(self):
        self.calls, self.after, self.seconds = [], [], []

    def run(self):
        calls = self.calls
        start = time.perf_counter()
        for call in calls:
            call()
        self.seconds.append(time.perf_counter() - start)
        for call in self.after:
            call()


class Rows:
    """One array for each use and width, as a step's workspace has it."""

    def __init__(self):
        self.rng, self.arrays = np.random.default_rng(0), {}

    def __call__(self, use, *shape):
        if (use, shape) not in self.arrays:
            self.arrays[use, shape] = self.rng.standard_normal(shape, np.float32)
        return self.arrays[use, shape]


def passes(model, depth):
    """{what: Pass} of everything that a step calls for one sequence behind `depth` tokens."""
    model.step([[1] * (depth + 1)], [model.new_cache(depth + 1)])  # tables of rotations reach so far now
    found, rows = {}, Rows()
    token, position = np.array([1]), np.array([depth])

    def gate_of(n, function):
        return partial(llorch.gate, rows("x", 1, n), rows("y", 1, n), activation=function, out=rows("z", 1, n))

    def add(what, call, after=None):
        found.setdefault(what, Pass()).calls.append(call)
        if after is not None:
            found[what].after.append(after)

    for call in model._plan("last").calls:
        op, n = call["op"], call.get("n", 0)
        heads, D = call.get("heads", 1), call.get("D", 0)
        if op == "embedding":
            add("embedding", partial(llorch.embedding, call["weight"], token))
        elif op == "places":
            add("position", partial(np.add, rows("x", n), call["weight"][depth], out=rows("x", n)))
        elif op in ("rms_norm", "layer_norm"):
            x, y = rows("x", heads, n), rows("y", heads, n)
            vectors = [vector for vector in (call["scale"], call["bias"]) if vector is not None]
            add(op, partial(getattr(llorch, op), x, *vectors, eps=call["number"], out=y))
        elif op == "linear":
            weight, function, residual = call["weight"], call.get("function"), call.get("x2")
            K, N = weight.shape
            if call.get("gated"):
                add(f"linear {K} x {N}", partial(weight, rows("x", 1, K), out=rows("y", 1, N)))
                add("gate", gate_of(n, function))
                continue
            what = f"linear {K} x {N}" + (f" + {function}" if function else "") + (" + residual" if residual else "")
            x, y = rows("x", 1, K), rows("y", 1, N)
            add(what, partial(weight, x, activation=function, residual=y if residual else None, out=y))
        elif op == "rope":
            x, y = rows("x", heads, 1, D), rows("y", heads, 1, D)
            add("rope", partial(llorch.rope, x, *model._tables.arrays[call["table"]], position, out=y))
        elif op == "attention":
            cache = llorch.KVCache(call["kv_heads"], D, depth + 1)
            k, v = (rows(use, call["kv_heads"], 1, D) for use in "kv")
            cache.append(*(np.repeat(one, depth, axis=1) for one in (k, v)))
            q, y = rows("q", heads, 1, D), rows("y", heads, 1, D)
            options = {"scale": call["attention_scale"]}
            options |= {name: call[name] for name in ("window", "softcap") if call[name] is not None}
            add("cache: append", partial(cache.append, k, v))
            add("cache: attention", partial(cache.attention, q, out=y, **options), partial(cache.truncate, depth))
        elif op == "gate":
            add("gate", gate_of(n, call["function"]))
        elif op != "rows":  # which moves nothing where there is one row
            raise ValueError(f"a step calls {op}, which isn't measured by itself")
    return found


def measure(model, depth, repetitions):
    """{"step_s", "sum_s": medians; "ratio": the median of each turn's; "kernels": {what: {"calls", "seconds"}}}."""
    kinds, cache, step = passes(model, depth), model.new_cache(depth + 1), Pass()
    model.step([[1] * depth], [cache])
    step.calls.append(partial(model.step, [[1]], [cache]))
    step.after.append(partial(cache.truncate, depth))
    turns = [step, *kinds.values()]
    for _ in range(repetitions + 2):
        for one in turns:
            one.run()
    for one in turns:
        del one.seconds[:2]  # warm now
    sums = [sum(seconds) for seconds in zip(*(one.seconds for one in kinds.values()), strict=True)]
    ratios = [mine / total for mine, total in zip(step.seconds, sums, strict=True)]
    return {
        "depth": depth,
        "repetitions": repetitions,
        "step_s": statistics.median(step.seconds),
        "sum_s": statistics.median(sums),
        "ratio": statistics.median(ratios),
        "kernels": {
            what: {"calls": len(one.calls), "seconds": statistics.median(one.seconds)} for what, one in kinds.items()
        },
    }
