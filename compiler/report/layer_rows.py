"""What a compilation did, as the rows that ``explain`` prints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import fx

from sparsec.autotune.roofline import Roofline
from sparsec.backends.base import Backend
from sparsec.backends.plan import Call, Group
from sparsec.facts.lattice import Fact
from sparsec.ir.forms import notes
from sparsec.ir.pipeline import Result
from sparsec.run.explanation import Explanation, Layer
from sparsec.settings import Settings

if TYPE_CHECKING:
    from sparsec.compiled_graph import RegionProgram

_FINITE = "zero facts assume finite activations: 0 * inf counts as 0"


def explanation_of(
    result: Result,
    programs: Sequence[RegionProgram],
    backend: Backend,
    settings: Settings,
    limits: Roofline | None,
    failed: Mapping[str, str] = MappingProxyType({}),
) -> Explanation:
    """Layers of every region in order, refused rewrites, and the nodes that no region took.

    ``limits``: of the machine, needed where there are programs. ``failed``: why regions failed, by node.
    """
    misses = tuple((c.name, str(m.where), m.reason) for c in result.story.chapters for m in c.misses)
    inside = {n.name for p in programs for n in p.region.specs}
    refusals = {node: reason for name, node, reason in misses if name in ("assign_layouts", "group_regions")}
    refusals |= failed
    outside = [n for n in result.graph_module.graph.nodes if n.op == "call_function" and n.name not in inside]
    return Explanation(
        layers=tuple(row for p in programs if limits for row in _rows(p, backend, limits, settings)),
        misses=misses,
        uncovered=tuple((n.name, refusals.get(n.name, "its region was predicted slower than the dense compiler")) for n in outside),
        notes=_notes_of(backend) if programs else (),
    )


def _notes_of(backend: Backend) -> tuple[str, ...]:
    mcpu = backend.machine.mcpu
    return (_FINITE, f"for {mcpu}: bounds are predicted, nothing was measured") if backend.machine.not_here else (_FINITE,)


def _rows(program: RegionProgram, backend: Backend, limits: Roofline, settings: Settings) -> Iterable[Layer]:
    """One row per group, in the order in which they run and are timed."""
    nodes = {n.name: n for n in program.region.specs}
    tasks = {task.node: task for task in program.lowered.tasks}
    measured = program.times
    for group in program.lowered.plan.groups:
        call = group.calls[-1]
        row = _layer(group, nodes.get(call.node), limits, settings.thread_count)
        task = tasks.get(call.node)
        verdict = None if task is None else backend.verdict(task, call)
        if verdict is None:
            yield row
        else:
            reason = verdict.reason(limits.cycles_s) + _measured(measured.get(call.node, {}))
            yield replace(row, reason=reason, flip_density=verdict.flip_density)


def _measured(times: Mapping[str, float]) -> str:
    """The best measured time of each kernel family among a layer's candidates (schedules as JSON -> µs)."""
    best: dict[str, float] = {}
    for schedule, microseconds in times.items():
        kernel = str(dict(json.loads(schedule))["kernel"])
        best[kernel] = min(best.get(kernel, math.inf), microseconds)
    listed = ", ".join(f"{kernel} {microseconds:.0f} µs" for kernel, microseconds in sorted(best.items(), key=lambda b: b[1]))
    return f"; measured: {listed}" if listed else ""


def _layer(group: Group, node: fx.Node | None, limits: Roofline, threads: int) -> Layer:
    call = group.calls[-1]
    detail = call.detail
    density = detail["nonzeros"] / max(detail["size"], 1) if "size" in detail else None
    bound = limits.bound_s(sum(c.flops for c in group.calls), sum(c.bytes for c in group.calls), threads)
    return Layer(
        node=call.node,
        op=call.kind if node is None else str(getattr(node.target, "__name__", node.target)).removesuffix(".default"),
        shape=() if node is None else _shape(node, call),
        density=density,
        pattern="" if density is None or node is None else _pattern(node, density),
        kernel=" + ".join(c.source.symbol for c in group.calls),
        kind=call.kind,
        bound_us=bound * 1e6,
        source="" if node is None else str(notes(node).get("source", "")),
    )


def _shape(node: fx.Node, call: Call) -> tuple[int, ...]:
    """Of the weight that decides the kernel, else of the value."""
    weights = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr" and a.meta["val"].dim() > 1]
    shaped: Any = weights[-1] if weights else node
    return tuple(int(s) for s in shaped.meta["val"].shape)


def _pattern(node: fx.Node, density: float) -> str:
    """The strongest pattern that the weight is known to have, in the field's words."""
    if density in (0.0, 1.0):
        return "all zero" if density == 0 else "dense"
    weights = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr" and a.meta["val"].dim() > 1]
    fact = notes(weights[-1]).get("fact", Fact()) if weights else Fact()
    groups = [g for g in fact.groups if g.n < g.m and g.n / g.m <= density * 1.05]
    if groups:
        best = max(groups, key=lambda g: -g.m)
        return f"{best.n}:{best.m}"
    blocks = [b for b in fact.blocks if b.density <= density * 1.05]
    if blocks:
        best_block = max(blocks, key=lambda b: b.rows * b.columns)
        return f"{best_block.rows}x{best_block.columns} blocks"
    return "unstructured"
