"""Regions of a grouped graph: which nodes, which values cross the edge, how each value is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from sparsec.describe import spec_of
from sparsec.forms import notes
from sparsec.graph import Miss
from sparsec.layouts import Geometry, Storage
from sparsec.operands import CHOOSING, makes_rows, operands, shape_of, sources
from sparsec.spec import KernelSpec


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes of one region in order, with their specs, and the storage of every value that lives inside.

    ``inputs`` (in the graph's order) and ``outputs`` (those that the graph returns first, in that order) are the values that cross the
    edge, as nodes of the graph. ``tiles`` gives pixels per tile by resolution
    (height, width), ``tile`` serves the others. ``follows``: values whose number of tokens is a run-time size plus so many, by its name.
    """

    number: int
    specs: dict[fx.Node, KernelSpec]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    pads: dict[tuple[int, int], int]
    tile: int
    tiles: Mapping[tuple[int, int], int] = field(default_factory=dict)
    follows: Mapping[fx.Node, Follows] = field(default_factory=dict)

    def geometry(self, node: fx.Node) -> Geometry:
        """The flat index space of a map's resolution, or of tokens, in this region."""
        shape = shape_of(node)
        if len(shape) == 3:
            return self.space(*shape[1:])
        return Geometry(1, shape[0], 0, self.tiles.get((1, shape[0]), self.tile), *self.follows.get(node, ("", 0)))

    def space(self, height: int, width: int) -> Geometry:
        """The flat index space of a resolution in this region."""
        return Geometry(height, width, self.pads.get((height, width), 0), self.tiles.get((height, width), self.tile))

    def storage(self, node: fx.Node) -> Storage:
        """How the value of ``node`` is stored inside the region."""
        shape, layout = shape_of(node), notes(node)["layout"]
        if len(shape) == 2:
            return Storage("packed", shape[1], self.geometry(node))
        if layout == "rows":
            return Storage("rows", 0, self.geometry(node), str(node.meta["val"].dtype).removeprefix("torch."))
        if layout == "vector" or len(shape) == 1 or shape[1:] == (1, 1):
            return Storage("vector", shape[0])
        return Storage("packed" if layout == "packed" else "flat", shape[0], self.geometry(node))


#: The name of a run-time size, and what is added to it.
Follows = tuple[str, int]


def extract(graph_module: fx.GraphModule, tile: int, follows: Mapping[str, Follows] | None = None) -> list[Region]:
    """The regions that GroupRegions noted, in order.

    ``tile``: pixels per tile of the backend's layouts. ``follows``: for placeholders by name, the run-time size that their tokens follow.
    """
    members: dict[int, list[fx.Node]] = defaultdict(list)
    for node in graph_module.graph.nodes:
        if (number := notes(node).get("region")) is not None:
            members[number].append(node)
    return [_region(number, nodes, tile, follows or {}) for number, nodes in sorted(members.items())]


def _region(number: int, nodes: list[fx.Node], tile: int, follows: Mapping[str, Follows]) -> Region:
    inside = set(nodes)
    order = {n: i for i, n in enumerate(nodes[0].graph.nodes)}
    inputs = sorted({a for n in nodes for a in operands(n) if a not in inside}, key=order.__getitem__)
    outputs = [n for n in nodes if any(u not in inside for u in n.users)]
    returned = nodes[0].graph.find_nodes(op="output")[0].all_input_nodes
    outputs.sort(key=lambda n: returned.index(n) if n in returned else len(returned))
    specs = {n: _checked(n) for n in nodes}
    known = {n: follows[n.name] for n in inputs if n.op == "placeholder" and n.name in follows}
    return Region(number, specs, tuple(inputs), tuple(outputs), _pads(specs), tile, follows=_followers(specs, known))


def _followers(specs: dict[fx.Node, KernelSpec], known: dict[fx.Node, Follows]) -> dict[fx.Node, Follows]:
    """All values whose tokens follow a run-time size: an operator on tokens keeps those of its first source, prepending adds some."""
    for node, spec in specs.items():
        first = sources(node)[0]
        keeps_tokens = (len(spec.output) == 2 or makes_rows(node)) and node.target not in CHOOSING and not _moves(spec)
        if first in known and keeps_tokens:
            symbol, plus = known[first]
            known[node] = symbol, plus + spec.output[0] - spec.inputs[0][0]
    return known


def _moves(spec: KernelSpec) -> bool:
    """Whether a view makes other axes of those that it reads."""
    return spec.op == "permute" or (spec.op == "alias" and spec.inputs[0] != spec.output)


def returned(graph: fx.Graph) -> tuple[Any, ...]:
    """What a graph returns, flat."""
    (output,) = graph.find_nodes(op="output")
    values = output.args[0]
    return tuple(values) if isinstance(values, list | tuple) else (values,)


def covers(region: Region, graph_module: fx.GraphModule) -> bool:
    """Whether the region computes every output of the graph and leaves no operator out."""
    graph = graph_module.graph
    calls = [n for n in graph.nodes if n.op == "call_function"]
    return set(returned(graph)) <= set(region.outputs) and all(n in region.specs for n in calls)


def _checked(node: fx.Node) -> KernelSpec:
    found = spec_of(node)
    if isinstance(found, Miss):
        raise ValueError(f"{node.name} was grouped into a region without a kernel: {found.reason}")
    return found


def parity_step(spec: KernelSpec) -> int:
    """The stride of a dense strided convolution over a map, which reads parity planes; 1 for everything else."""
    if spec.op != "conv2d" or len(spec.inputs[0]) != 3 or spec["groups"] == spec.inputs[0][0] == spec.output[0] != 1:
        return 1
    return 1 if spec.inputs[0][1:] == (1, 1) else int(spec["stride"][0])


def reads_one_plane(spec: KernelSpec) -> bool:
    """Whether a strided convolution reads the first of its parity planes only: one tap without padding, such as a shortcut's."""
    return parity_step(spec) > 1 and spec.weights[0] is not None and spec.weights[0][2:] == (1, 1) and spec["padding"] == (0, 0)


def _pads(specs: dict[fx.Node, KernelSpec]) -> dict[tuple[int, int], int]:
    """Zero columns that the stencils of a region need at each resolution they read, or read through parity planes."""
    pads: dict[tuple[int, int], int] = defaultdict(int)
    for spec in specs.values():
        reach = _reach(spec)
        for shape in (spec.output,) if parity_step(spec) > 1 else (spec.inputs[0], spec.output):
            if reach and len(shape) == 3:
                pads[shape[1], shape[2]] = max(pads[shape[1], shape[2]], reach)
    return dict(pads)


def _reach(spec: KernelSpec) -> int:
    """How far a stencil reads beyond its pixel, in pixels of its input or, if it reads parity planes, of the planes."""
    if spec.op not in ("conv2d", "depthwise_pointwise") or spec.weights[0] is None or len(spec.output) != 3:
        return 0
    step, dilation = parity_step(spec), dict(spec.attributes).get("dilation", (1, 1))
    ends = [(-p // step, (d * (k - 1) - p) // step) for p, d, k in zip(spec["padding"], dilation, spec.weights[0][2:], strict=True)]
    return max(max(-first, last) for first, last in ends)
