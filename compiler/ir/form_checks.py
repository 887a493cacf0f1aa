"""What each form of a graph promises, as a check that names the first node that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import fx

from sparsec.errors import VerificationError
from sparsec.ir import ops
from sparsec.ir.arguments import activation_of, layer_of
from sparsec.ir.forms import Form, is_value, lookup, notes


def check(form: Form, graph_module: fx.GraphModule) -> None:
    """Raise VerificationError with the first node that breaks `form` or an earlier form."""
    for level in Form:
        if level > form:
            return
        for node, reason in _CHECKS[level](graph_module):
            raise VerificationError(
                f"The graph is not {form.name}: {reason}.",
                where=f"{node.name} {notes(node).get('source', '')}".rstrip(),
                hint="Run `sparsec bisect`, or set SPARSEC_DUMP to see the graph after each pass.",
            )


Breaches = Iterator[tuple[fx.Node, str]]


def _captured(graph_module: fx.GraphModule) -> Breaches:
    for node in graph_module.graph.nodes:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            yield node, f"{node.op} nodes are not allowed"
        elif node.op == "get_attr" and (reason := _constant_breach(graph_module, node)):
            yield node, reason
        elif node.op in ("placeholder", "call_function") and "val" not in node.meta:
            yield node, 'meta["val"] is missing'
        elif node.op == "call_function" and (reason := _write_breach(node)):
            yield node, reason


def _constant_breach(graph_module: fx.GraphModule, node: fx.Node) -> str:
    value = lookup(graph_module, str(node.target))
    if not isinstance(value, torch.Tensor):
        return f"attribute {node.target!r} is not a tensor"
    if value.requires_grad or value.layout != torch.strided or not value.is_contiguous():
        return f"constant {node.target!r} is not a detached, dense, contiguous tensor"
    return ""


def _write_breach(node: fx.Node) -> str:
    """An in-place operator may only write to a fresh value that nobody else reads."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return ""
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and not _is_fresh(value):
            return f"{node.target} writes to a value that others may read"
    return ""


def _is_fresh(value: object) -> bool:
    if not isinstance(value, fx.Node) or value.op != "call_function" or len(value.users) != 1:
        return False
    schema = getattr(value.target, "_schema", None)
    return schema is not None and all(returned.alias_info is None for returned in schema.returns)


def _inferred(graph_module: fx.GraphModule) -> Breaches:
    for node in graph_module.graph.nodes:
        if node.op != "output" and is_value(node) and "fact" not in notes(node):
            yield node, "a value has no fact"


def _fused(graph_module: fx.GraphModule) -> Breaches:
    for node in graph_module.graph.nodes:
        if _is_fusable(node):
            yield node, f"{node.target} should have become one of ours"
        elif node.target in ops.FUNCTIONS and node.kwargs.get("activation", "none") not in ops.ACTIVATIONS:
            yield node, f"unknown activation {node.kwargs['activation']!r}"


def _is_fusable(node: fx.Node) -> bool:
    """A layer or an activation that one of our operators says, of floating-point numbers."""
    if not is_value(node) or not node.meta["val"].is_floating_point():
        return False
    return node.target not in ops.FUNCTIONS and (layer_of(node) is not None or activation_of(node) is not None)


def _laid_out(graph_module: fx.GraphModule) -> Breaches:
    for node in graph_module.graph.nodes:
        if node.target in ops.FUNCTIONS and "layout" not in notes(node):
            yield node, "a value of our operators has no layout"


def _regions(graph_module: fx.GraphModule) -> Breaches:
    """Regions are convex: no path leaves a region and enters it again. left[n]: regions that some ancestor left."""
    left: dict[fx.Node, frozenset] = {}
    for node in graph_module.graph.nodes:
        mine = notes(node).get("region")
        gone: frozenset = frozenset()
        for producer in node.all_input_nodes:
            theirs = notes(producer).get("region")
            gone |= left[producer] | (frozenset() if theirs in (None, mine) else frozenset({theirs}))
        if mine in gone:
            yield node, f"region {mine} is left and entered again"
        left[node] = gone


_CHECKS: dict[Form, Callable[[fx.GraphModule], Breaches]] = {
    Form.CAPTURED: _captured,
    Form.INFERRED: _inferred,
    Form.FUSED: _fused,
    Form.LAID_OUT: _laid_out,
    Form.REGIONS: _regions,
}
