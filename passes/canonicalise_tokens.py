"""One spelling for what works on tokens.

matmul(x, W) ── add b                                       →      linear(x, Wᵀ, b)
conv2d [N,C,H,W] ── flatten 2 ── transpose 1 2              →      map_to_tokens [N,H·W,C]
add(x, constant [N,T,F] of equal rows), cat(-2), mean(-2)   →      add(x, constant [1,T,F]), cat(1), mean(1)
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from sparsec.ir.arguments import Layer, arguments, layer_of, positional
from sparsec.ir.forms import constant, is_value
from sparsec.ir.pipeline import Context, Editor, Form, NodePass
from sparsec.tokens import ops as token_ops
from sparsec.tokens.axes import View, axis_of, build, is_view, view_of

aten = torch.ops.aten
SUMS = frozenset({aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor})
PRODUCTS = {aten.matmul.default: ("self", "other"), aten.mm.default: ("self", "mat2"), aten.addmm.default: ("mat1", "mat2")}


class CanonicaliseTokens(NodePass):
    """Products with constants become linear layers, flattened maps tokens; constants and dimensions are written one way."""

    name = "canonicalise_tokens"
    takes = Form.CAPTURED
    gives = Form.CAPTURED

    def match(self, node: fx.Node, context: Context) -> dict[str, Any] | None:
        """The first rule that applies."""
        if node.op != "call_function" or not is_value(node):
            return None
        for rule in (_product, _bias, _map, _repeated, _dimension):
            found = rule(node)
            if found is not None:
                return {"node": node, "found": found}
        return None

    def rewrite(self, edit: Editor, context: Context, node: fx.Node, found: Callable[[Editor], str]) -> str:
        """Apply it."""
        return found(edit)


Rewrite = Callable[[Editor], str] | None


def _product(node: fx.Node) -> Rewrite:
    """x [..., I] times a constant [I, O], plus a constant [O]."""
    if node.target not in PRODUCTS:
        return None
    named = arguments(node)
    x, matrix = (named[name] for name in PRODUCTS[node.target])
    weight, bias = constant(matrix), named.get("self") if node.target is aten.addmm.default else None
    if weight is None or weight.dim() != 2 or constant(x) is not None or x.meta["val"].dim() < 2 or not weight.is_floating_point():
        return None
    if bias is not None and (not _is_vector(bias, weight.shape[1]) or named["beta"] != 1 or named["alpha"] != 1):
        return None

    def rewrite(edit: Editor) -> str:
        turned = edit.add_constant(weight.t(), f"{matrix.name}_t", before=node, sources=(matrix,))
        edit.replace(node, aten.linear.default, (x, turned, bias))
        return "a linear layer"

    return rewrite


def _is_vector(node: fx.Node, size: int) -> bool:
    tensor = constant(node)
    return tensor is not None and tensor.shape == (size,)


def _bias(node: fx.Node) -> Rewrite:
    """linear(x, W) + b, where nobody else reads the product."""
    if node.target is not aten.add.Tensor or arguments(node)["alpha"] != 1:
        return None
    for product, summand in (node.args[:2], node.args[1::-1]):
        layer = layer_of(product) if isinstance(product, fx.Node) and product.target is aten.linear.default else None
        tensor = constant(summand)
        if layer is not None and layer.bias is None and len(layer.node.users) == 1 and tensor is not None and _is_bias(layer, tensor, node):
            return lambda edit, layer=layer, tensor=tensor, summand=summand: _with_bias(edit, node, layer, tensor, summand)  # type: ignore[misc]
    return None


def _is_bias(layer: Layer, tensor: torch.Tensor, node: fx.Node) -> bool:
    same = layer.node.meta["val"].shape == node.meta["val"].shape and tensor.dtype == node.meta["val"].dtype
    return same and tensor.shape[-1:] == node.meta["val"].shape[-1:] and tensor.numel() == tensor.shape[-1]


def _with_bias(edit: Editor, node: fx.Node, layer: Layer, tensor: torch.Tensor, summand: fx.Node) -> str:
    bias = edit.add_constant(tensor.reshape(-1), f"{summand.name}_bias", before=node, sources=(summand,))
    edit.replace(node, aten.linear.default, (layer.x, layer.weight, bias), absorbed=(layer.node,))
    return f"the bias of {layer.node.name}"


def _map(node: fx.Node) -> Rewrite:
    """The pixels of [N,C,H,W] as one dimension, in any order with samples and channels."""
    view = view_of(node) if is_view(node) else None
    if view is None or view.root.meta["val"].dim() != 4 or len(view.dims) != 3 or not view.is_rearrangement:
        return None
    samples, channels, rows, columns = (axis_of(view.root, axis) for axis in range(4))
    parts = (samples, rows + columns, channels)
    order = [parts.index(dim) for dim in view.dims if dim in parts]
    # [N,C,H·W] is a map still; [N,H,T,1] are heads of one feature rather than a map.
    if not rows or not columns or sorted(order) != [0, 1, 2] or order == [0, 2, 1]:
        return None

    def rewrite(edit: Editor) -> str:
        made = edit.call(token_ops.map_to_tokens, (view.root,), before=node, sources=(node,))
        whole = View.whole(made)
        edit.substitute(node, build(edit, replace(whole, dims=tuple(whole.dims[axis] for axis in order)), node))
        return "one token per pixel"

    return rewrite


def _repeated(node: fx.Node) -> Rewrite:
    """A constant that says the same for each sample says it once."""
    if node.target not in SUMS:
        return None
    for position, argument in enumerate(node.args[:2]):
        tensor, other = constant(argument), node.args[1 - position]
        if tensor is None or not isinstance(other, fx.Node) or tensor.dim() < 3 or tensor.shape[0] == 1:
            continue
        if other.meta["val"].shape == node.meta["val"].shape and torch.equal(tensor, tensor[:1].expand_as(tensor)):
            return lambda edit, position=position, tensor=tensor: _once(edit, node, position, tensor)  # type: ignore[misc]
    return None


def _once(edit: Editor, node: fx.Node, position: int, tensor: torch.Tensor) -> str:
    args = list(node.args)
    owner: Any = args[position]
    args[position] = edit.add_constant(tensor[:1], f"{owner.name}_once", before=node, sources=(owner,))
    edit.set_args(node, args, node.kwargs)
    return f"{owner.name} is the same for all samples"


def _dimension(node: fx.Node) -> Rewrite:
    """Dimensions counted from the end, counted from the start."""
    if node.target not in (aten.cat.default, aten.mean.dim, aten.select.int):
        return None
    named = arguments(node)
    source: Any = named["tensors"][0] if node.target is aten.cat.default else node.args[0]
    rank, dim = source.meta["val"].dim(), named["dim"]
    if rank != 3:
        return None
    counted = sorted(d % rank for d in dim) if isinstance(dim, list | tuple) else dim if dim is None else dim % rank
    if counted is None or counted == (list(dim) if isinstance(counted, list) else dim):
        return None

    def rewrite(edit: Editor) -> str:
        edit.set_args(node, *positional(node.target, {**named, "dim": counted}))
        return f"along dimension {counted}"

    return rewrite
