"""Nodes of ONNX models as plain data: operators with the version of their domain, attributes as numbers, texts and lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sparsec.errors import UnsupportedModel

#: Versions of the standard operators that are read; files from OLDEST on are brought to the first of them by onnx itself.
OPSETS, OLDEST = range(13, 29), 6
STANDARD = ("", "ai.onnx")


class Unread:
    """The value of an attribute that holds several graphs or types, which no operator here reads."""


@dataclass(frozen=True, eq=False)
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

    @property
    def subgraphs(self) -> dict[str, "Subgraph"]:
        """Attributes that are graphs."""
        return {name: value for name, value in self.attributes.items() if isinstance(value, Subgraph)}

    @property
    def reads(self) -> tuple[str, ...]:
        """Its inputs, and what its subgraphs read of the graph that it stands in."""
        return (*self.inputs, *(name for subgraph in self.subgraphs.values() for name in subgraph.reads))


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A graph among a node's attributes, such as a branch of If: `stored` are its own constants, `inputs` what the node gives it."""

    nodes: tuple[OnnxNode, ...]
    stored: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names that it takes from the graphs around it."""
        made = {*self.inputs, *self.stored, *(name for node in self.nodes for name in node.outputs)}
        read = {*self.outputs, *(name for node in self.nodes for name in node.reads)}
        return frozenset(read - made - {""})


def read_node(proto: Any, versions: Mapping[str, int]) -> OnnxNode:
    """A NodeProto whose domain has its version among `versions` (0 where it has none)."""
    domain = "" if proto.domain in STANDARD else proto.domain
    overload = f":{proto.overload}" if proto.overload else ""
    attributes = {attribute.name: read_attribute(attribute, versions) for attribute in proto.attribute}
    version = versions.get(domain, 0)
    return OnnxNode(proto.op_type + overload, domain, version, proto.name, tuple(proto.input), tuple(proto.output), attributes)


@dataclass(frozen=True)
class Reference:
    """In a function: the attribute of this name of whoever calls it."""

    name: str


def initializers(graph: Any) -> dict[str, Any]:
    """The constants of a GraphProto by name, dense ones and sparse ones."""
    dense = [(proto.name, proto) for proto in graph.initializer]
    sparse = [(proto.values.name, proto) for proto in graph.sparse_initializer]
    stored = dict(dense + sparse)
    if len(stored) != len(dense) + len(sparse) or "" in stored:
        raise UnsupportedModel("Two initialisers have one name, or one has none.")
    return stored


def _subgraph(graph: Any, versions: Mapping[str, int]) -> Subgraph:
    stored = initializers(graph)
    inputs = tuple(value.name for value in graph.input if value.name not in stored)
    return Subgraph(tuple(read_node(proto, versions) for proto in graph.node), stored, inputs, tuple(value.name for value in graph.output))


def read_attribute(proto: Any, versions: Mapping[str, int]) -> Any:
    """The value of an AttributeProto: number, text, list, graph, or a tensor's proto (see attribute_tensor)."""
    if proto.ref_attr_name:
        return Reference(proto.ref_attr_name)
    readers: dict[int, Any] = {
        1: lambda: float(proto.f),
        2: lambda: int(proto.i),
        3: lambda: proto.s.decode(),
        4: lambda: proto.t,
        5: lambda: _subgraph(proto.g, versions),
        6: lambda: [float(value) for value in proto.floats],
        7: lambda: [int(value) for value in proto.ints],
        8: lambda: [value.decode() for value in proto.strings],
        11: lambda: proto.sparse_tensor,
    }
    return readers.get(proto.type, Unread)()


def opset_versions(imports: Sequence[Any]) -> dict[str, int]:
    """Versions by domain, the standard domain under ""."""
    return {"" if entry.domain in STANDARD else entry.domain: int(entry.version) for entry in imports}


def check_opset(version: int) -> None:
    """UnsupportedModel for a version of the standard operators outside `OPSETS`."""
    if version not in OPSETS:
        convert = "onnx.version_converter.convert_version(model, 17) may help"
        raise UnsupportedModel(
            f"The model uses opset {version} of the ONNX operators.",
            why=f"Opsets {OLDEST} to {OPSETS[-1]} are known.",
            hint=f"Export with opset_version=17 or 18; {convert}.",
        )
