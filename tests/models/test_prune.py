"""Magnitude pruning: what share goes, in which shape, and which layers stay dense."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsec.errors import SparsecError
from sparsec.models.errors import InvalidArgument
from sparsec.models.mobilenet_v2 import mobilenet_v2
from sparsec.models.patterns import Blocks, NOfM, keep_mask, parse_pattern
from sparsec.models.prune import prunable_layers, prune

torch.set_num_threads(1)

SPARSITIES = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 1.0])
SHAPES = st.tuples(st.integers(1, 40), st.integers(4, 40), st.sampled_from([(), (1, 1), (3, 3), (1, 5)]))


def random_weight(shape, seed):
    outputs, inputs, taps = shape
    return torch.randn(outputs, inputs, *taps, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(SHAPES, SPARSITIES, st.integers(0, 99))
def test_unstructured_drops_the_smallest_within_half_an_element(shape, sparsity, seed):
    weight = random_weight(shape, seed)
    kept = keep_mask(weight, sparsity, Blocks())
    assert abs((~kept).sum().item() - sparsity * weight.numel()) <= 0.5 + 1e-6
    if kept.any() and not kept.all():
        assert weight[kept].abs().min() >= weight[~kept].abs().max()


@settings(deadline=None)
@given(SHAPES, SPARSITIES, st.sampled_from([(8, 1), (4, 1), (16, 1), (32, 32), (1, 16), (3, 5)]), st.integers(0, 99))
def test_blocks_go_whole_the_weakest_first_within_one_block(shape, sparsity, block, seed):
    weight = random_weight(shape, seed)
    rows, columns = block
    kept = keep_mask(weight, sparsity, Blocks(rows, columns)).flatten(1)
    tiles = [
        (tile, weights.abs().mean())
        for band, weight_band in zip(kept.split(rows), weight.flatten(1).split(rows), strict=True)
        for tile, weights in zip(band.split(columns, 1), weight_band.split(columns, 1), strict=True)
    ]
    assert all(tile.all() or not tile.any() for tile, _ in tiles)
    # Half a block, or the one block that always stays.
    slack = rows * columns / 2 if sum(bool(tile.all()) for tile, _ in tiles) > 1 else rows * columns
    assert abs((~kept).sum().item() - sparsity * weight.numel()) <= slack + 1e-6
    strong = [strength for tile, strength in tiles if tile.all()]
    weak = [strength for tile, strength in tiles if not tile.any()]
    assert not strong or not weak or min(strong) >= max(weak) - 1e-6


@settings(deadline=None)
@given(SHAPES, st.sampled_from([(1, 4), (2, 4), (2, 8), (1, 2), (4, 4), (3, 5)]), st.integers(0, 99))
def test_n_of_m_keeps_the_n_largest_of_each_group_of_inputs(shape, pattern, seed):
    weight = random_weight(shape, seed)
    n, m = pattern
    kept = keep_mask(weight, 1 - n / m, NOfM(n, m))
    for flags, values in zip(kept.split(m, 1), weight.abs().split(m, 1), strict=True):
        size = flags.shape[1]
        assert (flags.sum(1) == min(n, size)).all()
        weakest = values.masked_fill(~flags, math.inf).amin(1)
        assert (weakest >= values.masked_fill(flags, 0).amax(1)).all()


@settings(max_examples=25, deadline=None)
@given(SPARSITIES, st.integers(0, 99))
def test_pruning_keeps_the_other_weights_and_twice_is_once(sparsity, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(5, 9, 3), nn.Conv2d(9, 11, 1))
    before = [layer.weight.detach().clone() for layer in model]
    assert prune(model, sparsity, "4x1") is model
    once = [layer.weight.detach().clone() for layer in model]
    for old, pruned in zip(before, once, strict=True):
        assert torch.equal(pruned, torch.where(pruned == 0, 0, old))
    prune(model, sparsity, "4x1")
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model, once, strict=True))


@pytest.mark.parametrize("text", ["unstructured", "8x1", "4x1", "16x1", "1x16", "32x32", "2:4", "1:4"])
def test_default_layers_of_a_network(text):
    model = prune(mobilenet_v2(), None if ":" in text else 0.75, text)
    pattern = parse_pattern(text)
    share = 1 - pattern.n / pattern.m if isinstance(pattern, NOfM) else 0.75
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        zeros = (layer.weight == 0).float().mean().item()
        dense = isinstance(layer, nn.Linear) or layer.groups > 1 or layer.in_channels == 3
        block = pattern.rows * pattern.columns if isinstance(pattern, Blocks) else 1
        assert zeros == 0 if dense else abs(zeros - share) <= block / layer.weight.numel() + 1e-9, name


def test_classifier_and_skip_choose_the_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 8), nn.Linear(8, 8))
    assert list(prunable_layers(model)) == ["1", "2"]
    assert list(prunable_layers(model, classifier=True)) == ["1", "2", "3"]
    assert list(prunable_layers(model, skip=lambda name, module: name != "0")) == ["0"]
    prune(model, 1.0, skip=lambda name, module: isinstance(module, nn.Conv2d), classifier=True)
    assert [bool((layer.weight == 0).all()) for layer in model] == [False, False, True, True]


@pytest.mark.parametrize(
    ("sparsity", "pattern", "told"),
    [
        (-0.1, "unstructured", "from 0 to 1"),
        (1.5, "8x1", "from 0 to 1"),
        (math.nan, "unstructured", "from 0 to 1"),
        (None, "unstructured", "from 0 to 1"),
        (0.9, "2:4", "makes 0.5 of the weights zero"),
        (0.5, "4:2", "Unknown sparsity pattern"),
        (0.5, "0x4", "Unknown sparsity pattern"),
        (0.5, "8x", "Unknown sparsity pattern"),
        (0.5, "diagonal", "Unknown sparsity pattern"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_pruned(sparsity, pattern, told):
    model = nn.Sequential(nn.Conv2d(8, 8, 1))
    before = model[0].weight.detach().clone()
    with pytest.raises(InvalidArgument, match=told):
        prune(model, sparsity, pattern)
    assert torch.equal(model[0].weight, before)


def test_equal_sparsity_may_accompany_n_of_m():
    model = prune(nn.Sequential(nn.Conv2d(8, 8, 1)), 0.75, "1:4")
    assert (model[0].weight == 0).float().mean().item() == 0.75


def test_a_model_without_prunable_layers_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="classifier=True"):
        prune(nn.Sequential(nn.Linear(4, 4)), 0.5)


def test_errors_are_both_of_ours_and_value_errors():
    assert issubclass(InvalidArgument, SparsecError)
    assert issubclass(InvalidArgument, ValueError)


def test_a_parametrized_weight_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)))
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="where: 1"):
        prune(model, 0.5)
    assert torch.equal(model[0].weight, before)
