"""ONNX Resize and Upsample: axis by axis, each result a weighted sum of elements at constant places.

Resize of the ONNX specification (opset 10 to 19): where a result lies among the elements is told by `coordinate_transformation_mode`, which
elements it takes by `mode`: nearest one, two (linear) or four (cubic convolution, R. Keys, 1981).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape

aten = torch.ops.aten
_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_LARGEST = 1 << 24


@dataclass(frozen=True)
class _Axis:
    """One axis that changes: its number, sizes before and after, the factor between them."""

    number: int
    size: int
    result: int
    scale: float


def _resize(step: Step) -> Value:
    if step.integer("antialias", 0) and step.text("mode", "nearest") != "nearest":
        raise step.refusal("the attribute antialias is 1")
    old = step.node.op == "Upsample" or step.node.opset < 11
    scales, sizes = (step.maybe(1), None) if old else (step.maybe(2), step.maybe(3))
    axes = [step.axis(step[0], axis) for axis in step.listed("axes", list(range(len(shape(step[0])))))]
    value = step[0]
    if not dtype(value).is_floating_point and step.text("mode", "nearest") != "nearest":
        raise step.refusal(f"a value of {dtype(value)} is interpolated")
    for axis in _changes(step, axes, scales, sizes, 1 if old else 2):
        value = _along(step, value, axis, old)
    return value


def _changes(step: Step, axes: Sequence[int], scales: Value | None, sizes: Value | None, position: int) -> list[_Axis]:
    before = [shape(step[0])[axis] for axis in axes]
    if sizes is not None and shape(sizes) != (0,):
        after = step.integers(position + 1) or []
        if len(after) != len(axes):
            raise step.refusal(f"{len(after)} sizes for {len(axes)} axes")
        factors = [new / old if old else 1.0 for new, old in zip(after, before, strict=True)]
        policy = step.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [(min if policy == "not_larger" else max)(factors)] * len(axes)
            after = [math.floor(old * factors[0] + 0.5) for old in before]
    else:
        factors = [float(factor) for factor in step.known(position).reshape(-1).tolist()]
        if len(factors) != len(axes):
            raise step.refusal(f"{len(factors)} scales for {len(axes)} axes")
        after = [math.floor(old * factor) for old, factor in zip(before, factors, strict=True)]
    if not all(0 < size <= _LARGEST and factor > 0 for size, factor in zip(after, factors, strict=True)):
        raise step.refusal(f"it is resized to {after}")
    found = [_Axis(*each) for each in zip(axes, before, after, factors, strict=True)]
    return [axis for axis in found if axis.size != axis.result or axis.scale != 1.0]


def _along(step: Step, value: Value, axis: _Axis, old: bool) -> Value:
    """The value with one axis resized."""
    mode, places = step.text("mode", "nearest"), _places(step, axis, old)
    if mode == "nearest":
        rounding = "floor" if old else step.text("nearest_mode", "round_prefer_floor")
        if rounding not in _ROUNDINGS:
            raise step.refusal(f"the nearest_mode {rounding!r}")
        return _taken(step, value, axis, _ROUNDINGS[rounding](places))
    if mode not in ("linear", "cubic"):
        raise step.refusal(f"the mode {mode!r}")
    first = np.floor(places)
    offsets = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    weights = [_weight(step, mode, places - first - offset) for offset in offsets]
    if step.integer("exclude_outside", 0):
        inside = [(first + offset >= 0) & (first + offset < axis.size) for offset in offsets]
        weights = [weight * each for weight, each in zip(weights, inside, strict=True)]
        total = np.add.reduce(weights)
        weights = [weight / total for weight in weights]
    result = None
    for offset, weight in zip(offsets, weights, strict=True):
        if not weight.any():
            continue
        factor = torch.from_numpy(weight).to(dtype(value)).reshape([-1, *[1] * (len(shape(value)) - axis.number - 1)])
        part = step.call(aten.mul.Tensor, _taken(step, value, axis, first + offset), factor)
        result = part if result is None else step.call(aten.add.Tensor, result, part)
    assert result is not None
    return result


def _taken(step: Step, value: Value, axis: _Axis, places: np.ndarray) -> Value:
    index = torch.from_numpy(np.clip(places, 0, axis.size - 1).astype(np.int64))
    return step.call(aten.index_select.default, value, axis.number, index)


def _weight(step: Step, mode: str, distance: np.ndarray) -> np.ndarray:
    """Of elements at these distances."""
    far = np.abs(distance)
    if mode == "linear":
        return np.maximum(1 - far, 0)
    a = step.real("cubic_coeff_a", -0.75)
    near = ((a + 2) * far - (a + 3)) * far * far + 1
    return np.where(far <= 1, near, np.where(far < 2, ((a * far - 5 * a) * far + 8 * a) * far - 4 * a, 0.0))


def _places(step: Step, axis: _Axis, old: bool) -> np.ndarray:
    """Where among the elements each result lies, in float32: whether it is half way between two is a matter of rounding."""
    x, scale = np.arange(axis.result, dtype=np.float32), np.float32(axis.scale)
    mode = "asymmetric" if old else step.text("coordinate_transformation_mode", "half_pixel")
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        if axis.size * axis.scale != axis.result:
            raise step.refusal(f"{axis.size} elements by {axis.scale}: corners are the last element's or the last fraction's, texts differ")
        return x * np.float32(axis.size - 1) / np.float32(axis.result - 1) if axis.result > 1 else np.zeros(1, np.float32)
    if mode == "pytorch_half_pixel" and axis.result == 1:
        return np.zeros(1, np.float32)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (x + np.float32(0.5)) / scale - np.float32(0.5)
    if mode == "half_pixel_symmetric":
        adjustment = np.float32(axis.result) / (np.float32(axis.size) * scale)
        center = np.float32(axis.size) / 2 * (1 - adjustment)
        return center + (x + np.float32(0.5)) / scale - np.float32(0.5)
    raise step.refusal(f"the coordinate_transformation_mode {mode!r}")


TABLE: dict[str, Callable[[Step], Any]] = {"Resize": _resize, "Upsample": _resize}
