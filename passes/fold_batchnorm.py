"""Fold batch normalisation (evaluation mode) into the layer before it.

    conv2d(x, W, b) ── batch_norm(γ, β, μ, σ²)      →      conv2d(x, W·s, (b - μ)·s + β),   s = γ / √(σ² + ε)

Without such a layer it becomes a depthwise 1x1 convolution with weight s and bias β - μ·s, or for values other than
[N,C,H,W] a product and a sum. Computed in float64; zeros of W stay zero.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from sparsec.facts.forward import NORMS
from sparsec.ir.arguments import Layer, arguments, layer_of, positional
from sparsec.ir.forms import constant
from sparsec.ir.pipeline import Context, Editor, Form, Miss, NodePass

aten = torch.ops.aten


class FoldBatchNorm(NodePass):
    """Batch normalisation becomes part of a convolution or linear layer, else a layer of its own."""

    name = "fold_batchnorm"
    takes = Form.CAPTURED
    gives = Form.CAPTURED

    def match(self, node: fx.Node, context: Context) -> dict[str, Any] | Miss | None:
        """The node that holds the normalised value, the layer to fold into if any, factor and shift per channel."""
        if node.target not in NORMS:
            return None
        named = arguments(node)
        if named.get("training"):
            return Miss("it normalises by the statistics of the batch", node)
        result = _result(node)
        if result is None:
            return Miss("its saved statistics are read", node)
        affine = _affine(named)
        if affine is None:
            return Miss("its parameters are not constants", node)
        if not all(bool(part.isfinite().all()) for part in affine):
            return Miss("a factor or shift is not finite", node)
        return {"norm": node, "result": result, "layer": _producer(node), "affine": affine}

    def rewrite(self, edit: Editor, context: Context, norm: fx.Node, result: fx.Node, layer: Layer | None, affine: tuple) -> str:
        """Replace the normalised value."""
        if layer is not None:
            _fold(edit, result, layer, *affine)
            return f"folded into {layer.node}"
        if norm.args[0].meta["val"].dim() == 4:  # type: ignore[union-attr]
            _depthwise(edit, norm, result, *affine)
            return "a depthwise 1x1 convolution: no layer before it that it alone reads"
        _product_and_sum(edit, norm, result, *affine)
        return "a product and a sum: no layer before it that it alone reads"


def _result(node: fx.Node) -> fx.Node | None:
    """The node whose value is the normalised tensor; None where saved statistics are read as well."""
    if node.target is aten.batch_norm.default:
        return node
    users = list(node.users)
    is_first = len(users) == 1 and users[0].target is operator.getitem and users[0].args[1] == 0
    return users[0] if is_first else None


def _affine(named: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Factor s and shift β - μ·s per channel, float64; absent γ and β are 1 and 0."""
    mean, variance = constant(named["running_mean"]), constant(named["running_var"])
    weight, bias = constant(named["weight"]), constant(named["bias"])
    absent = (named["weight"] is not None and weight is None) or (named["bias"] is not None and bias is None)
    if mean is None or variance is None or absent:
        return None
    factor = 1 / (variance.double() + named["eps"]).sqrt()
    factor = factor if weight is None else weight.double() * factor
    shift = -mean.double() * factor
    return factor, shift if bias is None else bias.double() + shift


def _producer(node: fx.Node) -> Layer | None:
    """The layer before, if its value is read here only and it has constants and no epilogue to be kept."""
    source = node.args[0]
    layer = layer_of(source) if isinstance(source, fx.Node) and len(source.users) == 1 else None
    if layer is None or layer.residual is not None or layer.activation.name != "none":
        return None
    return layer if layer.is_constant and layer.makes_channels else None


def _fold(edit: Editor, result: fx.Node, layer: Layer, factor: Tensor, shift: Tensor) -> None:
    weight, bias = layer.constants()
    scaled = (weight.double() * factor.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    moved = (bias.double() * factor + shift).to(weight.dtype)
    new_weight = edit.add_constant(scaled, f"{layer.weight.name}_folded", before=result, sources=(layer.node,))
    new_bias = edit.add_constant(moved, f"{layer.weight.name}_shift", before=result, sources=(layer.node,))
    named = {**arguments(layer.node), "weight": new_weight, "bias": new_bias}
    edit.replace(result, layer.node.target, *positional(layer.node.target, named), absorbed=(layer.node,))


def _depthwise(edit: Editor, norm: fx.Node, result: fx.Node, factor: Tensor, shift: Tensor) -> None:
    channels, dtype = factor.numel(), result.meta["val"].dtype
    weight = edit.add_constant(factor.to(dtype).view(-1, 1, 1, 1), f"{norm.name}_factor", before=result)
    bias = edit.add_constant(shift.to(dtype), f"{norm.name}_shift", before=result)
    args = (norm.args[0], weight, bias, [1, 1], [0, 0], [1, 1], channels)
    edit.replace(result, aten.conv2d.default, args, absorbed=(norm,))


def _product_and_sum(edit: Editor, norm: fx.Node, result: fx.Node, factor: Tensor, shift: Tensor) -> None:
    dtype = result.meta["val"].dtype
    shape = [-1, *[1] * (result.meta["val"].dim() - 2)]
    scale = edit.add_constant(factor.to(dtype).view(shape), f"{norm.name}_factor", before=result)
    offset = edit.add_constant(shift.to(dtype).view(shape), f"{norm.name}_shift", before=result)
    product = edit.call(aten.mul.Tensor, (norm.args[0], scale), before=result, sources=(norm,))
    edit.replace(result, aten.add.Tensor, (product, offset), absorbed=(norm,))
