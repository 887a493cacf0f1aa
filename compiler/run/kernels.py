"""Kernel libraries and the small runtime library of TVM's that they may need: found and loaded, without TVM's compiler."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sparsec.errors import ArtifactError, MachineError
from sparsec.run.ending import waited_for
from sparsec.run.forks import opened_in_children

_loading = opened_in_children(threading.Lock())


def find_tvm_runtime() -> Path | None:
    """TVM's small runtime library (workspace): SPARSEC_TVM_RUNTIME, else of the installed wheel, which is not imported."""
    override = os.environ.get("SPARSEC_TVM_RUNTIME")
    if override:
        return Path(override)
    try:
        spec = importlib.util.find_spec("tvm")
    except ImportError:
        return None
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return next((path for root in roots if (path := root / "lib" / "libtvm_runtime.so").exists()), None)


def load_tvm_runtime(bundled: Path | None = None) -> None:
    """Load TVM's runtime library for everybody in the process: kernels with large local buffers call into it through a hook.

    An installed TVM goes before the ``bundled`` library: one process holds only one of them, and ``import tvm`` brings its own.

    Raises:
        MachineError: there is neither, or it cannot be loaded.
    """
    import tvm_ffi

    with _loading:
        if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is not None:
            return
        path = find_tvm_runtime() or bundled
        if path is None:
            raise MachineError(
                "libtvm_runtime.so was not found.", hint="Install apache-tvm, or set SPARSEC_TVM_RUNTIME to the library's path."
            )
        os.environ.setdefault("TVM_BIND_THREADS", "0")  # default binding pins the caller's thread
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise MachineError("TVM's runtime library cannot be loaded.", where=str(path), why=str(error)) from error


class Entries(NamedTuple):
    """The functions of a kernel library: one runs tables, one says whether they stay inside their memory (see ``sparsec.run.extents``)."""

    run: Any
    check: Any


@lru_cache(maxsize=64)
def load_kernels(library: Path, bundled_runtime: Path | None = None) -> Entries:
    """The entry functions of a kernel library. The file's name must change with its content."""
    import tvm_ffi

    load_tvm_runtime(bundled_runtime)
    try:
        module = tvm_ffi.load_module(str(library))
        return Entries(waited_for(module.get_function("sparsec_run")), module.get_function("sparsec_check"))
    except Exception as error:
        raise ArtifactError(f"{library} is not a kernel library this process can load: {error}") from error
