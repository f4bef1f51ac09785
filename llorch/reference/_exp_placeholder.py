"""Stands in for the correctly rounded exponential until it comes."""

from typing import Any

import numpy as np


def exp(x: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.exp(x.astype(np.float64)).astype(np.float32)
