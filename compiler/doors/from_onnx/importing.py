"""ONNX nodes as an ATen graph: the walk over a network, one translated node after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from sparsec.doors.from_onnx.batches import NodeCall, node_call
from sparsec.doors.from_onnx.build import Builder, Constants, Step, Value, held
from sparsec.doors.from_onnx.fuse import fuse
from sparsec.doors.from_onnx.graph import Network, OnnxInput
from sparsec.doors.from_onnx.nodes import OnnxNode
from sparsec.doors.from_onnx.ops_convolution import TABLE as CONVOLUTION
from sparsec.doors.from_onnx.ops_elementwise import TABLE as ELEMENTWISE
from sparsec.doors.from_onnx.ops_gather import TABLE as GATHER
from sparsec.doors.from_onnx.ops_loss import TABLE as LOSS
from sparsec.doors.from_onnx.ops_matmul import TABLE as MATMUL
from sparsec.doors.from_onnx.ops_norm import TABLE as NORM
from sparsec.doors.from_onnx.ops_qlinear import TABLE as QLINEAR
from sparsec.doors.from_onnx.ops_quantize import TABLE as QUANTIZE
from sparsec.doors.from_onnx.ops_recurrent import TABLE as RECURRENT
from sparsec.doors.from_onnx.ops_resize import TABLE as RESIZE
from sparsec.doors.from_onnx.ops_shape import TABLE as SHAPE
from sparsec.doors.from_onnx.ops_shape import constant_value
from sparsec.doors.from_onnx.tensors import attribute_tensor
from sparsec.doors.from_torch.exporting import first_line
from sparsec.errors import SparsecError, UnsupportedModel

OPERATORS = {
    **CONVOLUTION,
    **ELEMENTWISE,
    **GATHER,
    **LOSS,
    **MATMUL,
    **NORM,
    **QLINEAR,
    **QUANTIZE,
    **RECURRENT,
    **RESIZE,
    **SHAPE,
}
#: In the meta of a graph module: the nodes that it was made of.
CALLS = "onnx_calls"
_SHOWN = 8


class Import:
    """The walk over the nodes of one network."""

    def __init__(self, network: Network, constants: Constants) -> None:
        self.network = network
        self.build = Builder(constants)
        self.values: dict[str, Value] = {}
        self.calls: list[NodeCall] = []

    def run(self, inputs: Sequence[tuple[OnnxInput, tuple[int, ...]]], values: Mapping[str, Tensor]) -> fx.GraphModule:
        """The graph that takes inputs of these shapes; ``values`` are those of the model's other inputs."""
        for entry, shape in inputs:
            self.values[entry.name] = self.build.placeholder(entry.name, shape, entry.dtype)
        for name, value in values.items():
            self.values[name] = value
            self.build.name(value, name)
        for node in self.network.nodes:
            self._translate(node)
        outputs = [self._value(name) for name in self.network.outputs]
        self.build.source = "output"
        results = tuple(self.build.place(value) if isinstance(value, Tensor) else value for value in outputs)
        self.build.graph.output(results).meta["val"] = None
        graph_module = fx.GraphModule(self.build.root, self.build.graph)
        fuse(graph_module)
        graph_module.meta[CALLS] = self.calls
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
        step = Step(self.build, node, inputs)
        if node.kind == "If":
            return self._branch(step)
        if node.kind not in OPERATORS:
            raise step.refusal("the operator is not supported")
        result = OPERATORS[node.kind](step)
        return result if isinstance(result, tuple) else (result,)

    def _branch(self, step: Step) -> tuple[Value, ...]:
        """The results of the branch that a known condition takes; its names are its own."""
        name = "then_branch" if step.number(0) else "else_branch"
        branch = step.node.subgraphs.get(name)
        if branch is None or branch.inputs or len(branch.outputs) != len(step.node.outputs):
            raise step.refusal(f"the {name} is missing or does not fit")
        for inner, proto in branch.stored.items():
            self.values[inner] = held(self.build.budget, attribute_tensor(proto, self.network.folder, inner), step.node.place)
        for node in branch.nodes:
            self._translate(node)
        results = tuple(self._value(inner) for inner in branch.outputs)
        for inner in (*branch.stored, *(inner for node in branch.nodes for inner in node.outputs)):
            self.values.pop(inner, None)
        return results


def check_operators(network: Network) -> None:
    """All operators that are not known, with their nodes, in one error."""
    unknown: dict[str, list[str]] = {}
    for node in network.nodes:
        if node.kind not in OPERATORS and node.kind not in ("Constant", "If"):
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
