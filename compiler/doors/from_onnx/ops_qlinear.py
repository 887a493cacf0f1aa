"""ONNX operators between integers with scales: what they stand for is computed in float32 and rounded to integers again.

QLinearConv(x, w) → QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w)))

Those of onnxruntime's quantiser (domain com.microsoft) are of this kind too. A constant weight is computed when importing: where it is
the zero point it is exactly zero.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape
from sparsec.doors.from_onnx.ops_convolution import TABLE as CONVOLUTION
from sparsec.doors.from_onnx.ops_matmul import TABLE as MATMUL
from sparsec.doors.from_onnx.ops_quantize import as_float, broadcast, rounded

aten = torch.ops.aten


def _real(step: Step, position: int, axis: int = 0) -> Value:
    """What the integers at a position stand for, by the scale and zero point after them: of all, or along an axis."""
    x = step[position]
    scale = broadcast(step, step[position + 1], x, axis)
    if dtype(scale) != torch.float32:
        raise step.refusal(f"a scale of {dtype(scale)}")
    return step.call(aten.mul.Tensor, _difference(step, as_float(step, x), position + 2, axis), scale)


def _difference(step: Step, x: Value, position: int, axis: int) -> Value:
    """The value less the zero point at a position, if there is one."""
    zero = step.maybe(position)
    if zero is None or (isinstance(zero, Tensor) and not zero.any()):
        return x
    return step.call(aten.sub.Tensor, x, step.call(aten._to_copy.default, broadcast(step, zero, x, axis), dtype=dtype(x)))


def _exact(step: Step, position: int, axis: int) -> Value:
    """The integers at a position less the zero point two further, as float64: sums of their products are exact."""
    return _difference(step, step.call(aten._to_copy.default, step[position], dtype=torch.float64), position + 2, axis)


def _integers(step: Step, value: Value, position: int) -> Value:
    """The value by the scale and zero point at a position and the next."""
    zero = step.maybe(position + 1)
    if shape(step[position]) not in ((), (1,)):
        raise step.refusal("the result has scales of its own for parts of it")
    return rounded(step, value, step[position], zero, torch.uint8 if zero is None else dtype(zero))


def _of(step: Step, operator: Callable[[Step], Any], inputs: Sequence[Value | None]) -> Value:
    """Another operator with this node's attributes."""
    return operator(Step(step.build, step.node, inputs))


def _convolution(step: Step) -> Value:
    bias = step.maybe(8)
    if bias is not None:
        scale = step.call(aten.reshape.default, step.call(aten.mul.Tensor, step[1], step[4]), [-1])
        bias = step.call(aten.mul.Tensor, as_float(step, bias), scale)
    return _integers(step, _of(step, CONVOLUTION["Conv"], (_real(step, 0), _real(step, 3), bias)), 6)


def _conv_integer(step: Step) -> Value:
    return step.call(aten._to_copy.default, _of(step, CONVOLUTION["Conv"], (_exact(step, 0, 1), _exact(step, 1, 0))), dtype=torch.int32)


def _matmul_integer(step: Step) -> Value:
    product = step.call(aten.matmul.default, _exact(step, 0, _rows(step)), _exact(step, 1, -1))
    return step.call(aten._to_copy.default, product, dtype=torch.int32)


def _rows(step: Step) -> int:
    """The axis of a product's left factor that has scales of its own."""
    return -2 if len(shape(step[0])) > 1 else -1


def _matmul(step: Step) -> Value:
    return _integers(step, _of(step, MATMUL["MatMul"], (_real(step, 0, _rows(step)), _real(step, 3, -1))), 6)


def _gemm(step: Step) -> Value:
    """alpha * a @ b + c, where c is int32 by the product of both scales and alpha; a result without scale stays float32."""
    columns = 0 if step.integer("transB", 0) else -1
    bias = step.maybe(6)
    if bias is not None:
        scale = step.call(aten.mul.Tensor, step.call(aten.mul.Tensor, step[1], step[4]), step.real("alpha", 1.0))
        bias = step.call(aten.mul.Tensor, as_float(step, bias), step.call(aten.reshape.default, scale, [-1]))
    made = _of(step, MATMUL["Gemm"], (_real(step, 0, -2), _real(step, 3, columns), bias))
    return made if step.maybe(7) is None else _integers(step, made, 7)


def _binary(target: Any, step: Step) -> Value:
    return _integers(step, step.call(target, _real(step, 0), _real(step, 3)), 6)


def _concat(step: Step) -> Value:
    """Scale and zero point of the result come first."""
    parts = [_real(step, position) for position in range(2, len(step.inputs), 3)]
    return _integers(step, step.call(aten.cat.default, parts, step.axis(parts[0], step.integer("axis"))), 0)


def _unary(operator: Callable[[Step], Any], step: Step) -> Value:
    if step.integer("channels_last", 0):
        raise step.refusal("channels come last")
    return _integers(step, _of(step, operator, (_real(step, 0),)), 3)


def _sigmoid(step: Step) -> Value:
    return step.call(aten.sigmoid.default, step[0])


def _leaky_relu(step: Step) -> Value:
    return step.call(aten.leaky_relu.default, step[0], step.real("alpha", 0.01))


TABLE: dict[str, Callable[[Step], Any]] = {
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _convolution,
    "QLinearMatMul": _matmul,
    "com.microsoft.QGemm": _gemm,
    "com.microsoft.QLinearAdd": partial(_binary, aten.add.Tensor),
    "com.microsoft.QLinearAveragePool": partial(_unary, CONVOLUTION["AveragePool"]),
    "com.microsoft.QLinearConcat": _concat,
    "com.microsoft.QLinearGlobalAveragePool": partial(_unary, CONVOLUTION["GlobalAveragePool"]),
    "com.microsoft.QLinearLeakyRelu": partial(_unary, _leaky_relu),
    "com.microsoft.QLinearMul": partial(_binary, aten.mul.Tensor),
    "com.microsoft.QLinearSigmoid": partial(_unary, _sigmoid),
}
