"""The operands of a node of a fused graph: activations, constants, residual, numbers per token."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sparsec import ops
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops

aten = torch.ops.aten

WEIGHTS: dict[Any, tuple[int, ...]] = {
    ops.conv2d: (1, 2),
    ops.linear: (1, 2),
    ops.depthwise_pointwise: (1, 2, 3, 4),
    aten.embedding.default: (0,),
    aten.layer_norm.default: (2, 3),
}
RESIDUALS: dict[Any, int] = {ops.conv2d: 3, ops.linear: 3, ops.depthwise_pointwise: 5}
_INDICES = (torch.int64, torch.int32)
#: What kernels read and write beside float32.
ROW_DTYPES = {
    aten.embedding.default: _INDICES,
    token_ops.key_bias: (*_INDICES, torch.bool),
    pruning_ops.keep_tokens: (torch.int64,),
    pruning_ops.merge_plan: (torch.int64,),
    pruning_ops.gather_tokens: (torch.int64,),
    pruning_ops.gather_keys: (torch.int64,),
    pruning_ops.merge_tokens: (torch.int64,),
    pruning_ops.merge_sizes: (torch.int64,),
}
#: Operators that read numbers per token: at these positions.
_ROW_READERS: dict[Any, tuple[int, ...]] = {
    aten.embedding.default: (1,),
    token_ops.key_bias: (0,),
    token_ops.attention: (3,),
    pruning_ops.token_scores: (2,),
    pruning_ops.gather_tokens: (1,),
    pruning_ops.merge_tokens: (1, 2),
    pruning_ops.mean_merged: (1,),
}
#: Operators on numbers per token whose results are such, but for the tokens that some of them gather.
_ROW_MAKERS = frozenset(
    {
        token_ops.key_bias,
        pruning_ops.token_scores,
        pruning_ops.keep_tokens,
        pruning_ops.gather_keys,
        pruning_ops.merge_plan,
        pruning_ops.merge_sizes,
        pruning_ops.log_sizes,
        pruning_ops.token_sizes,
    }
)
_OF_ROWS_ONLY = _ROW_MAKERS - {pruning_ops.token_scores, pruning_ops.merge_plan}
#: Operators that leave a number of tokens fixed when compiling.
CHOOSING = frozenset(
    {
        pruning_ops.keep_tokens,
        pruning_ops.gather_tokens,
        pruning_ops.gather_keys,
        pruning_ops.merge_plan,
        pruning_ops.merge_tokens,
        pruning_ops.merge_sizes,
        pruning_ops.mean_merged,
    }
)


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The activations that ``node`` reads, each once; constants are left out."""
    return tuple(a for a in node.all_input_nodes if a.op != "get_attr")


def sources(node: fx.Node) -> tuple[fx.Node, ...]:
    """The activations that ``node`` reads in argument order, a residual left out; one that is read twice comes twice."""
    read = node.args[0] if node.target is aten.cat.default else node.args
    beside = RESIDUALS.get(node.target)
    return tuple(a for i, a in enumerate(read) if isinstance(a, fx.Node) and a.op != "get_attr" and i != beside)  # type: ignore[arg-type, union-attr]


def weights(node: fx.Node) -> tuple[fx.Node | None, ...]:
    """The constant operands in argument order, None where absent."""
    if node.target in WEIGHTS:
        return tuple(node.args[i] if i < len(node.args) else None for i in WEIGHTS[node.target])  # type: ignore[misc]
    return tuple(a for a in node.all_input_nodes if a.op == "get_attr")


def residual(node: fx.Node) -> fx.Node | None:
    """The value added in the epilogue of one of our operators, or None."""
    position = RESIDUALS.get(node.target, len(node.args))
    return node.args[position] if position < len(node.args) else None  # type: ignore[return-value]


def makes_rows(node: fx.Node) -> bool:
    """Whether an operator writes numbers per token, whose number may follow a run-time size."""
    return node.target in _ROW_MAKERS


def is_row(node: fx.Node) -> bool:
    """Whether a value [N, T] is a number per token: ids, a padding mask, the bias of keys, scores, positions."""
    return makes_rows(node) or any(_reads_as_row(user, node) for user in node.users)


def _reads_as_row(user: fx.Node, node: fx.Node) -> bool:
    places = _ROW_READERS.get(user.target, ())
    return user.target in _OF_ROWS_ONLY or any(at < len(user.args) and user.args[at] is node for at in places)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Of a value, without the batch."""
    return tuple(int(s) for s in node.meta["val"].shape[1:])
