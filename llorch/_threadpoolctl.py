"""Makes threadpoolctl see and limit llorch's threads."""

from typing import Any


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
