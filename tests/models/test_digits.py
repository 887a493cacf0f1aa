"""The digits networks are really trained: their accuracy is that of images it never saw."""

import pytest
import torch

from sparsec.models.digits import DEFAULT, accuracy, load_digits_split, train_digits
from sparsec.models.digits_cnn import digits_cnn, pruned_digits_cnn
from sparsec.models.digits_vit import RECIPE, digits_vit, pruned_digits_vit
from sparsec.models.prune import prunable_layers

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def result():
    return pruned_digits_cnn(0.9)


@pytest.mark.slow
def test_accuracy_at_ninety_percent(result):
    assert len(result.test_labels) == 450
    assert accuracy(result.model, result.test_images, result.test_labels) == result.accuracy
    assert result.accuracy >= 0.96


@pytest.mark.slow
def test_nine_tenths_of_each_pointwise_layer_are_exact_zeros(result):
    layers = prunable_layers(result.model)
    assert [layer.weight.shape[0] for layer in layers.values()] == [64, 128, 128, 128]
    for layer in layers.values():
        assert abs((layer.weight == 0).sum().item() - 0.9 * layer.weight.numel()) <= 0.5
    assert not result.model.training


def test_split_holds_out_a_quarter_once():
    split = load_digits_split()
    assert len(split.images) + len(split.test_images) == 1797
    training = {image.numpy().tobytes() for image in split.images}
    assert not any(image.numpy().tobytes() in training for image in split.test_images)
    assert split.test_labels.bincount().min() >= 43


@pytest.mark.slow
@pytest.mark.parametrize(("make", "recipe"), [(digits_cnn, DEFAULT), (digits_vit, RECIPE)])
@pytest.mark.parametrize(("sparsity", "pattern", "zeros"), [(0.8, "unstructured", 0.8), (0.75, "1:4", 0.75)])
@pytest.mark.turns(2)
def test_training_is_deterministic_and_prunes_on_the_way(make, recipe, sparsity, pattern, zeros):
    models = [make(seed=5), make(seed=5)]
    reached = [train_digits(model, 2, 1, sparsity, pattern, recipe) for model in models]
    assert reached[0] == reached[1]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    for layer in prunable_layers(models[0]).values():
        assert abs((layer.weight == 0).float().mean().item() - zeros) <= 1 / layer.weight.numel()


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
@pytest.mark.turns(2)
def test_the_transformer_reaches_its_accuracy(sparsity):
    result = pruned_digits_vit(sparsity)
    assert result.accuracy == accuracy(result.model, result.test_images, result.test_labels)
    assert result.accuracy >= 0.95
    layers = prunable_layers(result.model)
    assert len(layers) == 6 * 4
    for layer in layers.values():
        assert abs((layer.weight == 0).sum().item() - sparsity * layer.weight.numel()) <= 0.5


def test_without_sparsity_nothing_is_pruned():
    model = digits_cnn()
    train_digits(model, 1)
    assert all((layer.weight != 0).all() for layer in prunable_layers(model).values())
