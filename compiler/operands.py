"""The operands of a node of a fused graph: activations, constants, residual, numbers per token."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sparsec import ops, token_ops

aten = torch.ops.aten

WEIGHTS: dict[Any, tuple[int, ...]] = {
    ops.conv2d: (1, 2),
    ops.linear: (1, 2),
    ops.depthwise_pointwise: (1, 2, 3, 4),
    aten.embedding.default: (0,),
    aten.layer_norm.default: (2, 3),
}
RESIDUALS = {ops.conv2d: 3, ops.linear: 3, ops.depthwise_pointwise: 5}
#: What a kernel reads beside float32.
ROW_DTYPES = {
    aten.embedding.default: (torch.int64, torch.int32),
    token_ops.key_bias: (torch.int64, torch.int32, torch.bool),
}
#: Operators that read one number per token.
_ROW_READERS: dict[Any, int] = {aten.embedding.default: 1, token_ops.key_bias: 0, token_ops.attention: 3}


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


def is_row(node: fx.Node) -> bool:
    """Whether a value [N, T] is a number per token: ids, a padding mask, the bias of keys."""
    read_as_row = any(u.target in _ROW_READERS and _reads_at(u, _ROW_READERS[u.target]) is node for u in node.users)
    return node.target is token_ops.key_bias or read_as_row


def _reads_at(node: fx.Node, position: int) -> object:
    return node.args[position] if position < len(node.args) else None


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Of a value, without the batch."""
    return tuple(int(s) for s in node.meta["val"].shape[1:])
