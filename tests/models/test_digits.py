"""The digits network is really trained: its accuracy is that of images it never saw."""

import pytest
import torch

from sparsec.models.digits import accuracy, digits_cnn, load_digits_split, pruned_digits_cnn, train_digits
from sparsec.models.prune import prunable_layers

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def result():
    return pruned_digits_cnn(0.9)


def test_accuracy_at_ninety_percent(result):
    assert len(result.test_labels) == 450
    assert accuracy(result.model, result.test_images, result.test_labels) == result.accuracy
    assert result.accuracy >= 0.96


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


@pytest.mark.parametrize(("sparsity", "pattern", "zeros"), [(0.8, "unstructured", 0.8), (0.75, "1:4", 0.75)])
def test_training_is_deterministic_and_prunes_on_the_way(sparsity, pattern, zeros):
    models = [digits_cnn(seed=5), digits_cnn(seed=5)]
    reached = [train_digits(model, 2, seed=1, sparsity=sparsity, pattern=pattern) for model in models]
    assert reached[0] == reached[1]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    for layer in prunable_layers(models[0]).values():
        assert abs((layer.weight == 0).float().mean().item() - zeros) <= 1 / layer.weight.numel()


def test_without_sparsity_nothing_is_pruned():
    model = digits_cnn()
    train_digits(model, 1)
    assert all((layer.weight != 0).all() for layer in prunable_layers(model).values())
