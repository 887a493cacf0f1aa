"""Facts backward: which channels of each value anybody reads. A channel that nobody reads is dead.

A channel is an index of dimension 1; a value of fewer dimensions counts as one channel. The outputs of a graph read
everything, and so does an operator without a rule.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from sparsec.calls import activation_of, arguments, is_identity, layer_of
from sparsec.forms import is_value
from sparsec.transfer import (
    AVERAGES,
    PRODUCTS,
    RESHAPES,
    SUMS,
    averages_apart,
    cat_spans,
    channel_count,
    flattening,
    keeps_channels,
    pools_apart,
    reached,
)

aten = torch.ops.aten
Channels = frozenset[int]
Reads = Iterable[tuple[fx.Node, Channels]]


def channels_read(graph: fx.Graph) -> dict[fx.Node, Channels]:
    """For each value, the channels that some user reads."""
    read: dict[fx.Node, Channels] = {node: frozenset() for node in graph.nodes}
    for node in reversed(graph.nodes):
        for producer, channels in reads_of(node, read[node]):
            read[producer] |= channels
    return read


def reads_of(node: fx.Node, wanted: Channels) -> Reads:
    """Which channels of each input `node` reads to produce its channels `wanted`."""
    ruled = tuple(_ruled(node, wanted))
    return (*ruled, *_rest(node, ruled))


def _rest(node: fx.Node, ruled: Reads) -> Reads:
    """Inputs that no rule speaks of are read in full."""
    covered = {producer for producer, _ in ruled}
    return tuple((producer, all_channels(producer)) for producer in node.all_input_nodes if producer not in covered)


def all_channels(node: fx.Node) -> Channels:
    """Every channel of a value."""
    return frozenset(range(channel_count(node)))


def _ruled(node: fx.Node, wanted: Channels) -> Reads:
    if node.op != "call_function" or not node.args:
        return ()
    if (layer := layer_of(node)) is not None:
        return _layer(layer, wanted)
    if is_value(node) and (is_identity(node) or activation_of(node) is not None):
        return _same(node, wanted)
    rule = BACKWARD.get(node.target)
    return rule(node, wanted) if rule is not None else ()


def _same(node: fx.Node, wanted: Channels) -> Reads:
    source = node.all_input_nodes[0]
    return ((source, wanted),) if is_value(node) and channel_count(node) == channel_count(source) else ()


def _layer(layer: Any, wanted: Channels) -> Reads:
    weight = layer.constant_weight
    if weight is None or not layer.makes_channels:
        return ()
    rows = reached(weight, layer.groups)[sorted(wanted)]
    reads = [(layer.x, frozenset(torch.nonzero(rows.any(0)).flatten().tolist()))]
    if layer.residual is not None:
        reads.append((layer.residual, wanted))
    return merged(reads)


def merged(reads: Reads) -> Reads:
    """One entry per node: a node that is read twice is read in both ways."""
    together: dict[fx.Node, Channels] = {}
    for node, channels in reads:
        together[node] = together.get(node, frozenset()) | channels
    return tuple(together.items())


def _binary(node: fx.Node, wanted: Channels) -> Reads:
    operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node) and is_value(operand)]
    return merged((o, wanted if keeps_channels(o, node) else all_channels(o)) for o in operands)


def _mean(node: fx.Node, wanted: Channels) -> Reads:
    return _first(node, wanted) if averages_apart(node) else ()


def _max_pool(node: fx.Node, wanted: Channels) -> Reads:
    return _first(node, wanted) if pools_apart(node) else ()


def _cat(node: fx.Node, wanted: Channels) -> Reads:
    named, rank = arguments(node), node.meta["val"].dim()
    if rank < 2 or named["dim"] % rank != 1:
        return ()
    return merged((part, frozenset(c - start for c in wanted if start <= c < end)) for part, start, end in cat_spans(node))


def _reshape(node: fx.Node, wanted: Channels) -> Reads:
    times = flattening(node)
    return ((node.args[0], frozenset(c // times for c in wanted)),) if times else ()  # type: ignore[return-value]


def _first(node: fx.Node, wanted: Channels) -> Reads:
    """Operators that keep channels apart and read parameters in full beside their first input."""
    return ((node.args[0], wanted),)  # type: ignore[return-value]


BACKWARD: dict[Any, Callable[[fx.Node, Channels], Reads]] = {
    **dict.fromkeys((*SUMS, *PRODUCTS), _binary),
    **dict.fromkeys(AVERAGES, _mean),
    **dict.fromkeys(RESHAPES, _reshape),
    aten.batch_norm.default: _first,
    aten.max_pool2d.default: _max_pool,
    aten.cat.default: _cat,
}
