"""Multiply-adds of a graph as a function of how many tokens are left where."""

import math
from collections.abc import Sequence

import torch
from torch import fx

from sparsec.calls import arguments
from sparsec.forms import is_value
from sparsec.tokens import ops as token_ops
from sparsec.tokens.token_rules import Followed

aten = torch.ops.aten


class TokenWork:
    """Counts the multiply-adds of linear layers, convolutions and attention when tokens go at the starts of `cuts`, in order."""

    def __init__(self, graph: fx.Graph, cuts: Sequence[Followed]) -> None:
        self._cuts = cuts
        self._nodes = [node for node in graph.nodes if node.op == "call_function" and is_value(node)]
        after = [set(cut.carriers) - {cut.start} for cut in cuts]
        self._stage = {node: sum(node in carriers for carriers in after) for node in self._nodes}

    def __call__(self, counts: Sequence[int]) -> int:
        """All multiply-adds of a batch if counts[i] tokens are left after cut i."""
        shares = [(1, 1), *((count, self._cuts[0].tokens) for count in counts)]
        return sum(_work(node, *shares[self._stage[node]]) for node in self._nodes)


def _work(node: fx.Node, left: int, of: int) -> int:
    """Multiply-adds of a node of whose tokens `left` in `of` are left."""
    value = node.meta["val"]
    if node.target is aten.linear.default:
        return value.numel() * arguments(node)["weight"].meta["val"].shape[1] * left // of
    if node.target is aten.conv2d.default:
        return value.numel() * math.prod(arguments(node)["weight"].meta["val"].shape[1:])
    if node.target is token_ops.attention:
        query, key, values = (arguments(node)[name].meta["val"] for name in ("query", "key", "value"))
        return query.shape[0] * query.shape[1] * key.shape[1] * (query.shape[2] + values.shape[2]) * left * left // (of * of)
    return 0
