"""Which values of a graph carry which tokens, and what happens to tokens on their way to the outputs.

A value [N, T, F] carries the tokens it was made of one by one: dimension 1 of both is the same axis. `TokenSets` finds the values that
share an axis; `follow` proves that all uses of a value treat its tokens one by one (or as keys of attention), so that some may be left
out, and lists the operands that must lose the same tokens.
"""

from collections.abc import Iterable

import networkx as nx
from torch import fx

from sparsec.facts.forward import SUMS
from sparsec.ir.arguments import arguments
from sparsec.ir.miss import Miss
from sparsec.ir.operators import operator_of
from sparsec.tokens import ops as token_ops
from sparsec.tokens.token_rules import UNKNOWN, ByToken, Followed, is_tokens, token_count


def follow(start: fx.Node) -> Followed | Miss:
    """Follow the tokens of a value to every use, or say at which node that fails and why."""
    found, carried = Followed(start, [start]), {start}
    for node in _after(start):
        if not any(source in carried for source in node.all_input_nodes):
            continue
        if node.op == "output":
            found.returned = [source for source in node.all_input_nodes if source in carried]
            continue
        outcome = _treats(node).step(node, carried, found)
        if isinstance(outcome, Miss):
            return outcome.at(node)
        if outcome:
            carried.add(node)
            found.carriers.append(node)
    return found


def _after(start: fx.Node) -> Iterable[fx.Node]:
    node = start.next
    while node.op != "root":
        yield node
        node = node.next


def _treats(node: fx.Node) -> ByToken:
    operator = operator_of(node)
    return UNKNOWN if operator is None else operator.by_token


class TokenSets:
    """Groups the values of a graph that carry the same tokens: `of(node)` is one number per group, None where there are no tokens."""

    def __init__(self, graph: fx.Graph) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}
        self._numbers = {node: number for number, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            if node.op in ("placeholder", "call_function") and is_tokens(node):
                self._parent[node] = node
                for source in _treats(node).sources(node):
                    self._unite(source, node)

    def of(self, node: object) -> int | None:
        """The number of the group of a node."""
        return self._numbers[self._root(node)] if node in self._parent else None  # type: ignore[arg-type,index]

    def _root(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node

    def _unite(self, a: fx.Node, b: fx.Node) -> None:
        if a in self._parent:
            a, b = sorted((self._root(a), self._root(b)), key=self._numbers.__getitem__)
            self._parent[b] = a


def self_attentions(graph: fx.Graph) -> list[fx.Node]:
    """The attention of tokens among themselves, in order: what "block" numbers count, from 1."""
    sets, found = TokenSets(graph), []
    for node in graph.nodes:
        if node.target is token_ops.attention:
            named = arguments(node)
            groups = {sets.of(named[name]) for name in ("query", "key", "value")}
            if len(groups) == 1 and None not in groups:
                found.append(node)
    return found


def exit_of(attention: fx.Node, *, normed: bool = False) -> fx.Node | Miss:
    """The value that ends the block of an attention: the last residual sum that everything after it depends on alone.

    That is a sum of two values on the chain of post-dominators of the attention (every way from the attention to an output leads
    through it) before the next attention; where there is no such sum, or with `normed`, the last tokens of that chain: there the
    normalisation that follows the sum in some models is behind the block's end, too.
    """
    graph = attention.graph
    forward = nx.DiGraph((source, node) for node in graph.nodes for source in node.all_input_nodes)
    (output,) = graph.find_nodes(op="output")
    above = nx.immediate_dominators(forward.reverse(), output)
    if attention not in above:
        return Miss("nothing depends on this attention", attention)
    later = _behind_next_attention(forward, attention)
    chain = []
    node = above[attention]
    while node is not None and node is not output and node not in later:
        if is_tokens(node) and token_count(node) == token_count(attention):
            chain.append(node)
        node = above.get(node)
    sums = [node for node in chain if _is_residual_sum(node)]
    if not chain:
        return Miss("no value after this attention holds all that later layers read of its tokens", attention)
    return (chain if normed else sums or chain)[-1]


def _behind_next_attention(forward: nx.DiGraph, attention: fx.Node) -> set[fx.Node]:
    """All that depends on another attention which depends on this one."""
    behind = nx.descendants(forward, attention)
    found: set[fx.Node] = set()
    for node in behind:
        if node.target is token_ops.attention and node not in found:
            found |= {node} | nx.descendants(forward, node)
    return found


def _is_residual_sum(node: fx.Node) -> bool:
    """Whether a node adds two values that are tokens, none of them a constant."""
    operands = node.args[:2]
    return node.target in SUMS and all(is_tokens(each) and each.op != "get_attr" for each in operands)  # type: ignore[union-attr]
