"""Builds the one compiled module. Metadata is in pyproject.toml.

Environment switches:
    LLORCH_SANITIZE=address,undefined   compile and link with these sanitizers
    LLORCH_WERROR=1                     warnings of our own C sources are errors
"""

import os
import re
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FORBIDDEN = re.compile(r"-Ofast|-ff" r"ast-math|-funsafe-math\S*|-fassociative-math|-march=nat" r"ive|-mcpu=nat" r"ive")

for variable in ("CFLAGS", "CPPFLAGS", "LDFLAGS"):
    if found := FORBIDDEN.search(os.environ.get(variable, "")):
        raise SystemExit(
            f"{variable} has {found[0]}: llorch specifies every bit and one build runs everywhere, remove it"
        )

# The Limited API isn't there for free-threaded builds: those get a wheel for their version.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

flags = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
links = ["-pthread"]
if sanitizers := os.environ.get("LLORCH_SANITIZE"):
    # -O1: at -O3 the checks in the unrolled tiles take compilers minutes a file
    flags += ["-O1", f"-fsanitize={sanitizers}", "-g", "-fno-omit-frame-pointer"]
    links += [f"-fsanitize={sanitizers}"]
elif not os.environ.get("LLORCH_DEBUG"):
    flags += ["-g0"]  # Python's own flags ask for debug information: ten times the size of the code
ours = ["-Wall", "-Wextra"] + (["-Werror"] if os.environ.get("LLORCH_WERROR") else [])


class BuildExt(build_ext):
    """Our warnings for our sources; Cython's output is compiled without them."""

    def build_extension(self, ext):
        compile_one = self.compiler._compile

        def _compile(obj, src, ext_, cc_args, extra, pp_opts):
            strict = ours if Path(src).parts[0] == "csrc" else []
            compile_one(obj, src, ext_, cc_args, extra + strict, pp_opts)

        self.compiler._compile = _compile
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile = compile_one


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
