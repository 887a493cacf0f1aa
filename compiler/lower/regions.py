"""Regions of a grouped graph: which nodes, which values cross the edge, how each value is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from sparsec.ir.arguments import operands, shape_of
from sparsec.ir.forms import notes
from sparsec.ir.miss import Miss
from sparsec.ir.operands import makes_rows, sources
from sparsec.lower.describe import spec_of
from sparsec.lower.layouts import Geometry, Storage
from sparsec.lower.spec import KernelSpec
from sparsec.run.affine import Affine


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
    pads: Mapping[tuple[int, int], int] = field(default_factory=dict)
    tile: int = 1
    tiles: Mapping[tuple[int, int], int] = field(default_factory=dict)
    follows: Mapping[fx.Node, Affine] = field(default_factory=dict)

    def release_constants(self) -> None:
        """Take the tensors out of the graph, all of it, that the region is of."""
        for part in {node.graph.owning_module for node in self.specs}:
            if part is not None:
                part._buffers.clear()

    def geometry(self, node: fx.Node) -> Geometry:
        """The flat index space of a map's resolution, or of tokens, in this region."""
        shape = shape_of(node)
        if len(shape) == 3:
            return self.index_space(*shape[1:])
        return Geometry(1, shape[0], 0, self.tiles.get((1, shape[0]), self.tile), self.follows.get(node))

    def index_space(self, height: int, width: int) -> Geometry:
        """The flat index space of a resolution in this region."""
        return Geometry(height, width, self.pads.get((height, width), 0), self.tiles.get((height, width), self.tile))

    def storage(self, node: fx.Node) -> Storage:
        """How the value of ``node`` is stored inside the region."""
        shape, layout, dtype = shape_of(node), notes(node)["layout"], str(node.meta["val"].dtype).removeprefix("torch.")
        if len(shape) == 2:
            return Storage("tiled", shape[1], self.geometry(node), dtype)
        if layout == "token_major":
            return Storage("token_major", 0, self.geometry(node), dtype)
        if layout == "single" or len(shape) == 1 or shape[1:] == (1, 1):
            return Storage("single", shape[0], dtype=dtype)
        return Storage("tiled" if layout == "tiled" else "halo", shape[0], self.geometry(node), dtype)


def extract(graph_module: fx.GraphModule, follows: Mapping[str, Affine] | None = None) -> list[Region]:
    """The regions that GroupRegions noted, in order; a backend arranges their values.

    ``follows``: for placeholders by name, the run-time size that their tokens follow.
    """
    members: dict[int, list[fx.Node]] = defaultdict(list)
    for node in graph_module.graph.nodes:
        if (number := notes(node).get("region")) is not None:
            members[number].append(node)
    return [_region(number, nodes, follows or {}) for number, nodes in sorted(members.items())]


def _region(number: int, nodes: list[fx.Node], follows: Mapping[str, Affine]) -> Region:
    inside = set(nodes)
    order = {n: i for i, n in enumerate(nodes[0].graph.nodes)}
    inputs = sorted({a for n in nodes for a in operands(n) if a not in inside}, key=order.__getitem__)
    outputs = [n for n in nodes if any(u not in inside for u in n.users)]
    returned = nodes[0].graph.find_nodes(op="output")[0].all_input_nodes
    outputs.sort(key=lambda n: returned.index(n) if n in returned else len(returned))
    specs = {n: _checked(n) for n in nodes}
    known = {n: follows[n.name] for n in inputs if n.op == "placeholder" and n.name in follows}
    return Region(number, specs, tuple(inputs), tuple(outputs), follows=_followers(specs, known))


def _followers(specs: dict[fx.Node, KernelSpec], known: dict[fx.Node, Affine]) -> dict[fx.Node, Affine]:
    """All values whose tokens follow a run-time size: an operator on tokens keeps those of its first source, prepending adds some."""
    for node, spec in specs.items():
        first = sources(node)[0]
        if first in known and (len(spec.output) == 2 or makes_rows(node)) and _keeps_tokens(spec):
            known[node] = known[first].moved(spec.output[0] - spec.inputs[0][0])
    return known


def _keeps_tokens(spec: KernelSpec) -> bool:
    """Whether tokens of the first operand are those of the result, however many there are."""
    return spec.operator.tokens == "each" or (spec.operator.tokens == "shape" and spec.inputs[0] == spec.output)


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
