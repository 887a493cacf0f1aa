"""Group nodes that kernels exist for into regions, as large as convexity allows.

    conv ─ relu? ─ conv ─ [unknown op] ─ conv ─ add        →      region 0 ─ [unknown op] ─ region 1

A region is one host call. Two neighbours may share one if no path leaves it and enters it again, that is, if contracting every
region to a vertex leaves the graph without cycles. A region stays only if it pays: predicted time of its layers with kernels for
what is known of their weights against the dense compiler's; the rest of the graph is left to that.
"""

from __future__ import annotations

import itertools
import json
import math

import networkx as nx
from torch import fx

from sparsec.facts.lattice import Fact
from sparsec.ir.arguments import operands
from sparsec.ir.pipeline import Context, Editor, Form, Pass
from sparsec.lower.costs import Costs
from sparsec.lower.describe import spec_of
from sparsec.lower.spec import KernelSpec


class GroupRegions(Pass):
    """Notes ``region`` (a number) on every node of a region."""

    name = "group_regions"
    takes = Form.LAID_OUT
    gives = Form.REGIONS

    def apply(self, edit: Editor, context: Context) -> None:
        """Collect what kernels exist for, merge neighbours, keep what pays, number in order."""
        calls = [n for n in edit.nodes() if n.op == "call_function"]
        specs = {n: s for n in calls if isinstance(s := spec_of(n), KernelSpec) and _offered(s, context)}
        kept = 0
        for members in _merge(edit.nodes(), specs):
            if all(specs[n].operator.is_view for n in members) and len(members) < len(calls):
                edit.miss(members[0], f"its region of {len(members)} nodes computes nothing")
                continue
            gain, flip = _gain([specs[n] for n in members], context.costs)
            whole = len(members) == len(calls)
            kept_anyway = context.keep_dense or (whole and context.keep_whole)
            if not kept_anyway and gain <= (1.0 if whole else context.costs.edges):
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


def _gain(specs: list[KernelSpec], costs: Costs) -> tuple[float, str]:
    """Predicted time of the dense compiler over that of our kernels; the density at which zeros would pay, as text."""
    single, block = costs.unstructured, costs.blocked
    theirs = ours = 0.0
    products = 0
    for spec in specs:
        if spec.operator.attends:
            work = 2.0 * math.prod(spec.inputs[0]) * spec.inputs[1][0]
            theirs, ours = theirs + costs.their_attention * work, ours + costs.attention * work
        for shape, fact, work in _layers(spec):
            if len(shape) == 4 and shape[1] == 1 and shape[0] > 1:
                theirs, ours = theirs + costs.their_depthwise * work, ours + costs.depthwise * work
                continue
            dense = costs.tokens if _on_tokens(spec) else costs.pointwise if shape[2:] in ((), (1, 1)) else costs.spatial
            blocks = min((b.density / block for b in fact.blocks if b.rows >= 4), default=dense)
            theirs, ours = theirs + work, ours + work * min(dense, fact.density / single, blocks)
            products += 1
    flip = f"; it would pay below density {single:.2f} (single zeros) or {block:.2f} (blocks)" if products else ""
    return (theirs / ours if ours else math.inf if theirs else 1.0), flip


def _on_tokens(spec: KernelSpec) -> bool:
    return len(spec.output) == 2


def _layers(spec: KernelSpec) -> list[tuple[tuple[int, ...], Fact, float]]:
    """Weight shape, fact and dense multiplications of the layers that one spec holds."""
    operator = spec.operator
    if not operator.products:
        return []
    pixels = spec.output[0] if _on_tokens(spec) else math.prod(spec.output[1:])
    fact = Fact.from_json(json.loads(spec.weight_fact))
    names = [constant.name for constant in operator.constants]
    known = [(i, fact if i == operator.decisive else Fact()) for i in map(names.index, operator.products)]
    return [(shape, f, float(math.prod(shape) * pixels)) for i, f in known if (shape := spec.weights[i]) is not None]
