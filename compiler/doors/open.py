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

from sparsec.doors.arrays import tensor_of
from sparsec.doors.captured import Captured
from sparsec.doors.factories import checked_path, named, shapes_by_name
from sparsec.doors.from_torch.capture import Weights, capture
from sparsec.doors.from_torch.exported import example_arguments, input_names, random_tensor
from sparsec.doors.from_torch.pt2 import load_program
from sparsec.doors.npy import read_array
from sparsec.errors import InvalidInput, UnsupportedModel


def open_model(
    model: Any,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    weights: Weights = "copied",
) -> Captured:
    """The graph of a module, program or file. InvalidInput, UnsupportedModel.

    example_inputs: a tuple of tensors or arrays, or one alone; for an ONNX model also a mapping by name, which ``kwargs`` is as well. Only
    a module cannot do without. ``weights``: see ``capture``; a file's are nobody else's.
    """
    if torch.is_autocast_enabled("cpu"):
        # It casts what is computed from constants, and keeps casts of the weights, which have no data yet, for the model's next call.
        raise UnsupportedModel("Autocast is on.", why="Programs compute in float32.", hint="Compile outside of torch.autocast.")
    if isinstance(model, str | os.PathLike):
        path = checked_path(model)
        if path.suffix.lower() == ".onnx":
            return _from_onnx(path, example_inputs, kwargs, dynamic_shapes)
        model, weights = load_program(path), "given"
    elif type(model).__module__.partition(".")[0] == "onnx":
        return _from_onnx(model, example_inputs, kwargs, dynamic_shapes)
    if not isinstance(model, ExportedProgram):
        if example_inputs is None and not kwargs:
            hint = "Call sparsec.compile(model, (x,)) with a tensor of the shape to compile for."
            raise InvalidInput("Example inputs are missing.", hint=hint)
    elif dynamic_shapes is not None:
        raise InvalidInput("A program has its free axes already.", hint="Give dynamic_shapes to torch.export.export.")
    elif example_inputs is None and not kwargs:
        example_inputs, kwargs = example_arguments(model)
    args, named = tensors(example_inputs), pytree.tree_map_only(np.ndarray, tensor_of, dict(kwargs or {}))
    _check(args, named)
    return capture(model, args, named, dynamic_shapes, weights)


def tensors(given: Any) -> tuple[Any, ...]:
    """Example inputs as a tuple with tensors for arrays."""
    alone = isinstance(given, Tensor | np.ndarray)
    return pytree.tree_map_only(np.ndarray, tensor_of, (given,) if alone else tuple(given or ()))


def with_shapes(path: Path, texts: Sequence[str], batch: int | None = None) -> tuple[Any, Any, dict[str, Any]]:
    """The model of a file with example inputs, positional or a mapping, and keyword inputs, for shapes as in "x=1,3,224,224".

    In the place of a shape may stand a file with the values, "axes=axes.npy". Inputs that are not named are the program's own examples;
    of an ONNX model they are random, with 1 for a symbolic batch. ``batch`` is what all of them are cut or repeated to. InvalidInput for
    an unknown name, or a shape that is needed and missing.
    """
    texts, values = _values(texts)
    if path.suffix.lower() == ".onnx":
        return path, _onnx_examples(path, texts, values, batch), {}
    program = load_program(path)
    leaves, spec = pytree.tree_flatten(example_arguments(program))
    names = input_names(program)
    given = shapes_by_name(names, texts, values)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for name, place in zip(names, places, strict=True):
        leaf = leaves[place]
        leaf = random_tensor(given[name], leaf.dtype) if name in given else values.get(name, leaf)
        leaves[place] = leaf if batch is None or not leaf.dim() else leaf[torch.arange(batch) % len(leaf)]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return program, args, kwargs


def inputs_of(opened: Captured, example_inputs: Any = None, kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
    """The tensors that the graph takes: the examples where their shapes are those of the graph, else random ones."""
    if isinstance(example_inputs, Mapping):
        example_inputs, kwargs = (), example_inputs
    given = opened.flatten(tensors(example_inputs), kwargs) if example_inputs is not None else []
    if [x.shape for x in given] == [spec.shape for spec in opened.inputs]:
        return given
    return [random_tensor(spec.shape, spec.dtype) for spec in opened.inputs]


def _values(texts: Sequence[str]) -> tuple[list[str], dict[str, Tensor]]:
    """What gives shapes, and the tensors of what names files."""
    pairs = [(text, *named(text)) for text in texts]
    files = {name: value for _, name, value in pairs if value.endswith(".npy")}
    if "" in files:
        raise InvalidInput("A file of values needs the name of its input.", hint=f"Write --input NAME={files['']}.")
    arrays = {name: read_array(Path(file)) for name, file in files.items()}
    return [text for text, _, value in pairs if not value.endswith(".npy")], {name: tensor_of(x) for name, x in arrays.items()}


def _onnx_examples(path: Path, texts: Sequence[str], values: Mapping[str, Tensor], batch: int | None) -> dict[str, Tensor] | None:
    from sparsec.doors.from_onnx.file import read_model
    from sparsec.doors.from_onnx.graph import read_network
    from sparsec.doors.from_onnx.specialize import RandomExamples

    if not texts and not values and batch is None:
        return None
    entries = read_network(*read_model(path)).inputs
    given = shapes_by_name([entry.name for entry in entries], texts, values)
    examples = RandomExamples(values)
    for entry in entries:
        if entry.name in values:
            continue
        dims = [1 if isinstance(dim, str) and not axis else dim for axis, dim in enumerate(entry.dims or ())]
        shape = list(given.get(entry.name) or [dim for dim in dims if isinstance(dim, int)])
        if entry.name not in given and (entry.dims is None or len(shape) < len(dims)):
            raise InvalidInput(f"Nothing says how large input {entry.name!r} is.", where=str(path), hint=f"Give --input {entry.name}=1,...")
        if batch is not None and shape and not (entry.dims and isinstance(entry.dims[0], int)):
            shape[0] = batch
        examples[entry.name] = random_tensor(shape, entry.dtype)
    return examples


def _from_onnx(model: Any, example_inputs: Any, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any) -> Captured:
    """``model``: a path or a message in memory."""
    where = str(model) if isinstance(model, Path) else ""
    if dynamic_shapes is not None:
        raise InvalidInput("An ONNX model has its free axes already.", where=where)
    if kwargs and example_inputs is not None and (not isinstance(example_inputs, tuple | list) or example_inputs):
        raise InvalidInput("Example inputs of an ONNX model come in order or by name.", where=where, hint="Give all of them as kwargs.")
    example_inputs = kwargs or example_inputs
    if isinstance(model, Path):
        with model.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise InvalidInput("The file is a zip archive and no ONNX model.", where=where, hint="Give .pt2 files that suffix.")
    from sparsec.doors.from_onnx.capture import capture_onnx

    return capture_onnx(model, example_inputs)


def _check(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and (leaf.device.type != "cpu" or math.prod(leaf.shape) == 0):
            raise InvalidInput(f"An example input is {list(leaf.shape)} on {leaf.device}.", hint="Give a CPU tensor without empty axes.")
