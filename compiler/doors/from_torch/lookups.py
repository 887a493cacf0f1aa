"""Rows that a program looks up by numbers of its own: at some sizes there are none.

self.positions(torch.arange(x.shape[1]))     an Embedding(77, 512) has none for an x of 128 tokens
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten
#: Numbers that are kept.
_MOST = 1 << 16


class Lookups:
    """The whole numbers of a graph that follow from no input, and what is looked up by them."""

    def __init__(self) -> None:
        self._known: dict[fx.Node, Tensor] = {}

    def add(self, node: fx.Node, value: Any) -> None:
        """``value``: what a node has in every call."""
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.dtype.is_floating_point and value.numel() <= _MOST:
            self._known[node] = value

    def follow(self, node: fx.Node, found: Any) -> None:
        """The value of an operator whose operands are known; ``found``: a tensor like it, without data."""
        if not isinstance(found, Tensor) or found.dtype.is_floating_point or found.numel() > _MOST:
            return
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if not drawn and all(each in self._known for each in node.all_input_nodes):
            with suppress(Exception):
                self.add(node, node.target(*self._given(node.args), **self._given(node.kwargs)))  # type: ignore[operator]

    def missing(self, node: fx.Node) -> str:
        """Which row an operator looks up that is not there; empty if it is, or nothing is known."""
        for index, size in _looked_up(node):
            numbers = self._known.get(index)
            if numbers is None or not numbers.numel():
                continue
            least, most = int(numbers.min()), int(numbers.max())
            if most >= size or least < -size:
                return f"It looks up row {most if most >= size else least} of {size}."
        return ""

    def _given(self, arguments: Any) -> Any:
        return pytree.tree_map_only(fx.Node, self._known.__getitem__, arguments)


def _looked_up(node: fx.Node) -> list[tuple[fx.Node, int]]:
    """The tensors of numbers that an operator looks up by, and how many rows there are for each."""
    args: Any = node.args
    if node.target is aten.embedding.default:
        pairs = [(args[1], 0)]
    elif node.target in (aten.index_select.default, aten.gather.default):
        pairs = [(args[2], args[1])]
    elif node.target is aten.index.Tensor:
        pairs = [(index, axis) for axis, index in enumerate(args[1])]
    else:
        return []
    value = args[0].meta["val"] if isinstance(args[0], fx.Node) else None
    return [(index, value.shape[axis]) for index, axis in pairs if isinstance(index, fx.Node) and value is not None and value.dim()]
