"""Kernel libraries: compiled once per set of code variants and machine, cached on disk and in the process."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu import checks
from sparsec.errors import MachineError
from sparsec.run.files import contents
from sparsec.run.forks import opened_in_children
from sparsec.tools.scratch import Scratch

logger = logging.getLogger("sparsec")

# Python 3.11 may fail in ast.parse, which reads TVMScript, where two threads do it at once.
_parsing = opened_in_children(threading.Lock())

# The calling convention that leaves a function as it is: neither TVM's own nor a launch of one.
_PLAIN_C = 3
#: LLVM's notes on aliases name buffers by where the compiler had them in memory.
_ADDRESSES = re.compile(r'(?<=!")0x[0-9a-f]+')
_POOL, _EXTENTS = (Path(__file__).with_name(name) for name in ("pool.c", "extents.h"))
#: The linker's driver compiles the entries of the library too.
_OPTIONS = ("-pthread", "-O2", "-std=gnu11", "-I", str(_EXTENTS.parent), "-x", "c", str(_POOL))
#: Passes of TVM that take half of the time and find nothing to do in kernels that are written as loops over exact buffers.
_IDLE_PASSES = ("s_tir.CompactBufferAllocation", "s_tir.HoistIfThenElse")
#: Part of every key: a new number leaves old libraries aside.
_FORMAT = "3"


def target(machine: Machine) -> Any:
    """LLVM target with the machine's own features and tuning."""
    import tvm

    features = [*(f"+{name}" for name in machine.features), *machine.tuning]
    return tvm.target.Target({"kind": "llvm", "mcpu": machine.mcpu, "mattr": features})


def compiled(functions: Any, goal: Any) -> Any:
    """A TVM module of functions for a target, compiled."""
    import tvm

    with tvm.transform.PassContext(disabled_pass=_IDLE_PASSES):
        return tvm.compile(functions, target=goal)


@lru_cache(maxsize=1)
def _source_digest() -> str:
    """Digest of this package's own sources and of TVM's version: a changed kernel is a changed library."""
    digest = hashlib.sha256(version("apache-tvm").encode())
    for path in (*sorted(Path(__file__).parent.glob("*.py")), _POOL, _EXTENTS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key(kernels: Sequence[Source], machine: Machine) -> str:
    """Name under which the library of these kernels is cached."""
    made_for = (machine.mcpu, *machine.features, *machine.tuning, repr(machine.vector))
    text = "\n".join([_FORMAT, _source_digest(), *made_for, *(k.symbol for k in kernels)])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def build(kernels: Sequence[Source], machine: Machine, cache: Path | None) -> Path:
    """Compile ``kernels`` into a shared library and return its path.

    A whole library already in ``cache`` is returned as it is, a damaged one is made again. An unwritable or absent cache means a temporary
    directory of this process. Concurrent builders write to a private folder and rename: the last one wins with identical content.
    MachineError if linking fails.
    """
    directory = _writable(cache)
    path = directory / f"kernels-{key(kernels, machine)}.so"
    if path.exists():
        if _is_whole(path):
            return path
        logger.warning("The kernel library %s in the cache is damaged. It is made again.", path)
    # TVM takes a second and 150 MiB, which a library in the cache does not.
    from tvm.support.cc import get_cc

    from sparsec.backends.cpu import executor

    with _parsing:
        module = executor.module(kernels)
    made = compiled(module, target(machine))
    try:
        with Scratch(directory) as scratch:
            whole, checking = scratch.path / path.name, scratch.path / "checks.c"
            checking.write_text(checks.source(kernels))
            made.export_library(str(whole), options=[*_OPTIONS, "-x", "c", str(checking), "-x", "none"], workspace_dir=str(scratch.path))
            _seal(whole)
            os.replace(whole, path)
    except Exception as error:
        raise MachineError(
            "The kernels cannot be linked into a library.",
            where=str(directory),
            why=str(error).strip().splitlines()[-1] if get_cc() else "No C or C++ compiler was found, which every new library takes.",
            hint="Install g++ (or gcc, clang), or name a compiler in CXX, and see that the directory has room.",
        ) from error
    return path


def build_alone(kernel: Source, machine: Machine, path: Path) -> str:
    """Write a library of one C function, which needs nothing of TVM's, to ``path``; the digest of its LLVM code.

    MachineError where the kernel cannot be had alone, or linking fails.
    """
    import tvm

    with _parsing:
        function = kernel.make().with_attr("global_symbol", kernel.symbol).with_attr("calling_conv", _PLAIN_C)
    made = compiled(tvm.IRModule({kernel.symbol: function}), target(machine))
    code = _ADDRESSES.sub("", made.mod.inspect_source("ll"))
    if "TVMBackend" in code:
        raise MachineError(f"{kernel.symbol} calls TVM's runtime and cannot stand alone.", hint="Choose another schedule.")
    with tempfile.NamedTemporaryFile("w", suffix=".map") as script:
        script.write(f"{{ global: {kernel.symbol}; local: *; }};\n")
        script.flush()
        try:
            made.export_library(str(path), options=[f"-Wl,--version-script={script.name}"])
        except RuntimeError as error:
            why, hint = str(error).strip().splitlines()[-1], "Install a C compiler (gcc or clang)."
            raise MachineError(f"{kernel.symbol} cannot be linked.", where=str(path), why=why, hint=hint) from error
    return hashlib.sha256(code.encode()).hexdigest()


def _seal(path: Path) -> None:
    """Append the digest, which loaders leave unread, and see that all of it is on the disk before it gets its name."""
    content = path.read_bytes()
    with path.open("ab") as file:
        file.write(hashlib.sha256(content).digest())
        file.flush()
        os.fsync(file.fileno())


def _is_whole(path: Path) -> bool:
    """Whether a library ends with the digest of the rest."""
    try:
        content = contents(path)
    except OSError:
        return False
    size = hashlib.sha256().digest_size
    return hashlib.sha256(content[:-size]).digest() == content[-size:]


@lru_cache(maxsize=1)
def _process_directory() -> Scratch:
    return Scratch()


# The parent's ends with the parent.
os.register_at_fork(after_in_child=_process_directory.cache_clear)


def _writable(cache: Path | None) -> Path:
    """``cache`` if files can be made there, else a directory of this process; says so."""
    if cache is None:
        return _process_directory().path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache):
            return cache
    except OSError as error:
        _say_once(
            f"Kernels are not kept: the cache directory {cache} cannot be written ({error.strerror}). Set SPARSEC_CACHE_DIR to another."
        )
        return _process_directory().path


@lru_cache(maxsize=16)
def _say_once(message: str) -> None:
    logger.warning(message)
