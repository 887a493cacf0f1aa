"""What operators do to facts backward: which channels they read to produce others. The rules that their records name.

A channel is an index of dimension 1; a value of fewer dimensions counts as one channel. An input that a rule does not speak of is read
in full.
"""

from collections.abc import Iterable

import torch
from torch import fx

from sparsec.facts.forward import averages_apart, cat_spans, channel_count, flattening, keeps_channels, pools_apart, reached
from sparsec.ir.arguments import activation_of, arguments, layer_of
from sparsec.ir.forms import is_value

Channels = frozenset[int]
Reads = Iterable[tuple[fx.Node, Channels]]


def all_channels(node: fx.Node) -> Channels:
    """Every channel of a value."""
    return frozenset(range(channel_count(node)))


def same(node: fx.Node, wanted: Channels) -> Reads:
    """Channel c of the result is made of channel c of the input alone."""
    source = node.all_input_nodes[0]
    return ((source, wanted),) if is_value(node) and channel_count(node) == channel_count(source) else ()


def of_activation(node: fx.Node, wanted: Channels) -> Reads:
    """An activation of ours."""
    return same(node, wanted) if activation_of(node) is not None else ()


def of_layer(node: fx.Node, wanted: Channels) -> Reads:
    """The inputs that weights other than zero reach from the outputs that are read."""
    layer = layer_of(node)
    if layer is None or layer.constant_weight is None or not layer.makes_channels:
        return ()
    rows = reached(layer.constant_weight, layer.groups)[sorted(wanted)]
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


def of_both(node: fx.Node, wanted: Channels) -> Reads:
    """Channel by channel, where an operand has the channels of the result."""
    operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node) and is_value(operand)]
    return merged((o, wanted if keeps_channels(o, node) else all_channels(o)) for o in operands)


def of_average(node: fx.Node, wanted: Channels) -> Reads:
    """Where it keeps channels apart."""
    return of_first(node, wanted) if averages_apart(node) else ()


def of_max_pool(node: fx.Node, wanted: Channels) -> Reads:
    """Where it keeps channels apart."""
    return of_first(node, wanted) if pools_apart(node) else ()


def of_cat(node: fx.Node, wanted: Channels) -> Reads:
    """Each part gives its own channels."""
    named, rank = arguments(node), node.meta["val"].dim()
    if rank < 2 or named["dim"] % rank != 1:
        return ()
    return merged((part, frozenset(c - start for c in wanted if start <= c < end)) for part, start, end in cat_spans(node))


def of_reshape(node: fx.Node, wanted: Channels) -> Reads:
    """Where no channels are mixed."""
    times = flattening(node)
    return ((node.args[0], frozenset(c // times for c in wanted)),) if times else ()  # type: ignore[return-value]


def of_first(node: fx.Node, wanted: Channels) -> Reads:
    """Operators that keep channels apart and read parameters in full beside their first input."""
    return ((node.args[0], wanted),)  # type: ignore[return-value]
