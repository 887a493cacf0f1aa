"""Operators of ours that leave tokens out or join them."""

from __future__ import annotations

import torch

from sparsec.describe_tokens import of_activations
from sparsec.operators.record import Operand, Operator, X
from sparsec.operators.tokens import KEY, KEY_BIAS, PAIR_BIAS, QUERY
from sparsec.tokens import hidden, pruning_ops

ROW, INDEX, PLAN, SIZES = Operand("x", "row"), Operand("index", "row"), Operand("plan", "row"), Operand("sizes", "row")
_PLACES = (torch.int64,)

PRUNING = (
    Operator(
        "token_scores",
        (pruning_ops.token_scores,),
        (QUERY, KEY, KEY_BIAS, PAIR_BIAS),
        reference=pruning_ops.token_scores,
        describe=of_activations,
        makes_rows=True,
        tokens="each",
    ),
    Operator(
        "keep_tokens",
        (pruning_ops.keep_tokens,),
        (ROW,),
        reference=pruning_ops.keep_tokens,
        describe=of_activations,
        dtypes=_PLACES,
        makes_rows=True,
        tokens="fixed",
        padding=hidden.chooses,
    ),
    Operator(
        "gather_tokens",
        (pruning_ops.gather_tokens,),
        (X, INDEX),
        reference=pruning_ops.gather_tokens,
        describe=of_activations,
        dtypes=_PLACES,
        tokens="fixed",
    ),
    Operator(
        "gather_keys",
        (pruning_ops.gather_keys,),
        (ROW, INDEX),
        reference=pruning_ops.gather_keys,
        describe=of_activations,
        dtypes=_PLACES,
        makes_rows=True,
        tokens="fixed",
    ),
    Operator("gather_pairs", (pruning_ops.gather_pairs,), (X, INDEX), reference=pruning_ops.gather_pairs, tokens="fixed"),
    Operator(
        "merge_plan",
        (pruning_ops.merge_plan,),
        reference=pruning_ops.merge_plan,
        describe=of_activations,
        dtypes=_PLACES,
        makes_rows=True,
        tokens="fixed",
        padding=hidden.chooses,
    ),
    Operator(
        "merge_tokens",
        (pruning_ops.merge_tokens,),
        (X, PLAN, SIZES),
        reference=pruning_ops.merge_tokens,
        describe=of_activations,
        dtypes=_PLACES,
        tokens="fixed",
    ),
    Operator(
        "merge_sizes",
        (pruning_ops.merge_sizes,),
        (PLAN, SIZES),
        reference=pruning_ops.merge_sizes,
        describe=of_activations,
        dtypes=_PLACES,
        makes_rows=True,
        tokens="fixed",
    ),
    Operator(
        "log_sizes",
        (pruning_ops.log_sizes,),
        (ROW,),
        reference=pruning_ops.log_sizes,
        describe=of_activations,
        makes_rows=True,
        tokens="each",
    ),
    Operator(
        "token_sizes",
        (pruning_ops.token_sizes,),
        (ROW,),
        reference=pruning_ops.token_sizes,
        describe=of_activations,
        makes_rows=True,
        tokens="each",
    ),
    Operator(
        "mean_merged",
        (pruning_ops.mean_merged,),
        (X, SIZES),
        reference=pruning_ops.mean_merged,
        describe=of_activations,
        tokens="fixed",
    ),
)
