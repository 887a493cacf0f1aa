"""Layers, sums, products and pools as kernels: name and attributes, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import fx

from sparsec.ir.arguments import arguments, operands, shape_of
from sparsec.ir.miss import Miss
from sparsec.ir.operators.record import Description, Operator, Shape
from sparsec.lower.describe_tokens import add_table


def layer(node: fx.Node, operator: Operator) -> Description:
    """One of our operators with an epilogue."""
    if operator.computed_weight(node):
        return Miss("its weight is computed, not constant")
    if (added := operator.residual(node)) is not None and added not in operands(node):
        return Miss("a constant is added to it")
    return operator.name, {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in node.kwargs.items()}


def summed(node: fx.Node, operator: Operator) -> Description:
    """Two values of one shape; a constant that is added to tokens is a table."""
    if len(shape_of(node)) == 2 and operator.weights(node):
        return add_table(node, operator)
    return _of_two(node, operator.name)


def multiplied(node: fx.Node, operator: Operator) -> Description:
    """Two values of one shape, or a map and one pixel per channel."""
    return _of_two(node, operator.name, {(shape_of(node)[0], 1, 1): "channels"})


def _of_two(node: fx.Node, op: str, factors: Mapping[Shape, str] = MappingProxyType({})) -> Description:
    """``factors``: other shapes that one of the two may have, and the attribute that says which."""
    if len(operands(node)) not in (1, 2) or not all(isinstance(a, fx.Node) and a.op != "get_attr" for a in node.args[:2]):
        return Miss(f"{op} with a constant operand")
    if node.kwargs.get("alpha", 1) != 1:
        return Miss("add with a factor")
    mine, shapes = shape_of(node), [shape_of(a) for a in node.args[:2]]  # type: ignore[arg-type]
    if shapes == [mine, mine]:
        return op, {}
    for shape, name in factors.items():
        if sorted(shapes) == sorted([mine, shape]):
            return op, {name: shapes.index(shape)}
    return Miss(f"{op} that broadcasts {shapes} to {mine}")


def global_pool(node: fx.Node, operator: Operator) -> Description:
    """A mean over whole maps."""
    size, out = shape_of(operands(node)[0]), shape_of(node)
    if len(size) != 3 or out not in ((size[0],), (size[0], 1, 1)):
        return Miss(f"it pools {size} to {out}; only pooling to one pixel has a kernel")
    if size[1:] == (1, 1):
        return "alias", {}
    return "global_avg_pool", {}


def _pair(value: Any, default: Any = None) -> tuple[int, int]:
    value = default if value is None or value == [] else value
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def window_pool(node: fx.Node, operator: Operator) -> Description:
    """A maximum or a mean over windows; ATen leaves a stride out that is the window."""
    named = arguments(node)
    if named.get("divisor_override") is not None:
        return Miss("average pooling with its own divisor")
    if named["ceil_mode"] or _pair(named.get("dilation", 1)) != (1, 1):
        return Miss("pooling with ceil_mode or dilation")
    kernel = _pair(named["kernel_size"])
    out: dict[str, Any] = {"kernel_size": kernel, "stride": _pair(named["stride"], kernel), "padding": _pair(named["padding"], 0)}
    if "count_include_pad" in named:
        out["count_include_pad"] = bool(named["count_include_pad"])
    return operator.name, out
