"""What exporters write out in small operators, put back together.

x · 0.5 · (1 + erf(x / √2))                         →  gelu(x)
x · 0.5 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))    →  gelu(x, approximate="tanh")
x · sigmoid(x), x · hardsigmoid(x)                  →  silu(x), hardswish(x)
(x - mean) / √(mean((x - mean)²) + ε) · w + b       →  layer_norm(x, w, b, ε)
linear(x, w) + b                                    →  linear(x, w, b)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from sparsec.ir.editor import Editor
from sparsec.ir.forms import constant

aten = torch.ops.aten
_CLOSE = 1e-4


def fuse(graph_module: fx.GraphModule) -> None:
    """Rewrite in place; nodes that nobody reads afterwards are gone."""
    edit = Editor(graph_module)
    for rewrite in (_activation, _normalisation, _scale_and_shift, _linear_bias):
        for node in edit.nodes():
            if not node._erased and node.op == "call_function":
                rewrite(edit, node)
        edit.sweep()
    graph_module.recompile()


@dataclass(frozen=True)
class _Product:
    """A number times the product of values."""

    scale: float
    factors: tuple[fx.Node, ...]

    def without(self, factor: fx.Node) -> tuple[fx.Node, ...]:
        """The other factors, `factor` taken out once."""
        rest = list(self.factors)
        rest.remove(factor)
        return tuple(rest)


def _product(node: fx.Node, *, root: bool = True) -> _Product:
    """Multiplications and divisions by numbers, followed through values that nobody else reads."""
    if node.target in (aten.mul.Tensor, aten.div.Tensor) and (root or len(node.users) == 1):
        left, right = node.args[0], node.args[1]
        if isinstance(right, int | float) and isinstance(left, fx.Node) and right:
            inner = _product(left, root=False)
            return _Product(inner.scale * right if node.target is aten.mul.Tensor else inner.scale / right, inner.factors)
        if node.target is aten.mul.Tensor and isinstance(left, fx.Node) and isinstance(right, fx.Node):
            first, second = _product(left, root=False), _product(right, root=False)
            return _Product(first.scale * second.scale, first.factors + second.factors)
    return _Product(1.0, (node,))


def _near(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=_CLOSE)


def _plus(node: object, wanted: float) -> fx.Node | None:
    """x of x + wanted."""
    if isinstance(node, fx.Node) and node.target is aten.add.Tensor and isinstance(node.args[1], int | float) and not node.kwargs:
        return node.args[0] if _near(float(node.args[1]), wanted) and isinstance(node.args[0], fx.Node) else None
    return None


# Activations


def _activation(edit: Editor, node: fx.Node) -> None:
    if node.target not in (aten.mul.Tensor, aten.div.Tensor):
        return
    product = _product(node)
    if len(product.factors) != 2:
        return
    for inner, x in (product.factors, product.factors[::-1]):
        for match in (_gelu, _tanh_gelu, _gated):
            if (found := match(product.scale, inner, x)) is not None:
                target, keywords = found
                edit.replace(node, target, (x,), keywords)
                return


_Found = tuple[Callable, dict] | None


def _gelu(scale: float, inner: fx.Node, x: fx.Node) -> _Found:
    erf = _plus(inner, 1.0)
    if erf is None or erf.target is not aten.erf.default or not _near(scale, 0.5):
        return None
    argument = _product(erf.args[0])  # type: ignore[arg-type]
    return (aten.gelu.default, {}) if argument.factors == (x,) and _near(argument.scale, math.sqrt(0.5)) else None


def _tanh_gelu(scale: float, inner: fx.Node, x: fx.Node) -> _Found:
    tanh = _plus(inner, 1.0)
    if tanh is None or tanh.target is not aten.tanh.default or not _near(scale, 0.5):
        return None
    argument = _product(tanh.args[0])  # type: ignore[arg-type]
    if not _near(argument.scale, math.sqrt(2 / math.pi)) or not _is_cubic(argument.factors, x):
        return None
    return aten.gelu.default, {"approximate": "tanh"}


def _is_cubic(factors: tuple[fx.Node, ...], x: fx.Node) -> bool:
    """x + 0.044715 x³, or x · (1 + 0.044715 x²)."""
    if len(factors) == 1 and factors[0].target is aten.add.Tensor:
        left, right = factors[0].args[:2]
        return (left is x and _is_power(right, x, 3)) or (right is x and _is_power(left, x, 3))
    if len(factors) == 2 and x in factors:
        (other,) = _Product(1.0, factors).without(x)
        return _is_power(_plus(other, 1.0), x, 2)
    return False


def _is_power(node: object, x: fx.Node, exponent: int) -> bool:
    if not isinstance(node, fx.Node):
        return False
    product, count = _product(node), 0
    for factor in product.factors:
        if factor.target is aten.pow.Tensor_Scalar and factor.args[0] is x:
            count += int(factor.args[1])  # type: ignore[arg-type]
        else:
            count += 1 if factor is x else exponent + 1
    return count == exponent and _near(product.scale, 0.044715)


def _gated(scale: float, inner: fx.Node, x: fx.Node) -> _Found:
    if inner.target is aten.sigmoid.default and inner.args[0] is x and scale == 1.0:
        return aten.silu.default, {}
    if inner.target is aten.hardsigmoid.default and inner.args[0] is x and scale == 1.0:
        return aten.hardswish.default, {}
    clamps = inner.target is aten.hardtanh.default and inner.args[1:] == (0.0, 6.0)
    return (aten.hardswish.default, {}) if clamps and _plus(inner.args[0], 3.0) is x and _near(scale, 1 / 6) else None


# Normalisation


def _normalisation(edit: Editor, node: fx.Node) -> None:
    """Anchored at the square root of variance + ε, whose reader is the quotient."""
    if node.target is not aten.sqrt.default or len(node.users) != 1:
        return
    (quotient,) = node.users
    if quotient.target is aten.reciprocal.default and len(quotient.users) == 1:
        (quotient,) = quotient.users
    centred, variance = _numerator(quotient, node), node.args[0]
    if centred is None or not isinstance(variance, fx.Node) or variance.target is not aten.add.Tensor:
        return
    spread, epsilon = variance.args[:2]
    x = _centre(centred)
    if x is None or not isinstance(epsilon, float) or not _is_mean_square(spread, centred):
        return
    axes = _mean_axes(spread)
    if axes is not None and axes == _mean_axes(centred.args[1]):
        sizes = list(x.meta["val"].shape[-axes:])
        edit.replace(quotient, aten.layer_norm.default, (x, sizes, None, None, epsilon, False))


def _numerator(quotient: fx.Node, root: fx.Node) -> fx.Node | None:
    """x of x / √..., or of x · (1 / √...)."""
    if quotient.target not in (aten.div.Tensor, aten.mul.Tensor):
        return None
    left, right = quotient.args[:2]
    if quotient.target is aten.div.Tensor:
        return left if right is root and isinstance(left, fx.Node) else None
    for x, inverse in ((left, right), (right, left)):
        if isinstance(inverse, fx.Node) and inverse.target is aten.reciprocal.default and inverse.args[0] is root:
            return x if isinstance(x, fx.Node) else None
    return None


def _centre(centred: fx.Node) -> fx.Node | None:
    """x of x - mean(x)."""
    if centred.target is not aten.sub.Tensor:
        return None
    x, mean = centred.args[:2]
    return x if isinstance(x, fx.Node) and isinstance(mean, fx.Node) and mean.target is aten.mean.dim and mean.args[0] is x else None


def _is_mean_square(spread: object, centred: fx.Node) -> bool:
    """The mean of the squares of `centred`, or of another copy of the same difference."""
    if not isinstance(spread, fx.Node) or spread.target is not aten.mean.dim:
        return False
    square = spread.args[0]
    if not isinstance(square, fx.Node):
        return False
    if square.target is aten.pow.Tensor_Scalar and square.args[1] == 2:
        return _same(square.args[0], centred)
    return square.target is aten.mul.Tensor and all(_same(factor, centred) for factor in square.args[:2])


def _same(node: object, centred: fx.Node) -> bool:
    if not isinstance(node, fx.Node):
        return False
    return node is centred or (node.target is aten.sub.Tensor and _centre(node) is _centre(centred) is not None)


def _mean_axes(mean: object) -> int | None:
    """How many trailing axes a mean with kept dimensions runs over; None where they are not the last ones."""
    if not isinstance(mean, fx.Node) or len(mean.args) < 3 or not mean.args[2]:
        return None
    rank = len(mean.meta["val"].shape)
    axes = sorted(axis % rank for axis in mean.args[1])  # type: ignore[union-attr, operator]
    return len(axes) if axes == list(range(rank - len(axes), rank)) else None


def _scale_and_shift(edit: Editor, node: fx.Node) -> None:
    """layer_norm(x) · w + b, each where the norm has none yet and nobody else reads it."""
    if node.target is not aten.layer_norm.default or node.args[2] is not None or node.args[3] is not None:
        return
    norm, sizes = node, node.args[1]
    scale = _constant_operand(norm, aten.mul.Tensor, sizes)
    if scale is not None:
        weight = scale[1]
        norm = edit.replace(scale[0], aten.layer_norm.default, (*node.args[:2], weight, None, *node.args[4:]), absorbed=(node,))
    shift = _constant_operand(norm, aten.add.Tensor, sizes)
    if shift is not None:
        edit.replace(shift[0], aten.layer_norm.default, (*norm.args[:3], shift[1], *norm.args[4:]), absorbed=(norm,))


def _constant_operand(value: fx.Node, target: object, sizes: object) -> tuple[fx.Node, fx.Node] | None:
    """The only reader of `value`, if it is `target` with a constant of shape `sizes`, and that constant."""
    reader = next(iter(value.users), None)
    if len(value.users) != 1 or reader is None or reader.target is not target or reader.kwargs:
        return None
    other = reader.args[1] if reader.args[0] is value else reader.args[0]
    tensor = constant(other)
    return (reader, other) if tensor is not None and list(tensor.shape) == list(sizes) else None  # type: ignore[return-value, call-overload]


def _linear_bias(edit: Editor, node: fx.Node) -> None:
    if node.target is not aten.linear.default or len(node.args) != 2:
        return
    outputs = node.meta["val"].shape[-1:]
    found = _constant_operand(node, aten.add.Tensor, outputs)
    if found is not None and found[0].meta["val"].dtype == node.meta["val"].dtype:
        edit.replace(found[0], aten.linear.default, (*node.args, found[1]), absorbed=(node,))
