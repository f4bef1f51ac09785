"""Engines that run models: each is a process of its own, so that their thread pools can't disturb each other.

    python benchmarks/engines.py KIND PATH THREADS [OPTION]      # started by models.py

KIND is a key of KINDS. Reads one JSON request a line from stdin and answers with one a line on stdout. A request is the
name of a method and its arguments; the answer is what it returns, arrays as the path of an .npy file.
"""

import contextlib
import ctypes
import importlib.metadata
import json
import mmap
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np


def ids(count, first=1):
    """Some tokens, of any vocabulary of 512 and more."""
    return [(first + 7 * i) % 509 + 1 for i in range(count)]


def memory(entry):
    """Bytes of this process by an entry of /proc/self/status (VmRSS now, VmHWM at most); None where there is no such
    file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return None
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{entry}:"))


# Memory as programs have it. What mmap gives without a word may be shared, which never has large pages.
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def copied(path):
    """Seconds to read a file into new memory by two threads."""

    def read(begin, end):
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            while begin < end:
                begin += file.readinto(view[begin : min(end, begin + (1 << 20))])

    start, size = time.perf_counter(), path.stat().st_size
    with mmap.mmap(-1, size, **PRIVATE) as room:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            room.madvise(mmap.MADV_HUGEPAGE)
        with memoryview(room) as view:
            other = threading.Thread(target=read, args=(size // 2, size))
            other.start()
            read(0, size // 2)
            other.join()
        return time.perf_counter() - start


class Engine:
    """What all of them can do. `open` is theirs: it gives the model in `path`.

    logits(tokens) : of all positions, computed at once, (T, V) float32
    surprise(tokens) : nats a token, by those logits; the first one is only read
    stepped(tokens) : the same, token by token, with the cache; None where there is no such call
    together(prompts) : the last position's of each prompt, all in one batch
    prefill(length), decode(sequences, depth, steps), load(), copy() : seconds
    opened() : bytes by which this process's memory grew at most while the model was loaded, mapped files among them
    """

    def __init__(self, path, threads, option=None):
        self.path, self.option = Path(path), option
        self.use(threads)
        with contextlib.suppress(OSError):  # else the most memory is what the process ever had, imports and all
            Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        self.model = self.open()
        self.grown = before and memory("VmHWM") - before

    def opened(self):
        return self.grown

    def surprise(self, tokens):
        logits = self.logits(tokens)[:-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        said = logits[np.arange(len(logits)), tokens[1:]] - np.log(np.exp(logits).sum(axis=1))
        return -float(said.mean())

    def use(self, threads):
        """How many threads to compute with; imports the engine's modules."""

    def stepped(self, tokens):
        return None

    def load(self):
        """Seconds to load the model once more."""
        start = time.perf_counter()
        model = self.open()
        seconds = time.perf_counter() - start
        self.close(model)
        return seconds

    def copy(self):
        """Seconds to read the files into new memory, half by each of two threads: as much as weights in memory of
        one's own need at least. Pages are large, where there are such."""
        return sum(copied(path) for path in self.weights())

    def close(self, model):
        """For a model that Python doesn't free by itself."""

    def weights(self):
        """The files that `load` reads."""
        return [self.path] if self.path.is_file() else [self.path / "model.safetensors"]

    def file_bytes(self):
        return sum(path.stat().st_size for path in self.weights())


# ---- llorch ----------------------------------------------------------------------------------------------------


class Llorch(Engine):
    """option: how weights are kept, "file" as the file has them; behind a slash the arithmetic, if not float32."""

    def use(self, threads):
        import llorch

        llorch.set_num_threads(threads)
        llorch.CausalLM  # noqa: B018  # imported when it is asked for: modules are no part of a model's memory
        self.llorch = llorch
        dtype, _, compute = (self.option or "file").partition("/")
        self.options = {"dtype": None if dtype == "file" else dtype}
        if compute:
            self.options["compute"] = compute

    def open(self):
        name = self.path if self.path.exists() else str(self.path)  # the model that comes with llorch
        return self.llorch.CausalLM.from_pretrained(name, **self.options)

    def logits(self, tokens):
        return self.model.forward(tokens)

    def stepped(self, tokens):
        cache = self.model.new_cache()
        return np.concatenate([self.model.step([[token]], [cache]) for token in tokens])

    def together(self, prompts):
        return self.model.step(prompts, [self.model.new_cache() for _ in prompts])

    def prefill(self, length):
        cache = self.model.new_cache(length)
        start = time.perf_counter()
        self.llorch.argmax(self.model.step([ids(length)], [cache]))
        return time.perf_counter() - start

    def decode(self, sequences, depth, steps):
        argmax = self.llorch.argmax
        caches = [self.model.new_cache(depth + steps) for _ in range(sequences)]
        chosen = argmax(self.model.step([ids(depth, i) for i in range(sequences)], caches))
        start = time.perf_counter()
        for _ in range(steps):
            chosen = argmax(self.model.step(chosen[:, None], caches))
        return time.perf_counter() - start

    def steps(self, depth, count):
        """Seconds of a step of one sequence, as a user calls it, without choosing a token: `count` of them."""
        model, cache = self.model, self.model.new_cache(depth + count)
        model.step([ids(depth)], [cache])
        tokens = ids(count)
        start = time.perf_counter()
        for token in tokens:
            model.step([[token]], [cache])
        return (time.perf_counter() - start) / count

    def kernels(self, depth, repetitions):
        """A step beside its kernels by themselves: see step_kernels.py."""
        import step_kernels

        return step_kernels.measure(self.model, depth, repetitions)


# ---- transformers ----------------------------------------------------------------------------------------------


class Transformers(Engine):
    def use(self, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch

    def open(self):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        model = transformers.AutoModelForCausalLM.from_pretrained(self.path, dtype=self.torch.float32)
        return model.eval()

    def step(self, tokens, past=None):
        return self.model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)

    def logits(self, tokens):
        return self.model(self.torch.tensor([tokens]), use_cache=False).logits[0].numpy()

    def stepped(self, tokens):
        past, rows = None, []
        for token in tokens:
            out = self.step(self.torch.tensor([[token]]), past)
            past = out.past_key_values
            rows.append(out.logits[0].numpy())
        return np.concatenate(rows)

    def together(self, prompts):
        """As transformers generates in batches: padded on the left, and masked."""
        width = max(map(len, prompts))
        tokens, mask = self.torch.zeros((2, len(prompts), width), dtype=self.torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = self.torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        options = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}  # as `generate` does
        return self.model(tokens, **options).logits[:, -1].numpy()

    def prefill(self, length):
        tokens = self.torch.tensor([ids(length)])
        start = time.perf_counter()
        self.step(tokens).logits[:, -1].argmax(-1)
        return time.perf_counter() - start

    def decode(self, sequences, depth, steps):
        out = self.step(self.torch.tensor([ids(depth, i) for i in range(sequences)]))
        chosen = out.logits[:, -1].argmax(-1)
        start = time.perf_counter()
        for _ in range(steps):
            out = self.step(chosen[:, None], out.past_key_values)
            chosen = out.logits[:, -1].argmax(-1)
        return time.perf_counter() - start


# ---- CTranslate2 -----------------------------------------------------------------------------------------------


class CTranslate2(Engine):
    """option: the type of its weights. Takes its tokens as text, and has no call for one step: decoding is timed from
    the first new token on."""

    def use(self, threads):
        self.threads = threads

    def open(self):
        import ctranslate2

        self.converted = self.path / f"ctranslate2-{self.option}"
        if not self.converted.exists():
            converter = ctranslate2.converters.TransformersConverter(str(self.path))
            converter.convert(str(self.converted), quantization=self.option)
        self.tokens = json.loads((self.converted / "vocabulary.json").read_text(encoding="utf-8"))
        return ctranslate2.Generator(
            str(self.converted), device="cpu", compute_type=self.option, intra_threads=self.threads, inter_threads=1
        )

    def weights(self):
        return [self.converted / "model.bin"]

    def generate(self, prompts, new):
        """Seconds until each has its first new token, and until all have `new` tokens."""
        texts = [[self.tokens[id] for id in prompt] for prompt in prompts]
        times = []
        options = {"include_prompt_in_result": False, "beam_size": 1, "sampling_topk": 1}
        start = time.perf_counter()
        self.model.generate_batch(
            texts, min_length=new, max_length=new, callback=lambda _: bool(times.append(time.perf_counter())), **options
        )
        assert len(times) == new * len(prompts)
        return times[len(prompts) - 1] - start, times[-1] - start

    def logits(self, tokens):
        return np.array(self.model.forward_batch([tokens]))[0]

    def prefill(self, length):
        return self.generate([ids(length)], 1)[0]

    def decode(self, sequences, depth, steps):
        first, last = self.generate([ids(depth, i) for i in range(sequences)], steps + 1)
        return last - first


# ---- llama.cpp -------------------------------------------------------------------------------------------------


class LlamaCpp(Engine):
    """By llama-cpp-python's low-level interface, which is that of llama.h."""

    ROOM, SEQUENCES = 2048, 32  # tokens of all sequences together, and the most sequences

    def use(self, threads):
        import llama_cpp

        self.c, self.threads = llama_cpp, threads
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept alive
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        if hasattr(self, "context"):
            llama_cpp.llama_set_n_threads(self.context, threads, threads)

    def __init__(self, path, threads, option=None):
        super().__init__(path, threads, option)
        c = self.c
        params = c.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.ROOM
        params.n_seq_max = self.SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = c.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp has no context for {path}")
        self.batch = c.llama_batch_init(self.ROOM, 0, 1)
        self.vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))

    def open(self):
        self.c.llama_backend_init()
        model = self.c.llama_model_load_from_file(str(self.path).encode(), self.c.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp can't load {self.path}")
        return model

    def close(self, model):
        self.c.llama_model_free(model)

    def step(self, chunks, start, every=False):
        """One call for all; the last logits of each, (len(chunks), V), or those of every position."""
        batch, n, wanted = self.batch, 0, []
        for sequence, tokens in enumerate(chunks):
            for i, token in enumerate(tokens):
                batch.token[n], batch.pos[n] = token, start + i
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                batch.logits[n] = every or i == len(tokens) - 1
                if batch.logits[n]:
                    wanted.append(n)
                n += 1
        batch.n_tokens = n
        if status := self.c.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gives {status}")
        rows = [self.c.llama_get_logits_ith(self.context, i) for i in wanted]
        return np.stack([np.ctypeslib.as_array(row, (self.vocabulary,)) for row in rows])

    def forget(self):
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def logits(self, tokens):
        self.forget()
        return self.step([tokens], 0, every=True)

    def stepped(self, tokens):
        self.forget()
        return np.concatenate([self.step([[token]], i) for i, token in enumerate(tokens)])

    def together(self, prompts):
        self.forget()
        return self.step(prompts, 0)

    def prefill(self, length):
        self.forget()
        start = time.perf_counter()
        self.step([ids(length)], 0).argmax(axis=1)
        return time.perf_counter() - start

    def decode(self, sequences, depth, steps):
        self.forget()
        chosen = self.step([ids(depth, i) for i in range(sequences)], 0).argmax(axis=1)
        start = time.perf_counter()
        for i in range(steps):
            chosen = self.step([[int(id)] for id in chosen], depth + i).argmax(axis=1)
        return time.perf_counter() - start


# ---- the process -----------------------------------------------------------------------------------------------

KINDS = {
    "llorch": (Llorch, ("numpy", "safetensors")),
    "transformers": (Transformers, ("torch", "transformers")),
    "CTranslate2": (CTranslate2, ("ctranslate2", "transformers", "torch")),
    "llama.cpp": (LlamaCpp, ("llama-cpp-python", "gguf")),
}


def missing(kind):
    """The packages it needs that aren't installed."""
    absent = []
    for package in KINDS[kind][1]:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            absent.append(package)
    return absent


def serve(kind, path, threads, option=None):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints doesn't get among the answers
    engine = KINDS[kind][0](path, int(threads), option)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps("ready"), file=answers, flush=True)
        for line in sys.stdin:
            what, *arguments = json.loads(line)
            answer = getattr(engine, what)(*arguments)
            if isinstance(answer, np.ndarray):
                file = os.path.join(folder, "answer.npy")
                np.save(file, np.asarray(answer, np.float32))
                answer = file
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
