"""Transfer rules, one by one; the property tests of the pipeline hold them against random networks."""

import math

import pytest
import torch

from sparsec.facts.forward import channel_values, flattening
from sparsec.facts.lattice import NOTHING, Fact
from sparsec.facts.propagation import channels_read
from sparsec.ir import ops
from sparsec.ir.forms import known_fact
from sparsec.ir.pipeline import Context, run
from sparsec.passes import InferActivationFacts, InferWeightFacts
from tests.strategies import Network, integers

aten = torch.ops.aten


def network(channels: int = 4, size: int = 4) -> Network:
    """A convolution of which channel 1 is constant 2 and channel 2 is zero."""
    net = Network((2, channels, size, size), 0)
    weight, bias = integers((4, channels, 1, 1), 1, 1, 3), torch.tensor([1.0, 2.0, 0.0, -3.0]).double()
    weight[1:3] = 0
    net.conv(weight, bias)
    return net


def inferred(net: Network) -> Fact:
    """What is inferred of the last value, after checking it on the value itself."""
    result = run(net.returns(net.last).graph_module, (InferWeightFacts(), InferActivationFacts()), Context())
    (output,) = result.graph_module.graph.find_nodes(op="output")
    (value,) = net.run()
    fact = known_fact(output.args[0][0])
    assert fact.holds(value)
    return fact


def values(fact: Fact) -> dict[int, float]:
    return dict.fromkeys(fact.dead_along(1), 0.0) | dict(fact.constants)


@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        (aten.relu.default, (), {1: 2.0, 2: 0.0}),
        (aten.hardtanh.default, (-1.0, 1.5), {1: 1.5, 2: 0.0}),
        (aten.clamp.default, (1.0,), {1: 2.0, 2: 1.0}),
        (aten.clamp.default, (None, -1.0), {1: -1.0, 2: -1.0}),
        (aten.silu.default, (), {2: 0.0}),
        (aten.hardswish.default, (), {2: 0.0}),
        (aten.sigmoid.default, (), {}),
        (aten.hardsigmoid.default, (), {}),
        (aten.max_pool2d.default, ([2, 2],), {1: 2.0, 2: 0.0}),
        (aten.adaptive_avg_pool2d.default, ([1, 1],), {2: 0.0}),
        (aten.avg_pool2d.default, ([2, 2],), {2: 0.0}),
        (aten.mean.dim, ([2, 3],), {2: 0.0}),
        (aten.dropout.default, (0.5, False), {1: 2.0, 2: 0.0}),
        (aten.mean.dim, ([1],), {}),
        (aten.cumsum.default, (1,), {}),
    ],
)
def test_constant_channels_through_one_operator(target: object, args: tuple, expected: dict) -> None:
    net = network()
    net.add(target, net.last, *args)
    assert values(inferred(net)) == expected


def test_ranges() -> None:
    net = network()
    net.add(aten.relu6.default, net.last)
    assert (inferred(net).low, inferred(net).high) == (0.0, 6.0)
    net.add(aten.adaptive_avg_pool2d.default, net.last, [1, 1])
    assert inferred(net).low == 0.0
    assert inferred(network()).low == -math.inf


def test_a_sum_is_constant_only_where_both_are() -> None:
    net = network()
    first = net.last
    weight = torch.zeros(4, 4, 1, 1).double()
    weight[2] = 1
    net.conv(weight, torch.tensor([1.0, 3.0, 5.0, 0.0]).double())
    net.add(aten.add.Tensor, net.last, first)
    assert values(inferred(net)) == {1: 5.0}


def test_a_product_is_zero_where_either_is() -> None:
    net = network()
    first = net.last
    gate = net.add(aten.adaptive_avg_pool2d.default, net.values[0], [1, 1])
    assert values(inferred(net)) == {}
    net.add(aten.mul.Tensor, first, gate)
    assert values(inferred(net)) == {2: 0.0}


def test_concatenation_moves_channels() -> None:
    net = network()
    net.add(aten.cat.default, [net.values[0], net.last], 1)
    assert values(inferred(net)) == {5: 2.0, 6: 0.0}


def test_concatenation_of_batches_keeps_no_channel_of_one_part() -> None:
    net = network()
    net.add(aten.cat.default, [net.values[0], net.last], 0)
    assert values(inferred(net)) == {}


def test_flattening_spreads_channels() -> None:
    net = network(size=2)
    net.add(aten.flatten.using_ints, net.last, 1)
    assert flattening(net.last) == 4
    assert values(inferred(net)) == dict.fromkeys(range(4, 8), 2.0) | dict.fromkeys(range(8, 12), 0.0)


@pytest.mark.parametrize("size", [[4, 8], [4, 4, 2], [2, 2, 8], [32, 1]])
def test_a_view_that_mixes_channels_keeps_none(size: list[int]) -> None:
    net = network(size=2)
    net.add(aten.view.default, net.last, size)
    assert values(inferred(net)) == {}


def test_a_row_that_meets_dead_inputs_only_is_its_bias() -> None:
    net = network()
    weight = torch.zeros(2, 4, 3, 3).double()
    weight[0, 2], weight[1, 1] = 1, 1
    net.conv(weight, torch.tensor([7.0, 8.0]).double(), padding=1)
    assert values(inferred(net)) == {0: 7.0}


def test_a_residual_adds_to_silent_outputs() -> None:
    net = network()
    first = net.last
    weight, bias = net.constant(torch.zeros(4, 4, 1, 1).double()), net.constant(torch.ones(4).double())
    net.add(ops.conv2d, first, weight, bias, first, activation="clamp", lo=0.0, hi=2.0)
    assert values(inferred(net)) == {1: 2.0, 2: 1.0}


def test_a_norm_with_factor_zero_is_its_shift() -> None:
    net = network()
    parameters = [net.constant(torch.tensor(v).double()) for v in ([0.0, 1, 1, 1], [5.0, 0, 0, 0], [1.0] * 4, [1.0] * 4)]
    net.add(aten.batch_norm.default, net.last, *parameters, False, 0.1, 1e-3, False)
    assert values(inferred(net)) == {0: 5.0}


def test_a_linear_layer_over_tokens_proves_nothing() -> None:
    net = Network((2, 3, 5), 0)
    net.linear(torch.zeros(3, 5).double(), torch.ones(3).double())
    assert inferred(net) == NOTHING


def test_unknown_operators_prove_nothing_and_read_everything() -> None:
    net = network()
    conv = net.last
    net.add(aten.cumsum.default, conv, 2)
    assert inferred(net) == NOTHING
    assert channels_read(net.graph_module.graph)[conv] == {0, 1, 2, 3}


def test_columns_of_zeros_are_not_read() -> None:
    net = network()
    conv = net.last
    relu = net.add(aten.relu.default, conv)
    weight = torch.ones(2, 4, 1, 1).double()
    weight[:, [0, 3]] = 0
    net.conv(weight)
    net.returns(net.last)
    read = channels_read(net.graph_module.graph)
    assert read[relu] == read[conv] == {1, 2}


def test_what_an_unread_output_reads_is_unread() -> None:
    net = network()
    conv = net.last
    weight = torch.eye(4).double().view(4, 4, 1, 1)
    net.conv(weight)
    last = torch.ones(1, 4, 1, 1).double()
    last[:, 2] = 0
    net.conv(last)
    net.returns(net.last)
    assert channels_read(net.graph_module.graph)[conv] == {0, 1, 3}


def test_a_residual_is_read_where_the_sum_is() -> None:
    net = network()
    conv = net.last
    identity = net.constant(torch.zeros(4, 4, 1, 1).double())
    net.add(ops.conv2d, net.values[0], identity, None, conv)
    last = torch.ones(1, 4, 1, 1).double()
    last[:, 2] = 0
    net.conv(last)
    net.returns(net.last)
    assert channels_read(net.graph_module.graph)[conv] == {0, 1, 3}


def test_groups_read_their_own_inputs() -> None:
    net = Network((1, 4, 2, 2), 0)
    weight = torch.ones(2, 2, 1, 1).double()
    weight[1, 0] = 0
    net.conv(weight, groups=2)
    net.returns(net.last)
    assert channels_read(net.graph_module.graph)[net.values[0]] == {0, 1, 3}


def test_channels_of_a_value_with_few_dimensions() -> None:
    net = Network((3,), 0)
    net.add(aten.relu.default, net.last)
    net.returns(net.last)
    assert channels_read(net.graph_module.graph)[net.values[0]] == {0}
    assert channel_values(net.last) == {}
