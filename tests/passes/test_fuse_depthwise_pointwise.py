"""FuseDepthwisePointwise: joins where the value between does not stay in the cache; else says why."""

from collections.abc import Callable

import pytest
import torch
from torch import fx

from sparsec.ir import ops
from sparsec.ir.arguments import RELU, Activation, arguments
from sparsec.ir.miss import Miss
from sparsec.ir.pipeline import Context, Result, run
from sparsec.lower.costs import Costs
from sparsec.passes import PIPELINE, FuseDepthwisePointwise
from tests.strategies import Network, integers

aten = torch.ops.aten
PASSES = PIPELINE[: [step.name for step in PIPELINE].index(FuseDepthwisePointwise.name) + 1]
ALWAYS = Context(costs=Costs(joined_bytes=0))


def joined(net: Network, *outputs: fx.Node, context: Context = ALWAYS) -> Result:
    result = run(net.returns(*(outputs or (net.last,))).graph_module, PASSES, context)
    for expected, found in zip(net.run(), net.run(result.graph_module), strict=True):
        assert torch.equal(expected, found)
    return result


def calls(result: Result) -> list[fx.Node]:
    return [node for node in result.graph_module.graph.nodes if node.op == "call_function"]


def depthwise(kernel: int = 3, stride: int = 1, size: int = 8, channels: int = 4) -> Network:
    net = Network((1, channels, size, size), 0)
    net.conv(integers((channels, 1, kernel, kernel), 1, 1, 3), integers((channels,), 2), stride, kernel // 2, channels)
    net.add(aten.relu6.default, net.last)
    return net


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_both_become_one_with_both_epilogues(kernel: int, stride: int) -> None:
    net = depthwise(kernel, stride)
    net.conv(integers((5, 4, 1, 1), 3, 1, 3), integers((5,), 4))
    net.add(aten.add.Tensor, net.last, net.constant(integers(net.size(), 5)))
    net.add(aten.relu.default, net.last)
    (node,) = calls(joined(net))
    named = arguments(node)
    assert node.target is ops.depthwise_pointwise
    assert (named["stride"], named["padding"]) == ((stride, stride), (kernel // 2, kernel // 2))
    assert Activation.read(named, "dw_") == Activation("clamp", 0.0, 6.0)
    assert Activation.read(named) == RELU
    assert named["residual"] is not None


@pytest.mark.parametrize(
    ("net", "build", "reason"),
    [
        (depthwise(), lambda net: net.add(aten.neg.default, net.last), "not read by one convolution alone"),
        (depthwise(), lambda net: net.conv(integers((5, 4, 3, 3), 3, 1, 3)), "not a plain 1x1 convolution"),
        (depthwise(), lambda net: net.conv(integers((5, 4, 1, 1), 3, 1, 3), None, 2), "not a plain 1x1 convolution"),
        (depthwise(), lambda net: net.conv(integers((4, 2, 1, 1), 3, 1, 3), groups=2), "not a plain 1x1 convolution"),
        (depthwise(7), lambda net: net.conv(integers((5, 4, 1, 1), 3, 1, 3)), "neither 3x3 nor 5x5"),
    ],
)
def test_refusals_say_why(net: Network, build: Callable, reason: str) -> None:
    build(net)
    result = joined(net)
    assert ops.depthwise_pointwise not in [node.target for node in calls(result)]
    assert reason in str(result.story)


def test_they_stay_apart_where_no_kernel_computes_the_pair() -> None:
    net = Network((1, 4, 8, 8), 0, torch.float32)
    net.conv(integers((4, 1, 3, 3), 1, 1, 3).float(), None, 1, 1, 4)
    net.conv(integers((5, 4, 1, 1), 3, 1, 3).float())
    for refused, joins in (("depthwise_pointwise", False), ("conv2d", True), ("", True)):
        offers = {"offers": lambda spec, refused=refused: Miss("not here") if spec.op == refused else None}
        result = joined(net, context=Context(costs=ALWAYS.costs, **offers))
        assert (ops.depthwise_pointwise in [node.target for node in calls(result)]) == joins
        assert ("not here" in str(result.story)) != joins


def test_a_value_that_others_read_is_stored() -> None:
    net = depthwise()
    between = net.last
    net.conv(integers((5, 4, 1, 1), 3, 1, 3))
    result = joined(net, net.last, between)
    assert [node.target for node in calls(result)] == [ops.conv2d, ops.conv2d]


def test_a_depthwise_with_residual_stays() -> None:
    net = Network((1, 4, 8, 8), 0)
    net.conv(integers((4, 1, 3, 3), 1, 1, 3), None, 1, 1, 4)
    net.add(aten.add.Tensor, net.last, net.values[0])
    net.conv(integers((5, 4, 1, 1), 3, 1, 3))
    assert "it has a residual or a dilation" in str(joined(net).story)


@pytest.mark.parametrize(("channels", "size", "is_joined"), [(16, 64, False), (17, 64, True)])
def test_only_what_leaves_the_cache_is_joined(channels: int, size: int, is_joined: bool) -> None:
    """The limit is 512 KiB: 16 channels of 64x64 doubles are exactly that."""
    net = depthwise(size=size, channels=channels)
    net.conv(integers((2, channels, 1, 1), 3, 1, 3))
    result = joined(net, context=Context())
    assert (ops.depthwise_pointwise in [node.target for node in calls(result)]) is is_joined
    assert ("stay in the cache (limit 512 KiB)" in str(result.story)) is not is_joined
