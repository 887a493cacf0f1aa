"""SinkViews: views of tokens that cancel go, others sink, and graphs mean the same."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from sparsec.ir.pipeline import Context, Result, run
from sparsec.passes.sink_views import SinkViews
from sparsec.tokens import ops as token_ops
from tests.strategies import Network, integers

aten = torch.ops.aten


def sunk(net: Network, tolerance: float = 0.0) -> Result:
    result = run(net.graph_module, (SinkViews(),), Context())
    for expected, found in zip(net.run(), net.run(result.graph_module), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    return result


def calls(result: Result) -> list:
    return [node.target for node in result.graph_module.graph.nodes if node.op == "call_function"]


def turned(net: Network, *order: int) -> fx.Node:
    return net.add(aten.permute.default, net.last, list(order))


def merged(net: Network) -> fx.Node:
    return net.add(aten.reshape.default, net.last, [net.size()[0] * net.size()[1], net.size()[2]])


def linear(net: Network, outputs: int = 4) -> fx.Node:
    return net.linear(integers((outputs, net.size()[-1]), 1), integers((outputs,), 2))


def test_views_around_layers_cancel() -> None:
    net = Network((2, 5, 3), 0)
    turned(net, 1, 0, 2)
    linear(net)
    merged(net)
    net.add(aten.relu.default, linear(net))
    net.add(aten.reshape.default, net.last, [5, 2, 4])
    turned(net, 1, 0, 2)
    assert calls(sunk(net.returns(net.last))) == [aten.linear.default, aten.linear.default, aten.relu.default]


@pytest.mark.parametrize("shape", [(5, 1, 3), (2, 1, 3), (5, 2, 3), (3,), (1, 3)])
def test_constants_follow(shape: tuple[int, ...]) -> None:
    net = Network((2, 5, 3), 0)
    turned(net, 1, 0, 2)
    net.add(aten.mul.Tensor, net.last, net.constant(integers(shape, 1) if shape[0] != 2 else integers((1, 2, 3), 1)))
    net.add(aten.sub.Tensor, net.last, net.constant(integers((5, 1, 1), 3)))
    net.add(aten.mul.Tensor, net.last, 3.0)
    turned(net, 1, 0, 2)
    assert calls(sunk(net.returns(net.last))) == [aten.mul.Tensor, aten.sub.Tensor, aten.mul.Tensor]


def test_a_constant_that_varies_along_merged_tokens_stops_the_view() -> None:
    net = Network((2, 5, 3), 0)
    merged(net)
    net.add(aten.add.Tensor, net.last, net.constant(integers((10, 1), 1)))
    assert calls(sunk(net.returns(net.last))) == [aten.reshape.default, aten.add.Tensor]


def test_sums_of_views_of_the_same_kind() -> None:
    net = Network((2, 5, 3), 0)
    first = turned(net, 1, 0, 2)
    second = linear(net, 3)
    net.add(aten.add.Tensor, first, second)
    turned(net, 1, 0, 2)
    assert calls(sunk(net.returns(net.last))) == [aten.linear.default, aten.add.Tensor]


def test_sums_of_different_views_stay() -> None:
    net = Network((3, 3, 3), 0)
    net.add(aten.add.Tensor, turned(net, 1, 0, 2), net.values[0])
    assert calls(sunk(net.returns(net.last))) == [aten.permute.default, aten.add.Tensor]


def test_normalisation_sinks_only_over_features() -> None:
    net = Network((2, 4, 3), 0)
    turned(net, 1, 0, 2)
    net.add(aten.layer_norm.default, net.last, [3])
    turned(net, 1, 0, 2)
    assert calls(sunk(net.returns(net.last))) == [aten.layer_norm.default]
    net = Network((2, 4, 3), 0)
    turned(net, 1, 0, 2)
    net.add(aten.layer_norm.default, net.last, [2, 3])
    assert calls(sunk(net.returns(net.last))) == [aten.permute.default, aten.layer_norm.default]


def test_features_that_move_stop_the_view() -> None:
    net = Network((2, 4, 3), 0)
    turned(net, 0, 2, 1)
    linear(net)
    assert calls(sunk(net.returns(net.last))) == [aten.permute.default, aten.linear.default]


def test_a_view_between_input_and_output_stays() -> None:
    net = Network((2, 4, 3), 0)
    turned(net, 1, 0, 2)
    turned(net, 1, 0, 2)
    assert len(calls(sunk(net.returns(net.last)))) == 2


@pytest.mark.parametrize("index", [0, 3, -1])
def test_one_token_however_it_is_spelled(index: int) -> None:
    net = Network((2, 4, 3), 0)
    net.add(aten.relu.default, net.last)
    turned(net, 1, 0, 2)
    net.add(aten.slice.Tensor, net.last, 0, index % 4, index % 4 + 1)
    net.add(aten.select.int, net.last, 0, 0)
    result = sunk(net.returns(net.last))
    assert calls(result) == [aten.relu.default, aten.select.int]
    (node,) = result.graph_module.graph.find_nodes(op="call_function", target=aten.select.int)
    assert node.args[1:] == (1, index % 4)


@pytest.mark.parametrize("size", [(2, 3), (1, 6), (6, 1)])
def test_tokens_become_a_map(size: tuple[int, int]) -> None:
    net = Network((2, 6, 3), 0)
    net.add(aten.relu.default, net.last)
    net.add(aten.view.default, turned(net, 0, 2, 1), [2, 3, *size])
    assert calls(sunk(net.returns(net.last))) == [aten.relu.default, token_ops.tokens_to_map]


def test_attention_on_time_first_tokens_is_turned_at_the_source() -> None:
    net = Network((5, 2, 4), 0)
    net.add(aten.relu.default, net.last)
    parts = [net.edit.call(aten.permute.default, (linear(net), [1, 0, 2]), before=net._output) for _ in range(3)]
    net.add(token_ops.attention, *parts, heads=2, scale=1.0)
    turned(net, 1, 0, 2)
    net.add(aten.add.Tensor, linear(net), net.values[1])
    result = sunk(net.returns(net.last), tolerance=1e-12)
    inside = [aten.relu.default, *[aten.linear.default] * 3, token_ops.attention, aten.linear.default, aten.add.Tensor]
    assert calls(result) == [aten.permute.default, *inside, aten.permute.default]


def step_turn(draw: st.DrawFn, net: Network) -> None:
    if len(net.size()) == 3:
        turned(net, *draw(st.permutations(range(3))))


def step_merge(draw: st.DrawFn, net: Network) -> None:
    if len(net.size()) == 3:
        merged(net)
    else:
        rows, features = net.size()
        first = draw(st.sampled_from([d for d in range(1, rows + 1) if rows % d == 0]))
        net.add(aten.reshape.default, net.last, [first, rows // first, features])


def step_layer(draw: st.DrawFn, net: Network) -> None:
    linear(net, draw(st.integers(1, 4)))


def step_point(draw: st.DrawFn, net: Network) -> None:
    same = [value for value in net.values if net.size(value) == net.size()]
    target, other = draw(
        st.sampled_from([(aten.relu.default, None), (aten.add.Tensor, "value"), (aten.mul.Tensor, 2.0), (aten.add.Tensor, "c")])
    )
    if other == "c":
        other = net.constant(integers(tuple(draw(st.sampled_from([1, n])) for n in net.size()), 3))
    arguments = () if other is None else (draw(st.sampled_from(same)),) if isinstance(other, str) else (other,)
    net.add(target, net.last, *arguments)


def step_pick(draw: st.DrawFn, net: Network) -> None:
    if len(net.size()) == 3:
        dim = draw(st.integers(0, 2))
        net.add(aten.select.int, net.last, dim, draw(st.integers(0, net.size()[dim] - 1)))


STEPS: tuple[Callable, ...] = (step_turn, step_turn, step_merge, step_layer, step_point, step_pick)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_graphs_mean_the_same_and_twice_is_once(data: st.DataObject) -> None:
    net = Network(tuple(data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))), 0)
    for _ in range(data.draw(st.integers(1, 8))):
        data.draw(st.sampled_from(STEPS))(data.draw, net)
    net.returns(net.last, data.draw(st.sampled_from(net.values)))
    result = sunk(net)
    again = run(net.graph_module, (SinkViews(), SinkViews()), Context())
    assert calls(again) == calls(result)
