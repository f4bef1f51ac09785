"""Where the workers of a job are: one actor a node, with all its threads on one copy of the weights."""

from __future__ import annotations

from typing import Any

import ray
import ray.data


def pool(*, leave: int = 1) -> dict[str, Any]:
    """The arguments `compute`, `num_cpus` and `batch_format` of `map_batches` for one actor a node and Arrow's tables.

    An actor computes with as many threads as it has CPUs, on one copy of the weights, so that a node's memory has them
    once. Where nodes have different numbers of CPUs, all actors are as large as the smallest node allows, and larger
    nodes have several. Arrow's tables keep integers beside a null, which Ray's own batches make floats.

    Parameters
    ----------
    leave : int, at least 0
        CPUs of each node that stay free for Ray's tasks: those that read, write, map or sort. Where actors have all
        CPUs, such a task never starts, and the job waits for ever: 0 is for rows that are in memory already
        (`from_items`, `materialize()`) and come back to the caller.

    Raises
    ------
    TypeError, ValueError
        leave isn't such an int; a node has no CPU beside those that are left. Ray is started if it isn't.
    """
    if isinstance(leave, bool) or not isinstance(leave, int):
        raise TypeError(f"leave must be an int, got {leave!r}")
    if leave < 0:
        raise ValueError(f"leave must be at least 0, got {leave}")
    if not ray.is_initialized():
        ray.init()
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = [count for count in nodes if count]  # a head that only manages has none
    if not cpus or min(cpus) <= leave:
        least = f"a node has {min(cpus)} CPU" if cpus else "no node has a CPU"
        raise ValueError(
            f"{least}, and leave={leave} of each are to stay free: none is left for an actor. leave=0 gives it all, "
            "and a job that reads, writes or maps beside it waits for ever"
        )
    each = min(cpus) - leave
    size = sum((count - leave) // each for count in cpus)
    return {"compute": ray.data.ActorPoolStrategy(size=size), "num_cpus": each, "batch_format": "pyarrow"}
