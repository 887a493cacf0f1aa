"""Make convolutions and linear layers ours, with what follows them.

    conv2d(x, W, b) ── add(·, r) ── relu      →      sparsec.conv2d(x, W, b, r, activation="clamp", lo=0)

A residual is absorbed where it has the shape of the layer's value and nobody else reads that value. Nothing is absorbed that costs
the layer its kernel. An activation without such a layer becomes sparsec.activate; a mean over rows and columns becomes
adaptive_avg_pool2d(1).
"""

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from sparsec.facts.forward import SUMS
from sparsec.ir import ops
from sparsec.ir.arguments import Activation, Layer, activation_of, arguments, layer_of
from sparsec.ir.forms import is_value
from sparsec.ir.pipeline import Context, Editor, Form, Miss, NodePass
from sparsec.lower.offers import Call, loss

aten = torch.ops.aten


class FuseEpilogue(NodePass):
    """Layers absorb bias, residual sum and activation."""

    name = "fuse_epilogue"
    takes = Form.INFERRED
    gives = Form.FUSED

    def match(self, node: fx.Node, context: Context) -> dict[str, Any] | Miss | None:
        """A layer with its chain of followers, a lone activation, or a spatial mean."""
        if node.target is aten.mean.dim:
            return _match_mean(node)
        if node.target is not ops.activate and (found := activation_of(node)) is not None:
            return {"node": node, "x": found[0], "activation": found[1]}
        if node.target in (aten.conv2d.default, aten.conv2d.padding) and layer_of(node) is None:
            return Miss("the input has no batch dimension, or the padding differs on both sides", node)
        layer = layer_of(node) if is_value(node) else None
        if layer is None:
            return None
        if not node.meta["val"].is_floating_point():
            return Miss("the values are not floating-point numbers", node)
        fused = _absorb(layer, context)
        return None if fused.last is node and node.target in ops.FUNCTIONS else {"fused": fused}

    def rewrite(self, edit: Editor, context: Context, **bindings: Any) -> str:
        """Replace the last node of the chain."""
        if "fused" in bindings:
            return _rewrite_layer(edit, bindings["fused"])
        if "activation" in bindings:
            activation = bindings["activation"]
            edit.replace(bindings["node"], ops.activate, (bindings["x"],), activation.keywords())
            return f"{activation.name} on its own"
        return _rewrite_mean(edit, **bindings)


class _Chain:
    """A layer and its followers: `layer` with the residual and activation taken over, the nodes in order."""

    def __init__(self, layer: Layer, context: Context) -> None:
        self.layer, self.context = layer, context
        self.nodes = [layer.node]
        self.left_out = ""

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    def take(self, node: fx.Node, **changes: Any) -> None:
        """Take a node over, unless no kernel computes the layer then."""
        grown = replace(self.layer, **changes)
        reason = loss([_call(self.layer)], _call(grown), self.context.offers)
        if reason:
            self.leave(node, reason)
        else:
            self.layer = grown
            self.nodes.append(node)

    def leave(self, node: fx.Node, reason: str) -> None:
        self.left_out += f"; {node.name} left out: {reason}"


def _absorb(layer: Layer, context: Context) -> _Chain:
    chain = _Chain(layer, context)
    if layer.activation.name == "none" and layer.residual is None:
        _absorb_residual(chain)
    if layer.activation.name == "none":
        _absorb_activation(chain)
    return chain


def _absorb_residual(chain: _Chain) -> None:
    sums = [user for user in chain.last.users if user.target in SUMS]
    if not sums:
        return
    reason = _sum_refusal(chain.last, sums[0])
    if reason:
        chain.leave(sums[0], reason)
        return
    (other,) = [operand for operand in sums[0].args[:2] if operand is not chain.last]
    chain.take(sums[0], residual=other)


def _sum_refusal(value: fx.Node, total: fx.Node) -> str:
    if len(value.users) > 1:
        return "the value is read elsewhere too"
    a, b = total.args[:2]
    if a is b:
        return "both summands are this value"
    if not all(isinstance(each, fx.Node) and is_value(each) for each in (a, b)):
        return "a summand is a number"
    if arguments(total)["alpha"] != 1:
        return "a summand is scaled"
    signatures = {(each.meta["val"].shape, each.meta["val"].dtype) for each in (a, b, total)}  # type: ignore[union-attr]
    return "the summands differ in shape or dtype" if len(signatures) > 1 else ""


def _absorb_activation(chain: _Chain) -> None:
    users = list(chain.last.users)
    found = activation_of(users[0]) if len(users) == 1 else None
    if found is not None and found[0] is chain.last:
        chain.take(users[0], activation=found[1])


def _call(layer: Layer) -> Call:
    target = ops.linear if layer.is_linear else ops.conv2d
    return Call(target, (layer.x, layer.weight, layer.bias, layer.residual), layer.attributes(), layer.node)


def _rewrite_layer(edit: Editor, chain: _Chain) -> str:
    layer, call = chain.layer, _call(chain.layer)
    edit.replace(chain.last, call.target, call.args, call.kwargs, absorbed=chain.nodes[:-1])
    parts = ["residual"] * (layer.residual is not None) + [layer.activation.name] * (layer.activation != Activation())
    return (f"with {' and '.join(parts)}" if parts else "on its own") + chain.left_out


def _match_mean(node: fx.Node) -> dict[str, Any] | Miss | None:
    named, value = arguments(node), node.args[0].meta["val"]  # type: ignore[union-attr]
    if value.dim() != 4 or named["dim"] is None or {dim % 4 for dim in named["dim"]} != {2, 3}:
        return Miss("the mean is not over rows and columns of [N,C,H,W]", node)
    if named["dtype"] not in (None, value.dtype):
        return Miss("the mean changes the dtype", node)
    return {"mean": node, "keepdim": named["keepdim"]}


def _rewrite_mean(edit: Editor, mean: fx.Node, keepdim: bool) -> str:
    if keepdim:
        edit.replace(mean, aten.adaptive_avg_pool2d.default, (mean.args[0], [1, 1]))
    else:
        pooled = edit.call(aten.adaptive_avg_pool2d.default, (mean.args[0], [1, 1]), before=mean, sources=(mean,))
        edit.replace(mean, aten.flatten.using_ints, (pooled, 1))
    return "a global average pool"
