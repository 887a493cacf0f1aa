"""Dynamo's graphs: which of their inputs are weights, and a copy in which the weights are constants."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import traceback

from sparsec.doors.from_torch.dense_weights import plain
from sparsec.doors.from_torch.lower import source_of

_ARITHMETIC = ("add", "sub", "mul", "div", "truediv", "neg")


class Replay(nn.Module):
    """Runs a graph node by node, so that what is recorded of a node reaches the nodes traced from it."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__()
        self.graph_module = graph_module

    def forward(self, *args: Any) -> Any:
        """The graph's outputs."""
        with traceback.preserve_node_meta():
            return _Replaying(self.graph_module).run(*args)


class _Replaying(fx.Interpreter):
    """Python floats that Dynamo made tensors of stay tensors: float64 among themselves, of torch's default dtype where they meet others."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.numbers = numbers_in(graph_module.graph)

    def run_node(self, n: fx.Node) -> Any:
        """As the base class, without reading a number out of its tensor."""
        return self.env[n.args[0]] if n in self.numbers and n.target == "item" else super().run_node(n)  # type: ignore[index]

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple:
        """As the base class, with numbers rounded for an operation on tensors."""
        if n in self.numbers or self.numbers.isdisjoint(n.all_input_nodes):
            return super().fetch_args_kwargs_from_env(n)

        def value(node: fx.Node) -> Any:
            return self.env[node].to(torch.get_default_dtype()) if node in self.numbers else self.env[node]

        return fx.node.map_arg(n.args, value), fx.node.map_arg(n.kwargs, value)


def numbers_in(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that are Python floats read out of an input, or arithmetic on nothing but such."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "item":
            value = node.args[0].meta.get("example_value")
            if node.args[0].op == "placeholder" and isinstance(value, Tensor) and value.dtype == torch.float64:
                found.add(node)
        elif node.op == "call_function" and node.all_input_nodes and found.issuperset(node.all_input_nodes) and _is_arithmetic(node):
            found.add(node)
    return found


def number_positions(graph_module: fx.GraphModule, args: Sequence[Any]) -> frozenset[int]:
    """Positions of the inputs that are Python floats, where each use is arithmetic, which a tensor without axes serves as well."""
    places = graph_module.graph.find_nodes(op="placeholder")
    doubles = [i for i, value in enumerate(args) if isinstance(value, Tensor) and not value.dim() and value.dtype == torch.float64]
    items = {i: [user for user in places[i].users if user.target == "item"] for i in doubles}
    numbers = numbers_in(graph_module.graph)
    tensors = all(_is_arithmetic(user) for node in numbers for user in node.users)
    return frozenset(i for i in doubles if tensors and items[i] and len(items[i]) == len(places[i].users))


def _is_arithmetic(node: fx.Node) -> bool:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _ARITHMETIC and not node.kwargs


def weight_positions(graph_module: fx.GraphModule, args: Sequence[Any]) -> list[int]:
    """Positions of the inputs that belong to a module: parameters, buffers and tensors kept as attributes."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    return [
        position
        for position, (node, value) in enumerate(zip(placeholders, args, strict=False))
        if isinstance(value, Tensor) and (isinstance(value, nn.Parameter) or _is_static(node))
    ]


def returns_numbers(graph_module: fx.GraphModule) -> bool:
    """Whether there are sizes or other numbers among the results of one of Dynamo's graphs."""
    (end,) = graph_module.graph.find_nodes(op="output")
    values = [each.meta.get("example_value") if isinstance(each, fx.Node) else each for each in end.args[0]]
    return not all(isinstance(value, Tensor) for value in values)


def copied(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same module with a graph of its own, which has no weak references to arguments: torch.utils.swap_tensors forbids them."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    for node in graph.find_nodes(op="placeholder"):
        node.meta.pop("grapharg", None)
    return fx.GraphModule(graph_module, graph)


@dataclass(frozen=True, eq=False)
class Baked:
    """A graph with constant weights; `names` gives the attribute of each weight by position among the old inputs."""

    graph_module: fx.GraphModule
    names: dict[int, str]
    inputs: tuple[Tensor, ...]


def bake(graph_module: fx.GraphModule, args: Sequence[Any], weights: Sequence[int]) -> Baked:
    """A copy of the graph with the weights as plain constants and numbers as literals, and the inputs that remain."""
    graph, root, copies = fx.Graph(), nn.Module(), {}
    root.__dict__["_modules"].update(graph_module._modules)
    names, remaining, constant = {}, [], set(weights)
    for position, node in enumerate(graph_module.graph.find_nodes(op="placeholder")):
        value = args[position]
        if position in constant:
            names[position] = _keep(root, _attribute_name(node), value)
            copies[node] = graph.get_attr(names[position])
        elif isinstance(value, Tensor):
            remaining.append(value)
        else:
            copies[node] = value
    for name, tensor in (*graph_module.named_parameters(), *graph_module.named_buffers()):
        if "." not in name:
            root.register_buffer(name, plain(tensor))
    graph.output(graph.graph_copy(graph_module.graph, copies))
    _record_sources(copies)
    return Baked(fx.GraphModule(root, graph), names, tuple(remaining))


def _keep(root: nn.Module, name: str, value: Tensor) -> str:
    while hasattr(root, name):
        name += "_"
    root.register_buffer(name, plain(value))
    return name


def _record_sources(copies: dict[fx.Node, Any]) -> None:
    for node, copy in copies.items():
        if node.op != "placeholder" and isinstance(copy, fx.Node):
            custom = dict(copy.meta.get("custom", {}))
            copy.meta["custom"] = {**custom, "sparsec": {"source": source_of(node)}}


def _is_static(node: fx.Node) -> bool:
    return bool((node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type"))


def _attribute_name(node: fx.Node) -> str:
    """L_self_modules_conv_parameters_weight_ → conv_weight."""
    path = re.sub(r"^L_\w*?_(?=modules_|parameters_|buffers_)", "", str(node.target))
    name = re.sub(r"(?:modules|parameters|buffers)_", "", path).strip("_")
    return name if name.isidentifier() else f"weight_{re.sub(r'[^0-9a-zA-Z]', '_', name)}"
