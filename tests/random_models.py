"""Seeded random models of any family for the tests, on disk as Hugging Face has them, or as GGUF."""

import json

import numpy as np
from gpt2_models import cast, tensors_of
from safetensors.numpy import save_file

import llorch
from llorch import reference
from llorch.models import llama, shapes

LLAMA = {
    "model_type": "llama",
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 300,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def random_tensors(family, config, seed=0):
    """float32 tensors by name, spread so that activations and logits are of the order of 1, as in a trained model."""
    return shapes.random_tensors(family.graph(config), seed)


def llama_tensors(entries=None, seed=0):
    """A configuration, and float32 tensors by name."""
    config = llama.LlamaConfig.from_dict(LLAMA | (entries or {}))
    return config, random_tensors(llama.FAMILY, config, seed)


def save(folder, entries, tensors, prefix="model."):
    """A folder as Hugging Face has it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(entries))
    names = {name: name if name.startswith("lm_head") else prefix + name for name in tensors}
    save_file({names[name]: values for name, values in tensors.items()}, folder / "model.safetensors")
    return folder


def random_llama(folder, entries=None, seed=0, dtype="float32"):
    tensors = cast(llama_tensors(entries, seed)[1], dtype)
    return llorch.CausalLM.from_pretrained(save(folder, LLAMA | (entries or {}), tensors))


def by_reference(model, ids):
    """Logits by the family's text in llorch.reference."""
    text = model.family.reference
    text = getattr(reference, text) if isinstance(text, str) else text
    return text(model.config, tensors_of(model)).forward(ids)


def interleaved(values, heads):
    """Rows of queries or keys as GGUF has them: the pairs of a head side by side."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def write_gguf(
    path, family, config, tensors, architecture, metadata, quantise=lambda name, values: (values, None), extra=None
):
    """The same model as a GGUF file. quantise: (name, values) to (array, gguf's type or None). extra: tensors by their
    names there."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for name, value in metadata.items():
        kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        kind = (kinds | {bool: writer.add_bool})[type(value)]
        kind(name, value)
    graph = family.graph(config)
    for name, short, parameter in graph.all_parameters():
        if name not in tensors:
            continue
        values = tensors[name]
        if parameter.interleaved:
            values = interleaved(values, graph.sizes[parameter.interleaved])
        if parameter.by_head:
            values = np.concatenate(np.split(values.reshape(graph.sizes["H"], 3, graph.sizes["D"], -1), 3, axis=1))
            values = values.reshape(tensors[name].shape)
        if parameter.unit:
            values = values + np.float32(1)
        if parameter.conv1d:
            values = values.T
        values, kind = quantise(name, np.ascontiguousarray(values))
        writer.add_tensor(short, values, raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def usual_metadata(config):
    """What a GGUF file says of any model, without the architecture before it."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        config.GGUF_EPS: float(config.eps),
    }


def decoder_metadata(config, architecture):
    """What a GGUF file says of any decoder."""
    entries = usual_metadata(config) | {
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    scaling = getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        entries |= {"rope.scaling.type": scaling["rope_type"], "rope.scaling.factor": float(scaling["factor"])}
    if scaling.get("rope_type") == "yarn":
        entries["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return {f"{architecture}.{name}": value for name, value in entries.items()}


def llama_metadata(config):
    """What a GGUF file says of a Llama."""
    return decoder_metadata(config, "llama")
