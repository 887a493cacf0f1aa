"""ONNX operators that move elements or speak of shapes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape
from sparsec.doors.from_onnx.tensors import attribute_tensor

aten = torch.ops.aten


def reshaped(step: Step, value: Value, sizes: Sequence[int]) -> Value:
    """The value in another shape."""
    old, sizes = shape(value), list(sizes)
    if list(old) == sizes:
        return value
    if math.prod(old) != math.prod(sizes):
        raise step.refusal(f"{list(old)} cannot become {sizes}")
    if len(old) > 2 and sizes == [old[0], math.prod(old[1:])]:
        return step.call(aten.flatten.using_ints, value, 1)
    return step.call(aten.reshape.default, value, sizes)


def _reshape(step: Step) -> Value:
    wanted = step.integers(1)
    if wanted is None or wanted.count(-1) > 1 or min(wanted, default=0) < -1:
        raise step.refusal(f"the shape is {wanted}")
    old = shape(step[0])
    if not step.integer("allowzero", 0):
        if any(size == 0 and axis >= len(old) for axis, size in enumerate(wanted)):
            raise step.refusal(f"the shape {wanted} copies an axis that {list(old)} has not")
        wanted = [old[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    rest = math.prod(size for size in wanted if size != -1)
    if -1 in wanted and (rest == 0 or math.prod(old) % rest):
        raise step.refusal(f"{list(old)} cannot become {wanted}")
    return reshaped(step, step[0], [math.prod(old) // rest if size == -1 else size for size in wanted])


def _flatten(step: Step) -> Value:
    old, axis = shape(step[0]), step.integer("axis", 1)
    if not -len(old) <= axis <= len(old):
        raise step.refusal(f"axis {axis} is outside a value of {len(old)} dimensions")
    axis += len(old) if axis < 0 else 0
    return reshaped(step, step[0], [math.prod(old[:axis]), math.prod(old[axis:])])


def _transpose(step: Step) -> Value:
    rank = len(shape(step[0]))
    order = step.listed("perm", list(reversed(range(rank))))
    if sorted(order) != list(range(rank)):
        raise step.refusal(f"the attribute perm is {order}")
    moved = [axis for axis in range(rank) if order[axis] != axis]
    if not moved:
        return step[0]
    if len(moved) == 2:
        return step.call(aten.transpose.int, step[0], *moved)
    return step.call(aten.permute.default, step[0], order)


def _axes(step: Step, extra: int = 0) -> list[int] | None:
    axes = step.integers(1)
    return None if axes is None else [step.axis(step[0], axis, extra) for axis in axes]


def _squeeze(step: Step) -> Value:
    old, axes = shape(step[0]), _axes(step)
    gone = {axis for axis, size in enumerate(old) if size == 1} if axes is None else set(axes)
    if any(old[axis] != 1 for axis in gone):
        raise step.refusal(f"an axis of {list(old)} to squeeze is not 1")
    return reshaped_by_axes(step, step[0], aten.squeeze.dim, sorted(gone, reverse=True))


def _unsqueeze(step: Step) -> Value:
    axes = _axes(step, len(step.integers(1) or ()))
    if not axes or len(set(axes)) != len(axes):
        raise step.refusal(f"the axes are {axes}")
    return reshaped_by_axes(step, step[0], aten.unsqueeze.default, sorted(axes))


def reshaped_by_axes(step: Step, value: Value, target: Any, axes: Sequence[int]) -> Value:
    """An operator applied to one axis after the other."""
    for axis in axes:
        value = step.call(target, value, axis)
    return value


def _concat(step: Step) -> Value:
    values = [step[position] for position in range(len(step.inputs))]
    if len({dtype(value) for value in values}) != 1:
        raise step.refusal("the types of its inputs differ")
    axis = step.axis(values[0], step.integer("axis"))
    return values[0] if len(values) == 1 else step.call(aten.cat.default, values, axis)


def _split(step: Step) -> tuple[Value, ...]:
    axis = step.axis(step[0], step.integer("axis", 0))
    size, parts = shape(step[0])[axis], len(step.node.outputs)
    sizes = step.integers(1)
    if sizes is None:
        parts = step.integer("num_outputs", parts)
        each = -(-size // parts) if parts > 0 else 0
        sizes = [max(0, min(each, size - each * part)) for part in range(min(parts, len(step.node.outputs)))]
    if sum(sizes) != size or min(sizes, default=-1) < 0 or len(sizes) != len(step.node.outputs):
        raise step.refusal(f"{size} elements cannot be split into {sizes}")
    pieces = step.call(aten.split_with_sizes.default, step[0], sizes, axis)
    return tuple(step.item(pieces, part) for part in range(len(sizes)))


def _slice(step: Step) -> Value:
    starts, ends = step.integers(1), step.integers(2)
    axes, steps = step.integers(3), step.integers(4)
    axes = list(range(len(starts or ()))) if axes is None else axes
    steps = [1] * len(axes) if steps is None else steps
    if starts is None or ends is None or not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise step.refusal(f"starts {starts}, ends {ends}, axes {axes}, steps {steps}")
    value = step[0]
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        place = step.axis(value, axis)
        value = part(step, value, place, range(*slice(start, end, stride).indices(shape(value)[place])))
    return value


def part(step: Step, value: Value, axis: int, positions: range) -> Value:
    """The elements of an axis at evenly spaced positions."""
    size = shape(value)[axis]
    if positions == range(size):
        return value
    if positions == range(size - 1, -1, -1):
        return step.call(aten.flip.default, value, [axis])
    if positions.step < 0:
        return step.call(aten.index_select.default, value, axis, torch.tensor(list(positions), dtype=torch.int64))
    return step.call(aten.slice.Tensor, value, axis, positions.start, max(positions.start, positions.stop), positions.step)


def _expand(step: Step) -> Value:
    wanted = step.integers(1)
    if wanted is None or min(wanted, default=0) < 0:
        raise step.refusal(f"the shape is {wanted}")
    sizes = list(torch.broadcast_shapes(shape(step[0]), wanted))
    return step[0] if sizes == list(shape(step[0])) else step.call(aten.expand.default, step[0], sizes)


def _tile(step: Step) -> Value:
    repeats = step.integers(1)
    if repeats is None or len(repeats) != len(shape(step[0])) or min(repeats, default=0) < 0:
        raise step.refusal(f"the repeats are {repeats}")
    return step.call(aten.repeat.default, step[0], repeats) if set(repeats) - {1} else step[0]


def _pad(step: Step) -> Value:
    pads, rank, mode = step.integers(1), len(shape(step[0])), step.text("mode", "constant")
    axes = [step.axis(step[0], axis) for axis in (range(rank) if step.maybe(3) is None else step.integers(3) or ())]
    if pads is None or len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise step.refusal(f"the pads are {pads}")
    widths = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    flat = [pad for axis in reversed(range(rank)) for pad in widths.get(axis, (0, 0))]
    while flat[-2:] == [0, 0]:
        flat = flat[:-2]
    if mode == "constant":
        return step.call(aten.constant_pad_nd.default, step[0], flat, step.number(2) or 0) if flat else step[0]
    if mode not in ("reflect", "edge") or min(flat, default=0) < 0:
        raise step.refusal(f"the mode {mode!r}")
    return step.call(aten.pad.default, step[0], flat, "reflect" if mode == "reflect" else "replicate") if flat else step[0]


def _shape_of(step: Step) -> Value:
    sizes = shape(step[0])
    return torch.tensor(sizes[slice(step.integer("start", 0), step.integer("end", len(sizes)))], dtype=torch.int64)


def _size_of(step: Step) -> Value:
    return torch.tensor(math.prod(shape(step[0])), dtype=torch.int64)


def _range(step: Step) -> Value:
    first, last, stride = (step.known(position) for position in range(3))
    if stride.numel() != 1 or stride.item() == 0:
        raise step.refusal(f"the step is {stride.tolist()}")
    return step.call(aten.arange.start_step, first.item(), last.item(), stride.item(), dtype=first.dtype)


def _constant_of_shape(step: Step) -> Value:
    sizes, proto = step.integers(0), step.node.attributes.get("value")
    fill = torch.zeros(1) if proto is None else attribute_tensor(proto, None, step.node.place)
    if sizes is None or min(sizes, default=0) < 0 or fill.numel() != 1:
        raise step.refusal(f"the shape is {sizes}")
    return step.call(aten.full.default, sizes, fill.item(), dtype=fill.dtype)


def _triangle(step: Step) -> Value:
    target = aten.triu.default if step.integer("upper", 1) else aten.tril.default
    return step.call(target, step[0], step.number(1) or 0)


def _depth_to_space(step: Step) -> Value:
    n, c, h, w = shape(step[0])
    block, mode = step.integer("blocksize"), step.text("mode", "DCR")
    if block < 1 or c % block**2 or mode not in ("DCR", "CRD"):
        raise step.refusal(f"{c} channels, blocks of {block}, mode {mode!r}")
    inner = [block, block, c // block**2] if mode == "DCR" else [c // block**2, block, block]
    order = [0, 3, 4, 1, 5, 2] if mode == "DCR" else [0, 1, 4, 2, 5, 3]
    moved = step.call(aten.permute.default, reshaped(step, step[0], [n, *inner, h, w]), order)
    return reshaped(step, moved, [n, c // block**2, h * block, w * block])


def _space_to_depth(step: Step) -> Value:
    n, c, h, w = shape(step[0])
    block, mode = step.integer("blocksize"), step.text("mode", "DCR")
    if block < 1 or h % block or w % block or mode not in ("DCR", "CRD"):
        raise step.refusal(f"a map {h}x{w} in blocks of {block}, mode {mode!r}")
    split = reshaped(step, step[0], [n, c, h // block, block, w // block, block])
    order = [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4]
    return reshaped(step, step.call(aten.permute.default, split, order), [n, c * block**2, h // block, w // block])


def constant_value(attributes: Mapping[str, Any], folder: Any, where: str) -> Tensor | None:
    """What a Constant node holds; None for what is no tensor."""
    kinds: dict[str, torch.dtype] = {
        "value_float": torch.float32,
        "value_floats": torch.float32,
        "value_int": torch.int64,
        "value_ints": torch.int64,
    }
    for name, value in attributes.items():
        if name in kinds:
            return torch.tensor(value, dtype=kinds[name])
        if name in ("value", "sparse_value"):
            return attribute_tensor(value, folder, where)
    return None


TABLE: dict[str, Callable[[Step], Any]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape_of,
    "Size": _size_of,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
}
