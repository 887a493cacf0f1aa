"""Views of a sample as specs: another shape in the same order of elements, or another order of the axes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from sparsec.ir.arguments import operands, shape_of
from sparsec.ir.miss import Miss
from sparsec.ir.operators.record import Description, Operator

aten = torch.ops.aten

#: Those whose sizes are written out, the batch's among them.
_LITERAL = frozenset({aten.view.default, aten.reshape.default, aten._unsafe_view.default})
#: Elements that are moved one by one at most: each takes a place in a table of constants.
MOST = 1 << 20


def reshaped(node: fx.Node, operator: Operator) -> Description:
    """Another shape, or a copy."""
    if node.target not in _LITERAL and _applied(node, (2, *shape_of(operands(node)[0]))) != (2, *shape_of(node)):
        return Miss(f"it makes {list(node.meta['val'].shape)} of {list(operands(node)[0].meta['val'].shape)} for a batch of one only")
    return "alias", {}


def permuted(node: fx.Node, operator: Operator) -> Description:
    """Another order of the axes of a sample."""
    before = shape_of(operands(node)[0])
    rank = len(before) + 1
    dims = [size - 2 for size in _applied(node, range(2, 2 + rank))]
    if dims[0] != 0:
        return Miss(f"it turns the batch: {dims}")
    if math.prod(before) > MOST:
        return Miss(f"it turns {math.prod(before)} elements, which are moved one by one")
    return "permute", {"dims": tuple(dim - 1 for dim in dims[1:])}


def _applied(node: fx.Node, shape: Any) -> tuple[int, ...]:
    """The shape that a view of a value of another shape has."""
    return tuple(node.target(torch.empty(tuple(shape), device="meta"), *node.args[1:], **node.kwargs).shape)  # type: ignore[operator]
