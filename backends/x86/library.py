"""Kernel libraries: compiled once per set of code variants and machine, cached on disk and in the process."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import tvm
from tvm.support.cc import get_cc

from sparsec.backends.base import Machine, Source
from sparsec.backends.x86 import executor
from sparsec.errors import MachineError
from sparsec.forks import opened_in_children

logger = logging.getLogger("sparsec")

# Python 3.11 may fail in ast.parse, which reads TVMScript, where two threads do it at once.
_parsing = opened_in_children(threading.Lock())

_POOL = Path(__file__).with_name("pool.c")
#: The linker's driver compiles the entry of the library too.
_OPTIONS = ("-pthread", "-O2", "-std=gnu11", "-x", "c", str(_POOL), "-x", "none")
#: Part of every key: a new number leaves old libraries aside.
_FORMAT = "1"


def target(machine: Machine) -> tvm.target.Target:
    """LLVM target with the machine's own features, 512-bit registers preferred where it has them."""
    features = [f"+{name}" for name in machine.features] + (["-prefer-256-bit"] if machine.lanes == 16 else [])
    return tvm.target.Target({"kind": "llvm", "mcpu": machine.mcpu, "mattr": features})


@lru_cache(maxsize=1)
def _source_digest() -> str:
    """Digest of this package's own sources and of TVM's version: a changed kernel is a changed library."""
    digest = hashlib.sha256(tvm.__version__.encode())
    for path in (*sorted(Path(__file__).parent.glob("*.py")), _POOL):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key(kernels: Sequence[Source], machine: Machine) -> str:
    """Name under which the library of these kernels is cached."""
    text = "\n".join([_FORMAT, _source_digest(), machine.mcpu, *machine.features, *(k.symbol for k in kernels)])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def build(kernels: Sequence[Source], machine: Machine, cache: Path | None) -> Path:
    """Compile ``kernels`` into a shared library and return its path.

    A library already in ``cache`` is returned as it is. An unwritable or absent cache means a temporary directory of this process.
    Concurrent builders write to a private name and rename it: the last one wins with identical content. MachineError if linking fails.
    """
    directory = _writable(cache)
    path = directory / f"kernels-{key(kernels, machine)}.so"
    if path.exists():
        return path
    with _parsing:
        module = executor.module(kernels)
    compiled = tvm.compile(module, target=target(machine))
    handle, scratch = tempfile.mkstemp(dir=directory, suffix=".so")
    os.close(handle)
    try:
        compiled.export_library(scratch, options=list(_OPTIONS))
        os.replace(scratch, path)
    except Exception as error:
        Path(scratch).unlink(missing_ok=True)
        raise MachineError(
            "The kernels cannot be linked into a library.",
            where=str(directory),
            why=str(error).strip().splitlines()[-1] if get_cc() else "No C compiler was found.",
            hint="Install a C compiler (gcc or clang) and see that the directory has room.",
        ) from error
    return path


@lru_cache(maxsize=1)
def _process_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="sparsec-"))


def _writable(cache: Path | None) -> Path:
    """``cache`` if files can be made there, else a directory of this process; says so."""
    if cache is None:
        return _process_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache):
            return cache
    except OSError as error:
        _say_once(
            f"Kernels are not kept: the cache directory {cache} cannot be written ({error.strerror}). Set SPARSEC_CACHE_DIR to another."
        )
        return _process_directory()


@lru_cache(maxsize=16)
def _say_once(message: str) -> None:
    logger.warning(message)
