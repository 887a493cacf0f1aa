"""Hypothesis strategies of all tests: tensors with zeros, facts, and small networks of integer-valued doubles.

All arithmetic of the networks is exact (sums and products of small dyadic numbers), so two graphs that mean the same
agree bit for bit, whatever the order of summation.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx

from sparsec.facts import Fact
from sparsec.graph import Editor

aten = torch.ops.aten
PATTERNS = ("dense", "unstructured", "dead rows", "dead columns", "zero", "last row")


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


@st.composite
def sparse_matrices(draw: st.DrawFn, largest: int = 40) -> Tensor:
    """Weights [O, I] or [O, I, kh, kw] with each pattern of zeros."""
    shape = [draw(st.integers(1, largest)), draw(st.integers(1, largest))]
    if draw(st.booleans()):
        shape += [draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 3]))]
    seed = draw(st.integers(0, 2**20))
    return with_zeros(integers(tuple(shape), seed, 1, 3), draw(st.sampled_from(PATTERNS)), seed + 1)


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    """Facts measured of tensors, weakened at random, so that pairs are often comparable."""
    fact = Fact.of(draw(sparse_matrices()))
    plain = fact.to_json()
    kept = {key: value for key, value in plain.items() if key == "density" or draw(st.booleans())}
    return Fact.from_json(kept)


@dataclass
class Network:
    """A CAPTURED graph under construction, with inputs to run it on."""

    shape: tuple[int, ...]
    seed: int
    dtype: torch.dtype = torch.float64
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

    def constant(self, tensor: Tensor, name: str = "c") -> fx.Node:
        """Add a constant."""
        return self.edit.add_constant(tensor, name, before=self._output)

    def add(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call, which becomes the latest value."""
        self.values.append(self.edit.call(target, args, kwargs, before=self._output))
        return self.last

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
            return (graph_module or self.graph_module)(self.input.clone())

    @property
    def _output(self) -> fx.Node:
        return next(iter(reversed(self.edit.graph.nodes)))


def conv_step(draw: st.DrawFn, net: Network) -> None:
    """A convolution: dense, grouped or depthwise, any stride, padding, bias and pattern of zeros."""
    _, inputs, height, width = net.size()
    seed = draw(st.integers(0, 2**20))
    kernel = draw(st.sampled_from([k for k in (1, 3, 5) if k <= min(height, width) + 2]))
    groups = draw(st.sampled_from(sorted({1, inputs, math.gcd(inputs, 2)})))
    outputs = inputs if groups == inputs > 1 else groups * draw(st.integers(1, 5))
    weight = integers((outputs, inputs // groups, kernel, kernel), seed, -2, 2)
    weight = with_zeros(weight, draw(st.sampled_from(PATTERNS)), seed + 1)
    bias = integers((outputs,), seed + 2) if draw(st.booleans()) else None
    padding = draw(st.sampled_from([p for p in (0, kernel // 2) if kernel <= min(height, width) + 2 * p]))
    net.conv(weight, bias, draw(st.sampled_from([1, 1, 2])), padding, groups)


def activation_step(draw: st.DrawFn, net: Network) -> None:
    """An activation without rounding."""
    kinds = [
        (aten.relu.default, ()),
        (aten.relu6.default, ()),
        (aten.hardtanh.default, (-1.0, 2.0)),
        (aten.clamp.default, (1.0,)),
        (aten.clamp.default, (None, 2.0)),
    ]
    target, limits = draw(st.sampled_from(kinds))
    net.add(target, net.last, *limits)


def norm_step(draw: st.DrawFn, net: Network) -> None:
    """Batch normalisation."""
    net.norm(draw(st.integers(0, 2**20)))


def sum_step(draw: st.DrawFn, net: Network) -> None:
    """The sum with an earlier value of the same shape."""
    same = [value for value in net.values if net.size(value) == net.size()]
    net.add(aten.add.Tensor, net.last, draw(st.sampled_from(same)))


def product_step(draw: st.DrawFn, net: Network) -> None:
    """The product with an earlier value that has the same channels, or one pixel of each."""
    shape = net.size()
    fitting = [v for v in net.values if net.size(v) in (shape, (*shape[:2], 1, 1))]
    net.add(aten.mul.Tensor, net.last, draw(st.sampled_from(fitting)))


def concatenation_step(draw: st.DrawFn, net: Network) -> None:
    """Concatenation along channels with an earlier value."""
    fitting = [v for v in net.values if len(net.size(v)) == 4 and net.size(v)[2:] == net.size()[2:]]
    net.add(aten.cat.default, [net.last, draw(st.sampled_from(fitting))], 1)


def pool_step(draw: st.DrawFn, net: Network) -> None:
    """Max pooling; dropout that is off."""
    if min(net.size()[2:]) >= 2 and draw(st.booleans()):
        net.add(aten.max_pool2d.default, net.last, [2, 2])
    else:
        net.add(aten.dropout.default, net.last, 0.5, False)


STEPS = (conv_step, conv_step, conv_step, activation_step, norm_step, sum_step, product_step, concatenation_step, pool_step)


def _is_power_of_two(value: int) -> bool:
    return value & (value - 1) == 0


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Convolutional networks: steps in any order, then perhaps a pool, flattening and linear layers."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    net = Network(shape, draw(st.integers(0, 2**20)))
    for _ in range(draw(st.integers(1, 6))):
        draw(st.sampled_from(STEPS))(draw, net)
    if draw(st.booleans()):
        _head(draw, net)
    extra = [draw(st.sampled_from(net.values))] if draw(st.booleans()) else []
    return net.returns(net.last, *extra)


def _head(draw: st.DrawFn, net: Network) -> None:
    _, _, height, width = net.size()
    if _is_power_of_two(height * width):
        pools = [(aten.adaptive_avg_pool2d.default, ([1, 1],)), (aten.mean.dim, ([2, 3], True)), (aten.mean.dim, ([-1, -2],))]
        target, args = draw(st.sampled_from(pools))
        net.add(target, net.last, *args)
    if len(net.size()) == 4:
        batch, *rest = net.size()
        if draw(st.booleans()):
            net.add(aten.flatten.using_ints, net.last, 1)
        else:
            net.add(aten.view.default, net.last, [batch, math.prod(rest)])
    for _ in range(draw(st.integers(1, 2))):
        seed = draw(st.integers(0, 2**20))
        outputs = draw(st.integers(1, 6))
        weight = with_zeros(integers((outputs, net.size()[1]), seed, -2, 2), draw(st.sampled_from(PATTERNS)), seed + 1)
        net.linear(weight, integers((outputs,), seed + 2) if draw(st.booleans()) else None)
        if draw(st.booleans()):
            norm_step(draw, net)
        if draw(st.booleans()):
            activation_step(draw, net)
