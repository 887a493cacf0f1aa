"""Group nodes that kernels exist for into regions, as large as convexity allows.

    conv ─ relu? ─ conv ─ [unknown op] ─ conv ─ add        →      region 0 ─ [unknown op] ─ region 1

A region is one host call. Two neighbours may share one if no path leaves it and enters it again, that is, if contracting every
region to a vertex leaves the graph without cycles. A region stays only if its sparsity pays: predicted time of its layers with
kernels for what is known of their weights against the same layers dense; the rest of the graph is left to the dense compiler.
"""

from __future__ import annotations

import itertools
import json
import math

import networkx as nx
from torch import fx

from sparsec.describe import operands, spec_of
from sparsec.facts import Fact
from sparsec.pipeline import Context, Editor, Form, Pass
from sparsec.spec import KernelSpec

# Speed of a kernel that skips single zeros, and whole blocks of outputs, relative to a dense one per multiplication done: measured over
# the 1x1 layers of MobileNetV1 on one core, skipping single zeros breaks even at 60% nonzero.
UNSTRUCTURED, BLOCKED = 0.6, 0.9


class GroupRegions(Pass):
    """Notes ``region`` (a number) on every node of a region; ``costs["keep_dense"]`` keeps regions without gain too."""

    name = "group_regions"
    takes = Form.LAID_OUT
    gives = Form.REGIONS

    def apply(self, edit: Editor, context: Context) -> None:
        """Collect what kernels exist for, merge neighbours, keep what pays, number in order."""
        specs = {n: s for n in edit.nodes() if n.op == "call_function" and isinstance(s := spec_of(n), KernelSpec) and _offered(s, context)}
        kept = 0
        for members in _merge(edit.nodes(), specs):
            gain, flip = _gain([specs[n] for n in members], context)
            if not context.costs.get("keep_dense") and gain <= 1.0:
                edit.miss(members[0], f"its region of {len(members)} nodes stays dense: predicted gain {gain:.2f}x{flip}")
                continue
            for node in members:
                edit.note(node, region=kept)
            edit.hit(members[0], f"region {kept}: {len(members)} nodes, predicted gain {gain:.2f}x")
            kept += 1


def _offered(spec: KernelSpec, context: Context) -> bool:
    return context.offers(spec) is None


def _merge(nodes: list[fx.Node], specs: dict[fx.Node, KernelSpec]) -> list[list[fx.Node]]:
    """Greedy in topological order: each node joins the regions of its operands, one by one, where that keeps the quotient acyclic."""
    order = {node: i for i, node in enumerate(nodes)}
    home = {node: node for node in nodes}
    quotient = nx.DiGraph()
    quotient.add_nodes_from(nodes)
    quotient.add_edges_from((p, n) for n in nodes for p in n.all_input_nodes if p.op != "get_attr")
    for node in specs:
        for producer in operands(node):
            a, b = home[producer], home[node]
            if producer in specs and a is not b and not _path_around(quotient, a, b):
                nx.contracted_nodes(quotient, a, b, self_loops=False, copy=False)
                home |= {n: a for n, h in home.items() if h is b}
    _join_independent(quotient, home, specs)
    regions: dict[fx.Node, list[fx.Node]] = {}
    for node in specs:
        regions.setdefault(home[node], []).append(node)
    return sorted((sorted(r, key=order.__getitem__) for r in regions.values()), key=lambda r: order[r[0]])


def _join_independent(quotient: nx.DiGraph, home: dict[fx.Node, fx.Node], specs: dict[fx.Node, KernelSpec]) -> None:
    """Merge regions of one batch size that no path connects, such as two branches that share an input only."""
    for a, b in itertools.combinations(dict.fromkeys(home[n] for n in specs), 2):
        if home[a] is not a or home[b] is not b or a.meta["val"].shape[0] != b.meta["val"].shape[0]:
            continue
        if not nx.has_path(quotient, a, b) and not nx.has_path(quotient, b, a):
            nx.contracted_nodes(quotient, a, b, self_loops=False, copy=False)
            home.update({n: a for n, h in home.items() if h is b})


def _path_around(graph: nx.DiGraph, a: fx.Node, b: fx.Node) -> bool:
    """Whether b can be reached from a other than by the direct edge, or a from b: contracting them would close a cycle."""
    if nx.has_path(graph, b, a):
        return True
    return any(nx.has_path(graph, step, b) for step in graph.successors(a) if step is not b)


def _gain(specs: list[KernelSpec], context: Context) -> tuple[float, str]:
    """Predicted dense time over predicted time with kernels; the density at which it would be 1, as text."""
    single, block = context.costs.get("unstructured", UNSTRUCTURED), context.costs.get("blocked", BLOCKED)
    dense = sparse = 0.0
    for spec in specs:
        for shape, fact, work in _layers(spec):
            if len(shape) == 4 and shape[1] == 1:
                continue
            share = min(1.0, fact.density / single, min((b.density / block for b in fact.blocks if b.rows >= 4), default=1.0))
            dense, sparse = dense + work, sparse + work * share
    flip = "" if dense == 0 else f"; it would pay below density {single:.2f} (single zeros) or {block:.2f} (blocks)"
    return (dense / sparse if sparse else math.inf if dense else 1.0), flip


def _layers(spec: KernelSpec) -> list[tuple[tuple[int, ...], Fact, float]]:
    """Weight shape, fact and dense multiplications of the layers that one spec holds and whose zeros matter."""
    if spec.op not in ("conv2d", "linear", "depthwise_pointwise"):
        return []
    shape = spec.weights[2 if spec.op == "depthwise_pointwise" else 0]
    if shape is None:
        return []
    pixels = math.prod(spec.output[1:])
    return [(shape, Fact.from_json(json.loads(spec.weight_fact)), float(math.prod(shape) * pixels))]
