"""The ONNX door: a file or message becomes one CAPTURED graph, as an nn.Module does at the torch door."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsec.errors import InvalidInput, SparsecError, UnsupportedModel
from sparsec.from_onnx_file import read_model
from sparsec.from_torch import Captured, InputSpec
from sparsec.onnx_build import Builder, Step, Value
from sparsec.onnx_fuse import fuse
from sparsec.onnx_graph import Network, OnnxInput, OnnxNode, read_network
from sparsec.onnx_ops_convolution import TABLE as CONVOLUTION
from sparsec.onnx_ops_elementwise import TABLE as ELEMENTWISE
from sparsec.onnx_ops_gather import TABLE as GATHER
from sparsec.onnx_ops_matmul import TABLE as MATMUL
from sparsec.onnx_ops_norm import TABLE as NORM
from sparsec.onnx_ops_shape import TABLE as SHAPE
from sparsec.onnx_ops_shape import constant_value

if TYPE_CHECKING:
    import onnx

OPERATORS = {**CONVOLUTION, **ELEMENTWISE, **GATHER, **MATMUL, **NORM, **SHAPE}
LARGEST_INPUT = 1 << 31
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class OnnxCaptured(Captured):
    """As `Captured`; every input may be given by position or by its ONNX name, which are `names`."""

    names: tuple[str, ...] = ()

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
        """The tensors of a call in the order of `inputs`. InvalidInput where one is missing, unknown or given twice."""
        given = dict(kwargs or {})
        named = [given.pop(name) for name in self.names[len(args) :] if name in given]
        if given or len(args) + len(named) != len(self.names):
            wrong = f"{', '.join(sorted(given))} are not expected." if given else f"{len(args) + len(named)} were given."
            raise InvalidInput("The arguments are not those of the model.", why=wrong, hint=f"Its inputs are {', '.join(self.names)}.")
        return super().flatten((*args, *named), {})


def capture_onnx(path: Path | str | onnx.ModelProto, example_inputs: Any = None) -> OnnxCaptured:
    """Capture an ONNX model: a file, with its external data beside it, or a message in memory.

    example_inputs: one tensor or array, a sequence of them in the order of the model's inputs, or a mapping by name; their
    shapes give symbolic dimensions a size. Without them a symbolic first dimension is 1 and others are refused.
    The result of the captured graph is a tensor, or a tuple where the model has several outputs.

    Raises InvalidInput for a missing file or examples that do not fit or are missing, MachineError without the package onnx,
    UnsupportedModel for malformed models, unknown opsets and operators, all of which are named.
    """
    model, folder = read_model(path)
    where = "the model" if folder is None else str(path)
    try:
        network = read_network(model, folder)
    except SparsecError:
        raise
    except (UnicodeDecodeError, ValueError, TypeError, RuntimeError, OverflowError, RecursionError) as error:
        raise UnsupportedModel("The ONNX model is malformed.", where=where, why=str(error)) from error
    _check_operators(network, where)
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        return _Import(network, _sizes(network, example_inputs)).run()


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs a traceback for shapes that do not fit, which are reported as errors here."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addFilter(_other_than_shapes)
    try:
        yield
    finally:
        logger.removeFilter(_other_than_shapes)


def _other_than_shapes(record: logging.LogRecord) -> bool:
    return "failed while attempting to run meta" not in str(record.msg)


class _Import:
    """The walk over the nodes of one network."""

    def __init__(self, network: Network, sizes: Mapping[str, tuple[int, ...]]) -> None:
        self.network, self.sizes = network, sizes
        self.build = Builder()
        self.values: dict[str, Value] = {}

    def run(self) -> OnnxCaptured:
        for entry in self.network.inputs:
            self.values[entry.name] = self.build.placeholder(entry.name, self.sizes[entry.name], entry.dtype)
        for node in self.network.nodes:
            self._translate(node)
        outputs = [self._value(name) for name in self.network.outputs]
        self.build.source = "output"
        results = tuple(self.build.place(value) if isinstance(value, Tensor) else value for value in outputs)
        self.build.graph.output(results).meta["val"] = None
        graph_module = fx.GraphModule(self.build.root, self.build.graph)
        fuse(graph_module)
        return self._described(graph_module)

    def _value(self, name: str) -> Value:
        if name not in self.values:
            self.values[name] = self.network.constant(name)
            self.build.name(self.values[name], name)
        return self.values[name]

    def _translate(self, node: OnnxNode) -> None:
        self.build.source = node.place
        inputs = [self._value(name) if name else None for name in node.inputs]
        try:
            results = self._results(node, inputs)
        except SparsecError:
            raise
        except Exception as error:
            shapes = [None if x is None else list((x if isinstance(x, Tensor) else x.meta["val"]).shape) for x in inputs]
            why = f"{_first_line(error)} (inputs {shapes})"
            raise UnsupportedModel(f"{node.kind} cannot be translated.", where=node.place, why=why) from error
        for name, value in zip(node.outputs, results, strict=False):
            self.build.name(value, name)
            self.values[name] = value
        if missing := [name for name in node.outputs[len(results) :] if name]:
            raise UnsupportedModel(f"The result {missing[0]!r} of {node.kind} is not supported.", where=node.place)

    def _results(self, node: OnnxNode, inputs: Sequence[Value | None]) -> tuple[Any, ...]:
        if node.kind == "Constant":
            value = constant_value(node.attributes, self.network.folder, node.place)
            if value is None:
                raise UnsupportedModel("A constant is no tensor.", where=node.place)
            return (value,)
        result = OPERATORS[node.kind](Step(self.build, node, inputs))
        return result if isinstance(result, tuple) else (result,)

    def _described(self, graph_module: fx.GraphModule) -> OnnxCaptured:
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        specs = tuple(InputSpec(node.name, tuple(node.meta["val"].shape), node.meta["val"].dtype) for node in placeholders)
        count, results = len(specs), len(self.network.outputs)
        return OnnxCaptured(
            graph_module=graph_module,
            inputs=specs,
            in_spec=pytree.tree_structure(((0,) * count, {})),
            out_spec=pytree.tree_structure(0 if results == 1 else (0,) * results),
            in_slots=tuple(range(count)),
            out_slots=tuple(range(results)),
            keywords=(),
            names=tuple(entry.name for entry in self.network.inputs),
        )


def _check_operators(network: Network, where: str) -> None:
    """All operators that are not known, with their nodes, in one error."""
    unknown: dict[str, list[str]] = {}
    for node in network.nodes:
        if node.kind not in OPERATORS and node.kind != "Constant":
            unknown.setdefault(node.kind, []).append(node.place)
    if unknown:
        lines = [
            f"{kind}: {', '.join(places[:_SHOWN])}{f' and {len(places) - _SHOWN} more' if len(places) > _SHOWN else ''}"
            for kind, places in sorted(unknown.items())
        ]
        raise UnsupportedModel(
            f"The model uses {len(unknown)} operators that are not supported: {', '.join(sorted(unknown))}.",
            where=where,
            why="; ".join(lines),
            hint="Export the model without them, or compile the torch model itself.",
        )


# Sizes


def _sizes(network: Network, example_inputs: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each input. InvalidInput for examples that do not fit, or are needed and missing."""
    if example_inputs is None:
        sizes = _default_sizes(network.inputs)
    else:
        sizes = _example_sizes(network.inputs, example_inputs)
    for name, shape in sizes.items():
        if int(np.prod([float(size) for size in shape])) > LARGEST_INPUT:
            raise InvalidInput(f"Input {name!r} is too large.", why=str(list(shape)))
    return sizes


def _default_sizes(inputs: Sequence[OnnxInput]) -> dict[str, tuple[int, ...]]:
    batch = {entry.dims[0] for entry in inputs if entry.dims}
    unknown = [entry for entry in inputs if entry.dims is None or any(_is_open(dim, axis, batch) for axis, dim in enumerate(entry.dims))]
    if unknown:
        shown = "; ".join(f"{entry.name}: {_shown(entry.dims)}" for entry in unknown)
        raise InvalidInput("The model has inputs of unknown sizes.", why=shown, hint="Give example inputs of the sizes to compile for.")
    return {entry.name: tuple(dim if isinstance(dim, int) else 1 for dim in entry.dims or ()) for entry in inputs}


def _is_open(dim: int | str, axis: int, batch: set[int | str]) -> bool:
    """Whether nothing says how large a dimension is; a symbolic first one is taken to be a batch of 1."""
    return isinstance(dim, str) and axis > 0 and (not dim or dim not in batch)


def _shown(dims: Sequence[int | str] | None) -> str:
    return "unknown rank" if dims is None else f"[{', '.join(str(dim) or '?' for dim in dims)}]"


def _example_sizes(inputs: Sequence[OnnxInput], example_inputs: Any) -> dict[str, tuple[int, ...]]:
    examples = _by_name(inputs, example_inputs)
    symbols: dict[str, int] = {}
    sizes = {}
    for entry in inputs:
        tensor = _as_tensor(examples[entry.name], entry.name)
        sizes[entry.name] = tuple(tensor.shape)
        fits = entry.dims is None or (
            len(entry.dims) == tensor.dim() and all(map(_fits, entry.dims, tensor.shape, [symbols] * tensor.dim()))
        )
        if tensor.dtype != entry.dtype or not fits:
            wanted = f"The model takes {_shown(entry.dims)} {entry.dtype}"
            raise InvalidInput(f"The example for {entry.name!r} does not fit.", why=f"{wanted}, not {list(tensor.shape)} {tensor.dtype}.")
    return sizes


def _fits(dim: int | str, size: int, symbols: dict[str, int]) -> bool:
    """Whether a size is what a dimension says, a symbol the same wherever it stands."""
    return size == (dim if isinstance(dim, int) else symbols.setdefault(dim, size) if dim else size)


def _by_name(inputs: Sequence[OnnxInput], example_inputs: Any) -> dict[str, Any]:
    names = [entry.name for entry in inputs]
    if isinstance(example_inputs, Mapping):
        given = dict(example_inputs)
    else:
        alone = isinstance(example_inputs, Tensor | np.ndarray)
        values = [example_inputs] if alone else list(example_inputs)
        given = dict(zip(names, values, strict=False)) if len(values) == len(names) else {}
    if set(given) != set(names):
        raise InvalidInput("The example inputs are not those of the model.", hint=f"Its inputs are {', '.join(names)}.")
    return given


def _as_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(np.empty(value.shape, value.dtype))
    except (AttributeError, TypeError) as error:
        raise InvalidInput(f"The example for {name!r} is neither tensor nor array of numbers.", why=str(error)) from error


def _first_line(error: Exception) -> str:
    return next((f"{type(error).__name__}: {line.strip()}" for line in str(error).splitlines() if line.strip()), type(error).__name__)
