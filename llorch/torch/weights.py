"""Weights as llorch's products stream them: packed when a product first needs them, kept while their parameter lives.

A pack belongs to memory, not to a module: tied weights, and an exact copy's operators in a graph of torch.compile or
torch.export, find the same one. It is made anew when the tensor was written to since, which PyTorch counts.
"""

import weakref
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

import llorch
from llorch.torch.arrays import NAMES, array


class _Pack(NamedTuple):
    packed: llorch.PackedLinear
    memory: tuple[Any, ...]  # held weakly, so that the numbers in the key name nothing else while it is here
    shape: Any
    stride: Any
    version: int
    bias_version: int
    bias_layout: Any  # its shape and stride


_owners: dict[int, "weakref.ref[torch.Tensor]"] = {}  # the parameter of each memory
_packs: dict[tuple[int, int, int, int], _Pack] = {}  # by memory and place of weight and bias


def _memory(tensor: torch.Tensor) -> int:
    number: int = tensor.untyped_storage()._cdata
    return number


def own(parameter: torch.Tensor) -> None:
    """From now on, products with this parameter, or a view of it, as their weight use a pack, until it is gone."""
    if parameter.is_inference():
        return  # nothing would tell that it was written to
    memory = _memory(parameter)

    def forget(dead: Any) -> None:
        if _owners.get(memory) is dead:
            del _owners[memory]
            for key in [key for key in list(_packs) if memory in key[::2]]:
                _packs.pop(key, None)

    _owners[memory] = weakref.ref(parameter, forget)


def _owned(tensor: torch.Tensor) -> bool:
    if _memory(tensor) not in _owners:
        if not isinstance(tensor, torch.nn.Parameter):
            return False
        own(tensor)
    return _memory(tensor) in _owners


def packed(weight: torch.Tensor, bias: torch.Tensor | None) -> llorch.PackedLinear | None:
    """The pack of a weight (N, K) with its bias (N,), both of one type; None where they are no module's parameters."""
    if weight.is_neg() or (bias is not None and bias.is_neg()):  # a view whose memory has the other sign
        return None
    if bias is None:
        key = (weight.untyped_storage()._cdata, weight.data_ptr(), 0, 0)
    else:
        storages = weight.untyped_storage()._cdata, bias.untyped_storage()._cdata
        key = (storages[0], weight.data_ptr(), storages[1], bias.data_ptr())
    pack = _packs.get(key)
    if (
        pack is not None
        and pack.version == weight._version
        and pack.shape == weight.shape
        and pack.stride == weight.stride()
        and (bias is None or (pack.bias_version == bias._version and pack.bias_layout == (bias.shape, bias.stride())))
        and pack.packed.dtype == NAMES[weight.dtype]
    ):
        return pack.packed
    if not _owned(weight) or (bias is not None and not _owned(bias)):
        return None
    version, bias_version = weight._version, 0 if bias is None else bias._version
    made = llorch.PackedLinear(
        array(weight), None if bias is None else array(bias), dtype=NAMES[weight.dtype], transposed=True
    )
    memory = tuple(StorageWeakRef(t.untyped_storage()) for t in (weight, bias) if t is not None)
    layout = None if bias is None else (bias.shape, bias.stride())
    _packs[key] = _Pack(made, memory, weight.shape, weight.stride(), version, bias_version, layout)
    return made
