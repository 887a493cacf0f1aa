"""TVM's TensorIR for kernels, imported when the first one is made: a library from the cache needs none of its 150 MiB."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Late:
    """A module that is imported when something of it is asked for."""

    def __init__(self, package: str, name: str) -> None:
        self._from = package, name

    def __getattr__(self, name: str) -> Any:
        package, module = self._from
        value = getattr(getattr(import_module(package), module), name)
        setattr(self, name, value)
        return value


T: Any = _Late("tvm.script", "tirx")
tirx: Any = _Late("tvm", "tirx")


def fenced(value: Any, dtype: str, lanes: int) -> Any:
    """``value``, a register, bound to a name: LLVM does not look through to what it was made of."""
    return T.bind(T.call_llvm_pure_intrin(f"{dtype}x{lanes}", "llvm.arithmetic.fence", value))
