"""llorch inside PyTorch: a module's copy whose arithmetic runs on llorch's kernels.

>>> import torch, llorch.torch
>>> exact = llorch.torch.exact(torch.nn.Linear(8, 4))
>>> with torch.inference_mode():
...     y = exact(torch.ones(2, 8))
>>> torch.equal(y[0], y[1])
True
"""

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise ImportError('llorch.torch needs PyTorch: pip install "llorch[torch]"') from None

from llorch.torch.modules import exact
from llorch.torch.report import Report, report

__all__ = ["Report", "exact", "report"]
