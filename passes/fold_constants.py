"""Evaluate what depends on constants only, and drop what changes no value.

weight_orig ─┐
             mul ── conv2d           →      weight ── conv2d
mask ────────┘

relu ── dropout(train=False) ── clone ── linear      →      relu ── linear
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from sparsec.ir.arguments import is_identity
from sparsec.ir.budget import Budget, bytes_of
from sparsec.ir.forms import constant, is_value
from sparsec.ir.pipeline import Context, Editor, Form, Pass

LARGEST_CREATED = 1 << 24
aten = torch.ops.aten
ASSERTIONS = frozenset(
    {
        aten._assert_async.default,
        aten._assert_async.msg,
        aten._assert_scalar.default,
        aten._assert_tensor_metadata.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)


class FoldConstants(Pass):
    """Masked, parametrized and otherwise computed weights become plain constants; copies and dead code go."""

    name = "fold_constants"
    takes = Form.CAPTURED
    gives = Form.CAPTURED

    def apply(self, edit: Editor, context: Context) -> None:
        """One walk in order: a value known from constants alone is computed at once, so its users are too."""
        known: dict[fx.Node, Any] = {}
        budget = Budget(bytes_of([constant(node) for node in edit.nodes() if node.op == "get_attr"]))
        for node in edit.nodes():
            if node.target in ASSERTIONS and not node.users:
                edit.hit(node, "assertion dropped")
                edit.erase(node)
            elif is_identity(node):
                _bypass(edit, node)
            elif _is_computable(node, known):
                _compute(edit, node, known, budget)
        for node, value in known.items():
            if isinstance(value, Tensor) and not node._erased and _is_needed(node, known):
                edit.hit(node, "computed from constants")
                edit.substitute(node, edit.add_constant(value, node.name, before=node, sources=(node,)))
        gone = edit.sweep()
        if gone:
            edit.hit("graph", f"{gone} nodes that no output needs dropped")


def _bypass(edit: Editor, node: fx.Node) -> None:
    source = node.args[0]
    if not (isinstance(source, fx.Node) and is_value(source) and is_value(node)):
        return
    if source.op != "call_function" and any(user.op == "output" for user in node.users):
        edit.miss(node, "the copy separates an output from an input or a constant")
        return
    if source.meta["val"].stride() != node.meta["val"].stride():
        edit.miss(node, "the copy changes the order in memory, which a view may rely on")
        return
    edit.substitute(node, source)
    edit.hit(node, f"the same as {source}")


def _is_computable(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """A pure, deterministic call whose inputs are constants, directly or through other such calls."""
    if node.op != "call_function" or any(constant(n) is None and n not in known for n in node.all_input_nodes):
        return False
    schema = getattr(node.target, "_schema", None)
    tags = getattr(node.target, "tags", ())
    is_builtin = getattr(node.target, "__module__", "") == "_operator"
    return torch.Tag.nondeterministic_seeded not in tags and (is_builtin or (schema is not None and not schema.is_mutable))


def _compute(edit: Editor, node: fx.Node, known: dict[fx.Node, Any], budget: Budget) -> None:
    if not node.all_input_nodes and is_value(node) and node.meta["val"].numel() > LARGEST_CREATED:
        edit.miss(node, f"{node.meta['val'].numel()} created values would have to be stored")
        return

    def value(source: fx.Node) -> Any:
        return known[source] if source in known else constant(source)

    args, kwargs = tree_map_only(fx.Node, value, (tuple(node.args), dict(node.kwargs)))
    if reason := budget.spend(node.target, args, kwargs, node.meta.get("val")):
        edit.miss(node, reason)
        return
    try:
        with torch.no_grad():
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        # As it does in eager mode at these sizes: a table of positions may have fewer rows.
        edit.miss(node, f"its value cannot be computed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _is_needed(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """Whether somebody reads the value who is not computed as well."""
    return any(user not in known for user in node.users)
