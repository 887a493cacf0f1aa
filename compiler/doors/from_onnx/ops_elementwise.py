"""ONNX operators that act on each element by itself."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape
from sparsec.doors.from_onnx.tensors import dtype_of

aten = torch.ops.aten


def _unary(target: Any, step: Step) -> Value:
    return step.call(target, step[0])


def scalar(value: Value, other: Value) -> Any:
    """A constant of one element as a Python number where that changes neither shape nor dtype of what it does to `other`."""
    if not isinstance(value, Tensor) or not isinstance(other, fx.Node) or value.numel() != 1 or value.dtype == torch.bool:
        return value
    return value.item() if value.dim() <= len(shape(other)) and value.dtype == dtype(other) else value


def _same_types(step: Step) -> tuple[Value, Value]:
    left, right = step[0], step[1]
    if dtype(left) != dtype(right):
        raise step.refusal(f"the types {dtype(left)} and {dtype(right)} differ")
    return left, right


def _binary(target: Any, step: Step) -> Value:
    return step.call(target, *_same_types(step))


def _commutative(target: Any, step: Step) -> Value:
    left, right = _same_types(step)
    return combine(step, target, left, right)


def combine(step: Step, target: Any, left: Value, right: Value) -> Value:
    """A commutative operator of two values, a number on the right."""
    if isinstance(left, Tensor) and isinstance(right, fx.Node):
        left, right = right, left
    return step.call(target, left, scalar(right, left))


def _subtract(step: Step) -> Value:
    left, right = _same_types(step)
    number = scalar(left, right)
    return step.call(aten.sub.Tensor, left, scalar(right, left)) if number is left else step.call(aten.rsub.Scalar, right, number)


def _divide(step: Step) -> Value:
    left, right = _same_types(step)
    if not dtype(left).is_floating_point:
        _check_divisor(step, left, right)
        return step.call(aten.div.Tensor_mode, left, right, rounding_mode="trunc")
    number = scalar(left, right)
    if number is left:
        return step.call(aten.div.Tensor, left, scalar(right, left))
    inverse = step.call(aten.reciprocal.default, right)
    return inverse if number == 1 else step.call(aten.mul.Tensor, inverse, number)


def _check_divisor(step: Step, left: Value, right: Value) -> None:
    """Integers that a processor cannot divide: by zero, and the smallest by -1."""
    if isinstance(right, Tensor) and not right.all():
        raise step.refusal("a constant divisor is zero")
    if isinstance(left, Tensor) and isinstance(right, Tensor) and (left == torch.iinfo(left.dtype).min).any() and (right == -1).any():
        raise step.refusal("a constant quotient does not fit its type")


def _power(step: Step) -> Value:
    base, exponent = step[0], step[1]
    if isinstance(exponent, Tensor) and exponent.numel() == 1 and exponent.dim() <= len(shape(base)):
        result = step.call(aten.pow.Tensor_Scalar, base, exponent.item())
    else:
        result = step.call(aten.pow.Tensor_Tensor, base, exponent)
    return cast(step, result, dtype(base))


def cast(step: Step, value: Value, target: torch.dtype) -> Value:
    """The value as another dtype."""
    return value if dtype(value) == target else step.call(aten._to_copy.default, value, dtype=target)


def _cast(step: Step) -> Value:
    return cast(step, step[0], dtype_of(step.integer("to"), step.node.place))


def _compare(target: Any, step: Step) -> Value:
    left, right = _same_types(step)
    number = scalar(right, left)
    return step.call(target.Tensor, left, right) if number is right else step.call(target.Scalar, left, number)


def _modulo(step: Step) -> Value:
    left, right = _same_types(step)
    if not dtype(left).is_floating_point:
        _check_divisor(step, left, right)
    return step.call(aten.fmod.Tensor if step.integer("fmod", 0) else aten.remainder.Tensor, left, right)


def _fold_inputs(target: Any, step: Step) -> Value:
    """Sum, Min and Max of any number of values."""
    result = step[0]
    for position in range(1, len(step.inputs)):
        if target is aten.add.Tensor:
            result = combine(step, target, result, step[position])
        else:
            result = step.call(target, result, step[position])
    return result


def _mean(step: Step) -> Value:
    return step.call(aten.div.Tensor, _fold_inputs(aten.add.Tensor, step), len(step.inputs))


def _clip(step: Step) -> Value:
    x = step[0]
    bounds = [step.maybe(1), step.maybe(2)]
    if any(isinstance(bound, fx.Node) for bound in bounds):
        return step.call(aten.clamp.Tensor, x, *bounds)
    low, high = step.number(1), step.number(2)
    if low is None and high is None:
        return x
    if low == 0 and high is None and dtype(x).is_floating_point:
        return step.call(aten.relu.default, x)
    if low is not None and high is not None and low < high and dtype(x).is_floating_point:
        return step.call(aten.hardtanh.default, x, low, high)
    return step.call(aten.clamp.default, x, low, high)


def _hard_sigmoid(step: Step) -> Value:
    alpha, beta = step.real("alpha", 0.2), step.real("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return step.call(aten.hardsigmoid.default, step[0])
    line = step.call(aten.add.Tensor, step.call(aten.mul.Tensor, step[0], alpha), beta)
    return step.call(aten.hardtanh.default, line, 0.0, 1.0)


def _gelu(step: Step) -> Value:
    form = step.text("approximate", "none")
    return step.call(aten.gelu.default, step[0], approximate=form) if form == "tanh" else step.call(aten.gelu.default, step[0])


def _swish(step: Step) -> Value:
    alpha = step.real("alpha", 1.0)
    if alpha == 1.0:
        return step.call(aten.silu.default, step[0])
    gate = step.call(aten.sigmoid.default, step.call(aten.mul.Tensor, step[0], alpha))
    return step.call(aten.mul.Tensor, step[0], gate)


def _prelu(step: Step) -> Value:
    negative = step.call(aten.mul.Tensor, step.call(aten.clamp.default, step[0], None, 0.0), step[1])
    return step.call(aten.add.Tensor, step.call(aten.relu.default, step[0]), negative)


def _selu(step: Step) -> Value:
    alpha, gamma = step.real("alpha", 1.67326319217681884765625), step.real("gamma", 1.05070102214813232421875)
    return step.call(aten.elu.default, step[0], alpha, gamma)


def _celu(step: Step) -> Value:
    alpha = step.real("alpha", 1.0)
    return step.call(aten.elu.default, step[0], alpha, 1.0, 1 / alpha)


def _softsign(step: Step) -> Value:
    return step.call(aten.div.Tensor, step[0], step.call(aten.add.Tensor, step.call(aten.abs.default, step[0]), 1.0))


def _shrink(step: Step) -> Value:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    limit, bias, x = step.real("lambd", 0.5), step.real("bias", 0.0), step[0]
    if not dtype(x).is_floating_point:
        raise step.refusal(f"a value of {dtype(x)}")
    low = step.call(
        aten.where.self, step.call(aten.lt.Scalar, x, -limit), step.call(aten.add.Tensor, x, bias), torch.zeros((), dtype=dtype(x))
    )
    return step.call(aten.where.self, step.call(aten.gt.Scalar, x, limit), step.call(aten.sub.Tensor, x, bias), low)


def _is_infinite(step: Step) -> Value:
    sides = bool(step.integer("detect_positive", 1)), bool(step.integer("detect_negative", 1))
    if sides == (True, True):
        return step.call(aten.isinf.default, step[0])
    if sides == (False, False):
        return step.call(aten.zeros_like.default, step[0], dtype=torch.bool)
    return step.call(aten.eq.Scalar, step[0], math.inf if sides[0] else -math.inf)


def _where(step: Step) -> Value:
    if dtype(step[1]) != dtype(step[2]):
        raise step.refusal(f"the types {dtype(step[1])} and {dtype(step[2])} differ")
    return step.call(aten.where.self, step[0], step[1], step[2])


def _identity(step: Step) -> Value:
    return step[0]


def _dropout(step: Step) -> tuple[Value, ...]:
    if step.maybe(2) is not None and step.number(2):
        raise step.refusal("it is in training mode")
    if len(step.node.outputs) == 1:
        return (step[0],)
    return step[0], step.call(aten.ones.default, list(shape(step[0])), dtype=torch.bool)


_UNARY = {
    "Abs": aten.abs.default,
    "Acos": aten.acos.default,
    "Acosh": aten.acosh.default,
    "Asin": aten.asin.default,
    "Asinh": aten.asinh.default,
    "Atan": aten.atan.default,
    "Atanh": aten.atanh.default,
    "BitwiseNot": aten.bitwise_not.default,
    "Ceil": aten.ceil.default,
    "Cos": aten.cos.default,
    "Cosh": aten.cosh.default,
    "Erf": aten.erf.default,
    "Exp": aten.exp.default,
    "Floor": aten.floor.default,
    "HardSwish": aten.hardswish.default,
    "IsNaN": aten.isnan.default,
    "Log": aten.log.default,
    "Mish": aten.mish.default,
    "Neg": aten.neg.default,
    "Not": aten.logical_not.default,
    "Reciprocal": aten.reciprocal.default,
    "Relu": aten.relu.default,
    "Round": aten.round.default,
    "Sigmoid": aten.sigmoid.default,
    "Sign": aten.sign.default,
    "Sin": aten.sin.default,
    "Sinh": aten.sinh.default,
    "Softplus": aten.softplus.default,
    "Sqrt": aten.sqrt.default,
    "Tan": aten.tan.default,
    "Tanh": aten.tanh.default,
}
_COMMUTATIVE = {"Add": aten.add.Tensor, "Mul": aten.mul.Tensor}
_LOGICAL = {
    "And": aten.logical_and.default,
    "Or": aten.logical_or.default,
    "Xor": aten.logical_xor.default,
    "BitwiseAnd": aten.bitwise_and.Tensor,
    "BitwiseOr": aten.bitwise_or.Tensor,
    "BitwiseXor": aten.bitwise_xor.Tensor,
}
_COMPARISONS = {"Equal": aten.eq, "Greater": aten.gt, "GreaterOrEqual": aten.ge, "Less": aten.lt, "LessOrEqual": aten.le}
_VARIADIC = {"Sum": aten.add.Tensor, "Min": aten.minimum.default, "Max": aten.maximum.default}

TABLE: dict[str, Callable[[Step], Any]] = {
    **{name: partial(_unary, target) for name, target in _UNARY.items()},
    **{name: partial(_commutative, target) for name, target in _COMMUTATIVE.items()},
    **{name: partial(_binary, target) for name, target in _LOGICAL.items()},
    **{name: partial(_compare, packet) for name, packet in _COMPARISONS.items()},
    **{name: partial(_fold_inputs, target) for name, target in _VARIADIC.items()},
    "Cast": _cast,
    "Celu": _celu,
    "CastLike": lambda step: cast(step, step[0], dtype(step[1])),
    "Clip": _clip,
    "Div": _divide,
    "Dropout": _dropout,
    "Elu": lambda step: step.call(aten.elu.default, step[0], step.real("alpha", 1.0)),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Identity": _identity,
    "IsInf": _is_infinite,
    "LeakyRelu": lambda step: step.call(aten.leaky_relu.default, step[0], step.real("alpha", 0.01)),
    "Mean": _mean,
    "Mod": _modulo,
    "PRelu": _prelu,
    "Pow": _power,
    "Selu": _selu,
    "Shrink": _shrink,
    "Softsign": _softsign,
    "Sub": _subtract,
    "Swish": _swish,
    "ThresholdedRelu": lambda step: step.call(aten.threshold.default, step[0], step.real("alpha", 1.0), 0.0),
    "Where": _where,
}
