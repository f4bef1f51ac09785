"""Makes threadpoolctl see and limit llorch's threads, and limits NumPy's by it."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any


@cache
def _controller() -> Any:
    try:
        import threadpoolctl
    except ImportError:
        return None
    return threadpoolctl.ThreadpoolController()  # looks through all libraries of the process


def one_blas_thread() -> AbstractContextManager[object]:
    """NumPy's products on one thread, where threadpoolctl is installed.

    Its BLAS gives a product of microseconds to several, which wait for each other by spinning: twenty times as long
    where another process has the core of one (measured: 67 s instead of 3 for a diagnosis).
    """
    controller = _controller()
    if controller is None:
        return nullcontext()
    limits: AbstractContextManager[object] = controller.limit(limits=1, user_api="blas")
    return limits


def register() -> None:
    """Register our controller, where threadpoolctl is installed."""
    try:
        import threadpoolctl
    except ImportError:
        return

    class LlorchController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "llorch"
        internal_api = "llorch"
        filename_prefixes = ("_core",)
        check_symbols = ("llorch_get_num_threads", "llorch_set_num_threads")

        def get_num_threads(self) -> Any:
            return self.dynlib.llorch_get_num_threads()

        def set_num_threads(self, num_threads: int) -> Any:
            return self.dynlib.llorch_set_num_threads(num_threads)

        def get_version(self) -> str:
            from llorch._config import __version__

            return __version__

        def set_additional_attributes(self) -> None:
            pass

    threadpoolctl.register(LlorchController)
