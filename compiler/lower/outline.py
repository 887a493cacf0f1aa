"""Regions as single nodes of a graph, for the compiler that takes the rest."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx
from torch.fx.passes.tools_common import stable_topological_sort

from sparsec.ir.pipeline import copied
from sparsec.lower.regions import Region


def splice(graph_module: fx.GraphModule, regions: Sequence[tuple[Region, Any]]) -> fx.GraphModule:
    """A copy of the graph in which each region is one call of its operator (``insert(graph, inputs) -> node``) and one getitem per output.

    a ─ [conv ─ conv] ─ b      →      a ─ region ─ getitem ─ b
    """
    made = copied(graph_module)
    by_name = {node.name: node for node in made.graph.nodes}
    (end,) = made.graph.find_nodes(op="output")
    for region, op in regions:
        with made.graph.inserting_before(end):
            call = op.insert(made.graph, [by_name[n.name] for n in region.inputs])
            for position, node in enumerate(region.outputs):
                value = made.graph.call_function(operator.getitem, (call, position))
                value.meta = dict(by_name[node.name].meta)
                by_name[node.name].replace_all_uses_with(value)
                by_name[node.name] = value
    stable_topological_sort(made)
    made.graph.eliminate_dead_code()
    # Without the constants that only regions read.
    return fx.GraphModule(made, made.graph)
