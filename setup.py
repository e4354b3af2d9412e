"""Builds the CPU kernels (csrc/cpu) into one shared library with a plain C interface, loaded through ctypes.

The library is optional: without a C++ compiler, or when it does not compile, the installation goes on and quire uses torch instead.
Everything else about the package is in pyproject.toml.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

LIBRARY = "quire.backends.cpu.libquire_cpu"
# Contraction off: a·b + c rounds the same way in every tile shape, which bit-identity over batch sizes rests on.
COMMON_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
    "-w",
)
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mbmi2")
# Each instruction set is a file of its own, chosen at run time, so that the library loads on any CPU.
SOURCES = {
    "csrc/cpu/api.cpp": (),
    "csrc/cpu/thread_pool.cpp": (),
    "csrc/cpu/isa_portable.cpp": (),
    "csrc/cpu/isa_avx2.cpp": ("-mavx2", "-mfma", "-mbmi2"),
    "csrc/cpu/isa_avx512.cpp": AVX512,
    "csrc/cpu/isa_avx512bf16.cpp": (*AVX512, "-mavx512bf16"),
}


def find_compiler() -> str:
    named = os.environ.get("CXX")
    found = named or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if not found:
        raise OSError("no C++ compiler was found (c++, g++ or clang++; or set CXX)")
    return found


def compile_source(compiler: str, source: str, folder: str) -> str:
    """Object file of one source. A compiler too old for an instruction set leaves that one out (the file is then empty)."""
    target = os.path.join(folder, Path(source).stem + ".o")
    isa_flags = SOURCES[source] if platform.machine() in ("x86_64", "AMD64") else ()
    command = [*compiler.split(), *COMMON_FLAGS, "-c", source, "-o", target]
    if isa_flags and subprocess.run([*command, *isa_flags], capture_output=True, check=False).returncode == 0:
        return target
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return target


def build_library(target: str) -> None:
    compiler = find_compiler()
    folder = os.path.dirname(os.path.abspath(target))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(lambda source: compile_source(compiler, source, scratch), SOURCES))
        linked = os.path.join(scratch, "linked.so")
        subprocess.run([*compiler.split(), "-shared", "-pthread", *objects, "-o", linked], check=True)
        os.replace(linked, target)


class BuildLibrary(build_ext):
    """build_ext for a library that Python itself never imports: no Python headers, no ABI in its name."""

    def get_ext_filename(self, fullname: str) -> str:
        # The dot keeps scans of the package's folder from taking it for a Python module.
        return os.path.join(*fullname.split(".")[:-1], "libquire.cpu.so")

    def build_extension(self, ext: Extension) -> None:
        target = self.get_ext_fullpath(ext.name)
        Path(target).unlink(missing_ok=True)  # of an earlier build, copied with the package's files
        try:
            build_library(target)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(
                f"the CPU kernels were not built; quire will use torch there, which is slower. {error}"
            ) from error


class PlatformWheel(bdist_wheel):
    """One wheel a platform serves every Python: the library does not know Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, system = super().get_tag()
        return "py3", "none", system


setup(
    ext_modules=[
        Extension(
            LIBRARY, list(SOURCES), depends=sorted(str(path) for path in Path("csrc/cpu").glob("*.h")), optional=True
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
