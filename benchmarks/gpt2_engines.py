"""The engines of bench_gpt2.py: each is a process of its own, so that their thread pools can't disturb each other.

    python benchmarks/gpt2_engines.py ENGINE FOLDER THREADS      # started by bench_gpt2.py

Reads one JSON request a line from stdin and answers with one a line on stdout:
["logits", ids, file] writes the last position's logits as .npy (null where the engine doesn't show them),
["prefill", n] and ["decode", sequences, depth, steps] answer with the seconds they took.
"""

import ctypes
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

LLORCH = {f"llorch, {dtype}": dtype for dtype in ("float32", "bfloat16", "float16")}
TRANSFORMERS = "transformers, float32"
CTRANSLATE2 = {f"CTranslate2, {dtype}": dtype for dtype in ("float32", "int8")}
LLAMA_CPP = {"llama.cpp, f32": "f32", "llama.cpp, f16": "f16"}
PACKAGES = (
    dict.fromkeys(LLORCH, ("numpy", "safetensors"))
    | {TRANSFORMERS: ("torch", "transformers")}
    | dict.fromkeys(CTRANSLATE2, ("ctranslate2", "transformers", "torch"))
    | dict.fromkeys(LLAMA_CPP, ("llama-cpp-python", "gguf"))
)


def missing(engine):
    """The packages it needs that aren't installed."""
    absent = []
    for package in PACKAGES[engine]:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            absent.append(package)
    return absent


def ids(count, first=1):
    """Some tokens, of any vocabulary of 512 and more."""
    return [(first + 7 * i) % 509 + 1 for i in range(count)]


# ---- llorch ----------------------------------------------------------------------------------------------------


class Llorch:
    def __init__(self, folder, threads, dtype):
        import llorch

        llorch.set_num_threads(threads)
        self.model, self.argmax = llorch.GPT2.from_pretrained(folder, dtype=dtype), llorch.argmax

    def logits(self, tokens):
        return self.model.step([tokens], [self.model.new_cache()])[0]

    def prefill(self, length):
        cache = self.model.new_cache(length)
        start = time.perf_counter()
        self.argmax(self.model.step([ids(length)], [cache]))
        return time.perf_counter() - start

    def decode(self, sequences, depth, steps):
        caches = [self.model.new_cache(depth + steps) for _ in range(sequences)]
        chosen = self.argmax(self.model.step([ids(depth, i) for i in range(sequences)], caches))
        start = time.perf_counter()
        for _ in range(steps):
            chosen = self.argmax(self.model.step(chosen[:, None], caches))
        return time.perf_counter() - start


# ---- transformers ----------------------------------------------------------------------------------------------


class Transformers:
    def __init__(self, folder, threads):
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()

    def step(self, tokens, past=None):
        return self.model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)

    def logits(self, tokens):
        return self.step(self.torch.tensor([tokens])).logits[0, -1].numpy()

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


class CTranslate2:
    """Takes its tokens as text, and has no call for one step: decoding is timed from the first new token on."""

    def __init__(self, folder, threads, dtype):
        import ctranslate2

        converted = Path(folder, f"ctranslate2-{dtype}")
        if not converted.exists():
            ctranslate2.converters.TransformersConverter(folder).convert(str(converted), quantization=dtype)
        self.model = ctranslate2.Generator(
            str(converted), device="cpu", compute_type=dtype, intra_threads=threads, inter_threads=1
        )
        self.tokens = json.loads((converted / "vocabulary.json").read_text(encoding="utf-8"))

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
        return np.array(self.model.forward_batch([tokens]))[0, -1]

    def prefill(self, length):
        return self.generate([ids(length)], 1)[0]

    def decode(self, sequences, depth, steps):
        first, last = self.generate([ids(depth, i) for i in range(sequences)], steps + 1)
        return last - first


# ---- llama.cpp -------------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_gguf(folder, path, dtype):
    """The checkpoint as llama.cpp's own converter writes it: matrices (out, in), in f16 if asked for; no vocabulary."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads(Path(folder, "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == "f16" else gguf.LlamaFileType.ALL_F32)
    for name, tensor in load_file(Path(folder, "model.safetensors")).items():
        name = name.removeprefix("transformer.")
        block, part = "", name
        if name.startswith("h."):
            _, layer, part = name.split(".", 2)
            block = f"blk.{layer}."
        stem, _, kind = part.rpartition(".")
        new = GGUF_NAMES[name] if name in GGUF_NAMES else f"{block}{GGUF_NAMES[stem]}.{kind}"
        if tensor.ndim == 2 and block:
            tensor = tensor.T
        if tensor.ndim == 2 and dtype == "f16" and name != "wpe.weight":
            tensor = tensor.astype(np.float16)
        writer.add_tensor(new, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ROOM = 2048  # tokens of all sequences together


class LlamaCpp:
    """By llama-cpp-python's low-level interface, which is that of llama.h."""

    def __init__(self, folder, threads, dtype):
        import llama_cpp

        self.c = llama_cpp
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.quiet = quiet  # kept alive
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        path = Path(folder, f"model-{dtype}.gguf")
        if not path.exists():
            write_gguf(folder, path, dtype)
        config = json.loads(Path(folder, "config.json").read_text())
        self.vocabulary = config["vocab_size"]
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = ROOM
        params.n_seq_max = 8
        params.n_threads = params.n_threads_batch = threads
        if hasattr(params, "kv_unified"):
            params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.model or not self.context:
            raise RuntimeError(f"llama.cpp can't load {path}")
        self.batch = llama_cpp.llama_batch_init(ROOM, 0, 1)

    def step(self, chunks, start):
        """One call for all; the last logits of each, (len(chunks), V)."""
        batch, n, last = self.batch, 0, []
        for sequence, tokens in enumerate(chunks):
            for i, token in enumerate(tokens):
                batch.token[n], batch.pos[n] = token, start + i
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                batch.logits[n] = i == len(tokens) - 1
                n += 1
            last.append(n - 1)
        batch.n_tokens = n
        if status := self.c.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gives {status}")
        rows = [self.c.llama_get_logits_ith(self.context, i) for i in last]
        return np.stack([np.ctypeslib.as_array(row, (self.vocabulary,)) for row in rows])

    def forget(self):
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def logits(self, tokens):
        self.forget()
        return self.step([tokens], 0)[0]

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


def make(engine, folder, threads):
    if engine in LLORCH:
        return Llorch(folder, threads, LLORCH[engine])
    if engine in CTRANSLATE2:
        return CTranslate2(folder, threads, CTRANSLATE2[engine])
    if engine in LLAMA_CPP:
        return LlamaCpp(folder, threads, LLAMA_CPP[engine])
    return Transformers(folder, threads)


def serve(engine, folder, threads):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints doesn't get among the answers
    made = make(engine, folder, threads)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        if what == "logits":
            tokens, path = arguments
            np.save(path, np.asarray(made.logits(tokens), np.float32))
            answer = True
        else:
            answer = getattr(made, what)(*arguments)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
