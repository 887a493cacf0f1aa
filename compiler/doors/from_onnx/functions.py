"""Local functions of an ONNX model, put in the place of their calls.

y = f(x)      f(a): t = Relu(a); return Neg(t)      →      f_0/t = Relu(x); y = Neg(f_0/t)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from sparsec.doors.from_onnx.nodes import STANDARD, OnnxNode, Reference, Subgraph, check_opset, opset_versions, read_attribute, read_node
from sparsec.errors import UnsupportedModel

LARGEST = 50_000
DEEPEST = 64


def inline(nodes: Sequence[OnnxNode], functions: Sequence[Any]) -> list[OnnxNode]:
    """The nodes without calls of local functions. UnsupportedModel for functions that call themselves or grow without bound."""
    return [*_Inlining({_key(function): function for function in functions}).expand(nodes, 0)]


class _Inlining:
    def __init__(self, functions: Mapping[tuple[str, str], Any]) -> None:
        self.functions = functions
        self.calls, self.nodes = count(), count(1)

    def expand(self, nodes: Iterable[OnnxNode], depth: int) -> Iterator[OnnxNode]:
        for node in nodes:
            function = self.functions.get((node.domain, node.op))
            if function is None:
                if next(self.nodes) > LARGEST:
                    raise UnsupportedModel(f"The model has more than {LARGEST} nodes after inlining its functions.")
                yield self._with_subgraphs(node, depth)
            elif depth == DEEPEST:
                raise UnsupportedModel("Local functions call each other without end.", where=node.place)
            else:
                yield from self.expand(self._body(node, function), depth + 1)

    def _with_subgraphs(self, node: OnnxNode, depth: int) -> OnnxNode:
        inner = {name: replace(graph, nodes=tuple(self.expand(graph.nodes, depth))) for name, graph in node.subgraphs.items()}
        return replace(node, attributes={**node.attributes, **inner}) if inner else node

    def _body(self, call: OnnxNode, function: Any) -> Iterator[OnnxNode]:
        versions = opset_versions(function.opset_import)
        if "" in versions:
            check_opset(versions[""])
        number = next(self.calls)
        if number == LARGEST:
            raise UnsupportedModel(f"The model calls local functions more than {LARGEST} times.", where=call.place)
        prefix = f"{call.place}_{number}/"
        produced = {name for proto in function.node for name in proto.output}
        names, copies = self._names(call, function, produced)
        given = {proto.name: read_attribute(proto, versions) for proto in function.attribute_proto} | dict(call.attributes)
        for proto in function.node:
            yield _renamed(read_node(proto, versions), names, prefix, given)
        for source, target in copies:
            yield OnnxNode("Identity", "", versions.get("", call.opset), call.name, (source,), (target,), {})

    def _names(self, call: OnnxNode, function: Any, produced: set[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
        """Names inside → names outside; and pairs of an input that is returned as it is with its name outside."""
        if len(call.inputs) > len(function.input) or len(call.outputs) > len(function.output):
            raise UnsupportedModel("A call does not fit its local function.", where=call.place)
        missing = [""] * (len(function.input) - len(call.inputs))
        names = {"": "", **dict(zip(function.input, [*call.inputs, *missing], strict=True))}
        copies = []
        for inside, outside in zip(function.output, call.outputs, strict=False):
            if outside and inside in produced:
                names[inside] = outside
            elif outside:
                copies.append((names.get(inside, inside), outside))
        return names, copies


def _renamed(node: OnnxNode, names: Mapping[str, str], prefix: str, given: Mapping[str, Any]) -> OnnxNode:
    def outside(name: str) -> str:
        return names.get(name, prefix + name)

    def inside(graph: Subgraph) -> Subgraph:
        nodes = tuple(_renamed(each, names, prefix, given) for each in graph.nodes)
        stored = {outside(name): proto for name, proto in graph.stored.items()}
        return Subgraph(nodes, stored, tuple(map(outside, graph.inputs)), tuple(map(outside, graph.outputs)))

    resolved = {key: given.get(value.name) if isinstance(value, Reference) else value for key, value in node.attributes.items()}
    resolved |= {key: inside(graph) for key, graph in node.subgraphs.items()}
    attributes = {key: value for key, value in resolved.items() if value is not None}
    inputs, outputs = tuple(map(outside, node.inputs)), tuple(map(outside, node.outputs))
    return replace(node, name=prefix + node.name if node.name else "", inputs=inputs, outputs=outputs, attributes=attributes)


def _key(function: Any) -> tuple[str, str]:
    domain = "" if function.domain in STANDARD else function.domain
    return domain, function.name + (f":{function.overload}" if function.overload else "")
