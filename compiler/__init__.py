"""sparsec: a graph compiler for sparse neural networks.

>>> import sparsec
>>> compiled = sparsec.compile(model, (x,))
>>> compiled.save("model.sparsec")
>>> sparsec.load("model.sparsec")(x.numpy())

Importing this imports neither torch nor tvm; names are looked up when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsec import errors
    from sparsec.autotune.export import export_kernels
    from sparsec.doors.torch_compile.backend import refresh
    from sparsec.driver import CompiledModel, compile
    from sparsec.errors import SparsecError
    from sparsec.report.explaining import explain
    from sparsec.run.artifact import LoadedModel, load
    from sparsec.run.explanation import Explanation
    from sparsec.settings import Options, Settings

    __version__: str

_HOMES = {
    "compile": "driver",
    "CompiledModel": "driver",
    "load": "run.artifact",
    "LoadedModel": "run.artifact",
    "Explanation": "run.explanation",
    "explain": "report.explaining",
    "export_kernels": "autotune.export",
    "refresh": "doors.torch_compile.backend",
    "Options": "settings",
    "Settings": "settings",
    "SparsecError": "errors",
}

__all__ = [
    "CompiledModel",
    "Explanation",
    "LoadedModel",
    "Options",
    "Settings",
    "SparsecError",
    "__version__",
    "compile",
    "errors",
    "explain",
    "export_kernels",
    "load",
    "refresh",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(_imported(f"sparsec.{_HOMES[name]}"), name)
    elif name == "errors":
        value = importlib.import_module("sparsec.errors")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("sparsec")
    else:
        raise AttributeError(f"module 'sparsec' has no attribute {name!r}")
    globals()[name] = value
    return value


def _imported(module: str) -> Any:
    """A module of ours. MachineError, with the command that mends it, where a package that it needs is not installed."""
    from sparsec.run.heap import older_objects_aside

    try:
        with older_objects_aside():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        from sparsec.tools.needs import COMPILER, require

        require(COMPILER)
        raise error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
