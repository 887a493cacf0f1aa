"""From a node of a fused graph to the KernelSpec it asks for, or the reason why no kernel can be asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sparsec import ops
from sparsec.describe_tokens import TOKENS, Description, add_table, weight_shape
from sparsec.forms import is_value, known_fact
from sparsec.graph import Miss
from sparsec.operands import ROW_DTYPES, operands, residual, shape_of, sources, weights
from sparsec.spec import KernelSpec
from sparsec.views import VIEWS

aten = torch.ops.aten


def spec_of(node: fx.Node) -> KernelSpec | Miss:
    """The spec of a value-producing node, without layouts. Dimension 0 of every activation must be the batch."""
    if node.op != "call_function" or not is_value(node):
        return Miss("not an operator with one tensor result", node)
    describe = _DESCRIBE.get(node.target)
    if describe is None:
        return Miss(f"no kernel family computes {_name(node)}", node)
    reason = _operand_breach(node)
    if reason:
        return Miss(reason, node)
    found = describe(node)
    return Miss(found, node) if isinstance(found, str) else _spec(node, *found)


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _operand_breach(node: fx.Node) -> str:
    if not operands(node):
        return "it reads constants only"
    for value in (node, *operands(node)):
        if not is_value(value):
            return f"{value.name} is not a tensor"
        tensor = value.meta["val"]
        if tensor.dtype != torch.float32 and tensor.dtype not in ROW_DTYPES.get(node.target, ()):
            return f"{value.name} is {tensor.dtype}, kernels compute in float32"
        if tensor.dim() not in (2, 3, 4) or 0 in tensor.shape:
            return f"{value.name} has shape {list(tensor.shape)}; kernels take [N, C], [N, T, F] and [N, C, H, W] without empty axes"
    batches = {v.meta["val"].shape[0] for v in (node, *operands(node))}
    return "" if len(batches) == 1 else f"operands have batch sizes {sorted(batches)}"


def _spec(node: fx.Node, op: str, attributes: dict[str, Any]) -> KernelSpec:
    constants = weights(node)
    fact = known_fact(constants[-2] if op == "depthwise_pointwise" else constants[0]) if constants else None
    return KernelSpec(
        op=op,
        inputs=tuple(shape_of(a) for a in sources(node)),
        output=shape_of(node),
        weights=tuple(None if w is None else weight_shape(op, tuple(w.meta["val"].shape)) for w in constants),
        attributes=tuple(sorted(attributes.items())),
        weight_fact="{}" if fact is None else json.dumps(fact.to_json(), sort_keys=True),
        residual=None if (added := residual(node)) is None else shape_of(added),
    )


def _ours(op: str) -> Callable[[fx.Node], Description]:
    def describe(node: fx.Node) -> Description:
        if any(w is not None and w.op != "get_attr" for w in weights(node)):
            return "its weight is computed, not constant"
        if (added := residual(node)) is not None and added not in operands(node):
            return "a constant is added to it"
        return op, {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in node.kwargs.items()}

    return describe


def _elementwise(op: str) -> Callable[[fx.Node], Description]:
    def describe(node: fx.Node) -> Description:
        if op == "add" and len(shape_of(node)) == 2 and weights(node):
            return add_table(node)
        if len(operands(node)) not in (1, 2) or not all(isinstance(a, fx.Node) and a.op != "get_attr" for a in node.args[:2]):
            return f"{op} with a constant operand"
        if node.kwargs.get("alpha", 1) != 1:
            return "add with a factor"
        mine, shapes = shape_of(node), [shape_of(a) for a in node.args[:2]]  # type: ignore[arg-type]
        broadcast = (mine[0], 1, 1)
        if shapes == [mine, mine]:
            return op, {}
        if op == "mul" and sorted(shapes) == sorted([mine, broadcast]):
            return op, {"channels": shapes.index(broadcast)}
        return f"{op} that broadcasts {shapes} to {mine}"

    return describe


def _global_pool(node: fx.Node) -> Description:
    size, out = shape_of(operands(node)[0]), shape_of(node)
    if len(size) != 3 or out not in ((size[0],), (size[0], 1, 1)):
        return f"it pools {size} to {out}; only pooling to one pixel has a kernel"
    if size[1:] == (1, 1):
        return "alias", {}
    return "global_avg_pool", {}


def _pair(value: Any, default: Any = None) -> tuple[int, int]:
    value = default if value is None or value == [] else value
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _pool(op: str) -> Callable[[fx.Node], Description]:
    names = ["kernel_size", "stride", "padding", *(["dilation", "ceil_mode"] if op == "max_pool2d" else ["ceil_mode", "count_include_pad"])]

    def describe(node: fx.Node) -> Description:
        given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        if given.pop("divisor_override", None) is not None or len(node.args) > 1 + len(names):
            return "average pooling with its own divisor"
        if given.get("ceil_mode") or _pair(given.get("dilation", 1)) != (1, 1):
            return "pooling with ceil_mode or dilation"
        kernel = _pair(given["kernel_size"])
        out: dict[str, Any] = {
            "kernel_size": kernel,
            "stride": _pair(given.get("stride"), kernel),
            "padding": _pair(given.get("padding"), 0),
        }
        if op == "avg_pool2d":
            out["count_include_pad"] = bool(given.get("count_include_pad", True))
        return op, out

    return describe


_DESCRIBE: dict[Any, Callable[[fx.Node], Description]] = {
    ops.conv2d: _ours("conv2d"),
    ops.linear: _ours("linear"),
    ops.depthwise_pointwise: _ours("depthwise_pointwise"),
    ops.activate: _ours("activate"),
    ops.to_layout: lambda node: ("convert", {"layout": node.kwargs["layout"]}),
    aten.add.Tensor: _elementwise("add"),
    aten.mul.Tensor: _elementwise("mul"),
    aten.adaptive_avg_pool2d.default: _global_pool,
    aten.max_pool2d.default: _pool("max_pool2d"),
    aten.avg_pool2d.default: _pool("avg_pool2d"),
    **TOKENS,
    **VIEWS,
}
