"""The operators that the compiler knows, one record each. All other tables of operators are derived from this one."""

from __future__ import annotations

from typing import Any

from torch import fx

from sparsec.ir.operators.checks import checked
from sparsec.ir.operators.maps import MAPS, OF_TORCH
from sparsec.ir.operators.pruning import PRUNING
from sparsec.ir.operators.record import Operator
from sparsec.ir.operators.tokens import TOKENS
from sparsec.ir.operators.views import VIEWS

OPERATORS: tuple[Operator, ...] = checked((*MAPS, *TOKENS, *PRUNING, *VIEWS, *OF_TORCH))
_BY_NAME = {operator.name: operator for operator in OPERATORS}
_BY_TARGET: dict[Any, Operator] = {target: operator for operator in OPERATORS for target in operator.targets}


def operator_of(node: fx.Node) -> Operator | None:
    """The operator that a node calls; None where it has no record."""
    return _BY_TARGET.get(node.target) if node.op == "call_function" else None


def operator_named(name: str) -> Operator | None:
    """The operator of this name; None where there is none."""
    return _BY_NAME.get(name)
