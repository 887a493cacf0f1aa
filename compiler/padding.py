"""Padding removal: of a batch of sequences of unequal length, each runs with its own number of tokens.

A trailing token that every attention hides changes no token before it, so a program that takes its number of tokens at run time may stop
at the last valid one. Results of the tokens left out are zero. A row without any valid token runs whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
from torch import fx

from sparsec.calls import arguments
from sparsec.errors import InvalidInput
from sparsec.follow import rearranged
from sparsec.operands import is_row, shape_of, sources
from sparsec.regions import Follows, Region, covers, extract
from sparsec.tokens import ops as token_ops

SYMBOL = "tokens"
#: exp of a score this far below another is 0 in float32.
HIDDEN = -1e4


def removable(graph_module: fx.GraphModule, follows: dict[str, Follows]) -> tuple[fx.Node, dict[str, Follows]]:
    """The mask that says which tokens are padding, and the inputs that follow their number. InvalidInput where they cannot be removed."""
    regions = extract(graph_module, follows)
    whole = len(regions) == 1 and covers(regions[0], graph_module)
    mask = mask_of(regions[0]) if whole else "parts of the graph are not in one region"
    if not isinstance(mask, str):
        follows = follows or follows_of(regions[0].inputs, mask)
        mask = rearranged(extract(graph_module, follows)[0]) or mask
    if isinstance(mask, str):
        raise InvalidInput("Padding cannot be removed.", why=mask, hint="Compile without remove_padding.")
    return mask, follows


def mask_of(region: Region) -> fx.Node | str:
    """The padding mask that hides tokens from every attention of a region, or why tokens may not be left out."""
    masks: set[fx.Node] = set()
    for node, spec in region.specs.items():
        if spec.op == "mean_tokens":
            return f"{node.name} averages over all tokens, padding included"
        if spec.op in ("keep_tokens", "merge_plan"):
            return f"{node.name} chooses among all tokens, padding included"
        if spec.op == "select_token" and spec["index"] > 0:
            return f"{node.name} reads token {spec['index']}, which may be padding"
        if node.target is token_ops.attention:
            bias = node.args[3] if len(node.args) > 3 else None
            if not isinstance(bias, fx.Node) or bias.target is not token_ops.key_bias or arguments(bias)["off"] > HIDDEN:
                return f"{node.name} has no mask that hides padding"
            masks.add(bias.args[0])  # type: ignore[arg-type]
    if len(masks) != 1:
        return f"there are {len(masks)} padding masks"
    (mask,) = masks
    if mask not in region.inputs:
        return f"the mask {mask.name} is computed"
    strangers = set(follows_of(region.inputs, mask)) - {node.name for node in _alike(region, mask)}
    return f"{min(strangers)} has as many tokens as {mask.name}, which says nothing of them" if strangers else mask


def _alike(region: Region, mask: fx.Node) -> set[fx.Node]:
    """Values whose tokens are those of the mask: what operators on single tokens and the keys and values of attention join."""
    tokens = nx.Graph()
    tokens.add_node(mask)
    for node in region.specs:
        read = list(sources(node))
        query = [read.pop(0)] if node.target is token_ops.attention else []
        joined = [a for a in read if _has_tokens(a)]
        nx.add_path(tokens, joined)
        if _has_tokens(node):
            nx.add_path(tokens, [node, *(query or joined[:1])])
    return nx.node_connected_component(tokens, mask)


def _has_tokens(node: fx.Node) -> bool:
    return is_row(node) or len(shape_of(node)) == 2


def follows_of(inputs: Sequence[fx.Node], mask: fx.Node) -> dict[str, Follows]:
    """Inputs of as many tokens as the mask, by name, for a graph of fixed sizes."""
    (tokens,) = shape_of(mask)
    return {n.name: (SYMBOL, 0) for n in inputs if _has_tokens(n) and shape_of(n)[0] == tokens}
