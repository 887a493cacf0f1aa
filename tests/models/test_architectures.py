"""Published structure of the networks: counts against the papers, seeds, and capture by torch.export."""

import pytest
import torch
from torch import nn

from sparsec.models.blocks import divisible
from sparsec.models.count import count
from sparsec.models.digits_cnn import digits_cnn
from sparsec.models.efficient import efficientnet_b0, mobilenet_v3_small
from sparsec.models.mobilenet_v1 import mobilenet_v1
from sparsec.models.mobilenet_v2 import mobilenet_v2
from sparsec.models.resnet import Bottleneck, resnet50

torch.set_num_threads(1)
NETWORKS = [mobilenet_v1, mobilenet_v2, efficientnet_b0, mobilenet_v3_small, resnet50]


# (network, arguments, millions of parameters, millions of multiply-adds) as the authors print them: V1 tables 6 and 7;
# V2 the list of released models (paper, table 4, rounds to 300); EfficientNet table 2 (0.39 G); V3 table 3 (56);
# ResNet-50 v1.5 4.09 G (the paper has 3.8 for the stride in the first 1x1).
PUBLISHED = [
    (mobilenet_v1, {}, "4.2", "569"),
    (mobilenet_v1, {"width": 0.75}, "2.6", "325"),
    (mobilenet_v1, {"width": 0.5}, "1.3", "149"),
    (mobilenet_v1, {"width": 0.25}, "0.5", "41"),
    (mobilenet_v2, {}, "3.5", "301"),
    (mobilenet_v2, {"width": 1.4}, "6.1", "582"),
    (efficientnet_b0, {}, "5.3", "386"),
    (mobilenet_v3_small, {}, "2.5", "57"),
    (resnet50, {}, "25.6", "4089"),
]


@pytest.mark.parametrize(("network", "arguments", "parameters", "multiply_adds"), PUBLISHED)
def test_counts_are_the_published_ones(network, arguments, parameters, multiply_adds):
    counted = count(network(**arguments), (1, 3, 224, 224))
    assert f"{counted.parameters / 1e6:.1f}" == parameters
    assert f"{counted.multiply_adds / 1e6:.0f}" == multiply_adds


def test_resnet50_strides_in_the_3x3_convolutions():
    model = resnet50()
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    strides = [[layer.stride[0] for layer in block.branch.modules() if isinstance(layer, nn.Conv2d)] for block in blocks]
    assert len(blocks) == 16
    assert [block.index(2) for block in strides if 2 in block] == [1, 1, 1]


def test_count_scales_with_the_batch_and_leaves_the_model_as_it_was():
    model = mobilenet_v3_small().train()
    one, three = count(model, (1, 3, 64, 64)), count(model, (3, 3, 64, 64))
    assert three == (one.parameters, 3 * one.multiply_adds)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("channels", range(1, 200))
def test_divisible_rounds_to_eight_and_loses_at_most_a_tenth(channels):
    rounded = divisible(channels)
    assert rounded % 8 == 0
    assert 0.9 * channels <= rounded <= channels + 8


@pytest.mark.parametrize("network", [*NETWORKS, digits_cnn])
def test_seed_decides_the_weights(network):
    first, same, other = network(seed=3), network(seed=3), network(seed=4)
    for (name, a), b in zip(first.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    weights = [(a.weight, b.weight) for a, b in zip(first.modules(), other.modules(), strict=True) if is_layer(a)]
    assert weights
    assert not any(torch.equal(a, b) for a, b in weights)


def is_layer(module):
    return isinstance(module, nn.Conv2d | nn.Linear)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("batch", "size"), [(1, 64), (3, 50)])
@pytest.mark.turns(2)
def test_export_takes_the_whole_network(network, batch, size):
    model, images = network(num_classes=7).eval(), torch.randn(batch, 3, size, size)
    with torch.no_grad():
        expected = model(images)
        exported = torch.export.export(model, (images,)).module()(images)
    assert expected.shape == (batch, 7)
    assert torch.equal(exported, expected)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.turns(2)
def test_dynamo_finds_no_graph_break(network):
    model, images = network(num_classes=7).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(images)
        assert torch.equal(compiled, model(images))


def test_v1_activation_is_relu_unless_asked():
    kinds = {type(module) for module in mobilenet_v1().modules()}
    assert nn.ReLU in kinds
    assert nn.ReLU6 not in kinds
    assert nn.ReLU6 in {type(module) for module in mobilenet_v1(activation=nn.ReLU6).modules()}
