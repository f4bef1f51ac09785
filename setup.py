"""Builds the one compiled module. Metadata is in pyproject.toml.

Environment switches:
    LLORCH_SANITIZE=address,undefined   compile and link with these sanitizers
    LLORCH_WERROR=1                     warnings of our own C sources are errors
    LLORCH_DEBUG=1                      keep debug information: ten times the size

The compiler's flags are in csrc/compile_flags.txt, for the scripts in .ci too, and for editors (clangd reads it).
"""

import os
import re
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FORBIDDEN = re.compile(r"-Ofast|-ffast-math|-funsafe-math\S*|-fassociative-math|-march=native|-mcpu=native")

for variable in ("CFLAGS", "CPPFLAGS", "LDFLAGS"):
    if found := FORBIDDEN.search(os.environ.get(variable, "")):
        raise SystemExit(
            f"{variable} has {found[0]}: llorch specifies every bit and one build runs everywhere, remove it"
        )

# The Limited API isn't there for free-threaded builds: those get a wheel for their version.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

flags = Path("csrc/compile_flags.txt").read_text().split()
ours = [flag for flag in flags if flag.startswith("-W")]  # for our own sources; Cython's output has warnings
flags = [flag for flag in flags if flag not in ours]
cythons: list[str] = []  # for its output
links = ["-pthread"]
if os.environ.get("LLORCH_WERROR"):
    ours.append("-Werror")
if sanitizers := os.environ.get("LLORCH_SANITIZE"):
    # -O1, -g1: at -O3, or with the places of all variables, compilers take many minutes a file over the checks
    flags += ["-O1", f"-fsanitize={sanitizers}", "-g1", "-fno-omit-frame-pointer", "-DLL_SANITIZE"]
    links += [f"-fsanitize={sanitizers}"]
    cythons += ["-O0"]  # a third of the time; none of its functions takes long
elif not os.environ.get("LLORCH_DEBUG"):
    flags += ["-g0"]  # Python's own flags ask for debug information


class BuildExt(build_ext):
    """Our warnings for our sources, none for Cython's output; as many files at once as there are cores."""

    def build_extension(self, ext):
        compiler = self.compiler
        compile_all = compiler.compile

        def compile_in_parallel(
            sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None, extra_postargs=None,
            depends=None,
        ):  # fmt: skip
            _, objects, post, options, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs
            )
            arguments = compiler._get_cc_args(options, debug, extra_preargs)

            def compile_one(object_file):
                source, suffix = build[object_file]
                more = ours if Path(source).parts[0] == "csrc" else cythons
                compiler._compile(object_file, source, suffix, arguments, post + more, options)

            # The kernels of an instruction set take longest: they go first.
            order = sorted(build, key=lambda name: "isa" not in Path(build[name][0]).parts)
            with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
                list(pool.map(compile_one, order))
            return objects

        compiler.compile = compile_in_parallel
        try:
            super().build_extension(ext)
        finally:
            compiler.compile = compile_all


core = Extension(
    "llorch._core",
    sources=["llorch/_core.pyx", *sorted(str(p) for p in Path("csrc").rglob("*.c"))],
    depends=sorted(str(p) for p in [*Path("csrc").rglob("*.h"), *Path("llorch/core").glob("*.pxi")]),
    include_dirs=["csrc"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if limited else [],
    py_limited_api=limited,
    extra_compile_args=flags,
    extra_link_args=links,
    libraries=["m"],
)

setup(
    ext_modules=[core],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
