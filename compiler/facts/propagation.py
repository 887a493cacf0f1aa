"""Facts through a graph, forward from constants and backward from readers, by the rules of each operator's record."""

from __future__ import annotations

from torch import fx

from sparsec.facts.backward import Channels, Reads, all_channels, same
from sparsec.facts.lattice import NOTHING, Fact
from sparsec.ir.arguments import is_identity
from sparsec.ir.forms import constant, is_value, known_fact
from sparsec.ir.operators import operator_of


def forward(node: fx.Node) -> Fact:
    """What is proved of a node's value from the facts of its inputs; of a constant, what is measured. Nothing without a rule."""
    if node.op == "get_attr":
        tensor = constant(node)
        return NOTHING if tensor is None else Fact.of(tensor)
    if node.op != "call_function" or not is_value(node):
        return NOTHING
    if is_identity(node):
        return known_fact(node.args[0])
    operator = operator_of(node)
    return NOTHING if operator is None or operator.forward is None else operator.forward(node)


def channels_read(graph: fx.Graph) -> dict[fx.Node, Channels]:
    """For each value, the channels that some user reads. A channel that nobody reads is dead; the outputs of a graph read everything."""
    read: dict[fx.Node, Channels] = {node: frozenset() for node in graph.nodes}
    for node in reversed(graph.nodes):
        for producer, channels in reads_of(node, read[node]):
            read[producer] |= channels
    return read


def reads_of(node: fx.Node, wanted: Channels) -> Reads:
    """Which channels of each input ``node`` reads to produce its channels ``wanted``; all of those that no rule speaks of."""
    ruled = tuple(_ruled(node, wanted))
    covered = {producer for producer, _ in ruled}
    return (*ruled, *((producer, all_channels(producer)) for producer in node.all_input_nodes if producer not in covered))


def _ruled(node: fx.Node, wanted: Channels) -> Reads:
    if node.op != "call_function" or not node.args:
        return ()
    if is_value(node) and is_identity(node):
        return same(node, wanted)
    operator = operator_of(node)
    return () if operator is None or operator.backward is None else operator.backward(node, wanted)
