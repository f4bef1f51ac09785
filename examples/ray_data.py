"""A job of Ray Data has the same bits in any split and after a worker was killed: on the model that comes with llorch.

    pip install ".[ray]"
    python examples/ray_data.py

It says what holds, and fails where it doesn't.
"""

import contextlib
import logging
import os
import signal
import tempfile
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
import ray.data

import llorch
import llorch.ray

SPEAKERS = ["ROMEO", "JULIET", "KING RICHARD III", "First Citizen"]
ROWS = [{"id": i, "prompt": f"{SPEAKERS[i % 4]}:\nScene {i}, "} for i in range(200)]
OPTIONS = {
    "model": "shakespeare-1m",
    "max_new_tokens": 24,
    "temperature": 0.8,
    "key": "id",  # a row's seed comes of the job's and of this
    "seed": 6,
    "receipt": True,
}


class KilledOnce(llorch.ray.Generate):
    """A worker whose process is killed with its third batch in hand, the first time."""

    def __init__(self, marker, **options):
        super().__init__(**options)
        self.marker, self.batches = marker, 0

    def __call__(self, rows):
        self.batches += 1
        if self.batches == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(rows)


def job(rows, blocks, actors, batch_size, worker=llorch.ray.Generate, **more):
    """A dataset, still to be computed."""
    return ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        worker,
        fn_constructor_kwargs=OPTIONS | more,
        compute=ray.data.ActorPoolStrategy(size=actors),
        batch_size=batch_size,
        num_cpus=1,
    )


def show(what, digest):
    print(f"{digest[:16]}... after {time.perf_counter() - begin:4.1f} s: {what}", flush=True)


def columns_of(rows):
    return {"id": [row["id"] for row in rows], "receipt": [row["receipt"] for row in rows]}


begin = time.perf_counter()
# Workers look for modules in the folder where the job begins first: in llorch's sources they would find these, and
# not the installed package.
with tempfile.TemporaryDirectory(prefix="llorch-ray-") as folder, contextlib.chdir(folder):
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", _temp_dir=folder)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        wanted = llorch.ray.digest(job(ROWS, 2, 1, 100), key="id", columns=["receipt"])
        show("2 blocks, 1 actor, batches of 100", wanted)

        marker = Path(folder, "killed")
        rows = job(ROWS[::-1], 7, 2, 9, KilledOnce, marker=marker).take_all()
        digest = llorch.ray.digest([columns_of(rows)], key="id")
        show("7 blocks, 2 actors, batches of 9; a worker was killed, as Ray says above", digest)
        assert marker.exists() and digest == wanted, "another digest in another split, after a worker was killed"
    finally:
        ray.shutdown()
assert sorted(row["id"] for row in rows) == [row["id"] for row in ROWS], "rows were lost, or came twice"

model = llorch.CausalLM.from_pretrained("shakespeare-1m")
row = next(row for row in rows if row["id"] == 17)
alone = model.generate(row["prompt"], 24, temperature=0.8, seed=llorch.ray.seed_of(6, 17))
assert row["generated"] == alone, "another text than generate gives for the row alone"

wrong = columns_of(rows)
wrong["receipt"][5] = wrong["receipt"][5].replace("0", "1", 1)
assert llorch.ray.digest([wrong], key="id") != wanted, "the digest doesn't see a wrong row"

print(f"{row['prompt']}{alone}\n\n{len(rows)} rows: one digest in two splits, in one of which a worker was killed.")
