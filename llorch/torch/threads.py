"""PyTorch's threads beside llorch's.

PyTorch's are OpenMP's. After each piece of work they compute for a millisecond or so, waiting for the next, and take
that time from llorch's threads where there are no more cores than threads. So within an exact module's call PyTorch
works in the calling thread alone: what it still does there is short. What has no kernel here gets its threads back.
"""

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def _openmp() -> Callable[[int], Any] | None:
    """OpenMP's own setter, which is for the calling thread; torch.set_num_threads is for all threads to come, too."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            setter = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).omp_set_num_threads
        except (OSError, AttributeError):
            continue
        setter.argtypes, setter.restype = [ctypes.c_int], None
        found: Callable[[int], Any] = setter
        return found
    return None


_set = _openmp()
_thread = threading.local()


def alone() -> tuple[int, int]:
    """From now on PyTorch works in this thread alone. Returns what `together` takes."""
    before: int = getattr(_thread, "count", 1)  # not 1 where an exact module is called within `with_threads`
    if _set is None:
        return 1, before
    count: int = torch.get_num_threads()
    if count > 1:
        _set(1)
        _thread.count = count
    return count, before


def together(counts: tuple[int, int]) -> None:
    """As it was before `alone`."""
    count, before = counts
    if _set is not None and count > 1:
        _set(count)
        _thread.count = before


def with_threads(function: Any, args: Any, kwargs: Any) -> Any:
    """A function of PyTorch's, with the threads that it had outside."""
    count = getattr(_thread, "count", 1)
    if count == 1 or _set is None:
        return function(*args, **kwargs)
    _set(count)
    try:
        return function(*args, **kwargs)
    finally:
        _set(1)
