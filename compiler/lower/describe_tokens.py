"""Operators on tokens [N, T, F] as kernels: name and attributes, or the reason why there is none."""

from __future__ import annotations

import torch
from torch import fx

from sparsec.ir.arguments import arguments, operands, shape_of
from sparsec.ir.forms import constant
from sparsec.ir.miss import Miss
from sparsec.ir.operators.record import Description, Operator, Shape


def without_ones(shape: Shape) -> Shape:
    """The shape of a table without leading dimensions of size 1."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def of_a_sample(shape: Shape) -> Shape:
    """The shape of tokens that are the same in each sample, without the batch."""
    return shape[1:]


def add_table(node: fx.Node, operator: Operator) -> Description:
    """A constant for each token, for each feature, or for both is added."""
    (table,) = operator.weights(node)
    shape, mine = without_ones(tuple(table.meta["val"].shape)), shape_of(node)  # type: ignore[union-attr]
    if node.kwargs.get("alpha", 1) != 1 or shape_of(operator.sources(node)[0]) != mine or shape not in (mine, mine[1:]):
        return Miss(f"add that broadcasts or scales a constant of shape {shape} to {mine}")
    return "add_table", {}


def layer_norm(node: fx.Node, operator: Operator) -> Description:
    """Over the features of tokens."""
    named, mine = arguments(node), shape_of(node)
    if len(mine) != 2 or list(named["normalized_shape"]) != [mine[1]]:
        return Miss(f"layer_norm over {list(named['normalized_shape'])} of {mine}; kernels normalise the features of tokens")
    return Miss("its weight is computed, not constant") if operator.computed_weight(node) else ("layer_norm", {"eps": float(named["eps"])})


def embedding(node: fx.Node, operator: Operator) -> Description:
    """Rows of a constant table."""
    if len(node.args) < 2 or len(shape_of(node)) != 2:
        return Miss("an embedding of other than [N, T] ids")
    return Miss("its weight is computed, not constant") if operator.computed_weight(node) else ("embedding", {})


def prepend(node: fx.Node, operator: Operator) -> Description:
    """Constant tokens before others."""
    parts, mine = list(node.args[0]), shape_of(node)  # type: ignore[arg-type]
    if len(mine) != 2 or arguments(node)["dim"] != 1 or len(parts) != 2 or parts[0].op != "get_attr" or parts[1].op == "get_attr":
        return Miss("cat other than of constant tokens and tokens")
    prefix = constant(parts[0])
    if prefix is None or not torch.equal(prefix[:1].expand_as(prefix), prefix):
        return Miss("cat of constant tokens that differ from sample to sample")
    return "prepend", {}


def select(node: fx.Node, operator: Operator) -> Description:
    """One token, counted from the front."""
    named, size = arguments(node), shape_of(operands(node)[0])
    if len(size) != 2 or named["dim"] != 1 or named["index"] < 0:
        return Miss(f"select along dimension {named['dim']} of {size}; kernels select a token from the front")
    return "select_token", {"index": int(named["index"])}


def mean(node: fx.Node, operator: Operator) -> Description:
    """The mean over tokens."""
    named, size = arguments(node), shape_of(operands(node)[0])
    if len(size) != 2 or list(named["dim"] or ()) not in ([1], [-2]) or named["keepdim"] or named["dtype"] is not None:
        return Miss("a mean other than over tokens")
    return "mean_tokens", {}


def attention(node: fx.Node, operator: Operator) -> Description:
    """A bias per pair of tokens is a constant, all else is not."""
    shapes = [shape_of(a) for a in operator.sources(node)]
    computed_pairs = len(node.args) > 4 and isinstance(node.args[4], fx.Node) and node.args[4].op != "get_attr"
    constant_keys = len(node.args) > 3 and isinstance(node.args[3], fx.Node) and node.args[3].op == "get_attr"
    if any(len(shape) != 2 for shape in shapes[:3]) or len(shapes) not in (3, 4) or computed_pairs or constant_keys:
        return Miss("attention with a computed bias of pairs, or a constant operand")
    return operator.name, dict(node.kwargs)


def of_activations(node: fx.Node, operator: Operator) -> Description:
    """An operator of ours whose operands are computed but for its tables, such as a bias per pair of tokens."""
    tables = [node.args[at] for at in operator.places(node, "table") if at < len(node.args) and node.args[at] is not None]
    constants = list(operator.weights(node))
    return (operator.name, dict(node.kwargs)) if constants == tables else Miss(f"{operator.name} of constant or computed operands")
