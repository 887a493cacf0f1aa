"""DeleteDeadChannels: what goes, what follows, and what must stay."""

import pytest
import torch

from sparsec.facts.lattice import Fact
from sparsec.ir.forms import constant, known_fact
from sparsec.ir.pipeline import Context, Result, run
from sparsec.passes import PIPELINE, DeleteDeadChannels
from tests.strategies import Network, integers

aten = torch.ops.aten
PASSES = PIPELINE[: [step.name for step in PIPELINE].index(DeleteDeadChannels.name) + 1]


def deleted(net: Network) -> Result:
    result = run(net.returns(net.last).graph_module, PASSES, Context())
    for expected, found in zip(net.run(), net.run(result.graph_module), strict=True):
        assert torch.equal(expected, found)
    return result


def weights(result: Result) -> list[tuple]:
    layers = [node for node in result.graph_module.graph.nodes if node.target in (aten.conv2d.default, aten.linear.default)]
    found = [constant(node.args[1]) for node in layers]
    return [tuple(weight.shape) for weight in found if weight is not None]


def filters(*shape: int, seed: int = 0, zero_rows: tuple = (), zero_columns: tuple = ()) -> torch.Tensor:
    weight = integers(shape, seed, 1, 3)
    weight[list(zero_rows)] = 0
    weight[:, list(zero_columns)] = 0
    return weight


def test_unread_channels_go() -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(filters(5, 2, 3, 3), integers((5,), 1), padding=1)
    net.add(aten.relu.default, net.last)
    net.conv(filters(3, 5, 3, 3, zero_columns=(0, 4)), padding=1)
    assert weights(deleted(net)) == [(3, 2, 3, 3), (3, 3, 3, 3)]


def test_zero_channels_go_even_before_padding() -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(filters(5, 2, 3, 3, zero_rows=(1, 2)), padding=1)
    net.conv(filters(3, 5, 3, 3), padding=1)
    assert weights(deleted(net)) == [(3, 2, 3, 3), (3, 3, 3, 3)]


def test_a_constant_moves_into_the_bias() -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(filters(5, 2, 3, 3, zero_rows=(1, 2)), torch.full((5,), 3.0).double())
    net.conv(filters(3, 5, 2, 2))
    assert weights(deleted(net)) == [(3, 2, 3, 3), (3, 3, 2, 2)]


def test_a_constant_before_padding_stays_and_says_why() -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(filters(5, 2, 3, 3, zero_rows=(1, 2)), torch.full((5,), 3.0).double())
    net.conv(filters(3, 5, 3, 3), padding=1)
    result = deleted(net)
    assert weights(result) == [(5, 2, 3, 3), (3, 5, 3, 3)]
    assert "2 constant channels stay: it is constant but not zero, and conv2d_default_1 pads with zeros" in str(result.story)


def test_depthwise_filters_follow() -> None:
    net = Network((1, 2, 6, 6), 0)
    net.conv(filters(4, 2, 1, 1, zero_rows=(0,)))
    net.conv(filters(4, 1, 3, 3), integers((4,), 1, 0, 0), padding=1, groups=4)
    net.conv(filters(3, 4, 1, 1, zero_columns=(2,)))
    result = deleted(net)
    assert weights(result) == [(2, 2, 1, 1), (2, 1, 3, 3), (3, 2, 1, 1)]


def test_a_constant_through_a_padded_depthwise_is_no_constant() -> None:
    net = Network((1, 2, 6, 6), 0)
    net.conv(filters(4, 2, 1, 1, zero_rows=(0,)), torch.ones(4).double())
    net.conv(filters(4, 1, 3, 3), padding=1, groups=4)
    net.conv(filters(3, 4, 1, 1))
    assert weights(deleted(net)) == [(4, 2, 1, 1), (4, 1, 3, 3), (3, 4, 1, 1)]


@pytest.mark.parametrize(("second_rows", "left"), [((1, 2), 2), ((2,), 3), ((), 4)])
def test_summands_must_agree(second_rows: tuple, left: int) -> None:
    net = Network((1, 2, 4, 4), 0)
    first = net.conv(filters(4, 2, 1, 1, zero_rows=(1, 2)))
    net.values.append(net.values[0])
    net.conv(filters(4, 2, 1, 1, zero_rows=second_rows))
    net.add(aten.add.Tensor, net.last, first)
    net.conv(filters(3, 4, 1, 1))
    assert weights(deleted(net)) == [(left, 2, 1, 1), (left, 2, 1, 1), (3, left, 1, 1)]


def test_a_sum_with_the_input_keeps_all() -> None:
    net = Network((1, 4, 4, 4), 0)
    net.conv(filters(4, 4, 1, 1, zero_rows=(1,)))
    net.add(aten.add.Tensor, net.last, net.values[0])
    net.conv(filters(3, 4, 1, 1))
    result = deleted(net)
    assert weights(result) == [(4, 4, 1, 1), (3, 4, 1, 1)]
    assert "1 constant channels stay: x is an input" in str(result.story)


@pytest.mark.parametrize("target", [aten.flatten.using_ints, aten.view.default])
def test_flattened_columns_follow(target: object) -> None:
    net = Network((2, 2, 3, 3), 0)
    net.conv(filters(4, 2, 2, 2, zero_rows=(1,)), torch.tensor([1.0, 5.0, 1.0, 1.0]).double())
    net.add(target, net.last, *((1,) if target is aten.flatten.using_ints else ([2, 16],)))
    weight = filters(3, 16)
    weight[:, 12:] = 0
    net.linear(weight)
    assert weights(deleted(net)) == [(2, 2, 2, 2), (3, 8)]


def test_a_flattened_channel_that_is_read_in_part_stays() -> None:
    net = Network((2, 2, 3, 3), 0)
    net.conv(filters(2, 2, 2, 2))
    net.add(aten.flatten.using_ints, net.last, 1)
    net.linear(filters(3, 8, zero_columns=(0, 1, 2, 4, 5, 6, 7)))
    assert weights(deleted(net)) == [(1, 2, 2, 2), (3, 4)]


def test_differently_flattened_summands_stay() -> None:
    """[2,1,2,2] flattened has 4 columns of one channel; the linear layer beside it 4 channels."""
    net = Network((2, 1, 2, 2), 0)
    net.conv(filters(1, 1, 1, 1))
    flat = net.add(aten.flatten.using_ints, net.last, 1)
    net.linear(filters(4, 4, zero_rows=(0, 3)))
    net.add(aten.add.Tensor, net.last, flat)
    net.linear(filters(3, 4, zero_columns=(0, 3)))
    assert weights(deleted(net))[1:] == [(4, 4), (3, 4)]


def test_deletion_goes_on_until_nothing_is_left_to_delete() -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(filters(4, 2, 1, 1))
    middle = torch.eye(4).double().view(4, 4, 1, 1)
    net.conv(middle)
    net.conv(filters(2, 4, 1, 1, zero_columns=(0, 1)))
    assert weights(deleted(net)) == [(2, 2, 1, 1), (2, 2, 1, 1), (2, 2, 1, 1)]


def test_one_channel_stays_of_a_zero_layer() -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(torch.zeros(4, 2, 3, 3).double(), padding=1)
    net.conv(filters(3, 4, 3, 3), integers((3,), 1), padding=1)
    assert weights(deleted(net)) == [(1, 2, 3, 3), (3, 1, 3, 3)]


def test_outputs_of_the_graph_keep_their_channels() -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(filters(4, 2, 3, 3, zero_rows=(1,)))
    assert weights(deleted(net)) == [(4, 2, 3, 3)]


@pytest.mark.parametrize("reader", [aten.cumsum.default, aten.softmax.int])
def test_unknown_readers_keep_all(reader: object) -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(filters(4, 2, 1, 1, zero_rows=(1,)))
    net.add(reader, net.last, 1)
    net.conv(filters(3, 4, 1, 1))
    result = deleted(net)
    assert weights(result) == [(4, 2, 1, 1), (3, 4, 1, 1)]
    assert f"is read by {net.values[2].name}" in str(result.story)


def test_a_gate_follows_its_product() -> None:
    net = Network((2, 2, 4, 4), 0)
    scaled = net.conv(filters(4, 2, 1, 1, zero_rows=(1,)))
    net.add(aten.adaptive_avg_pool2d.default, net.last, [1, 1])
    net.conv(filters(2, 4, 1, 1))
    net.add(aten.relu.default, net.last)
    net.conv(filters(4, 2, 1, 1))
    net.add(aten.mul.Tensor, scaled, net.last)
    net.conv(filters(3, 4, 1, 1))
    assert weights(deleted(net)) == [(3, 2, 1, 1), (2, 3, 1, 1), (3, 2, 1, 1), (3, 3, 1, 1)]


def test_grouped_convolutions_keep_all() -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(filters(4, 2, 1, 1, zero_rows=(1,)))
    net.conv(filters(4, 2, 1, 1), groups=2)
    assert weights(deleted(net)) == [(4, 2, 1, 1), (4, 2, 1, 1)]


def test_facts_are_those_of_the_smaller_values() -> None:
    net = Network((1, 2, 4, 4), 0)
    net.conv(filters(4, 2, 3, 3, zero_rows=(1,)))
    net.add(aten.relu.default, net.last)
    net.conv(filters(3, 4, 1, 1))
    graph = deleted(net).graph_module.graph
    (relu,) = graph.find_nodes(op="call_function", target=aten.relu.default)
    assert known_fact(relu) == Fact(low=0.0)
    assert relu.meta["val"].shape == (1, 3, 2, 2)
