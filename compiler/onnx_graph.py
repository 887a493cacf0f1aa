"""An ONNX model as plain, checked data: nodes in order, constants, inputs with their dimensions, outputs.

Takes protobuf messages and reads their fields; the package that defines them is needed by the caller only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsec.errors import UnsupportedModel
from sparsec.onnx_tensors import dense_tensor, dtype_of, sparse_tensor

OPSETS = range(13, 29)
STANDARD = ("", "ai.onnx")


class Subgraph:
    """The value of an attribute that holds graphs or types, which no operator here reads."""


@dataclass(frozen=True)
class OnnxNode:
    """One operator: `opset` is the version of its own domain; an empty name among inputs or outputs is one left out."""

    op: str
    domain: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The operator with its domain, if that is not the standard one."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    @property
    def place(self) -> str:
        """The node's name, or its first output where it has none."""
        return self.name or next((f"{self.op} of {name}" for name in self.outputs if name), self.op)


@dataclass(frozen=True)
class OnnxInput:
    """An input that the caller gives; a dimension is a size, a symbol, or empty where nothing is said. None: unknown rank."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Network:
    """A model after inlining, restricted to what its outputs need. Constants are read when asked for."""

    inputs: tuple[OnnxInput, ...]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    stored: Mapping[str, Any]
    folder: Path | None

    def constant(self, name: str) -> Tensor:
        """The initialiser of this name, dense."""
        return attribute_tensor(self.stored[name], self.folder, name)


def attribute_tensor(proto: Any, folder: Path | None, where: str) -> Tensor:
    """A TensorProto or SparseTensorProto as a dense tensor."""
    return sparse_tensor(proto, folder, where) if hasattr(proto, "indices") else dense_tensor(proto, folder, where)


def read_network(model: Any, folder: Path | None = None) -> Network:
    """Check a ModelProto and make it plain. UnsupportedModel names what is malformed or not known.

    folder: where external data lies. Local functions are inlined; what no output needs is dropped.
    """
    try:
        return _read(model, folder)
    except (UnicodeDecodeError, ValueError, TypeError, RuntimeError, OverflowError, RecursionError) as error:
        raise UnsupportedModel("The ONNX model is malformed.", why=str(error), hint="The file may be damaged: export it again.") from error


def _read(model: Any, folder: Path | None) -> Network:
    from sparsec.onnx_functions import inline

    graph = model.graph
    versions = _versions(model.opset_import)
    stored = _initializers(graph)
    nodes = inline([read_node(proto, versions) for proto in graph.node], model.functions)
    inputs = tuple(_input(value) for value in graph.input if value.name not in stored)
    outputs = tuple(value.name for value in graph.output)
    if not outputs:
        raise UnsupportedModel("The model has no outputs.", hint="The file may be truncated: export it again.")
    _check_order(nodes, [value.name for value in inputs], stored, outputs)
    return Network(inputs, outputs, _needed(nodes, outputs), stored, folder)


def read_node(proto: Any, versions: Mapping[str, int]) -> OnnxNode:
    """A NodeProto whose domain has its version among `versions` (0 where it has none)."""
    domain = "" if proto.domain in STANDARD else proto.domain
    overload = f":{proto.overload}" if proto.overload else ""
    attributes = {attribute.name: read_attribute(attribute) for attribute in proto.attribute}
    version = versions.get(domain, 0)
    return OnnxNode(proto.op_type + overload, domain, version, proto.name, tuple(proto.input), tuple(proto.output), attributes)


@dataclass(frozen=True)
class Reference:
    """In a function: the attribute of this name of whoever calls it."""

    name: str


def read_attribute(proto: Any) -> Any:
    """The value of an AttributeProto: number, text, list, or a tensor's proto (see attribute_tensor)."""
    if proto.ref_attr_name:
        return Reference(proto.ref_attr_name)
    readers: dict[int, Any] = {
        1: lambda: float(proto.f),
        2: lambda: int(proto.i),
        3: lambda: proto.s.decode(),
        4: lambda: proto.t,
        6: lambda: [float(value) for value in proto.floats],
        7: lambda: [int(value) for value in proto.ints],
        8: lambda: [value.decode() for value in proto.strings],
        11: lambda: proto.sparse_tensor,
    }
    return readers.get(proto.type, Subgraph)()


def _versions(imports: Sequence[Any]) -> dict[str, int]:
    versions = opset_versions(imports)
    if "" not in versions:
        raise UnsupportedModel("The model names no version of the ONNX operators.", hint="The file may be damaged: export it again.")
    check_opset(versions[""])
    return versions


def opset_versions(imports: Sequence[Any]) -> dict[str, int]:
    """Versions by domain, the standard domain under ""."""
    return {"" if entry.domain in STANDARD else entry.domain: int(entry.version) for entry in imports}


def check_opset(version: int) -> None:
    """UnsupportedModel for a version of the standard operators outside `OPSETS`."""
    if version not in OPSETS:
        convert = "onnx.version_converter.convert_version(model, 17) may help"
        raise UnsupportedModel(
            f"The model uses opset {version} of the ONNX operators.",
            why=f"Opsets {OPSETS[0]} to {OPSETS[-1]} are known.",
            hint=f"Export with opset_version=17 or 18; {convert}.",
        )


def _initializers(graph: Any) -> dict[str, Any]:
    dense = [(proto.name, proto) for proto in graph.initializer]
    sparse = [(proto.values.name, proto) for proto in graph.sparse_initializer]
    stored = dict(dense + sparse)
    if len(stored) != len(dense) + len(sparse) or "" in stored:
        raise UnsupportedModel("Two initialisers have one name, or one has none.")
    return stored


def _input(value: Any) -> OnnxInput:
    if value.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedModel("An input is no tensor.", where=value.name)
    kind = value.type.tensor_type
    dims = tuple(_dimension(dim, value.name) for dim in kind.shape.dim) if kind.HasField("shape") else None
    return OnnxInput(value.name, dtype_of(kind.elem_type, f"input {value.name}"), dims)


def _dimension(dim: Any, where: str) -> int | str:
    if not dim.HasField("dim_value"):
        return dim.dim_param
    if dim.dim_value < 0:
        raise UnsupportedModel("An input has a negative dimension.", where=where, why=str(dim.dim_value))
    return int(dim.dim_value)


def _check_order(nodes: Sequence[OnnxNode], inputs: Sequence[str], stored: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """Every name is computed once, before it is read."""
    known = {"", *inputs, *stored}
    if len(set(inputs)) != len(inputs) or "" in inputs:
        raise UnsupportedModel("Two inputs have one name, or one has none.")
    for node in nodes:
        if missing := [name for name in node.inputs if name not in known]:
            raise UnsupportedModel(f"A node reads {missing[0]!r}, which nothing before it computes.", where=node.place)
        for name in filter(None, node.outputs):
            if name in known:
                raise UnsupportedModel(f"The value {name!r} is computed twice.", where=node.place)
            known.add(name)
    if missing := [name for name in outputs if name not in known or not name]:
        raise UnsupportedModel(f"The output {missing[0]!r} is never computed.", hint="The file may be truncated: export it again.")


def _needed(nodes: Sequence[OnnxNode], outputs: Sequence[str]) -> tuple[OnnxNode, ...]:
    def backwards() -> Iterator[OnnxNode]:
        read = set(outputs)
        for node in reversed(nodes):
            if not read.isdisjoint(filter(None, node.outputs)):
                read.update(node.inputs)
                yield node

    return tuple(reversed(list(backwards())))
