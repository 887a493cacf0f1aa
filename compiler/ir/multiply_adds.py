"""Multiply-adds of operators that multiply values with many others: the rules that their records name."""

import math

from torch import fx

from sparsec.ir.arguments import arguments


def of_layer(node: fx.Node) -> int:
    """Each output of a linear layer or a convolution meets one filter."""
    return node.meta["val"].numel() * math.prod(arguments(node)["weight"].meta["val"].shape[1:])


def of_attention(node: fx.Node) -> int:
    """Each query meets each key, and their weight each value."""
    query, key, value = (arguments(node)[name].meta["val"] for name in ("query", "key", "value"))
    return query.shape[0] * query.shape[1] * key.shape[1] * (query.shape[2] + value.shape[2])
