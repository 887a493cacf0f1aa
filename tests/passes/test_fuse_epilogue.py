"""FuseEpilogue: chains become one operator; what stays apart says why."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import fx

from sparsec.ir import ops
from sparsec.ir.arguments import RELU, Activation
from sparsec.ir.miss import Miss
from sparsec.ir.pipeline import Context, Result, run
from sparsec.lower.spec import KernelSpec
from sparsec.passes import PIPELINE, FuseEpilogue
from tests.strategies import Network, integers

aten = torch.ops.aten
PASSES = PIPELINE[: [step.name for step in PIPELINE].index(FuseEpilogue.name) + 1]


def fused(net: Network, *outputs: fx.Node, context: Context | None = None) -> Result:
    result = run(net.returns(*(outputs or (net.last,))).graph_module, PASSES, context or Context())
    for expected, found in zip(net.run(), net.run(result.graph_module), strict=True):
        assert torch.equal(expected, found)
    return result


def calls(result: Result) -> list[fx.Node]:
    return [node for node in result.graph_module.graph.nodes if node.op == "call_function"]


def targets(result: Result) -> list:
    return [node.target for node in calls(result)]


def convolution(biased: bool = True) -> Network:
    net = Network((2, 3, 5, 5), 0)
    net.conv(integers((4, 3, 3, 3), 1, 1, 3), integers((4,), 2) if biased else None, padding=1)
    return net


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        (aten.relu.default, (), RELU),
        (aten.relu_.default, (), RELU),
        (aten.relu6.default, (), Activation("clamp", 0.0, 6.0)),
        (aten.hardtanh.default, (), Activation("clamp", -1.0, 1.0)),
        (aten.hardtanh.default, (0, 6), Activation("clamp", 0.0, 6.0)),
        (aten.clamp.default, (None, 3), Activation("clamp", -math.inf, 3.0)),
        (aten.clamp.default, (1, 3), Activation("clamp", 1.0, 3.0)),
        (aten.clamp_min.default, (-2,), Activation("clamp", -2.0)),
        (aten.silu.default, (), Activation("silu")),
        (aten.hardswish.default, (), Activation("hardswish")),
        (aten.hardsigmoid.default, (), Activation("hardsigmoid")),
        (aten.sigmoid.default, (), Activation("sigmoid")),
    ],
)
def test_activations_are_absorbed(target: object, args: tuple, expected: Activation, biased: bool) -> None:
    net = convolution(biased)
    net.add(target, net.last, *args)
    result = fused(net)
    (conv,) = calls(result)
    assert conv.target is ops.conv2d
    assert Activation.read(conv.kwargs) == expected


@pytest.mark.parametrize("swapped", [False, True])
def test_residual_and_activation_are_absorbed(swapped: bool) -> None:
    net = Network((2, 4, 5, 5), 0)
    net.conv(integers((4, 4, 3, 3), 1, 1, 3), padding=1)
    operands = (net.last, net.values[0])
    net.add(aten.add.Tensor, *(reversed(operands) if swapped else operands))
    net.add(aten.relu.default, net.last)
    (conv,) = calls(fused(net))
    assert conv.args[3].op == "placeholder"
    assert Activation.read(conv.kwargs) == RELU


def test_a_linear_layer_is_fused_too() -> None:
    net = Network((2, 3), 0)
    net.linear(integers((4, 3), 1, 1, 3), integers((4,), 2))
    net.add(aten.relu.default, net.last)
    (linear,) = calls(fused(net))
    assert linear.target is ops.linear


def test_nothing_follows_an_activation() -> None:
    net = Network((2, 4, 5, 5), 0)
    net.conv(integers((4, 4, 3, 3), 1, 1, 3), padding=1)
    net.add(aten.relu.default, net.last)
    net.add(aten.add.Tensor, net.last, net.values[0])
    net.add(aten.relu.default, net.last)
    assert targets(fused(net)) == [ops.conv2d, aten.add.Tensor, ops.activate]


def test_two_convolutions_of_one_sum() -> None:
    net = convolution()
    first = net.last
    net.values.append(net.values[0])
    net.conv(integers((4, 3, 1, 1), 3, 1, 3))
    net.add(aten.add.Tensor, first, net.last)
    assert targets(fused(net)) == [ops.conv2d, ops.conv2d]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda net: net.add(aten.add.Tensor, net.last, net.last), "both summands are this value"),
        (lambda net: net.add(aten.add.Tensor, net.last, 1.0), "a summand is a number"),
        (lambda net: net.add(aten.add.Tensor, net.last, net.constant(integers((2, 4, 5, 5), 1)), alpha=2), "scaled"),
        (lambda net: net.add(aten.add.Tensor, net.last, net.constant(integers((4, 1, 1), 1))), "differ in shape"),
    ],
)
def test_sums_that_stay_apart_say_why(build: object, reason: str) -> None:
    net = convolution()
    build(net)  # type: ignore[operator]
    result = fused(net)
    assert targets(result) == [ops.conv2d, aten.add.Tensor]
    assert reason in str(result.story)


def test_a_value_with_two_readers_keeps_its_sum_apart() -> None:
    net = convolution()
    conv = net.last
    net.add(aten.add.Tensor, conv, net.constant(integers((2, 4, 5, 5), 1)))
    result = fused(net, net.last, conv)
    assert targets(result) == [ops.conv2d, aten.add.Tensor]
    assert "the value is read elsewhere too" in str(result.story)


def test_a_value_with_two_readers_keeps_its_activation_apart() -> None:
    net = convolution()
    conv = net.last
    net.add(aten.relu.default, conv)
    assert targets(fused(net, net.last, conv)) == [ops.conv2d, ops.activate]


def test_same_padding_of_an_odd_kernel_is_known_and_of_an_even_one_refused() -> None:
    for size, expected in ((3, ops.conv2d), (2, aten.conv2d.padding)):
        net = Network((1, 2, 5, 5), 0)
        net.add(aten.conv2d.padding, net.last, net.constant(integers((3, 2, size, size), 1)), None, [1, 1], "same")
        result = fused(net)
        assert targets(result) == [expected]
    assert "the padding differs on both sides" in str(result.story)


def test_a_convolution_without_batch_is_refused() -> None:
    net = Network((2, 5, 5), 0)
    net.conv(integers((3, 2, 3, 3), 1))
    result = fused(net)
    assert targets(result) == [aten.conv2d.default]
    assert "no batch dimension" in str(result.story)


def honouring(refuses: Callable[[KernelSpec], str]) -> Context:
    """A backend with a kernel for everything else."""
    return Context(offers=lambda spec: Miss(refuses(spec)) if refuses(spec) else None)


def with_sum() -> Network:
    """relu(x + conv(x)) in float32, which kernels compute."""
    net = Network((2, 4, 5, 5), 0, torch.float32)
    net.conv(integers((4, 4, 3, 3), 1, 1, 3).float(), padding=1)
    net.add(aten.add.Tensor, net.values[0], net.last)
    net.add(aten.relu.default, net.last)
    return net


@pytest.mark.parametrize(
    ("refuses", "expected"),
    [
        (lambda spec: "", [ops.conv2d]),
        (lambda spec: "no sums here" if spec.residual else "", [ops.conv2d, aten.add.Tensor, ops.activate]),
        (lambda spec: "no limits here" if spec.op == "conv2d" and spec["lo"] == 0 else "", [ops.conv2d, ops.activate]),
        (lambda spec: "nothing here", [ops.conv2d]),
    ],
    ids=["all", "no residual", "no activation", "no kernel at all"],
)
def test_nothing_is_absorbed_that_costs_the_layer_its_kernel(refuses: Callable[[KernelSpec], str], expected: list) -> None:
    result = fused(with_sum(), context=honouring(refuses))
    assert targets(result) == expected
    assert len(expected) == 1 or "left out: no" in str(result.story)


def test_asking_leaves_no_trace_in_the_graph() -> None:
    result = fused(with_sum(), context=honouring(lambda spec: "no sums here" if spec.residual else ""))
    nodes = set(result.graph_module.graph.nodes)
    assert all(set(node.users) <= nodes for node in nodes)


def test_a_constant_is_no_residual_of_a_kernel() -> None:
    net = Network((1, 4, 5, 5), 0, torch.float32)
    net.conv(integers((4, 4, 3, 3), 1, 1, 3).float(), padding=1)
    net.add(aten.add.Tensor, net.last, net.constant(integers((1, 4, 5, 5), 1).float()))
    result = fused(net, context=honouring(lambda spec: ""))
    assert targets(result) == [ops.conv2d, aten.add.Tensor]
    assert "left out: a constant is added to it" in str(result.story)


@pytest.mark.parametrize("dims", [[2, 3], [-1, -2], [3, 2]])
@pytest.mark.parametrize("keepdim", [False, True])
def test_a_spatial_mean_is_a_global_pool(dims: list, keepdim: bool) -> None:
    net = Network((2, 3, 4, 3), 0)
    net.add(aten.mean.dim, net.last, dims, keepdim)
    expected = [aten.adaptive_avg_pool2d.default, *([] if keepdim else [aten.flatten.using_ints])]
    assert targets(fused(net)) == expected


@pytest.mark.parametrize("dims", [[1], [2], [0, 2, 3], None])
def test_other_means_stay(dims: list | None) -> None:
    net = Network((2, 3, 4, 3), 0)
    net.add(aten.mean.dim, net.last, dims)
    result = fused(net)
    assert targets(result) == [aten.mean.dim]
    assert "the mean is not over rows and columns" in str(result.story)
