"""Which values of a graph carry which tokens, and what happens to tokens on their way to the outputs.

A value [N, T, F] carries the tokens it was made of one by one: dimension 1 of both is the same axis. `TokenSets` finds the values that
share an axis; `follow` proves that all uses of a value treat its tokens one by one (or as keys of attention), so that some may be left
out, and lists the operands that must lose the same tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import networkx as nx
import torch
from torch import fx

from sparsec.calls import IDENTITIES, arguments, is_identity
from sparsec.forms import ACTIVATION_OPS, is_value
from sparsec.graph import Miss
from sparsec.tokens import ops as token_ops
from sparsec.transfer import PRODUCTS, SUMS

aten = torch.ops.aten
QUOTIENTS = frozenset({aten.div.Tensor})
DIFFERENCES = frozenset({aten.sub.Tensor})
ELEMENTWISE = SUMS | PRODUCTS | QUOTIENTS | DIFFERENCES
CASTS = frozenset({aten.to.dtype, aten._to_copy.default, *IDENTITIES})
DROPOUTS = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})

Kind = Literal["tokens", "keys", "pairs"]


@dataclass(frozen=True)
class Aligned:
    """An operand of `node` that lies along the tokens without carrying them: [N or 1,T,F] or [T,F] "tokens", [N,T] "keys", or "pairs"."""

    node: fx.Node
    name: str
    operand: fx.Node
    kind: Kind


@dataclass
class Followed:
    """What becomes of the tokens of `start`.

    `carriers`: values with these tokens, in order, `start` first. `aligned`: operands that must lose the same tokens. `reads`: positions
    that are read on their own, each with a reader. `means`: averages over the tokens. `returned`: carriers that the graph returns.
    """

    start: fx.Node
    carriers: list[fx.Node] = field(default_factory=list)
    aligned: list[Aligned] = field(default_factory=list)
    reads: dict[int, fx.Node] = field(default_factory=dict)
    means: list[fx.Node] = field(default_factory=list)
    returned: list[fx.Node] = field(default_factory=list)

    @property
    def attentions(self) -> list[fx.Node]:
        """The attention of these tokens among themselves, in order."""
        return [node for node in self.carriers if node.target is token_ops.attention]

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return token_count(self.start)


def is_tokens(node: object) -> bool:
    """Whether a node stands for floating-point tokens [N, T, F] with a constant number of tokens."""
    if not isinstance(node, fx.Node) or not is_value(node):
        return False
    value = node.meta["val"]
    return value.dim() == 3 and value.is_floating_point() and isinstance(value.shape[1], int)


def token_count(node: fx.Node) -> int:
    """T of a value [N, T, F]."""
    return node.meta["val"].shape[1]


def follow(start: fx.Node) -> Followed | Miss:
    """Follow the tokens of a value to every use, or say at which node that fails and why."""
    found, carried = Followed(start, [start]), {start}
    for node in _after(start):
        if not any(source in carried for source in node.all_input_nodes):
            continue
        if node.op == "output":
            found.returned = [source for source in node.all_input_nodes if source in carried]
            continue
        outcome = _step(node, carried, found)
        if isinstance(outcome, str):
            return Miss(outcome, node)
        if outcome:
            carried.add(node)
            found.carriers.append(node)
    return found


def _after(start: fx.Node) -> Iterable[fx.Node]:
    node = start.next
    while node.op != "root":
        yield node
        node = node.next


def _step(node: fx.Node, carried: set[fx.Node], found: Followed) -> bool | str:
    """Whether `node`, which reads carried values, carries them on; or why it cannot be followed."""
    if node.target is token_ops.attention:
        return _attention(node, carried, found)
    if node.target in ELEMENTWISE:
        return _elementwise(node, carried, found)
    if node.target in (aten.select.int, aten.slice.Tensor):
        return _selection(node, found)
    if node.target is aten.mean.dim:
        return _mean(node, found)
    reason = _unary_refusal(node, carried)
    return reason or True


def _unary_refusal(node: fx.Node, carried: set[fx.Node]) -> str:
    """Why an operator of one tokens operand does not treat tokens one by one; "" where it does."""
    named = arguments(node) if node.op == "call_function" else {}
    if any(value in carried for value in list(named.values())[1:] if isinstance(value, fx.Node)):
        return f"{_name(node)} uses tokens as parameters"
    if node.target is aten.layer_norm.default:
        return "" if len(named["normalized_shape"]) == 1 else "the normalisation is over more than the features of a token"
    if node.target in (aten.linear.default, *ACTIVATION_OPS, *CASTS):
        return ""
    if node.target in DROPOUTS and is_identity(node):
        return ""
    return f"{_name(node)} is not known to treat tokens one by one"


def _attention(node: fx.Node, carried: set[fx.Node], found: Followed) -> bool | str:
    named = arguments(node)
    if not all(named[name] in carried for name in ("query", "key", "value")):
        return "queries, keys and values are not of the same tokens"
    for name, kind in (("key_bias", "keys"), ("pair_bias", "pairs")):
        if named[name] in carried:
            return f"{name} is made of tokens"
        if named[name] is not None:
            found.aligned.append(Aligned(node, name, named[name], kind))  # type: ignore[arg-type]
    return True


def _elementwise(node: fx.Node, carried: set[fx.Node], found: Followed) -> bool | str:
    named = arguments(node)
    rank = node.meta["val"].dim()
    for name, operand in list(named.items())[:2]:
        if not isinstance(operand, fx.Node) or operand in carried:
            continue
        shape = operand.meta["val"].shape
        if len(shape) > 3 or rank != 3:
            return f"{operand.name} gives the tokens a further dimension"
        if len(shape) >= 2 and shape[-2] != 1:
            found.aligned.append(Aligned(node, name, operand, "tokens"))
    return True


def _selection(node: fx.Node, found: Followed) -> bool | str:
    named, tokens = arguments(node), token_count(found.start)
    if named["dim"] % 3 != 1:
        return f"{_name(node)} takes a part of the features or of the batch"
    if node.target is aten.select.int:
        positions = [named["index"] % tokens]
    else:
        positions = list(range(tokens)[slice(named["start"], named["end"], named["step"])])
    found.reads.update(dict.fromkeys(positions, node))
    return False


def _mean(node: fx.Node, found: Followed) -> bool | str:
    if [dim % 3 for dim in arguments(node)["dim"] or ()] != [1]:
        return "the mean is not over the tokens alone"
    found.means.append(node)
    return False


def _name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", str(node.target))


class TokenSets:
    """Groups the values of a graph that carry the same tokens: `of(node)` is one number per group, None where there are no tokens."""

    def __init__(self, graph: fx.Graph) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}
        self._numbers = {node: number for number, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            if node.op in ("placeholder", "call_function") and is_tokens(node):
                self._parent[node] = node
                for source in _sources(node):
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


def _sources(node: fx.Node) -> list[fx.Node]:
    """The operands whose tokens the value of `node` has, one by one."""
    if node.op != "call_function":
        return []
    if node.target is token_ops.attention:
        return [arguments(node)["query"]]
    if node.target in ELEMENTWISE:
        shape = node.meta["val"].shape
        operands = [each for each in node.args[:2] if isinstance(each, fx.Node) and is_tokens(each)]
        return [each for each in operands if token_count(each) == shape[1]]
    operands = [each for each in node.all_input_nodes if is_tokens(each)]
    return operands[:1] if len(operands) == 1 and not _unary_refusal(node, set(operands)) else []


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
