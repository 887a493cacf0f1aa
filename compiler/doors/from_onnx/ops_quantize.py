"""ONNX operators of quantised models, computed in float32 on what the integers stand for: x = scale * (q - zero_point).

A weight that is dequantised is computed when importing: where it is the zero point it is exactly zero.
"""

from collections.abc import Callable
from typing import Any

import torch

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape
from sparsec.doors.from_onnx.tensors import dtype_of

aten = torch.ops.aten
#: TensorProto.FLOAT.
_FLOAT = 1
#: Integers that float32 holds exactly.
_SMALL = (torch.int8, torch.uint8, torch.int16)


def broadcast(step: Step, value: Value, like: Value, axis: int) -> Value:
    """A scale or zero point [] or [C] so that it meets an axis of a value."""
    count = shape(value)
    if count in ((), (1,)):
        return step.call(aten.reshape.default, value, []) if count else value
    axis = step.axis(like, axis)
    if len(count) != 1 or count[0] != shape(like)[axis]:
        raise step.refusal(f"a scale or zero point of shape {list(count)} on {list(shape(like))}")
    return step.call(aten.reshape.default, value, [-1, *[1] * (len(shape(like)) - axis - 1)])


def _along(step: Step, position: int, like: Value) -> Value:
    """The scale or zero point at a position, along the node's own axis."""
    if step.integer("block_size", 0):
        raise step.refusal("scales of blocks")
    return broadcast(step, step[position], like, step.integer("axis", 1))


def as_float(step: Step, value: Value) -> Value:
    """Integers as float32."""
    return step.call(aten._to_copy.default, value, dtype=torch.float32)


def _dequantize(step: Step) -> Value:
    x, scale = step[0], _along(step, 1, step[0])
    if step.integer("output_dtype", 0) not in (0, _FLOAT):
        raise step.refusal("a result of another type than float32")
    if dtype(scale) != torch.float32 or (dtype(x) not in _SMALL and dtype(x) != torch.int32):
        raise step.refusal(f"{dtype(x)} by a scale of {dtype(scale)}")
    if step.maybe(2) is None:
        return step.call(aten.mul.Tensor, as_float(step, x), scale)
    if dtype(x) == torch.int32:
        # Differences first: float32 does not hold all of them.
        return step.call(aten.mul.Tensor, as_float(step, step.call(aten.sub.Tensor, x, _along(step, 2, x))), scale)
    return step.call(aten.mul.Tensor, step.call(aten.sub.Tensor, as_float(step, x), as_float(step, _along(step, 2, x))), scale)


def _quantize(step: Step) -> Value:
    x, scale = step[0], _along(step, 1, step[0])
    zero = step.maybe(2)
    made = dtype(zero) if zero is not None else dtype_of(step.integer("output_dtype", 0) or 2, step.node.place)
    if made not in _SMALL or dtype(x) != torch.float32 or step.integer("precision", 0) not in (0, _FLOAT):
        raise step.refusal(f"{dtype(x)} to {made}")
    return rounded(step, x, scale, None if zero is None else _along(step, 2, x), made)


def rounded(step: Step, x: Value, scale: Value, zero: Value | None, made: torch.dtype) -> Value:
    """x / scale + zero as integers of a type, halves to even; scale and zero broadcast."""
    steps = step.call(aten.round.default, step.call(aten.div.Tensor, x, scale))
    if zero is not None:
        steps = step.call(aten.add.Tensor, steps, as_float(step, zero))
    limits = torch.iinfo(made)
    return step.call(aten._to_copy.default, step.call(aten.clamp.default, steps, limits.min, limits.max), dtype=made)


def _dynamic(step: Step) -> tuple[Value, Value, Value]:
    """uint8 with a scale and a zero point that the values themselves say."""
    x = step[0]
    zero = torch.zeros(())
    low = step.call(aten.minimum.default, step.call(aten.amin.default, x, list(range(len(shape(x))))), zero)
    high = step.call(aten.maximum.default, step.call(aten.amax.default, x, list(range(len(shape(x))))), zero)
    scale = step.call(aten.div.Tensor, step.call(aten.sub.Tensor, high, low), 255.0)
    safe = step.call(aten.where.self, step.call(aten.eq.Scalar, scale, 0.0), torch.ones(()), scale)
    place = step.call(
        aten.round.default, step.call(aten.clamp.default, step.call(aten.div.Tensor, step.call(aten.neg.default, low), safe), 0, 255)
    )
    steps = step.call(aten.add.Tensor, step.call(aten.round.default, step.call(aten.div.Tensor, x, safe)), place)
    bytes_of = [step.call(aten._to_copy.default, each, dtype=torch.uint8) for each in (step.call(aten.clamp.default, steps, 0, 255), place)]
    return bytes_of[0], scale, bytes_of[1]


TABLE: dict[str, Callable[[Step], Any]] = {
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "QuantizeLinear": _quantize,
}
