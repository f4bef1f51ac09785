"""The files that two of the libraries need to run one operation: an ONNX model, and a StarCoder2 for Mistral.rs."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llorch.validate.kernels.common import Array


def onnx_model(
    operator: str,
    inputs: Mapping[str, tuple[int, ...]],
    output: tuple[int, ...],
    attributes: Mapping[str, int | float],
) -> bytes:
    """An ONNX model of one operator, encoded by hand (field numbers: onnx.proto3): float32 inputs by name, output y."""

    def varint(value: int) -> bytes:
        head = bytearray()
        while value > 127:
            head.append(value & 127 | 128)
            value >>= 7
        return bytes([*head, value])

    def field(number: int, value: int | float | str | bytes) -> bytes:
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        data = value.encode() if isinstance(value, str) else value
        return varint(number << 3 | 2) + varint(len(data)) + data

    def tensor(name: str, dims: tuple[int, ...]) -> bytes:  # ValueInfoProto, float32
        sizes = b"".join(field(1, field(1, size)) for size in dims)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, sizes)))

    node = b"".join(field(1, name) for name in inputs)
    node += field(2, "y") + field(4, operator)
    for name, value in attributes.items():  # AttributeProto: a float is field 2 and type 1, an integer 3 and 2
        number = 2 if isinstance(value, float) else 3
        node += field(5, field(1, name) + field(number, value) + field(20, number - 1))
    graph = field(1, node) + field(2, operator)
    graph += b"".join(field(11, tensor(*item)) for item in inputs.items()) + field(12, tensor("y", output))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))  # IR 8, opset 17


def write_starcoder2(folder: Path, x: Array, weight: Array, bias: Array, eps: float) -> None:
    """config.json, tokenizer.json and model.safetensors of the model that `peers.mistral_rs` describes; x [rows, n]."""
    rows, n = x.shape
    head = 32
    config = {
        "model_type": "starcoder2",
        "architectures": ["Starcoder2ForCausalLM"],
        "vocab_size": n,
        "hidden_size": n,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": n // head,
        "num_key_value_heads": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 64,
        "norm_epsilon": eps,
        "rope_theta": 10000.0,
        "use_bias": True,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": n - 1,
        "eos_token_id": n - 1,
    }
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(n)}, "unk_token": f"t{n - 1}"},
    }
    special = {"bos_token": f"t{n - 1}", "eos_token": f"t{n - 1}", "chat_template": "{{ messages[0]['content'] }}"}

    embedding = np.zeros((n, n), np.float32)
    embedding[:rows] = x
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": weight,
        "model.norm.bias": bias,
        "lm_head.weight": np.eye(n, dtype=np.float32),
    }
    layer = "model.layers.0."
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{layer}{norm}.weight"] = np.ones(n, np.float32)
        tensors[f"{layer}{norm}.bias"] = np.zeros(n, np.float32)
    linears = {
        "self_attn.q_proj": (n, n),
        "self_attn.k_proj": (head, n),
        "self_attn.v_proj": (head, n),
        "self_attn.o_proj": (n, n),
        "mlp.c_fc": (8, n),
        "mlp.c_proj": (n, 8),
    }
    for name, shape in linears.items():
        tensors[f"{layer}{name}.weight"] = np.zeros(shape, np.float32)
        tensors[f"{layer}{name}.bias"] = np.zeros(shape[0], np.float32)

    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    with open(folder / "model.safetensors", "wb") as file:
        header, end = {}, 0
        for name, tensor in tensors.items():
            header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
            end += tensor.nbytes
        head_bytes = json.dumps(header).encode()
        file.write(struct.pack("<Q", len(head_bytes)) + head_bytes)
        for tensor in tensors.values():
            file.write(tensor.astype("<f4").tobytes())
