"""The forms a graph passes through, in order, and what is noted of its nodes. `sparsec.ir.form_checks` says what a form promises."""

import enum

import torch
from torch import fx

from sparsec.facts.lattice import Fact


class Form(enum.IntEnum):
    """How far a graph has come; a later form includes the conditions of the earlier ones."""

    CAPTURED = 0
    INFERRED = 1
    FUSED = 2
    LAID_OUT = 3
    REGIONS = 4


def notes(node: fx.Node) -> dict:
    """What is recorded of a node under meta["custom"]["sparsec"], without creating it."""
    return node.meta.get("custom", {}).get("sparsec", {})


def is_value(node: fx.Node) -> bool:
    """Whether the node stands for one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def constant(node: object) -> torch.Tensor | None:
    """The tensor behind a get_attr node; None for every other argument. Not to be written to."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or node.graph.owning_module is None:
        return None
    found = lookup(node.graph.owning_module, str(node.target))
    return found if isinstance(found, torch.Tensor) else None


def known_fact(node: object) -> Fact:
    """What is proved of a node; nothing known where no fact was inferred or the argument is no node."""
    return notes(node).get("fact", Fact()) if isinstance(node, fx.Node) else Fact()


def lookup(graph_module: fx.GraphModule, target: str) -> object:
    """The attribute that a dotted get_attr target names, or None."""
    found: object = graph_module
    for part in target.split("."):
        found = getattr(found, part, None)
    return found
