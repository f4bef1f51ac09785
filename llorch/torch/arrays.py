"""PyTorch's tensors as NumPy's arrays, without a copy."""

from typing import Any

import ml_dtypes
import numpy as np
import torch

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The memory of a tensor on the CPU; a copy of it where PyTorch would change the sign in reading."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_neg():  # a view of memory with the other sign, such as the imaginary part of a conjugate
        tensor = tensor.resolve_neg()
    if tensor.dtype is torch.float32:
        return tensor.numpy()  # type: ignore[no-any-return]
    if tensor.dtype is torch.bfloat16:  # which NumPy doesn't have
        bits: np.ndarray[Any, Any] = tensor.view(torch.int16).numpy()
        return bits.view(_BFLOAT16)
    values: np.ndarray[Any, Any] = tensor.numpy()
    return values


def supported(first: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether llorch's kernels take them: one of NAMES, of all the same, in the CPU's memory, strided."""
    if first.dtype not in NAMES or not first.is_cpu or first.layout is not torch.strided:
        return False
    for t in others:  # noqa: SIM110  a generator costs more than what it does here
        if t is not None and (t.dtype is not first.dtype or not t.is_cpu):
            return False
    return True
