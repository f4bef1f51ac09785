"""Engines that embed sentences with all-MiniLM-L6-v2, from text to normalised embeddings; processes as in engines.py.

    python benchmarks/embedders.py KIND PATH THREADS [OPTION]    # started by models.py

Each does what its users do: the tokenizer of its library, batches padded to their longest sentence where it pads, the
mean over the positions, a division by the length.
"""

import sys
import time
from pathlib import Path

import engines
import numpy as np

LENGTH = 256  # tokens of a text at most
TEXT = """time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend"""
WORDS = TEXT.split()  # of one token each


def sentences(count=128, least=7, most=62):
    """Of `least` to `most` tokens with the two special ones, in no order of length."""
    lengths = [least + i * 37 % (most - least + 1) for i in range(count)]
    return [" ".join(WORDS[(i * 11 + j * 7) % len(WORDS)] for j in range(n - 2)) for i, n in enumerate(lengths)]


def tokens(text):
    """How many a text of words of one token each has, with the two special ones."""
    return text.count(" ") + 3


QUERY = "where do people go to school at night"


class Embedder(engines.Engine):
    """encode(texts, size) : the embeddings of texts in batches of `size`; theirs."""

    def texts(self, ordered):
        found = sentences()
        return sorted(found, key=tokens) if ordered else found

    def embeddings(self, size):
        return self.encode(self.texts(False), size)

    def seconds(self, ordered, size):
        """To embed all sentences, by length or in no order."""
        texts = self.texts(ordered)
        start = time.perf_counter()
        self.encode(texts, size)
        return time.perf_counter() - start

    def query(self, count):
        """The mean of `count` embeddings of one short text."""
        start = time.perf_counter()
        for _ in range(count):
            self.encode([QUERY], 1)
        return (time.perf_counter() - start) / count

    def in_batches(self, texts, size):
        return np.concatenate([self.batch(texts[i : i + size]) for i in range(0, len(texts), size)])

    def encode(self, texts, size):
        return self.in_batches(texts, size)


class Llorch(Embedder):
    def use(self, threads):
        import llorch

        llorch.set_num_threads(threads)
        self.llorch = llorch

    def open(self):
        model = self.llorch.TextEncoder.from_pretrained(self.path)
        model.max_seq_length = LENGTH
        return model

    def encode(self, texts, size):
        return self.model.encode(texts, batch_size=size)


class SentenceTransformers(Embedder):
    """Sorts the texts by length itself before it cuts them into batches."""

    def use(self, threads):
        import torch

        torch.set_num_threads(threads)

    def open(self):
        import sentence_transformers

        return sentence_transformers.SentenceTransformer(str(self.path), device="cpu")

    def encode(self, texts, size):
        return self.model.encode(texts, batch_size=size, show_progress_bar=False)


class PyTorch(Embedder):
    """transformers' model and tokenizer."""

    def use(self, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch

    def open(self):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.path)
        return transformers.AutoModel.from_pretrained(self.path, dtype=self.torch.float32).eval()

    def batch(self, texts):
        torch = self.torch
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1).to(torch.float32)
        mean = (self.model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean).numpy()


class ONNXRuntime(Embedder):
    """path is the folder; its graph lies in `option`, a file that export() made."""

    def use(self, threads):
        self.threads = threads

    def open(self):
        import onnxruntime
        import tokenizers

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        self.tokenizer = tokenizers.Tokenizer.from_file(str(self.path / "tokenizer.json"))
        self.tokenizer.enable_padding()  # to the longest of a batch
        self.tokenizer.enable_truncation(LENGTH)
        return onnxruntime.InferenceSession(self.option, options, providers=["CPUExecutionProvider"])

    def weights(self):
        return [Path(self.option)]

    def batch(self, texts):
        found = self.tokenizer.encode_batch_fast(texts)
        ids, mask, types = (
            np.array([getattr(each, name) for each in found], np.int64)
            for name in ("ids", "attention_mask", "type_ids")
        )
        (h,) = self.model.run(None, {"ids": ids, "mask": mask, "types": types})
        weights = mask[:, :, None].astype(np.float32)
        mean = (h * weights).sum(axis=1) / weights.sum(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def export(folder, path, *, fused=False):
    """The network as an ONNX file, of any batch and length: exported by PyTorch, or what ONNX Runtime's own optimizer
    for BERT then makes of it."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, mask, types):
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    ids = torch.ones((2, 9), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in ("ids", "mask", "types", "hidden")}
    torch.onnx.export(
        Network(),
        (ids, ids, ids * 0),
        str(path),
        input_names=["ids", "mask", "types"],
        output_names=["hidden"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    if fused:
        from onnxruntime.transformers.optimizer import optimize_model

        config = model.config
        made = optimize_model(
            str(path), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=1
        )
        made.save_model_to_file(str(path))
    return path


KINDS = {
    "llorch, embeddings": (Llorch, ("numpy", "safetensors", "tokenizers")),
    "sentence-transformers": (SentenceTransformers, ("sentence-transformers",)),
    "PyTorch, embeddings": (PyTorch, ("torch", "transformers")),
    "ONNX Runtime, embeddings": (ONNXRuntime, ("onnxruntime", "onnx", "torch", "transformers", "tokenizers")),
}
engines.KINDS.update(KINDS)

if __name__ == "__main__":
    engines.serve(*sys.argv[1:])
