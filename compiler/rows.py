"""What a compilation did, as the rows that ``explain`` prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import fx

from sparsec.backends.plan import Call
from sparsec.explain import Explanation, Layer
from sparsec.facts import Fact
from sparsec.forms import notes
from sparsec.pipeline import Result

if TYPE_CHECKING:
    from sparsec.driver import RegionProgram


def explanation_of(result: Result, programs: Sequence[RegionProgram]) -> Explanation:
    """Layers of every region in order, refused rewrites, and the nodes that no region took."""
    misses = [(c.name, m.node, m.reason) for c in result.story.chapters for m in c.misses]
    inside = {n.name for p in programs for n in p.region.specs}
    refusals = {node: reason for name, node, reason in misses if name in ("assign_layouts", "group_regions")}
    outside = [n for n in result.graph_module.graph.nodes if n.op == "call_function" and n.name not in inside]
    return Explanation(
        layers=tuple(row for p in programs for row in _rows(p)),
        misses=tuple(misses),
        uncovered=tuple((n.name, refusals.get(n.name, "its region was not worth it")) for n in outside),
        notes=("zero facts assume finite activations: 0 * inf counts as 0",) if programs else (),
    )


def _rows(program: RegionProgram) -> Iterable[Layer]:
    nodes = {n.name: n for n in program.region.specs}
    for group in program.lowered.plan.groups:
        call = group.calls[-1]
        yield _layer(call, nodes.get(call.node))


def _layer(call: Call, node: fx.Node | None) -> Layer:
    spec_fact, shape = Fact(), ()
    if node is not None:
        shape = tuple(int(s) for s in node.meta["val"].shape)
    density = None
    if "size" in call.detail:
        density = call.detail["nonzeros"] / max(call.detail["size"], 1)
    return Layer(
        node=call.node,
        op=call.kind if node is None else str(getattr(node.target, "__name__", node.target)),
        shape=shape,
        density=density,
        pattern=_pattern(spec_fact, density),
        kernel=call.source.symbol,
        kind=call.kind,
        reason=_reason(call, density),
        flip_density=0.5 if call.kind == "dense" else None,
        source="" if node is None else str(notes(node).get("source", "")),
    )


def _pattern(fact: Fact, density: float | None) -> str:
    if density is None:
        return ""
    return "dense" if density == 1 else "unstructured" if not fact.blocks else json.dumps(fact.blocks)


def _reason(call: Call, density: float | None) -> str:
    if call.kind == "dense" and density is not None:
        return f"{density:.0%} nonzero: skipping zeros would cost more than it saves"
    return ""
