"""ONNX convolutions and poolings."""

import math
from collections.abc import Callable
from typing import Any

import torch

from sparsec.from_onnx.build import Step, Value, dtype, shape
from sparsec.from_onnx.windows import Window, padded, window_of

aten = torch.ops.aten
_CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_AVERAGES = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
_MAXIMA = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
_GLOBAL = {1: aten.adaptive_avg_pool1d.default, 2: aten.adaptive_avg_pool2d.default}


def _convolution(step: Step) -> Value:
    x, weight = step[0], step[1]
    kernel = shape(weight)[2:]
    if step.listed("kernel_shape", list(kernel)) != list(kernel) or 0 in kernel:
        raise step.refusal(f"the kernel is {list(kernel)}, the attribute kernel_shape {step.listed('kernel_shape', [])}")
    window, groups = window_of(step, kernel), step.integer("group", 1)
    if groups < 1 or shape(weight)[0] % groups or shape(x)[1] != shape(weight)[1] * groups:
        raise step.refusal(f"{shape(x)[1]} channels do not fit a weight {list(shape(weight))} in {groups} groups")
    pads = list(window.before)
    if not window.symmetric:
        x, pads = padded(step, x, window), [0] * len(kernel)
    return step.call(_CONVOLUTIONS[len(kernel)], x, weight, step.maybe(2), list(window.stride), pads, list(window.dilation), groups)


def _pooling_window(step: Step) -> Window:
    kernel = step.listed("kernel_shape")
    if not all(isinstance(size, int) and 1 <= size <= 1 << 20 for size in kernel):
        raise step.refusal(f"the kernel is {kernel}")
    return window_of(step, kernel)


def _fits_torch(window: Window) -> bool:
    return window.symmetric and all(2 * pad <= size for pad, size in zip(window.before, window.kernel, strict=True))


def _max_pool(step: Step) -> Value:
    window, x = _pooling_window(step), step[0]
    ceil, pads = bool(step.integer("ceil_mode", 0)), list(window.before)
    if not _fits_torch(window):
        if ceil:
            raise step.refusal("ceil_mode with asymmetric pads")
        x, pads = padded(step, x, window, -math.inf), [0] * len(pads)
    return step.call(_MAXIMA[len(pads)], x, list(window.kernel), list(window.stride), pads, list(window.dilation), ceil)


def _average_pool(step: Step) -> Value:
    window, x = _pooling_window(step), step[0]
    if max(window.dilation) > 1:
        raise step.refusal("the attribute dilations is not 1")
    target = _AVERAGES[len(window.kernel)]
    shared = list(window.kernel), list(window.stride)
    ceil, include = bool(step.integer("ceil_mode", 0)), bool(step.integer("count_include_pad", 0))
    if _fits_torch(window):
        return step.call(target, x, *shared, list(window.before), ceil, include)
    if ceil:
        raise step.refusal("ceil_mode with asymmetric pads")
    zero = [0] * len(window.kernel)
    mean = step.call(target, padded(step, x, window), *shared, zero)
    if include:
        return mean
    # Sum over the kernel / elements that are no pads = mean with pads / share of elements that are none.
    ones = torch.ones((1, 1, *shape(x)[2:]), dtype=dtype(x))
    return step.call(aten.div.Tensor, mean, step.call(target, padded(step, ones, window), *shared, zero))


def _global_average(step: Step) -> Value:
    rank = len(shape(step[0])) - 2
    if rank in _GLOBAL:
        return step.call(_GLOBAL[rank], step[0], [1] * rank)
    return step.call(aten.mean.dim, step[0], list(range(2, rank + 2)), True)


def _global_maximum(step: Step) -> Value:
    return step.call(aten.amax.default, step[0], list(range(2, len(shape(step[0])))), True)


TABLE: dict[str, Callable[[Step], Any]] = {
    "AveragePool": _average_pool,
    "Conv": _convolution,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_maximum,
    "MaxPool": _max_pool,
}
