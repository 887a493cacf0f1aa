"""Writes through views that torch's functional form of a program does not follow: eager mode means something else than it.

b = y[:, :1].expand(2, 12)       eager: y[:, 0] is 0.5
b.fill_(0.5)                     functional: y[:, 0] + 12 times (0.5 - y[:, 0])

b = y.unfold(0, 3, 3)            eager: what no window shows stays
b.mul_(2)                        functional: it is 0

b = y.unsafe_chunk(2)[0]         eager: y changes too
b.mul_(2)                        functional: it does not
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsec.doors.from_torch.aliasing import UNSAFE, storages, viewed
from sparsec.doors.from_torch.lower import source_of
from sparsec.doors.from_torch.randomness import arguments
from sparsec.errors import UnsupportedModel

aten = torch.ops.aten


class UnfollowedWrite(UnsupportedModel):
    """A model that torch's own compilers get wrong, or refuse; eager mode is right."""


def refuse_unfollowed_writes(graph_module: fx.GraphModule) -> None:
    """UnfollowedWrite where a graph that is not functional yet has such a write."""
    for part in graph_module.modules():
        if isinstance(part, fx.GraphModule):
            unsaid = {storage for node in part.graph.nodes if node.target in UNSAFE for storage in storages(node)}
            for node in part.graph.nodes:
                for operand in written(node):
                    if reason := _reason(operand, unsaid):
                        raise UnfollowedWrite(
                            "The model writes to a view in a way that torch's compilers do not follow.",
                            where=source_of(node),
                            why=f"{node.target} of {reason}.",
                            hint="Write to what the view was made of, or to a clone.",
                        )


def written(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that an operator writes to."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return
    given = arguments(schema, node.args, node.kwargs)
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (leaf for leaf in pytree.tree_leaves(given.get(argument.name)) if isinstance(leaf, fx.Node))


def _reason(operand: fx.Node, unsaid: set[int]) -> str:
    """Why a write to ``operand`` is not followed; ``unsaid``: memory that operators show which do not say so."""
    if any(isinstance(value, Tensor) and overlaps(value) for value in pytree.tree_leaves(operand.meta.get("val"))):
        return "a tensor whose elements share memory"
    if unsaid.intersection(storages(operand)):
        return "memory that an unsafe view shows"
    source: fx.Node | None = operand
    while source is not None:
        if source.target is aten.unfold.default and not _tiles(source):
            return "windows that are no tiling of a tensor"
        source = viewed(source)
    return ""


def _tiles(unfold: fx.Node) -> bool:
    """Whether each element of what is unfolded is in one window."""
    source, axis, size, step = unfold.args
    length = source.meta["val"].shape[axis]  # type: ignore[union-attr,index]
    return bool(size == step) and number_of(length) % number_of(size) == 0


def overlaps(tensor: Tensor) -> bool:
    """Whether two elements may lie in one place; exact but for strides that interleave axes without sharing, which count as shared.

    Along axes by increasing stride, each stride has to reach beyond all that smaller ones cover.
    """
    if tensor.layout != torch.strided:
        return False
    axes = sorted((number_of(step), number_of(size)) for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    if any(size == 0 for _, size in axes):
        return False
    covered = 1
    for step, size in axes:
        if size > 1 and step < covered:
            return True
        covered += (size - 1) * step
    return False


def number_of(size: Any) -> int:
    """A size of the example, without fixing a free one to it."""
    return size if isinstance(size, int) else int(size.node.hint)
