"""FoldBatchNorm: into the layer before, else a layer of its own; refusals have reasons."""

import operator
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sparsec.doors.from_torch.capture import capture
from sparsec.ir.forms import constant
from sparsec.ir.pipeline import Context, Result, run
from sparsec.passes import FoldBatchNorm
from tests.strategies import Network, integers

aten = torch.ops.aten


def folded(net: Network) -> Result:
    result = run(net.graph_module, (FoldBatchNorm(),), Context())
    for expected, found in zip(net.run(), net.run(result.graph_module), strict=True):
        assert torch.equal(expected, found)
    return result


def targets(result: Result) -> list:
    return [node.target for node in result.graph_module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_into_a_convolution(groups: int, biased: bool) -> None:
    net = Network((2, 4, 5, 5), 0)
    weight = integers((4, 4 // groups, 3, 3), 1)
    weight[2] = 0
    net.conv(weight, integers((4,), 2) if biased else None, 2, 1, groups)
    net.norm(3)
    result = folded(net.returns(net.last))
    assert targets(result) == [aten.conv2d.default]
    (conv,) = result.graph_module.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    found = constant(conv.args[1])
    assert found is not None
    assert ((found == 0) >= (weight == 0)).all()


def test_into_a_linear_layer() -> None:
    net = Network((3, 4), 0)
    net.linear(integers((5, 4), 1))
    net.norm(2)
    assert targets(folded(net.returns(net.last))) == [aten.linear.default]


def test_into_a_convolution_with_padding_by_name() -> None:
    net = Network((1, 2, 5, 5), 0)
    net.add(aten.conv2d.padding, net.last, net.constant(integers((3, 2, 3, 3), 1)), None, [1, 1], "same")
    net.norm(2)
    assert targets(folded(net.returns(net.last))) == [aten.conv2d.padding]


def test_the_decomposed_operator() -> None:
    net = Network((1, 2, 5, 5), 0)
    net.conv(integers((3, 2, 3, 3), 1))
    net.norm(2)
    old = net.last
    norm = net.edit.call(aten._native_batch_norm_legit_no_training.default, (*old.args[:5], 0.1, 0.25), before=old.next)
    result = net.edit.call(operator.getitem, (norm, 0), before=norm.next)
    net.returns(result).edit.sweep()
    assert targets(folded(net)) == [aten.conv2d.default]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (lambda net: None, [aten.conv2d.default]),
        (lambda net: net.add(aten.relu.default, net.last), [aten.relu.default, aten.conv2d.default]),
    ],
)
def test_without_a_layer_it_becomes_depthwise(before: Callable, expected: list) -> None:
    net = Network((2, 3, 4, 4), 0)
    before(net)
    net.norm(1)
    result = folded(net.returns(net.last))
    assert targets(result) == expected
    (conv,) = result.graph_module.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    assert conv.args[6] == 3
    assert "no layer before it" in str(result.story)


def test_a_layer_that_others_read_is_left_as_it_is() -> None:
    net = Network((2, 3, 4, 4), 0)
    conv = net.conv(integers((3, 3, 1, 1), 1))
    net.norm(2)
    result = folded(net.returns(net.last, conv))
    assert targets(result) == [aten.conv2d.default, aten.conv2d.default]
    assert result.graph_module.graph.find_nodes(op="call_function", target=aten.conv2d.default)[1].args[6] == 3


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5)])
def test_other_ranks_become_product_and_sum(shape: tuple) -> None:
    net = Network(shape, 0)
    net.norm(1)
    assert targets(folded(net.returns(net.last))) == [aten.mul.Tensor, aten.add.Tensor]


def test_a_linear_layer_over_tokens_does_not_take_it() -> None:
    net = Network((2, 4, 4), 0)
    net.linear(integers((4, 4), 1))
    net.norm(2)
    assert targets(folded(net.returns(net.last))) == [aten.linear.default, aten.mul.Tensor, aten.add.Tensor]


@pytest.mark.parametrize(
    ("tail", "reason"),
    [((True, 0.1, 0.25, False), "statistics of the batch"), ((False, 0.1, -9.0, False), "not finite")],
)
def test_refusals(tail: tuple, reason: str) -> None:
    net = Network((2, 3, 4, 4), 0)
    net.norm(1, tail)
    (miss,) = run(net.returns(net.last).graph_module, (FoldBatchNorm(),), Context()).story.chapters[0].misses
    assert reason in miss.reason


def test_parameters_that_are_computed_are_refused() -> None:
    net = Network((2, 3, 4, 4), 0)
    mean = net.add(aten.mean.dim, net.values[0], [0, 2, 3])
    ones = net.constant(torch.ones(3).double())
    net.add(aten.batch_norm.default, net.values[0], ones, ones, mean, ones, False, 0.1, 1e-5, False)
    result = folded(net.returns(net.last))
    assert "its parameters are not constants" in str(result.story)


@pytest.mark.parametrize("affine", [False, True])
def test_single_precision_is_folded_within_rounding(affine: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16, affine=affine)).eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.1, 3)
    x = torch.randn(2, 8, 6, 6)
    captured = capture(model, (x,))
    found = captured.restore(run(captured.graph_module, (FoldBatchNorm(),), Context()).graph_module(x))
    with torch.no_grad():
        torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)
