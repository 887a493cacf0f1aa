"""Join a depthwise convolution with the 1x1 convolution that alone reads it.

    conv2d(x, D, groups=C) ── conv2d(·, W[O,C,1,1])      →      depthwise_pointwise(x, D, W)

The value between them is then never stored. That pays only where it does not stay in the cache anyway: C·H·W·4 bytes
above `costs.joined_bytes`. They are not joined where kernels exist for both but not for the pair.
"""

from typing import Any

from torch import fx

from sparsec.ir import ops
from sparsec.ir.arguments import Layer, layer_of
from sparsec.ir.pipeline import Context, Editor, Form, Miss, NodePass
from sparsec.lower.offers import Call, loss

SIZES = ((3, 3), (5, 5))


class FuseDepthwisePointwise(NodePass):
    """Depthwise 3x3 or 5x5 followed by 1x1 becomes one operator where activation traffic dominates."""

    name = "fuse_depthwise_pointwise"
    takes = Form.FUSED
    gives = Form.FUSED

    def match(self, node: fx.Node, context: Context) -> dict[str, Any] | Miss | None:
        """A depthwise convolution and its only reader."""
        depthwise = layer_of(node) if node.target is ops.conv2d else None
        if depthwise is None or not depthwise.is_depthwise:
            return None
        users = list(node.users)
        pointwise = layer_of(users[0]) if len(users) == 1 and users[0].target is ops.conv2d else None
        if pointwise is None:
            return Miss("its value is not read by one convolution alone", node)
        reason = _refusal(depthwise, pointwise, context)
        return Miss(reason, node) if reason else {"depthwise": depthwise, "pointwise": pointwise}

    def rewrite(self, edit: Editor, context: Context, depthwise: Layer, pointwise: Layer) -> str:
        """Replace the 1x1 convolution by both."""
        call = _pair(depthwise, pointwise)
        edit.replace(pointwise.node, call.target, call.args, call.kwargs, absorbed=(depthwise.node,))
        return f"joined with {pointwise.node.name}"


def _pair(depthwise: Layer, pointwise: Layer) -> Call:
    operands = (depthwise.x, depthwise.weight, depthwise.bias, pointwise.weight, pointwise.bias, pointwise.residual)
    shape = {"stride": depthwise.stride, "padding": depthwise.padding}
    epilogues = depthwise.activation.keywords("dw_") | pointwise.activation.keywords()
    return Call(ops.depthwise_pointwise, operands, {**shape, **epilogues}, pointwise.node)


def _refusal(depthwise: Layer, pointwise: Layer, context: Context) -> str:
    if pointwise.x is not depthwise.node or pointwise.residual is depthwise.node:
        return "its reader uses it as a residual"
    simple = (pointwise.groups, pointwise.stride, pointwise.padding) == (1, (1, 1), (0, 0))
    if pointwise.weight_shape[2:] != (1, 1) or not simple:
        return "its reader is not a plain 1x1 convolution"
    if depthwise.residual is not None or depthwise.dilation != (1, 1):
        return "it has a residual or a dilation"
    if depthwise.weight_shape[2:] not in SIZES:
        return "it is neither 3x3 nor 5x5"
    if depthwise.padding != tuple(size // 2 for size in depthwise.weight_shape[2:]):
        return "its padding is not same padding"
    limit = context.costs.joined_bytes
    _, channels, height, width = depthwise.node.meta["val"].shape
    stored = channels * height * width * depthwise.node.meta["val"].element_size()
    if stored <= limit:
        return f"its {stored // 1024} KiB stay in the cache (limit {limit // 1024} KiB)"
    return loss([Call.of(depthwise.node), Call.of(pointwise.node)], _pair(depthwise, pointwise), context.offers)
