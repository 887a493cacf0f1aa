"""A shared library of one C file, kept in the cache directory, and which compiler makes libraries for a machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from functools import partial
from pathlib import Path

from sparsec.errors import MachineError
from sparsec.tools.cached import cached

_COMPILERS = ("gcc", "cc", "clang", "g++", "clang++")
_OPTIONS = ("-shared", "-fPIC", "-O3", "-std=gnu11", "-fvisibility=hidden")


def c_library(source: Path, cache: Path | None, arch: str | None = None) -> Path:
    """The library for machines of ``arch``, this one's unless given, in ``cache`` (see ``cached``).

    MachineError where no compiler is found or it fails; OSError where there is no room.
    """
    # Machines of several kinds may share a cache.
    arch = arch or platform.machine()
    made_of = b"\n".join([arch.encode(), *map(str.encode, _OPTIONS), source.read_bytes()])
    name = f"{source.stem}-{hashlib.sha256(made_of).hexdigest()[:24]}.so"
    make = _compiler if arch == platform.machine() else partial(cross_compiler, arch)
    return cached(cache, name, lambda path: _compile(source, path, make()))


def cross_compiler(arch: str) -> str:
    """The name of a C compiler for another architecture. MachineError without one."""
    named = os.environ.get("SPARSEC_CROSS_CC") or f"{arch}-linux-gnu-gcc"
    if shutil.which(named) is None:
        raise MachineError(
            f"No compiler links kernels for {arch}.",
            why=f"There is no {named} on PATH.",
            hint=f"Install gcc-{arch.replace('_', '-')}-linux-gnu (Debian's name), or name a compiler for it in SPARSEC_CROSS_CC.",
        )
    return named


def _compiler() -> str:
    named = (os.environ.get(variable) for variable in ("CC", "CXX"))
    compiler = next(filter(None, map(shutil.which, filter(None, (*named, *_COMPILERS)))), None)
    if compiler is None:
        raise MachineError("No C compiler was found.", hint="Install gcc, or name a compiler in CC.")
    return compiler


def _compile(source: Path, path: Path, compiler: str) -> None:
    line = [compiler, *_OPTIONS, "-x", "c", str(source), "-o", str(path), "-ldl"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"{compiler} cannot compile.", where=str(source), why=done.stderr.strip()[-500:])
