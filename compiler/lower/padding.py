"""Padding removal: of a batch of sequences of unequal length, each runs with its own number of tokens.

A trailing token that every attention hides changes no token before it, so a program that takes its number of tokens at run time may stop
at the last valid one. Results of the tokens left out are zero. A row without any valid token runs whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
from torch import fx

from sparsec.errors import InvalidInput
from sparsec.ir.arguments import shape_of
from sparsec.ir.miss import Miss
from sparsec.ir.operands import is_row, sources
from sparsec.lower.follow import rearranged
from sparsec.lower.regions import Region, covers, extract
from sparsec.run.affine import Affine

SYMBOL = "tokens"


def removable(graph_module: fx.GraphModule, follows: dict[str, Affine]) -> tuple[fx.Node, dict[str, Affine]]:
    """The mask that says which tokens are padding, and the inputs that follow their number. InvalidInput where they cannot be removed."""
    regions = extract(graph_module, follows)
    whole = len(regions) == 1 and covers(regions[0], graph_module)
    mask = mask_of(regions[0]) if whole else Miss("parts of the graph are not in one region")
    reason = mask.reason if isinstance(mask, Miss) else ""
    if not isinstance(mask, Miss):
        follows = follows or follows_of(regions[0].inputs, mask)
        reason = rearranged(extract(graph_module, follows)[0])
    if isinstance(mask, Miss) or reason:
        raise InvalidInput("Padding cannot be removed.", why=reason, hint="Compile without remove_padding.")
    return mask, follows


def mask_of(region: Region) -> fx.Node | Miss:
    """The padding mask that hides tokens from every attention of a region, or why tokens may not be left out."""
    masks: set[fx.Node] = set()
    for node, spec in region.specs.items():
        hidden = None if spec.operator.padding is None else spec.operator.padding(node)
        if isinstance(hidden, Miss):
            return Miss(f"{node.name} {hidden.reason}", node)
        if hidden is not None:
            masks.add(hidden)
    if len(masks) != 1:
        return Miss(f"there are {len(masks)} padding masks")
    (mask,) = masks
    if mask not in region.inputs:
        return Miss(f"the mask {mask.name} is computed")
    strangers = set(follows_of(region.inputs, mask)) - {node.name for node in _alike(region, mask)}
    return Miss(f"{min(strangers)} has as many tokens as {mask.name}, which says nothing of them") if strangers else mask


def _alike(region: Region, mask: fx.Node) -> set[fx.Node]:
    """Values whose tokens are those of the mask: what operators on single tokens and the keys and values of attention join."""
    tokens = nx.Graph()
    tokens.add_node(mask)
    for node, spec in region.specs.items():
        read = list(sources(node))
        query = [read.pop(0)] if spec.operator.attends else []
        joined = [a for a in read if _has_tokens(a)]
        nx.add_path(tokens, joined)
        if _has_tokens(node):
            nx.add_path(tokens, [node, *(query or joined[:1])])
    return nx.node_connected_component(tokens, mask)


def _has_tokens(node: fx.Node) -> bool:
    return is_row(node) or len(shape_of(node)) == 2


def follows_of(inputs: Sequence[fx.Node], mask: fx.Node) -> dict[str, Affine]:
    """Inputs of as many tokens as the mask, by name, for a graph of fixed sizes."""
    (tokens,) = shape_of(mask)
    return {n.name: Affine(SYMBOL) for n in inputs if _has_tokens(n) and shape_of(n)[0] == tokens}
