"""ONNX convolutions and poolings."""

import math
from collections.abc import Callable
from typing import Any

import torch

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape
from sparsec.doors.from_onnx.windows import Window, padded, window_of

aten = torch.ops.aten
_CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_AVERAGES = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
_MAXIMA = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
_TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
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


def _transposed(step: Step) -> Value:
    """The gradient of a convolution: full result, of which `pads` are cut off."""
    x, weight, groups = step[0], step[1], step.integer("group", 1)
    kernel, rank = list(shape(weight)[2:]), len(shape(weight)) - 2
    if rank not in _TRANSPOSED or len(shape(x)) != rank + 2 or step.listed("kernel_shape", kernel) != kernel or 0 in kernel:
        raise step.refusal(f"a kernel {kernel} on {list(shape(x))}")
    if groups < 1 or shape(x)[1] != shape(weight)[0] or shape(x)[1] % groups:
        raise step.refusal(f"{shape(x)[1]} channels do not fit a weight {list(shape(weight))} in {groups} groups")
    stride, dilation, extra = (step.listed(name, [each] * rank) for name, each in (("strides", 1), ("dilations", 1), ("output_padding", 0)))
    if not all(len(each) == rank and min(each, default=1) >= 0 for each in (stride, dilation, extra)) or 0 in stride + dilation:
        raise step.refusal(f"strides {stride}, dilations {dilation}, output_padding {extra}")
    full = [s * (n - 1) + d * (k - 1) + 1 + e for s, n, d, k, e in zip(stride, shape(x)[2:], dilation, kernel, extra, strict=True)]
    before, after = _cut(step, full, stride)
    if before == after and min(before) >= 0 and all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        return step.call(_TRANSPOSED[rank], x, weight, step.maybe(2), stride, before, extra, groups, dilation)
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)) or min(*before, *after) < 0:
        raise step.refusal(f"output_padding {extra}, pads {before} and {after}")
    whole = step.call(_TRANSPOSED[rank], x, weight, step.maybe(2), stride, [0] * rank, extra, groups, dilation)
    for axis, (size, first, last) in enumerate(zip(full, before, after, strict=True), start=2):
        whole = step.call(aten.slice.Tensor, whole, axis, first, size - last) if first or last else whole
    return whole


def _cut(step: Step, full: list[int], stride: list[int]) -> tuple[list[int], list[int]]:
    """What is cut off a full result before and after, per axis."""
    mode, rank = step.text("auto_pad", "NOTSET"), len(full)
    wanted = step.listed("output_shape", [])[-rank:]
    if mode in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        wanted = [size * s for size, s in zip(shape(step[0])[2:], stride, strict=True)]
    if wanted:
        totals = [max(size - want, 0) for size, want in zip(full, wanted, strict=True)]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        if any(size < want for size, want in zip(full, wanted, strict=True)):
            raise step.refusal(f"output_shape {wanted} of a full result {full}")
        return (less, more) if mode == "SAME_UPPER" else (more, less)
    if mode == "VALID":
        return [0] * rank, [0] * rank
    pads = step.listed("pads", [0] * (2 * rank))
    if mode != "NOTSET" or len(pads) != 2 * rank or any(size <= a + b for size, a, b in zip(full, pads[:rank], pads[rank:], strict=True)):
        raise step.refusal(f"auto_pad {mode!r}, pads {pads}")
    return pads[:rank], pads[rank:]


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
    "ConvTranspose": _transposed,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_maximum,
    "MaxPool": _max_pool,
}
