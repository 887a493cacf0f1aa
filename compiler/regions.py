"""Regions of a grouped graph: which nodes, which values cross the edge, how each value is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from sparsec import ops
from sparsec.describe import operands, spec_of
from sparsec.forms import notes
from sparsec.graph import Miss
from sparsec.layouts import Geometry, Storage
from sparsec.spec import KernelSpec


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes of one region in order, with their specs, and the storage of every value that lives inside.

    ``inputs`` (in the graph's order) and ``outputs`` (those that the graph returns first, in that order) are the values that cross the
    edge, as nodes of the graph. ``tiles`` gives pixels per tile by resolution
    (height, width), ``tile`` serves the others.
    """

    number: int
    specs: dict[fx.Node, KernelSpec]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    pads: dict[tuple[int, int], int]
    tile: int
    tiles: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def geometry(self, node: fx.Node) -> Geometry:
        """The flat index space of a map's resolution in this region."""
        height, width = (int(s) for s in node.meta["val"].shape[2:])
        return self.space(height, width)

    def space(self, height: int, width: int) -> Geometry:
        """The flat index space of a resolution in this region."""
        return Geometry(height, width, self.pads.get((height, width), 0), self.tiles.get((height, width), self.tile))

    def storage(self, node: fx.Node) -> Storage:
        """How the value of ``node`` is stored inside the region."""
        shape = tuple(int(s) for s in node.meta["val"].shape[1:])
        layout = notes(node)["layout"]
        if layout == "vector" or len(shape) == 1 or shape[1:] == (1, 1):
            return Storage("vector", shape[0])
        return Storage("packed" if layout == "packed" else "flat", shape[0], self.geometry(node))


def extract(graph_module: fx.GraphModule, tile: int) -> list[Region]:
    """The regions that GroupRegions noted, in order. ``tile``: pixels per tile of the backend's layouts."""
    members: dict[int, list[fx.Node]] = defaultdict(list)
    for node in graph_module.graph.nodes:
        if (number := notes(node).get("region")) is not None:
            members[number].append(node)
    return [_region(number, nodes, tile) for number, nodes in sorted(members.items())]


def _region(number: int, nodes: list[fx.Node], tile: int) -> Region:
    inside = set(nodes)
    order = {n: i for i, n in enumerate(nodes[0].graph.nodes)}
    inputs = sorted({a for n in nodes for a in operands(n) if a not in inside}, key=order.__getitem__)
    outputs = [n for n in nodes if any(u not in inside for u in n.users)]
    returned = nodes[0].graph.find_nodes(op="output")[0].all_input_nodes
    outputs.sort(key=lambda n: returned.index(n) if n in returned else len(returned))
    specs = {n: _checked(n) for n in nodes}
    return Region(number, specs, tuple(inputs), tuple(outputs), _pads(specs), tile)


def _checked(node: fx.Node) -> KernelSpec:
    found = spec_of(node)
    if isinstance(found, Miss):
        raise ValueError(f"{node.name} was grouped into a region without a kernel: {found.reason}")
    return found


def _pads(specs: dict[fx.Node, KernelSpec]) -> dict[tuple[int, int], int]:
    """Zero columns that the stencils of a region need at each resolution they read, or read through parity planes."""
    pads: dict[tuple[int, int], int] = defaultdict(int)
    for node, spec in specs.items():
        reach = _reach(node, spec)
        if reach:
            for shape in (spec.inputs[0], spec.output):
                if len(shape) == 3:
                    pads[shape[1], shape[2]] = max(pads[shape[1], shape[2]], reach)
    return dict(pads)


def _reach(node: fx.Node, spec: KernelSpec) -> int:
    if node.target not in (ops.conv2d, ops.depthwise_pointwise) or spec.weights[0] is None or len(spec.output) != 3:
        return 0
    padding, dilation = spec["padding"], dict(spec.attributes).get("dilation", (1, 1))
    sides = [max(p, d * (k - 1) - p) for p, d, k in zip(padding, dilation, spec.weights[0][2:], strict=True)]
    return max(sides)
