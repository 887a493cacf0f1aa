"""An ONNX model as plain, checked data: nodes in order, constants, inputs with their dimensions, outputs.

Takes protobuf messages and reads their fields; the package that defines them is needed by the caller only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsec.doors.from_onnx.functions import inline
from sparsec.doors.from_onnx.nodes import OnnxNode, check_opset, initializers, opset_versions, read_node
from sparsec.doors.from_onnx.tensors import attribute_tensor, dtype_of
from sparsec.errors import UnsupportedModel


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

    @property
    def lengths(self) -> set[int]:
        """Every length of every initialiser."""
        return {int(length) for proto in self.stored.values() for length in proto.dims}

    def bytes(self) -> int:
        """What the model's file and the files of its external data hold of constants, each file counted once."""
        places = [entry.value for proto in self.stored.values() for entry in getattr(proto, "external_data", ()) if entry.key == "location"]
        files = [self.folder / place for place in set(places) if self.folder is not None]
        held = sum(proto.ByteSize() for proto in self.stored.values())
        return held + sum(file.stat().st_size for file in files if "\0" not in str(file) and file.is_file())

    def constant(self, name: str) -> Tensor:
        """The initialiser of this name, dense."""
        return attribute_tensor(self.stored[name], self.folder, name)


def read_network(model: Any, folder: Path | None = None) -> Network:
    """Check a ModelProto and make it plain. UnsupportedModel names what is malformed or not known.

    folder: where external data lies. Local functions are inlined; what no output needs is dropped.
    """
    try:
        return _read(model, folder)
    except (UnicodeDecodeError, ValueError, TypeError, RuntimeError, OverflowError, RecursionError) as error:
        raise UnsupportedModel("The ONNX model is malformed.", why=str(error), hint="The file may be damaged: export it again.") from error


def _read(model: Any, folder: Path | None) -> Network:
    graph = model.graph
    versions = _versions(model.opset_import)
    stored = initializers(graph)
    nodes = inline([read_node(proto, versions) for proto in graph.node], model.functions)
    inputs = tuple(_input(value) for value in graph.input if value.name not in stored)
    outputs = tuple(value.name for value in graph.output)
    if not outputs:
        raise UnsupportedModel("The model has no outputs.", hint="The file may be truncated: export it again.")
    _check_order(nodes, [value.name for value in inputs], stored, outputs)
    return Network(inputs, outputs, _needed(nodes, outputs), stored, folder)


def _versions(imports: Sequence[Any]) -> dict[str, int]:
    versions = opset_versions(imports)
    if "" not in versions:
        raise UnsupportedModel("The model names no version of the ONNX operators.", hint="The file may be damaged: export it again.")
    check_opset(versions[""])
    return versions


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
    if len(set(inputs)) != len(inputs) or "" in inputs:
        raise UnsupportedModel("Two inputs have one name, or one has none.")
    known = _computed(nodes, {"", *inputs, *stored})
    if missing := [name for name in outputs if name not in known or not name]:
        raise UnsupportedModel(f"The output {missing[0]!r} is never computed.", hint="The file may be truncated: export it again.")


def _computed(nodes: Sequence[OnnxNode], known: set[str]) -> set[str]:
    """The names that are known after these nodes. Subgraphs read what is known before them, and make no name that is."""
    for node in nodes:
        if missing := [name for name in node.reads if name not in known]:
            raise UnsupportedModel(f"A node reads {missing[0]!r}, which nothing before it computes.", where=node.place)
        for subgraph in node.subgraphs.values():
            own = [*subgraph.inputs, *subgraph.stored]
            if len(set(own) - known) != len(own):
                raise UnsupportedModel("A subgraph has names twice.", where=node.place)
            _computed(subgraph.nodes, known | {*own})
        for name in filter(None, node.outputs):
            if name in known:
                raise UnsupportedModel(f"The value {name!r} is computed twice.", where=node.place)
            known.add(name)
    return known


def _needed(nodes: Sequence[OnnxNode], outputs: Sequence[str]) -> tuple[OnnxNode, ...]:
    def backwards() -> Iterator[OnnxNode]:
        read = set(outputs)
        for node in reversed(nodes):
            if not read.isdisjoint(filter(None, node.outputs)):
                read.update(node.reads)
                yield node

    return tuple(reversed(list(backwards())))
