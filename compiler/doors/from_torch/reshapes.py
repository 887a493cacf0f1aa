"""What depends on the strides of computed values: writes beside a reshape that is a view or a copy, questions for strides.

y = norm(x)                a view where the norm lays its result out in rows: then y is 0 as well. A trace goes by the strides of stand-ins,
y.flatten(1).zero_()       which are not always those of eager mode: torch's own fast paths, and kernels that lay out results otherwise than
return y                   their stand-ins, differ. So the model is run once, and has to do the same with each such function.

y.stride(0) * y            a number of the trace: the model is run once, and has to be told the same or to answer the same
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsec.doors.captured import Captured
from sparsec.doors.from_torch.aliasing import viewed
from sparsec.doors.from_torch.exporting import first_line
from sparsec.doors.from_torch.leftovers import run_apart
from sparsec.doors.from_torch.lower import source_of
from sparsec.doors.from_torch.strides import Asked
from sparsec.doors.from_torch.writes import UnfollowedWrite, number_of, overlaps, written
from sparsec.errors import UnsupportedModel

aten = torch.ops.aten
#: What copies where strides do not fit, in a graph that has the writes.
_EITHER = frozenset(
    {
        aten.reshape.default,
        aten.reshape_as.default,
        aten.flatten.using_ints,
        aten.ravel.default,
        aten.contiguous.default,
        aten.view.dtype,
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
    if node.target is aten.view.dtype and node.meta["val"].dtype != source.meta["val"].dtype:
        return source
    shaped = node.target not in (aten.contiguous.default, aten.view.dtype)
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


def refuse_unlike_eager(traced: Asked, described: Captured, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """UnfollowedWrite where what was traced has an uncertain write and reshapes that are views in eager mode only, or the reverse.

    UnsupportedModel where the model asked for strides that are others in eager mode, and ``described`` answers otherwise for that.
    """
    if traced.unsure is None and not traced.told:
        return
    copied = _copied if described.depends_on_strides else _in_rows
    given, named = pytree.tree_map_only(Tensor, copied, (tuple(args), dict(kwargs)))
    try:
        with run_apart(module), Asked() as run:
            results = module(*given, **named)
    except Exception as error:
        why = f"Eager mode cannot run the model, to see: {first_line(error)}"
        raise (refused(traced.unsure, why) if traced.unsure is not None else _otherwise(why)) from error
    if traced.unsure is not None and run.views != traced.views:
        raise refused(traced.unsure, "In eager mode it is one, by the strides of the tensors that torch traces with the other.")
    if run.told != traced.told and not _answers(described, args, kwargs, results):
        raise _otherwise("Torch traces it with strides that some values do not have in eager mode.")


def _answers(described: Captured, args: Sequence[Any], kwargs: Mapping[str, Any], wanted: Any) -> bool:
    """Whether a graph gives these results."""
    if described.symbols:
        return False
    with torch.no_grad():
        inputs = described.flatten(args, kwargs)
        found = described.restore(described.graph_module(*inputs), inputs)
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
    return all(_alike(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b) for a, b in pairs)


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    most = float(b.abs().max()) if b.numel() and b.is_floating_point() else 0.0
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * most, equal_nan=True)


def _otherwise(why: str) -> UnsupportedModel:
    hint = "Let it not depend on stride() and is_contiguous() of values that it computes."
    return UnsupportedModel("The model asks how values lie in memory, and does something else by the answer.", why=why, hint=hint)


def _copied(tensor: Tensor) -> Tensor:
    """With the same strides."""
    if overlaps(tensor):
        whole = tensor.untyped_storage().clone()
        return torch.empty(0, dtype=tensor.dtype).set_(whole, tensor.storage_offset(), tensor.shape, tensor.stride())
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _in_rows(tensor: Tensor) -> Tensor:
    """As the stand-ins are of a program that depends on no strides."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def refused(write: fx.Node, why: str) -> UnfollowedWrite:
    """What is said of an uncertain write."""
    return UnfollowedWrite(
        "The model writes to a value beside a reshape of it that is a view or a copy by strides.",
        where=source_of(write),
        why=why,
        hint="Use view() where it is to be a view, or write to a clone.",
    )
