"""A PyTorch module whose rows have the same bits alone and in any batch, with any number of threads.

    pip install ".[torch]"
    python examples/torch_exact.py

The module is PyTorch's own TransformerEncoder with random weights, as wide as MiniLM.
"""

import torch

import llorch.torch

torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, activation="gelu", batch_first=True)
module = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
exact = llorch.torch.exact(module, strict=True)

x = torch.randn(8, 24, 384)
padding = torch.zeros(8, 24, dtype=torch.bool)
padding[3, 17:] = True  # the fourth sequence has 17 tokens


def differing(model):
    """How many values of 8 sequences differ from those that each has alone."""
    together = model(x, src_key_padding_mask=padding)
    alone = [model(x[i : i + 1, ~padding[i]]) for i in range(8)]
    return sum(int((together[i, ~padding[i]] != alone[i][0]).sum()) for i in range(8))


with torch.inference_mode():
    whole = exact(x)
    print(f"largest distance from PyTorch's values: {(whole - module(x)).abs().max():.1e}")
    print(f"values that differ between a batch and one by one, PyTorch: {differing(module)}")
    found = differing(exact)
    print(f"values that differ between a batch and one by one, llorch:  {found}")
    llorch.set_num_threads(1)
    other = int((exact(x) != whole).sum())
    print(f"values that differ between 1 thread and the default, llorch: {other}")
    print(llorch.torch.report(exact, x))

try:
    exact(x)
except RuntimeError as error:
    print(error)
else:
    raise SystemExit("autograd was on, and nobody said so")
if found or other:
    raise SystemExit("bits changed")
