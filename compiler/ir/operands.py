"""The operands of a node of a fused graph, as its operator's record says: activations, constants, residual, numbers per token."""

from __future__ import annotations

from torch import fx

from sparsec.ir.operators import Operator, operator_of


def _record(node: fx.Node) -> Operator:
    operator = operator_of(node)
    if operator is None:
        raise ValueError(f"{node.name} calls {node.target}, an operator without a record")
    return operator


def sources(node: fx.Node) -> tuple[fx.Node, ...]:
    """The activations that ``node`` reads in argument order, a residual left out; one that is read twice comes twice."""
    return _record(node).sources(node)


def weights(node: fx.Node) -> tuple[fx.Node | None, ...]:
    """The constant operands in argument order, None where absent."""
    return _record(node).weights(node)


def residual(node: fx.Node) -> fx.Node | None:
    """The value added in the epilogue of one of our operators, or None."""
    return _record(node).residual(node)


def makes_rows(node: fx.Node) -> bool:
    """Whether an operator writes numbers per token, whose number may follow a run-time size."""
    operator = operator_of(node)
    return operator is not None and operator.makes_rows


def is_row(node: fx.Node) -> bool:
    """Whether a value [N, T] is a number per token: ids, a padding mask, the bias of keys, scores, positions."""
    return makes_rows(node) or any(operator.reads_as_row(user, node) for user in node.users if (operator := operator_of(user)))
