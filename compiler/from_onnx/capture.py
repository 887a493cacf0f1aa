"""The ONNX door: a file or message becomes one CAPTURED graph, as an nn.Module does at the torch door."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsec.errors import InvalidInput, SparsecError, UnsupportedModel
from sparsec.from_onnx.batches import NodeCall, dependence, node_call
from sparsec.from_onnx.build import Builder, Constants, Step, Value, held
from sparsec.from_onnx.file import read_model
from sparsec.from_onnx.fuse import fuse
from sparsec.from_onnx.graph import Network, OnnxInput, read_network
from sparsec.from_onnx.nodes import OnnxNode
from sparsec.from_onnx.ops_convolution import TABLE as CONVOLUTION
from sparsec.from_onnx.ops_elementwise import TABLE as ELEMENTWISE
from sparsec.from_onnx.ops_gather import TABLE as GATHER
from sparsec.from_onnx.ops_matmul import TABLE as MATMUL
from sparsec.from_onnx.ops_norm import TABLE as NORM
from sparsec.from_onnx.ops_quantize import TABLE as QUANTIZE
from sparsec.from_onnx.ops_recurrent import TABLE as RECURRENT
from sparsec.from_onnx.ops_resize import TABLE as RESIZE
from sparsec.from_onnx.ops_shape import TABLE as SHAPE
from sparsec.from_onnx.ops_shape import constant_value
from sparsec.from_onnx.sizes import batch_symbols, bounded, example_shapes, first_choice, followed, other_size, signature_of
from sparsec.from_torch.batches import only_batch
from sparsec.from_torch.captured import Captured, InputSpec
from sparsec.from_torch.exporting import first_line
from sparsec.symbols import Dim, Signature

if TYPE_CHECKING:
    import onnx

OPERATORS = {**CONVOLUTION, **ELEMENTWISE, **GATHER, **MATMUL, **NORM, **QUANTIZE, **RECURRENT, **RESIZE, **SHAPE}
LARGEST_INPUT = 1 << 31
_FREE_BATCH = "the model", "dynamic_axes or dynamic_shapes"
Outputs = tuple[tuple[Dim | None, ...], ...]
#: In the meta of a graph module: the nodes that it was made of.
_CALLS = "onnx_calls"
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Source:
    """What graphs for all sizes are made of: the network, its constants, and what its inputs follow."""

    network: Network
    constants: Constants
    signature: Signature

    def graph(self, sizes: Mapping[str, int]) -> fx.GraphModule:
        """The graph for these sizes of the symbols. UnsupportedModel where the model does not run at them."""
        shapes = self.signature.shapes(sizes)
        _check_sizes(self.network.inputs, shapes)
        with torch.inference_mode(False), torch.no_grad(), _quiet():
            return _Import(self.network, self.constants, shapes).run()


def capture_onnx(path: Path | str | onnx.ModelProto, example_inputs: Any = None) -> Captured:
    """Capture an ONNX model: a file, with its external data beside it, or a message in memory.

    example_inputs: one tensor or array, a sequence of them in the order of the model's inputs, or a mapping by name; their
    shapes give symbolic dimensions a size. Without them a symbolic first dimension is 1 and others are refused. The graph is made
    for a number of tokens rounded up to a bucket (see `first_choice`); `Captured.at` makes it for other sizes.
    The result of the captured graph is a tensor, or a tuple where the model has several outputs.

    Raises InvalidInput for a missing file or examples that do not fit or are missing, MachineError without the package onnx,
    UnsupportedModel for malformed models, unknown opsets and operators, all of which are named.
    """
    network = read_network(*read_model(path))
    _check_operators(network)
    shapes = example_shapes(network.inputs, example_inputs)
    signature = signature_of(network.inputs, shapes)
    source = Source(network, Constants(network), signature)
    sizes = signature.sizes(shapes)
    source = replace(source, signature=bounded(signature, sizes, network.lengths, source.graph))
    graph_module, sizes = _chosen(source, sizes)
    outputs = followed(graph_module, source.signature, sizes, source.graph)
    return _at(source, outputs, _unlike_samples(source, outputs, sizes, graph_module), sizes, graph_module)


def _unlike_samples(source: Source, outputs: Outputs, sizes: dict[str, int], graph_module: fx.GraphModule) -> str:
    """Why the graph serves the batch only that it is made for; empty where each sample is treated like the others, or there is no batch."""
    if not source.signature.symbols:
        return only_batch([tuple(node.meta["val"].shape) for node in graph_module.graph.find_nodes(op="placeholder")], *_FREE_BATCH)
    batches = batch_symbols(source.signature, outputs)
    if len(found := {sizes[name] for name in batches}) != 1:
        return ""
    (batch,) = found
    there = source.graph({**sizes, **dict.fromkeys(batches, other_size(batch))})
    return dependence(graph_module.meta[_CALLS], there.meta[_CALLS], batch, other_size(batch))


def _chosen(source: Source, sizes: dict[str, int]) -> tuple[fx.GraphModule, dict[str, int]]:
    """The graph for the sizes that serve most calls, or where the model does not run at those, for the example's."""
    chosen = first_choice(source.signature, sizes)
    try:
        return source.graph(chosen), chosen
    except (UnsupportedModel, InvalidInput):
        if chosen == sizes:
            raise
        return source.graph(sizes), sizes


def _at(source: Source, outputs: Outputs, one_batch: str, sizes: Mapping[str, int], graph_module: fx.GraphModule | None = None) -> Captured:
    graph_module = graph_module or source.graph(sizes)
    graph_module.meta.pop(_CALLS)
    count, results = len(source.network.inputs), len(source.network.outputs)
    inputs = _inputs(graph_module, source.signature)
    return Captured(
        graph_module=graph_module,
        inputs=inputs,
        in_spec=pytree.tree_structure(((0,) * count, {})),
        out_spec=pytree.tree_structure(0 if results == 1 else (0,) * results),
        in_slots=tuple(range(count)),
        out_slots=tuple(range(results)),
        keywords=(),
        names=tuple(entry.name for entry in source.network.inputs),
        signature=source.signature,
        sizes=dict(sizes),
        batches=batch_symbols(source.signature, outputs),
        output_dims=outputs,
        remade=partial(_at, source, outputs, one_batch) if sizes else None,
        one_batch=one_batch,
    )


def _inputs(graph_module: fx.GraphModule, signature: Signature) -> tuple[InputSpec, ...]:
    values = [(node.name, node.meta["val"]) for node in graph_module.graph.find_nodes(op="placeholder")]
    pairs = zip(values, signature.dims, strict=True)
    return tuple(InputSpec(name, tuple(x.shape), x.dtype, dims if signature.symbols else ()) for (name, x), dims in pairs)


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

    def __init__(self, network: Network, constants: Constants, shapes: Sequence[tuple[int, ...]]) -> None:
        self.network, self.shapes = network, shapes
        self.build = Builder(constants)
        self.values: dict[str, Value] = {}
        self.calls: list[NodeCall] = []

    def run(self) -> fx.GraphModule:
        for entry, shape in zip(self.network.inputs, self.shapes, strict=True):
            self.values[entry.name] = self.build.placeholder(entry.name, shape, entry.dtype)
        for node in self.network.nodes:
            self._translate(node)
        outputs = [self._value(name) for name in self.network.outputs]
        self.build.source = "output"
        results = tuple(self.build.place(value) if isinstance(value, Tensor) else value for value in outputs)
        self.build.graph.output(results).meta["val"] = None
        graph_module = fx.GraphModule(self.build.root, self.build.graph)
        fuse(graph_module)
        graph_module.meta[_CALLS] = self.calls
        return graph_module

    def _value(self, name: str) -> Value:
        if name not in self.values:
            self.values[name] = self.build.constants[name]
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
            why = f"{first_line(error)} (inputs {shapes})"
            raise UnsupportedModel(f"{node.kind} cannot be translated.", where=node.place, why=why) from error
        if (call := node_call(node.kind, node.place, inputs, results)) is not None:
            self.calls.append(call)
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
            return (held(self.build.budget, value, node.place),)
        result = OPERATORS[node.kind](Step(self.build, node, inputs))
        return result if isinstance(result, tuple) else (result,)


def _check_operators(network: Network) -> None:
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
            why="; ".join(lines),
            hint="Export the model without them, or compile the torch model itself.",
        )


def _check_sizes(inputs: Sequence[OnnxInput], shapes: Sequence[tuple[int, ...]]) -> None:
    for entry, shape in zip(inputs, shapes, strict=True):
        if math.prod(shape) > LARGEST_INPUT:
            raise InvalidInput(f"Input {entry.name!r} is too large.", why=str(list(shape)))
