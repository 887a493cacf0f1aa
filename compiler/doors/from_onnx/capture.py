"""The ONNX door: a file or message becomes one CAPTURED graph, as an nn.Module does at the torch door."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsec.doors.captured import Captured, InputSpec
from sparsec.doors.from_onnx.batches import dependence
from sparsec.doors.from_onnx.build import Constants
from sparsec.doors.from_onnx.dimensions import batch_symbols, bounded, example_shapes, first_choice, followed, other_size, signature_of
from sparsec.doors.from_onnx.file import read_model
from sparsec.doors.from_onnx.graph import Network, OnnxInput, read_network
from sparsec.doors.from_onnx.importing import CALLS, Import, check_operators
from sparsec.doors.from_onnx.specialize import DependsOnInputs, parameters
from sparsec.doors.from_torch.batches import only_batch
from sparsec.doors.from_torch.exporting import quiet_shapes
from sparsec.doors.from_torch.lower import Fixed, Slot
from sparsec.errors import InvalidInput, UnsupportedModel
from sparsec.ir.symbols import Dim, Signature

if TYPE_CHECKING:
    import onnx

LARGEST_INPUT = 1 << 31
_FREE_BATCH = "the model", "dynamic_axes or dynamic_shapes"
Outputs = tuple[tuple[Dim | None, ...], ...]


@dataclass(frozen=True, eq=False)
class Source:
    """What graphs for all sizes are made of: the network, its constants, the inputs that a graph takes and what they follow.

    values: those of the other inputs, which are compiled in.
    """

    network: Network
    constants: Constants
    signature: Signature
    inputs: tuple[OnnxInput, ...]
    values: Mapping[str, Tensor]

    def graph(self, sizes: Mapping[str, int]) -> fx.GraphModule:
        """The graph for these sizes of the symbols. UnsupportedModel where the model does not run at them."""
        shapes = self.signature.shapes(sizes)
        _check_sizes(self.inputs, shapes)
        with torch.inference_mode(False), torch.no_grad(), quiet_shapes():
            return Import(self.network, self.constants).run([*zip(self.inputs, shapes, strict=True)], self.values)


def capture_onnx(path: Path | str | onnx.ModelProto, example_inputs: Any = None) -> Captured:
    """Capture an ONNX model: a file, with its external data beside it, or a message in memory.

    example_inputs: one tensor or array, a sequence of them in the order of the model's inputs, or a mapping by name; their
    shapes give symbolic dimensions a size. Without them a symbolic first dimension is 1 and others are refused. The graph is made
    for a number of tokens rounded up to a bucket (see `first_choice`); `Captured.at` makes it for other sizes. Small inputs that must be
    known (axes, shapes, flags) are compiled in with the example's values: calls with others are refused.
    The result of the captured graph is a tensor, or a tuple where the model has several outputs.

    Raises InvalidInput for a missing file or examples that do not fit or are missing, MachineError without the package onnx,
    UnsupportedModel for malformed models, unknown opsets and operators, all of which are named.
    """
    network = read_network(*read_model(path))
    check_operators(network)
    shapes = example_shapes(network.inputs, example_inputs)
    source, sizes, graph_module = _specialized(network, shapes, parameters(network, example_inputs))
    source = replace(source, signature=bounded(source.signature, sizes, network.lengths, source.graph))
    graph_module, sizes = _chosen(source, sizes, graph_module)
    outputs = followed(graph_module, source.signature, sizes, source.graph)
    return _at(source, outputs, _unlike_samples(source, outputs, sizes, graph_module), sizes, graph_module)


def _specialized(
    network: Network, shapes: Sequence[tuple[int, ...]], parameters: Mapping[str, Tensor]
) -> tuple[Source, dict[str, int], fx.GraphModule]:
    """Which inputs have to be compiled in is found by trying; the sizes are the example's, and the graph is for these."""
    constants = Constants(network)
    values: dict[str, Tensor] = {}
    while True:
        pairs = [(entry, shape) for entry, shape in zip(network.inputs, shapes, strict=True) if entry.name not in values]
        inputs, free = tuple(entry for entry, _ in pairs), [shape for _, shape in pairs]
        source = Source(network, constants, signature_of(inputs, free), inputs, values)
        sizes = source.signature.sizes(free)
        try:
            return source, sizes, source.graph(sizes)
        except DependsOnInputs as error:
            if not error.inputs <= parameters.keys():
                raise
            values = values | {name: parameters[name] for name in error.inputs}


def _unlike_samples(source: Source, outputs: Outputs, sizes: dict[str, int], graph_module: fx.GraphModule) -> str:
    """Why the graph serves the batch only that it is made for; empty where each sample is treated like the others, or there is no batch."""
    if not source.signature.symbols:
        return only_batch([tuple(node.meta["val"].shape) for node in graph_module.graph.find_nodes(op="placeholder")], *_FREE_BATCH)
    batches = batch_symbols(source.signature, outputs)
    if len(found := {sizes[name] for name in batches}) != 1:
        return ""
    (batch,) = found
    there = source.graph({**sizes, **dict.fromkeys(batches, other_size(batch))})
    return dependence(graph_module.meta[CALLS], there.meta[CALLS], batch, other_size(batch))


def _chosen(source: Source, sizes: dict[str, int], example: fx.GraphModule) -> tuple[fx.GraphModule, dict[str, int]]:
    """The graph for the sizes that serve most calls, or where the model does not run at those, for the example's."""
    chosen = first_choice(source.signature, sizes)
    try:
        return (example if chosen == sizes else source.graph(chosen)), chosen
    except (UnsupportedModel, InvalidInput):
        return example, sizes


def _at(source: Source, outputs: Outputs, one_batch: str, sizes: Mapping[str, int], graph_module: fx.GraphModule | None = None) -> Captured:
    graph_module = graph_module or source.graph(sizes)
    graph_module.meta.pop(CALLS)
    count, results = len(source.network.inputs), len(source.network.outputs)
    inputs = _inputs(graph_module, source.signature)
    return Captured(
        graph_module=graph_module,
        inputs=inputs,
        in_spec=pytree.tree_structure(((0,) * count, {})),
        out_spec=pytree.tree_structure(0 if results == 1 else (0,) * results),
        in_slots=_slots(source),
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


def _slots(source: Source) -> tuple[Slot, ...]:
    """The position of each input of the model among those of the graph, or its value."""
    positions = {entry.name: position for position, entry in enumerate(source.inputs)}
    return tuple(positions.get(entry.name, Fixed(source.values.get(entry.name))) for entry in source.network.inputs)


def _inputs(graph_module: fx.GraphModule, signature: Signature) -> tuple[InputSpec, ...]:
    values = [(node.name, node.meta["val"]) for node in graph_module.graph.find_nodes(op="placeholder")]
    pairs = zip(values, signature.dims, strict=True)
    return tuple(InputSpec(name, tuple(x.shape), x.dtype, dims if signature.symbols else ()) for (name, x), dims in pairs)


def _check_sizes(inputs: Sequence[OnnxInput], shapes: Sequence[tuple[int, ...]]) -> None:
    for entry, shape in zip(inputs, shapes, strict=True):
        if math.prod(shape) > LARGEST_INPUT:
            raise InvalidInput(f"Input {entry.name!r} is too large.", why=str(list(shape)))
