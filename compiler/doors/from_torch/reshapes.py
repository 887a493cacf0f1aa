"""Writes beside a reshape that is a view or a copy by the strides of a computed value.

y = norm(x)                a view where the norm lays its result out in rows: then y is 0 as well. A trace goes by the strides of stand-ins,
y.flatten(1).zero_()       which are not always those of eager mode: torch's own fast paths, and kernels that lay out results otherwise than
return y                   their stand-ins, differ. So the model is run once, and has to do the same with each such function.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsec.doors.from_torch.aliasing import viewed
from sparsec.doors.from_torch.exporting import first_line
from sparsec.doors.from_torch.leftovers import unchanged
from sparsec.doors.from_torch.lower import source_of
from sparsec.doors.from_torch.strides import Asked
from sparsec.doors.from_torch.writes import UnfollowedWrite, number_of, overlaps, written

aten = torch.ops.aten
#: What copies where strides do not fit, in a graph that has the writes.
_EITHER = frozenset(
    {
        aten.reshape.default,
        aten.reshape_as.default,
        aten.flatten.using_ints,
        aten.ravel.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
    }
)


def writes(graph_module: fx.GraphModule) -> bool:
    """Whether a graph that is not functional yet writes to anything."""
    return any(
        True for part in graph_module.modules() if isinstance(part, fx.GraphModule) for node in part.graph.nodes for _ in written(node)
    )


def uncertain_write(graph_module: fx.GraphModule) -> fx.Node | None:
    """A write in a graph that is not functional yet, where a value used later has the memory or a copy of it, by strides; None without."""
    for part in graph_module.modules():
        if isinstance(part, fx.GraphModule) and (found := _uncertain(list(part.graph.nodes))) is not None:
            return found
    return None


def _uncertain(nodes: Sequence[fx.Node]) -> fx.Node | None:
    place = {node: position for position, node in enumerate(nodes)}
    families: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in nodes:
        families[_root(node, _shown)].append(node)
    for write in nodes:
        for operand in written(write):
            own = _root(operand, _surely)
            for other in families[_root(operand, _shown)]:
                root = _root(other, _surely)
                if root is not own and place[root] < place[write] and any(place[user] > place[write] for user in other.users):
                    return write
    return None


def _root(node: fx.Node, source: Callable[[fx.Node], fx.Node | None]) -> fx.Node:
    while (shown := source(node)) is not None:
        node = shown
    return node


def _shown(node: fx.Node) -> fx.Node | None:
    """What a node is a view of, or may be."""
    if node.target in _EITHER:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return viewed(node)


def _surely(node: fx.Node) -> fx.Node | None:
    """What a node is a view of, whatever its strides."""
    source = _shown(node)
    if source is None or node.target not in _EITHER or _root(source, viewed).op in ("placeholder", "get_attr"):
        return source
    old, new = source.meta.get("val"), node.meta.get("val")
    shaped = node.target not in (aten.contiguous.default, aten.alias.default)
    return source if shaped and isinstance(old, Tensor) and isinstance(new, Tensor) and _splits(old, new) else None


def _splits(old: Tensor, new: Tensor) -> bool:
    """Whether each axis of one shape is a run of axes of the other, with axes of size one anywhere: a view by any strides."""
    if old.dtype != new.dtype:
        return False
    sizes = iter([size for size in map(number_of, new.shape) if size != 1])
    for size in (size for size in map(number_of, old.shape) if size != 1):
        run = 1
        while run < size or run == 0:
            run *= next(sizes, math.inf)  # type: ignore[assignment]
        if run != size:
            return False
    return next(sizes, None) is None


def refuse_unlike_eager(traced: Asked, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """UnfollowedWrite where what was traced has an uncertain write and reshapes that are views in eager mode only, or the reverse."""
    if traced.unsure is None:
        return
    given, named = pytree.tree_map_only(Tensor, _copied, (tuple(args), dict(kwargs)))
    try:
        with torch.no_grad(), unchanged(module), torch.random.fork_rng(devices=[]), Asked() as run:
            module(*given, **named)
    except Exception as error:
        raise refused(traced.unsure, f"Eager mode cannot run the model, to see: {first_line(error)}") from error
    if run.views != traced.views:
        raise refused(traced.unsure, "In eager mode it is one, by the strides of the tensors that torch traces with the other.")


def _copied(tensor: Tensor) -> Tensor:
    """With the same strides; one with strides of its own where elements share memory."""
    if overlaps(tensor):
        return tensor.clone()
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def refused(write: fx.Node, why: str) -> UnfollowedWrite:
    """What is said of an uncertain write."""
    return UnfollowedWrite(
        "The model writes to a value beside a reshape of it that is a view or a copy by strides.",
        where=source_of(write),
        why=why,
        hint="Use view() where it is to be a view, or write to a clone.",
    )
