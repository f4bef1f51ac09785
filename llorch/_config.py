"""What this build is and what it runs on."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from llorch import _core

try:
    __version__ = version("llorch")
except PackageNotFoundError:  # a source tree on sys.path, not installed
    __version__ = "0+unknown"


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def config() -> dict[str, Any]:
    """Versions, compiler, instruction sets (compiled, available, active) and threads, as a dictionary."""
    return {
        "llorch": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "compiler": _core._compiler(),
        "isas_compiled": _core._compiled_isas(),
        "isas_available": _core.available_isas(),
        "isa": _core.isa(),
        "num_threads": _core.get_num_threads(),
        "num_threads_default": _core._default_num_threads(),
    }


def config_lines() -> list[str]:
    """`config()` to be read, one line an entry."""
    return [
        f"{key + ':':21}{', '.join(value) if isinstance(value, tuple) else value}" for key, value in config().items()
    ]


def show_config() -> None:
    """Print `config()`, one line an entry."""
    print("\n".join(config_lines()))
