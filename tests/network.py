"""Small networks under construction: CAPTURED graphs in float64, made node by node, with an input to run them on."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from sparsec.ir.editor import Editor

aten = torch.ops.aten


def integers(shape: tuple[int, ...], seed: int, low: int = -3, high: int = 3) -> Tensor:
    """Integer-valued doubles from a seed."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).double()


def with_zeros(tensor: Tensor, pattern: str, seed: int) -> Tensor:
    """Put zeros into a tensor of at least two dimensions, by the name of a pattern."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = tensor.shape[:2]
    keep = torch.ones_like(tensor, dtype=torch.bool)
    match pattern:
        case "unstructured":
            keep = torch.rand(tensor.shape, generator=generator) < 0.3
        case "dead rows":
            keep[torch.rand(rows, generator=generator) < 0.5] = False
        case "dead columns":
            keep[:, torch.rand(columns, generator=generator) < 0.5] = False
        case "zero":
            keep[:] = False
        case "last row":
            keep[:-1] = False
    return tensor * keep


@dataclass
class Network:
    """A CAPTURED graph under construction, with an input to run it on.

    exact: all its arithmetic is that of small dyadic numbers, so that graphs that mean the same agree bit for bit.
    """

    shape: tuple[int, ...]
    seed: int
    dtype: torch.dtype = torch.float64
    exact: bool = True
    edit: Editor = field(init=False)
    values: list[fx.Node] = field(init=False)
    input: Tensor = field(init=False)

    def __post_init__(self) -> None:
        graph = fx.Graph()
        node = graph.placeholder("x")
        graph.output((node,))
        self.edit = Editor(fx.GraphModule(torch.nn.Module(), graph))
        self.input = integers(self.shape, self.seed).to(self.dtype)
        node.meta["val"] = torch.empty(self.shape, dtype=self.dtype)
        self.values = [node]

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph as it stands."""
        return self.edit.graph_module

    @property
    def last(self) -> fx.Node:
        """The latest value."""
        return self.values[-1]

    def size(self, node: fx.Node | None = None) -> tuple[int, ...]:
        """The shape of a value, by default the latest."""
        return tuple((node or self.last).meta["val"].shape)

    @property
    def inputs(self) -> list[Tensor]:
        """What `run` gives the graph."""
        return [self.input.clone()]

    def __repr__(self) -> str:
        return f"Network of {list(self.shape)} and seed {self.seed}:\n{self.graph_module.graph}"

    def constant(self, tensor: Tensor, name: str = "c") -> fx.Node:
        """Add a constant."""
        return self.edit.add_constant(tensor, name, before=self._output)

    def add(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call, which becomes the latest value."""
        self.values.append(self.part(target, *args, **kwargs))
        return self.last

    def part(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call that is a part of something larger, and no value for others."""
        return self.edit.call(target, args, kwargs, before=self._output)

    def conv(self, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1) -> fx.Node:
        """Add a convolution of the latest value."""
        parameters = [self.constant(weight, "weight"), None if bias is None else self.constant(bias, "bias")]
        return self.add(aten.conv2d.default, self.last, *parameters, [stride] * 2, [padding] * 2, [1, 1], groups)

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> fx.Node:
        """Add a linear layer of the latest value."""
        parameters = [self.constant(weight, "weight"), None if bias is None else self.constant(bias, "bias")]
        return self.add(aten.linear.default, self.last, *parameters)

    def norm(self, seed: int, tail: tuple = (False, 0.1, 0.25, False)) -> fx.Node:
        """Add batch normalisation whose factors are dyadic: variance + 0.25 is 0.25, 1 or 4."""
        channels = (self.size()[1],)
        variance = 4.0 ** integers(channels, seed, -1, 1) - 0.25
        parameters = [integers(channels, seed + 1, -2, 2), integers(channels, seed + 2), integers(channels, seed + 3), variance]
        nodes = [self.constant(tensor, "norm") for tensor in parameters]
        return self.add(aten.batch_norm.default, self.last, *nodes, *tail)

    def returns(self, *nodes: fx.Node) -> "Network":
        """Make these values the outputs; the graph is then complete."""
        self._output.args = (tuple(nodes),)
        self.graph_module.recompile()
        return self

    def run(self, graph_module: fx.GraphModule | None = None) -> tuple[Tensor, ...]:
        """The outputs of this graph, or of one made from it, on the input."""
        with torch.no_grad():
            return (graph_module or self.graph_module)(*self.inputs)

    @property
    def _output(self) -> fx.Node:
        return next(iter(reversed(self.edit.graph.nodes)))
