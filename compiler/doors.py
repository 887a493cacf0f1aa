"""Whatever a model comes as, captured: a module, an exported program, a .pt2 or an .onnx file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.from_program import example_arguments
from sparsec.from_torch import Captured, capture
from sparsec.pt2 import load_program

SUFFIXES = (".pt2", ".onnx")


def open_model(model: Any, example_inputs: Any = None, kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None) -> Captured:
    """The graph of a module, program or file. InvalidInput, UnsupportedModel.

    example_inputs: a tuple of tensors or arrays, or one alone; only a module cannot do without.
    """
    if isinstance(model, str | os.PathLike):
        path = checked_path(model)
        if path.suffix.lower() == ".onnx":
            return _from_onnx(path, example_inputs, kwargs, dynamic_shapes)
        model = load_program(path)
    if not isinstance(model, ExportedProgram):
        if example_inputs is None and not kwargs:
            hint = "Call sparsec.compile(model, (x,)) with a tensor of the shape to compile for."
            raise InvalidInput("Example inputs are missing.", hint=hint)
    elif dynamic_shapes is not None:
        raise InvalidInput("A program has its free axes already.", hint="Give dynamic_shapes to torch.export.export.")
    elif example_inputs is None and not kwargs:
        example_inputs, kwargs = example_arguments(model)
    args, named = tensors(example_inputs), pytree.tree_map_only(np.ndarray, _tensor, dict(kwargs or {}))
    _check(args, named)
    return capture(model, args, named, dynamic_shapes)


def checked_path(given: str | os.PathLike[str]) -> Path:
    """The path of a model file. InvalidInput for one that is not there or of another kind."""
    path = Path(given)
    if path.suffix.lower() not in SUFFIXES:
        hint = "Give a .pt2 or .onnx file; sparsec.load reads artifacts; the command line takes module:factory as well."
        raise InvalidInput(f"{path.name!r} is no model file.", where=str(path), hint=hint)
    if not path.is_file():
        raise InvalidInput("The model file does not exist." if not path.exists() else "The model file is a directory.", where=str(path))
    return path


def tensors(given: Any) -> tuple[Any, ...]:
    """Example inputs as a tuple with tensors for arrays."""
    alone = isinstance(given, Tensor | np.ndarray)
    return pytree.tree_map_only(np.ndarray, _tensor, (given,) if alone else tuple(given or ()))


def _from_onnx(path: Path, example_inputs: Any, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any) -> Captured:
    if kwargs or dynamic_shapes is not None:
        raise InvalidInput("An ONNX model takes no keyword inputs and has its free axes already.", where=str(path))
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise InvalidInput("The file is a zip archive and no ONNX model.", where=str(path), hint="Give .pt2 files that suffix.")
    try:
        from sparsec.from_onnx import capture_onnx
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "sparsec":
            raise UnsupportedModel("This build reads no ONNX models.", where=str(path)) from error
        raise
    return capture_onnx(path, tensors(example_inputs) if example_inputs is not None else None)


def _tensor(array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except TypeError as error:
        raise InvalidInput(f"An example input is an array of {array.dtype}.", why=str(error)) from error


def _check(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and (leaf.device.type != "cpu" or math.prod(leaf.shape) == 0):
            raise InvalidInput(f"An example input is {list(leaf.shape)} on {leaf.device}.", hint="Give a CPU tensor without empty axes.")
