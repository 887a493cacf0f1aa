"""Operators on tokens [N, T, F] as kernels: name and attributes, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sparsec.calls import arguments
from sparsec.forms import constant
from sparsec.operands import operands, shape_of, sources, weights
from sparsec.tokens import ops as token_ops
from sparsec.tokens import pruning_ops

aten = torch.ops.aten
Description = tuple[str, dict[str, Any]] | str


def weight_shape(op: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Tables lose leading dimensions of size 1, tokens put before others the batch."""
    while op == "add_table" and len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape[1:] if op == "prepend" else shape


def add_table(node: fx.Node) -> Description:
    (table,) = weights(node)
    shape, mine = weight_shape("add_table", tuple(table.meta["val"].shape)), shape_of(node)  # type: ignore[union-attr]
    if node.kwargs.get("alpha", 1) != 1 or shape_of(sources(node)[0]) != mine or shape not in (mine, mine[1:]):
        return f"add that broadcasts or scales a constant of shape {shape} to {mine}"
    return "add_table", {}


def _layer_norm(node: fx.Node) -> Description:
    named, mine = arguments(node), shape_of(node)
    if len(mine) != 2 or list(named["normalized_shape"]) != [mine[1]]:
        return f"layer_norm over {list(named['normalized_shape'])} of {mine}; kernels normalise the features of tokens"
    return _constant_weights(node, "layer_norm", {"eps": float(named["eps"])})


def _constant_weights(node: fx.Node, op: str, attributes: dict[str, Any]) -> Description:
    computed = any(w is not None and w.op != "get_attr" for w in weights(node))
    return "its weight is computed, not constant" if computed else (op, attributes)


def _embedding(node: fx.Node) -> Description:
    if len(node.args) < 2 or len(shape_of(node)) != 2:
        return "an embedding of other than [N, T] ids"
    return _constant_weights(node, "embedding", {})


def _prepend(node: fx.Node) -> Description:
    parts, mine = list(node.args[0]), shape_of(node)  # type: ignore[arg-type]
    if len(mine) != 2 or arguments(node)["dim"] != 1 or len(parts) != 2 or parts[0].op != "get_attr" or parts[1].op == "get_attr":
        return "cat other than of constant tokens and tokens"
    prefix = constant(parts[0])
    if prefix is None or not torch.equal(prefix[:1].expand_as(prefix), prefix):
        return "cat of constant tokens that differ from sample to sample"
    return "prepend", {}


def _select(node: fx.Node) -> Description:
    named, size = arguments(node), shape_of(operands(node)[0])
    if len(size) != 2 or named["dim"] != 1 or named["index"] < 0:
        return f"select along dimension {named['dim']} of {size}; kernels select a token from the front"
    return "select_token", {"index": int(named["index"])}


def _mean(node: fx.Node) -> Description:
    named, size = arguments(node), shape_of(operands(node)[0])
    if len(size) != 2 or list(named["dim"] or ()) not in ([1], [-2]) or named["keepdim"] or named["dtype"] is not None:
        return "a mean other than over tokens"
    return "mean_tokens", {}


def _attention(node: fx.Node) -> Description:
    shapes = [shape_of(a) for a in sources(node)]
    computed_pairs = len(node.args) > 4 and isinstance(node.args[4], fx.Node) and node.args[4].op != "get_attr"
    constant_keys = len(node.args) > 3 and isinstance(node.args[3], fx.Node) and node.args[3].op == "get_attr"
    if any(len(shape) != 2 for shape in shapes[:3]) or len(shapes) not in (3, 4) or computed_pairs or constant_keys:
        return "attention with a computed bias of pairs, or a constant operand"
    return _constant_weights(node, "attention", dict(node.kwargs))


def _tokens(op: str) -> Callable[[fx.Node], Description]:
    return lambda node: (op, dict(node.kwargs))


def _pruning(function: Callable[..., Any]) -> Callable[[fx.Node], Description]:
    """Operators of `pruning_ops`: constants only as a bias per pair of tokens."""
    op = function.__name__

    def describe(node: fx.Node) -> Description:
        allowed = 1 if op == "token_scores" and len(node.args) > 3 and node.args[3] is not None else 0
        return (op, dict(node.kwargs)) if len(weights(node)) == allowed else f"{op} of constant or computed operands"

    return describe


TOKENS: dict[Any, Callable[[fx.Node], Description]] = {
    aten.layer_norm.default: _layer_norm,
    aten.embedding.default: _embedding,
    aten.cat.default: _prepend,
    aten.select.int: _select,
    aten.mean.dim: _mean,
    token_ops.attention: _attention,
    token_ops.key_bias: _tokens("key_bias"),
    token_ops.map_to_tokens: _tokens("map_to_tokens"),
    token_ops.tokens_to_map: _tokens("tokens_to_map"),
    **{function: _pruning(function) for function in pruning_ops.FUNCTIONS if function is not pruning_ops.gather_pairs},
}
