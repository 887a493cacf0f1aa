"""Choose how every value is stored, as a minimum cut.

    conv1x1 ── v ── depthwise             v: halo     (a depthwise stencil shifts a flat index)
    depthwise ── v ── conv1x1             v: tiled    (a 1x1 convolution reads whole tiles of all channels)
    conv1x1 ── v ── add, conv1x1, conv3x3 v: whichever side of the cut is cheaper; the other readers get a to_layout

One vertex per value; the source side is halo, the sink side tiled. Cutting source → v costs what tiled would cost v's readers,
cutting v → sink what halo would; a value and a copy of it are joined by an edge of infinite capacity, as are halo and
what a kernel can only write so. Values of one pixel are single, tokens are tiled, values that no kernel touches stay nchw. Costs
are per byte, from ``costs.convert`` and ``costs.turned_read``; what kernels read and write is ``context.layouts``.
"""

from __future__ import annotations

import math

import networkx as nx
from torch import fx

from sparsec.ir import ops
from sparsec.ir.arguments import operands
from sparsec.ir.miss import Miss
from sparsec.ir.operands import is_row
from sparsec.ir.pipeline import Context, Editor, Form, Pass
from sparsec.lower.describe import spec_of
from sparsec.lower.layouts import Layout
from sparsec.lower.spec import KernelSpec


def is_map(node: fx.Node) -> bool:
    """Whether a value is a map of more than one pixel."""
    shape = node.meta["val"].shape
    return len(shape) == 4 and tuple(shape[2:]) != (1, 1)


class AssignLayouts(Pass):
    """Notes a layout on every value that a kernel produces or reads, and inserts conversions where sides of the cut meet."""

    name = "assign_layouts"
    takes = Form.FUSED
    gives = Form.LAID_OUT

    def apply(self, edit: Editor, context: Context) -> None:
        """Describe every node, cut, note, convert."""
        specs = self._specs(edit, context)
        touched = {value for node in specs for value in (node, *operands(node))}
        halo = _cut(specs, [v for v in touched if is_map(v)], context)
        for node in edit.nodes():
            if "val" in node.meta and node.op in ("call_function", "placeholder"):
                edit.note(node, layout=_layout(node, node in touched, halo))
        for node in edit.nodes():
            if node in touched and is_map(node) and node not in halo:
                first = [user for user in node.users if user in specs and user.args[0] is node]
                self._convert(edit, node, [user for user in first if "tiled" not in context.layouts(specs[user]).reads])

    def _specs(self, edit: Editor, context: Context) -> dict[fx.Node, KernelSpec]:
        specs: dict[fx.Node, KernelSpec] = {}
        for node in edit.nodes():
            if node.op != "call_function":
                continue
            found = spec_of(node)
            refused = found if isinstance(found, Miss) else context.offers(found)
            if refused is None and isinstance(found, KernelSpec):
                specs[node] = found
            elif refused is not None:
                edit.miss(node, refused.reason)
        return specs

    def _convert(self, edit: Editor, node: fx.Node, readers: list[fx.Node]) -> None:
        if not readers:
            return
        made = edit.call(ops.to_layout, (node,), {"layout": "halo"}, before=min(readers))
        edit.note(made, layout="halo")
        for reader in readers:
            edit.set_args(reader, (made, *reader.args[1:]), reader.kwargs)
        edit.hit(node, f"converted to halo for {', '.join(r.name for r in readers)}")


def _layout(node: fx.Node, touched: bool, halo: set[fx.Node]) -> Layout:
    if not touched:
        return "nchw"
    if is_row(node):
        return "token_major"
    if node.meta["val"].dim() == 3:
        return "tiled"
    if not is_map(node):
        return "single"
    return "halo" if node in halo else "tiled"


def _cut(specs: dict[fx.Node, KernelSpec], maps: list[fx.Node], context: Context) -> set[fx.Node]:
    """The values stored with a halo."""
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(["halo", "tiled"])
    for value in maps:
        size = value.meta["val"][0].nbytes
        if_tiled, if_halo = _prices(value, specs, context)
        graph.add_edge("halo", value, capacity=context.costs.convert * size * if_tiled)
        graph.add_edge(value, "tiled", capacity=context.costs.turned_read * size * if_halo)
    for node, spec in specs.items():
        if spec.operator.keeps_order and is_map(node) and spec.inputs[0] == spec.output:
            graph.add_edge(node, node.args[0])
            graph.add_edge(node.args[0], node)
        if "tiled" not in context.layouts(spec).writes:
            graph.add_edge("halo", node, capacity=math.inf)
    return set(nx.minimum_cut(graph, "halo", "tiled")[1][0]) - {"halo"}


def _prices(value: fx.Node, specs: dict[fx.Node, KernelSpec], context: Context) -> tuple[int, int]:
    """Conversions needed if ``value`` is tiled (at most one, readers share it); readers that suffer if it has a halo."""
    first = [context.layouts(specs[u]) for u in value.users if u in specs and u.args[0] is value]
    leaves = any(u not in specs for u in value.users) or value not in specs
    converted = leaves or any("tiled" not in layouts.reads for layouts in first)
    return int(converted), sum(layouts.prefers == "tiled" for layouts in first)
