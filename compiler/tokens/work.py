"""Multiply-adds of a graph as a function of how many tokens are left where."""

from collections.abc import Sequence

from torch import fx

from sparsec.ir.forms import is_value
from sparsec.ir.operators import operator_of
from sparsec.tokens.token_rules import Followed


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
    operator = operator_of(node)
    if operator is None or operator.multiply_adds is None:
        return 0
    power = 2 if operator.attends else 1
    return operator.multiply_adds(node) * left**power // of**power
