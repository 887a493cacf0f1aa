"""Kernel libraries: compiled once per set of code variants and machine, cached on disk and in the process."""

from __future__ import annotations

import hashlib
import platform
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
from sparsec.run.forks import opened_in_children
from sparsec.tools.c_library import cross_compiler
from sparsec.tools.cached import cached

# Python 3.11 may fail in ast.parse, which reads TVMScript, where two threads do it at once.
_parsing = opened_in_children(threading.Lock())

#: LLVM's notes on aliases name buffers by where the compiler had them in memory.
_ADDRESSES = re.compile(r'(?<=!")0x[0-9a-f]+')
_POOL, _EXTENTS = (Path(__file__).with_name(name) for name in ("pool.c", "extents.h"))
#: The linker's driver compiles the entries of the library too.
_OPTIONS = ("-pthread", "-O2", "-std=gnu11", "-I", str(_EXTENTS.parent), "-x", "c", str(_POOL))
#: Passes of TVM that take half of the time and find nothing to do in kernels that are written as loops over exact buffers.
_IDLE_PASSES = ("s_tir.CompactBufferAllocation", "s_tir.HoistIfThenElse")
#: Part of every key: a new number leaves old libraries aside.
_FORMAT = "4"


def target(machine: Machine) -> Any:
    """LLVM target with the machine's own features and tuning."""
    import tvm

    features = [*(f"+{name}" for name in machine.features), *machine.tuning]
    return tvm.target.Target({"kind": "llvm", "mtriple": f"{machine.arch}-linux-gnu", "mcpu": machine.mcpu, "mattr": features})


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
    made_for = (machine.arch, machine.mcpu, *machine.features, *machine.tuning, repr(machine.vector))
    text = "\n".join([_FORMAT, _source_digest(), *made_for, *(k.symbol for k in kernels)])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def build(kernels: Sequence[Source], machine: Machine, cache: Path | None) -> Path:
    """Compile ``kernels`` into a shared library in ``cache`` (see ``cached``) and return its path. MachineError if linking fails."""

    def make(whole: Path) -> None:
        # TVM takes a second and 150 MiB, which a library in the cache does not.
        from sparsec.backends.cpu import executor

        with _parsing:
            module = executor.module(kernels)
        made, checking = compiled(module, target(machine)), whole.with_name("checks.c")
        checking.write_text(checks.source(kernels))
        options = [*_OPTIONS, "-x", "c", str(checking), "-x", "none"]
        try:
            made.export_library(str(whole), fcompile=_linker(machine), options=options, workspace_dir=str(whole.parent))
        except MachineError:
            raise
        except Exception as error:
            raise _unlinked(error, cache) from error

    try:
        return cached(cache, f"kernels-{key(kernels, machine)}.so", make)
    except OSError as error:
        raise _unlinked(error, cache) from error


def _linker(machine: Machine) -> Any:
    """What links libraries for a machine: TVM's choice of a compiler of this one, or a compiler for another."""
    from tvm.support import cc

    if machine.arch == platform.machine():
        return cc.create_shared
    return cc.cross_compiler(cross_compiler(machine.arch))


def _unlinked(error: Exception, cache: Path | None) -> MachineError:
    from tvm.support.cc import get_cc

    return MachineError(
        "The kernels cannot be linked into a library.",
        where=str(cache or "a temporary directory"),
        why=str(error).strip().splitlines()[-1] if get_cc() else "No C or C++ compiler was found, which every new library takes.",
        hint="Install g++ (or gcc, clang), or name a compiler in CXX, and see that the directory has room.",
    )


def build_alone(kernel: Source, machine: Machine, path: Path) -> str:
    """Write a library of one C function, which needs nothing of TVM's, to ``path``; the digest of its LLVM code.

    MachineError where the kernel cannot be had alone, or linking fails.
    """
    import tvm

    from sparsec.backends.cpu import parsing

    with _parsing:
        function = parsing.plain(kernel.make(), kernel.symbol)
    made = compiled(tvm.IRModule({kernel.symbol: function}), target(machine))
    code = _ADDRESSES.sub("", made.mod.inspect_source("ll"))
    if "TVMBackend" in code:
        raise MachineError(f"{kernel.symbol} calls TVM's runtime and cannot stand alone.", hint="Choose another schedule.")
    with tempfile.NamedTemporaryFile("w", suffix=".map") as script:
        script.write(f"{{ global: {kernel.symbol}; local: *; }};\n")
        script.flush()
        try:
            made.export_library(str(path), fcompile=_linker(machine), options=[f"-Wl,--version-script={script.name}"])
        except RuntimeError as error:
            why, hint = str(error).strip().splitlines()[-1], "Install a C compiler (gcc or clang)."
            raise MachineError(f"{kernel.symbol} cannot be linked.", where=str(path), why=why, hint=hint) from error
    return hashlib.sha256(code.encode()).hexdigest()
