"""Operators of ours that leave tokens out or join them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sparsec.ir.operators.record import Operand, Operator, X
from sparsec.ir.operators.tokens import KEY, KEY_BIAS, PAIR_BIAS, QUERY
from sparsec.lower.describe_tokens import of_activations
from sparsec.tokens import hidden, pruning_ops

ROW, INDEX, PLAN, SIZES = Operand("x", "row"), Operand("index", "row"), Operand("plan", "row"), Operand("sizes", "row")
Rules = dict[str, Any]


def _ours(function: Callable[..., Any], operands: tuple[Operand, ...] = (X,), **rules: Any) -> Operator:
    """The record of a function of ours, which is its own reference, target and name."""
    return Operator(function.__name__, (function,), operands, reference=function, **rules)


CHOICE: Rules = {"describe": of_activations, "dtypes": (torch.int64,), "tokens": "fixed"}
NUMBER: Rules = {"describe": of_activations, "makes_rows": True, "tokens": "each"}

PRUNING = (
    _ours(pruning_ops.token_scores, (QUERY, KEY, KEY_BIAS, PAIR_BIAS), **NUMBER),
    _ours(pruning_ops.keep_tokens, (ROW,), makes_rows=True, padding=hidden.chooses, **CHOICE),
    _ours(pruning_ops.gather_tokens, (X, INDEX), **CHOICE),
    _ours(pruning_ops.gather_keys, (ROW, INDEX), makes_rows=True, **CHOICE),
    _ours(pruning_ops.gather_pairs, (X, INDEX), tokens="fixed"),
    _ours(pruning_ops.merge_plan, makes_rows=True, padding=hidden.chooses, **CHOICE),
    _ours(pruning_ops.merge_tokens, (X, PLAN, SIZES), **CHOICE),
    _ours(pruning_ops.merge_sizes, (PLAN, SIZES), makes_rows=True, **CHOICE),
    _ours(pruning_ops.log_sizes, (ROW,), **NUMBER),
    _ours(pruning_ops.token_sizes, (ROW,), **NUMBER),
    _ours(pruning_ops.mean_merged, (X, SIZES), describe=of_activations, tokens="fixed"),
)
