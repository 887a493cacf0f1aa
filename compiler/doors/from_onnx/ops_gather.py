"""ONNX operators that read or write by index."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape
from sparsec.doors.from_onnx.ops_shape import part

aten = torch.ops.aten
INTEGERS = (torch.int32, torch.int64)


def _positions(step: Step, position: int, sizes: tuple[int, ...] | int, plain: bool = False) -> Value:
    """Indices counted from 0: known ones are checked, others are the caller's to keep inside, and from 0 on where ``plain``."""
    index = step[position]
    if dtype(index) not in INTEGERS:
        raise step.refusal(f"indices of {dtype(index)}")
    if not isinstance(index, Tensor):
        if plain:
            return index
        size = torch.tensor(sizes, dtype=dtype(index))
        return step.call(aten.where.self, step.call(aten.lt.Scalar, index, 0), step.call(aten.add.Tensor, index, size), index)
    limit = torch.tensor(sizes, dtype=torch.int64)
    wide = index.to(torch.int64)
    if ((wide < -limit) | (wide >= limit)).any():
        raise step.refusal(f"an index is outside {sizes}")
    return torch.where(wide < 0, wide + limit, wide) if (wide < 0).any() else wide


def _gather(step: Step) -> Value:
    table, axis = step[0], step.axis(step[0], step.integer("axis", 0))
    # A table of embeddings is looked up by a kernel, which refuses what is outside.
    looked_up = isinstance(table, Tensor) and axis == 0 and table.dim() == 2
    index = _positions(step, 1, shape(table)[axis], looked_up)
    if isinstance(index, Tensor) and index.dim() == 0:
        return step.call(aten.select.int, table, axis, int(index))
    if isinstance(index, Tensor) and (run := _run(index)) is not None:
        return part(step, table, axis, run)
    if looked_up:
        return step.call(aten.embedding.default, table, index)
    if len(shape(index)) == 1:
        return step.call(aten.index_select.default, table, axis, index)
    return step.call(aten.index.Tensor, table, [None] * axis + [index])


def _run(index: Tensor) -> range | None:
    """The range that a list of indices counts up, if it does."""
    if index.dim() != 1 or not index.numel():
        return None
    first = int(index[0])
    run = range(first, first + index.numel())
    return run if torch.equal(index, torch.arange(run.start, run.stop)) else None


def _gather_elements(step: Step) -> Value:
    axis = step.axis(step[0], step.integer("axis", 0))
    index = _positions(step, 1, shape(step[0])[axis])
    return step.call(aten.gather.default, step[0], axis, _wide(step, index))


def _wide(step: Step, index: Value) -> Value:
    return index if dtype(index) == torch.int64 else step.call(aten._to_copy.default, index, dtype=torch.int64)


def _coordinates(step: Step, batch: int = 0) -> list[Value]:
    """indices [..., k] as k index tensors, after one for each batch axis."""
    sizes = shape(step[1])
    depth = sizes[-1] if sizes else 0
    if not 1 <= depth <= len(shape(step[0])) - batch:
        raise step.refusal(f"indices {list(sizes)} do not fit a value {list(shape(step[0]))}")
    index = _wide(step, _positions(step, 1, shape(step[0])[batch : batch + depth]))
    last = len(sizes) - 1
    leading: list[Value] = [
        torch.arange(sizes[axis]).reshape([-1 if other == axis else 1 for other in range(last)]) for axis in range(batch)
    ]
    return leading + [step.call(aten.select.int, index, last, place) for place in range(depth)]


def _gather_nd(step: Step) -> Value:
    batch = step.integer("batch_dims", 0)
    if not 0 <= batch < min(len(shape(step[0])), len(shape(step[1]))):
        raise step.refusal(f"batch_dims is {batch}")
    return step.call(aten.index.Tensor, step[0], _coordinates(step, batch))


def _scatter_nd(step: Step) -> Value:
    kind = step.text("reduction", "none")
    if kind not in ("none", "add"):
        raise step.refusal(f"the reduction {kind!r}")
    return step.call(aten.index_put.default, step[0], _coordinates(step), step[2], kind == "add")


def _scatter_elements(step: Step) -> Value:
    kind = step.text("reduction", "none")
    axis = step.axis(step[0], step.integer("axis", 0))
    if kind not in ("none", "add"):
        raise step.refusal(f"the reduction {kind!r}")
    index = _wide(step, _positions(step, 1, shape(step[0])[axis]))
    return step.call(aten.scatter.src if kind == "none" else aten.scatter_add.default, step[0], axis, index, step[2])


def _nonzero(step: Step) -> Value:
    if isinstance(step[0], fx.Node):
        raise step.refusal("the size of its result depends on the model's inputs")
    return step.known(0).nonzero().t().contiguous()


def _one_hot(step: Step) -> Value:
    """values = [off, on]: on at the index along a new axis, off elsewhere; nothing is on for an index outside."""
    index, depth, values = step[0], step.number(1), step[2]
    axis = step.axis(index, step.integer("axis", -1), extra=1)
    if depth is None or not 0 < depth <= 1 << 20 or shape(values) != (2,):
        raise step.refusal(f"a depth of {depth}, values {list(shape(values))}")
    wide = step.call(aten._to_copy.default, index, dtype=torch.int64)
    size = torch.tensor(int(depth))
    wide = step.call(aten.where.self, step.call(aten.lt.Scalar, wide, 0), step.call(aten.add.Tensor, wide, size), wide)
    places = torch.arange(int(depth)).reshape([-1, *[1] * (len(shape(index)) - axis)])
    on = step.call(aten.eq.Tensor, step.call(aten.unsqueeze.default, wide, axis), places)
    off_value, on_value = (step.call(aten.select.int, values, 0, place) for place in (0, 1))
    return step.call(aten.where.self, on, on_value, off_value)


def _grid_sample(step: Step) -> Value:
    modes = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}
    mode, padding = step.text("mode", "linear"), step.text("padding_mode", "zeros")
    places = {"zeros": 0, "border": 1, "reflection": 2}
    rank = len(shape(step[0]))
    if mode not in modes or padding not in places or rank not in (4, 5) or (rank == 5 and modes[mode] == 2):
        raise step.refusal(f"mode {mode!r}, padding_mode {padding!r} on {rank} dimensions")
    return step.call(aten.grid_sampler.default, step[0], step[1], modes[mode], places[padding], bool(step.integer("align_corners", 0)))


TABLE: dict[str, Callable[[Step], Any]] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "GridSample": _grid_sample,
    "NonZero": _nonzero,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
