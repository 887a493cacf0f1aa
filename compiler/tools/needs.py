"""Packages that parts of sparsec need, and the command that brings one that is missing."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from sparsec.errors import MachineError

#: Importable names and what pip installs for them. The first four are what compiling needs, as pyproject.toml has them.
COMPILER = {"torch": "torch==2.13.*", "tvm": "apache-tvm==0.27.*", "networkx": "networkx>=3.3", "filelock": "filelock>=3.15"}
OPTIONAL = {"onnx": "onnx>=1.18", "onnxscript": "onnxscript>=0.5", "sklearn": "scikit-learn>=1.5", "PIL": "pillow>=10"}
OPTIONAL |= {"onnxruntime": "onnxruntime>=1.20", "openvino": "openvino>=2025.0", "matplotlib": "matplotlib>=3.9", "tornado": "tornado>=6"}


def require(modules: Iterable[str] = COMPILER) -> None:
    """MachineError where one of these packages is not installed."""
    absent = [name for name in modules if not _is_there(name)]
    if absent:
        raise lacking(*absent)


def lacking(*modules: str) -> MachineError:
    """The error for packages that are not installed."""
    known = {**COMPILER, **OPTIONAL}
    needed = [known.get(name, name) for name in modules]
    part = "The compiler" if any(name in COMPILER for name in modules) else "This"
    quoted = " ".join(f"'{package}'" for package in needed)
    return MachineError(f"{part} needs {', '.join(modules)}, which is not installed.", hint=f"pip install {quoted}")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
