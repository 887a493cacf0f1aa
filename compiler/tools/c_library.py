"""A shared library of one C file, compiled where it runs and kept in the cache directory."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from sparsec.errors import MachineError
from sparsec.tools.cached import cached

_COMPILERS = ("gcc", "cc", "clang", "g++", "clang++")
_OPTIONS = ("-shared", "-fPIC", "-O3", "-std=gnu11", "-fvisibility=hidden")


def c_library(source: Path, cache: Path | None) -> Path:
    """The library, in ``cache`` (see ``cached``). MachineError where no compiler is found or it fails; OSError where there is no room."""
    # Machines of several kinds may share a cache.
    made_of = b"\n".join([platform.machine().encode(), *map(str.encode, _OPTIONS), source.read_bytes()])
    return cached(cache, f"{source.stem}-{hashlib.sha256(made_of).hexdigest()[:24]}.so", lambda path: _compile(source, path))


def _compile(source: Path, path: Path) -> None:
    named = (os.environ.get(variable) for variable in ("CC", "CXX"))
    compiler = next(filter(None, map(shutil.which, filter(None, (*named, *_COMPILERS)))), None)
    if compiler is None:
        raise MachineError("No C compiler was found.", where=str(source), hint="Install gcc, or name a compiler in CC.")
    done = subprocess.run([compiler, *_OPTIONS, "-x", "c", str(source), "-o", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"{compiler} cannot compile.", where=str(source), why=done.stderr.strip()[-500:])
