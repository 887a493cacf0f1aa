"""Channel spaces: sets of values of one graph whose channels correspond, so that a channel goes from all or from none.

An elementwise sum, an activation, a pool or a depthwise convolution keeps its values in one space; a dense convolution
or linear layer reads one space and makes another. A flattened value holds `times` indices for each channel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from sparsec.facts.forward import AVERAGES, PRODUCTS, RESHAPES, SUMS, averages_apart, channel_count, flattening, keeps_channels, pools_apart
from sparsec.ir.arguments import Layer, activation_of, is_identity, layer_of
from sparsec.ir.forms import is_value

aten = torch.ops.aten


@dataclass(eq=False)
class Space:
    """The values of one space with their `times`, who makes and reads them, and why no channel may go, if so."""

    channels: int
    times: dict[fx.Node, int] = field(default_factory=dict)
    producers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    depthwise: list[Layer] = field(default_factory=list)
    reshapes: list[fx.Node] = field(default_factory=list)
    blocked: str = ""

    def indices(self, node: fx.Node, channel: int) -> range:
        """The indices of dimension 1 of a value that belong to a channel of the space."""
        times = self.times[node]
        return range(channel * times, (channel + 1) * times)


class Spaces:
    """The spaces of a graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self._of: dict[fx.Node, Space] = {}
        for node in graph.nodes:
            self._visit(node)

    def __iter__(self) -> Iterator[Space]:
        return iter(dict.fromkeys(self._of.values()))

    def __getitem__(self, node: fx.Node) -> Space:
        return self._of[node]

    def _visit(self, node: fx.Node) -> None:
        layer = layer_of(node) if node.op == "call_function" else None
        if layer is not None and layer.is_constant and layer.makes_channels:
            self._visit_layer(layer)
        elif node.op == "call_function" and is_value(node) and (same := _same_channels(node)):
            self._join(node, same)
        elif node.op != "get_attr":
            self._block(node)

    def _visit_layer(self, layer: Layer) -> None:
        node = layer.node
        beside = [] if layer.residual is None else [layer.residual]
        if layer.is_depthwise:
            self._join(node, [layer.x, *beside])
            self._space(node).depthwise.append(layer)
        elif layer.groups > 1:
            self._block(node)
        else:
            space = Space(channel_count(node), {node: 1}, producers=[layer])
            self._of[node] = space
            self._join(node, [node, *beside])
            self._space(layer.x).readers.append(layer)

    def _space(self, node: fx.Node) -> Space:
        """The space of a value; a constant or other value not seen before gets a blocked one."""
        if node not in self._of:
            self._of[node] = Space(channel_count(node), {node: 1}, blocked=_why_whole(node))
        return self._of[node]

    def _join(self, node: fx.Node, sources: list[fx.Node]) -> None:
        """Put a node into the space of its sources, which become one."""
        space = self._space(sources[0])
        times = space.times[sources[0]]
        for source in sources[1:]:
            other = self._space(source)
            if other is not space:
                agree = other.times[source] == times and other.channels == space.channels
                self._merge(space, other, "" if agree else f"{node.name} mixes differently flattened values")
        if node.target in RESHAPES:
            times *= flattening(node)
            space.reshapes.append(node)
        space.times[node] = times
        self._of[node] = space

    def _merge(self, space: Space, other: Space, conflict: str) -> None:
        space.times.update(other.times)
        space.producers += other.producers
        space.readers += other.readers
        space.depthwise += other.depthwise
        space.reshapes += other.reshapes
        space.blocked = space.blocked or other.blocked or conflict
        self._of.update(dict.fromkeys(other.times, space))

    def _block(self, node: fx.Node) -> None:
        """All that an operator without a rule reads or makes keeps its channels."""
        for value in (node, *node.all_input_nodes):
            if value.op != "get_attr" and value.op != "output":
                space = self._space(value)
                reader = "is an output" if node.op == "output" else f"is read by {node.name}"
                space.blocked = space.blocked or (_why_whole(node) if value is node else f"{value.name} {reader}")


def _why_whole(node: fx.Node) -> str:
    """Why the channels of a value without maker among the layers are fixed."""
    kinds = {"placeholder": "an input", "get_attr": "a constant"}
    return f"{node.name} is {kinds.get(node.op, 'made by an operator without a rule')}"


def _same_channels(node: fx.Node) -> list[fx.Node]:
    """The inputs whose channels are those of the value, one to one; none where there is no such rule."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not is_value(source) or node.meta["val"].dim() < 2:
        return []
    if node.target in RESHAPES:
        return [source] if flattening(node) else []
    if node.target in SUMS | PRODUCTS:
        operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node)]
        return operands if len(operands) == 2 and all(keeps_channels(o, node) for o in operands) else []
    apart = node.target in AVERAGES and averages_apart(node) and keeps_channels(source, node)
    plain = is_identity(node) and node.target is not aten.expand.default
    is_kept = apart or plain or pools_apart(node) or activation_of(node) is not None
    return [source] if is_kept and keeps_channels(source, node) else []
