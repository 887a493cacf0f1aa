"""ONNX normalisations, reductions and what else looks at a whole axis."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape
from sparsec.doors.from_onnx.ops_shape import part

aten = torch.ops.aten


def _batch_norm(step: Step) -> Value:
    if step.integer("training_mode", 0):
        raise step.refusal("it is in training mode")
    channels = shape(step[0])[1:2]
    if any(shape(step[position]) != channels for position in range(1, 5)):
        raise step.refusal(f"its parameters do not fit an input {list(shape(step[0]))}")
    parameters = [step[position] for position in range(1, 5)]
    return step.call(aten.batch_norm.default, step[0], *parameters, False, 0.1, step.real("epsilon", 1e-5), False)


def _trailing(step: Step) -> list[int]:
    return list(shape(step[0])[step.axis(step[0], step.integer("axis", -1)) :])


def _parameter(step: Step, position: int, sizes: list[int]) -> Value | None:
    """A scale or bias in the shape that torch wants."""
    value = step.maybe(position)
    return value if value is None or list(shape(value)) == sizes else step.call(aten.expand.default, value, sizes)


def _layer_norm(step: Step) -> Value | tuple[Value, ...]:
    sizes, epsilon = _trailing(step), step.real("epsilon", 1e-5)
    scale, bias = (_parameter(step, position, sizes) for position in (1, 2))
    if not any(step.node.outputs[1:]):
        return step.call(aten.layer_norm.default, step[0], sizes, scale, bias, epsilon, False)
    found = step.call(aten.native_layer_norm.default, step[0], sizes, scale, bias, epsilon)
    return tuple(step.item(found, number) for number in range(3))


def _rms_norm(step: Step) -> Value:
    sizes = _trailing(step)
    return step.call(aten.rms_norm.default, step[0], sizes, _parameter(step, 1, sizes), step.real("epsilon", 1e-5))


def _group_norm(step: Step) -> Value:
    x, groups = step[0], step.integer("num_groups")
    if groups < 1 or shape(x)[1] % groups:
        raise step.refusal(f"{groups} groups do not fit an input {list(shape(x))}")
    scale, bias = (_per_channel(step, position, shape(x)[1] // groups) for position in (1, 2))
    return step.call(aten.group_norm.default, x, groups, scale, bias, step.real("epsilon", 1e-5), False)


def _per_channel(step: Step, position: int, repeats: int) -> Value:
    """Up to opset 20 there is one parameter per group."""
    value = step[position]
    return step.call(aten.repeat_interleave.self_int, value, repeats) if step.node.opset < 21 else value


def _instance_norm(step: Step) -> Value:
    epsilon = step.real("epsilon", 1e-5)
    return step.call(aten.instance_norm.default, step[0], step[1], step[2], None, None, True, 0.1, epsilon, False)


def _softmax(target: Any, step: Step) -> Value:
    return step.call(target, step[0], step.axis(step[0], step.integer("axis", -1)))


def _axes(step: Step) -> list[int] | None:
    """The axes to reduce, from an attribute or an input; None to reduce nothing."""
    axes = step.listed("axes", None) if "axes" in step.node.attributes else step.integers(1)
    if not axes and step.integer("noop_with_empty_axes", 0):
        return None
    return [step.axis(step[0], axis) for axis in axes or range(len(shape(step[0])))]


def _reduce(reduction: Callable[[Step, Value, list[int], bool], Value], step: Step) -> Value:
    axes = _axes(step)
    if axes is None:
        return step[0]
    return reduction(step, step[0], axes, bool(step.integer("keepdims", 1)))


def _mean(step: Step, x: Value, axes: list[int], keep: bool) -> Value:
    return step.call(aten.mean.dim, x, _ends(x, axes), keep)


def _ends(x: Value, axes: list[int]) -> list[int]:
    """The last axis as -1, as torch's exports of token models say it."""
    return [-1] if axes == [len(shape(x)) - 1] and len(shape(x)) > 1 else axes


def _sum(step: Step, x: Value, axes: list[int], keep: bool) -> Value:
    return step.call(aten.sum.dim_IntList, x, axes, keep, dtype=dtype(x))


def _square_sum(step: Step, x: Value, axes: list[int], keep: bool) -> Value:
    return _sum(step, step.call(aten.mul.Tensor, x, x), axes, keep)


def _norm_2(step: Step, x: Value, axes: list[int], keep: bool) -> Value:
    return step.call(aten.sqrt.default, _square_sum(step, x, axes, keep))


def _norm_1(step: Step, x: Value, axes: list[int], keep: bool) -> Value:
    return _sum(step, step.call(aten.abs.default, x), axes, keep)


def _log_sum(step: Step, x: Value, axes: list[int], keep: bool) -> Value:
    return step.call(aten.log.default, _sum(step, x, axes, keep))


def _hardmax(step: Step) -> Value:
    """1 at the first largest element along an axis, 0 elsewhere."""
    axis = step.axis(step[0], step.integer("axis", -1))
    places = torch.arange(shape(step[0])[axis]).reshape([-1, *[1] * (len(shape(step[0])) - axis - 1)])
    first = step.call(aten.argmax.default, step[0], axis, True)
    return step.call(aten._to_copy.default, step.call(aten.eq.Tensor, places, first), dtype=dtype(step[0]))


def _lp_normalization(step: Step) -> Value:
    axis, power = step.axis(step[0], step.integer("axis", -1)), step.integer("p", 2)
    if power not in (1, 2):
        raise step.refusal(f"the norm {power}")
    norm = (_norm_1 if power == 1 else _norm_2)(step, step[0], [axis], True)
    # What is zero stays zero.
    safe = step.call(aten.where.self, step.call(aten.eq.Scalar, norm, 0.0), torch.ones((), dtype=dtype(step[0])), norm)
    return step.call(aten.div.Tensor, step[0], safe)


def _local_response(step: Step) -> Value:
    """x / (bias + alpha / size * sum of the squares of `size` neighbouring channels)^beta (Krizhevsky et al., 2012)."""
    x, size = step[0], step.integer("size")
    if size < 1 or len(shape(x)) < 3:
        raise step.refusal(f"{size} channels of {list(shape(x))}")
    less = (size - 1) // 2
    pads = [*[0, 0] * (len(shape(x)) - 2), less, size - 1 - less]
    squares = step.call(aten.constant_pad_nd.default, step.call(aten.mul.Tensor, x, x), pads, 0.0)
    total = step.call(aten.slice.Tensor, squares, 1, 0, shape(x)[1])
    for first in range(1, size):
        total = step.call(aten.add.Tensor, total, step.call(aten.slice.Tensor, squares, 1, first, first + shape(x)[1]))
    scaled = step.call(aten.mul.Tensor, total, step.real("alpha", 1e-4) / size)
    factor = step.call(aten.pow.Tensor_Scalar, step.call(aten.add.Tensor, scaled, step.real("bias", 1.0)), -step.real("beta", 0.75))
    return step.call(aten.mul.Tensor, x, factor)


def _log_sum_exp(step: Step, x: Value, axes: list[int], keep: bool) -> Value:
    return step.call(aten.logsumexp.default, x, axes, keep)


def _extreme(target: Any, step: Step, x: Value, axes: list[int], keep: bool) -> Value:
    return step.call(target, x, axes, keep)


def _product(step: Step, x: Value, axes: list[int], keep: bool) -> Value:
    for axis in sorted(axes, reverse=True):
        x = step.call(aten.prod.dim_int, x, axis, keep, dtype=dtype(x))
    return x


def _position(target: Any, step: Step) -> Value:
    x, axis = step[0], step.axis(step[0], step.integer("axis", 0))
    last = bool(step.integer("select_last_index", 0))
    x = step.call(aten.flip.default, x, [axis]) if last else x
    found = step.call(target, x, axis, bool(step.integer("keepdims", 1)))
    return step.call(aten.rsub.Scalar, found, shape(x)[axis] - 1) if last else found


def _cumulative_sum(step: Step) -> Value:
    x, axis = step[0], step.axis(step[0], step.number(1))
    turned = bool(step.integer("reverse", 0))
    x = step.call(aten.flip.default, x, [axis]) if turned else x
    total = step.call(aten.cumsum.default, x, axis, dtype=dtype(x))
    total = step.call(aten.sub.Tensor, total, x) if step.integer("exclusive", 0) else total
    return step.call(aten.flip.default, total, [axis]) if turned else total


def _top_k(step: Step) -> tuple[Value, Value]:
    count, axis = step.integers(1), step.axis(step[0], step.integer("axis", -1))
    if not count or not 0 <= count[0] <= shape(step[0])[axis]:
        raise step.refusal(f"{count} of an axis of {shape(step[0])[axis]}")
    # Of equal elements the first come first, which torch's topk does not promise. What need not be sorted may be.
    result = step.call(aten.sort.stable, step[0], stable=True, dim=axis, descending=bool(step.integer("largest", 1)))
    return part(step, step.item(result, 0), axis, range(count[0])), part(step, step.item(result, 1), axis, range(count[0]))


_REDUCTIONS: dict[str, Callable[[Step, Value, list[int], bool], Value]] = {
    "ReduceL1": _norm_1,
    "ReduceL2": _norm_2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": partial(_extreme, aten.amax.default),
    "ReduceMean": _mean,
    "ReduceMin": partial(_extreme, aten.amin.default),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": _square_sum,
}

TABLE: dict[str, Callable[[Step], Any]] = {
    **{name: partial(_reduce, reduction) for name, reduction in _REDUCTIONS.items()},
    "ArgMax": partial(_position, aten.argmax.default),
    "ArgMin": partial(_position, aten.argmin.default),
    "BatchNormalization": _batch_norm,
    "CumSum": _cumulative_sum,
    "GroupNormalization": _group_norm,
    "Hardmax": _hardmax,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_normalization,
    "LogSoftmax": partial(_softmax, aten.log_softmax.int),
    "RMSNormalization": _rms_norm,
    "Softmax": partial(_softmax, aten.softmax.int),
    "TopK": _top_k,
}
