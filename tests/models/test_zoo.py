"""Models by name: pruned, calibrated, deterministic, and with logits that depend on the image."""

import pytest
import torch

from sparsec.models import zoo
from sparsec.models.digits import accuracy, load_digits_split
from sparsec.models.photographs import sample_photographs
from sparsec.models.prune import prunable_layers

torch.set_num_threads(1)


CLASSIFIERS = [*zoo.NETWORKS, "vit_s16"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
@pytest.mark.turns(3)
def test_logits_are_scaled_and_differ_between_images(name, sparsity):
    model, example = zoo.build(name, sparsity, size=96)
    assert example.shape == (1, 3, 96, 96)
    assert not model.training
    with torch.no_grad():
        logits = model(sample_photographs(96))
    assert 0.2 < logits.std() < 5
    assert (logits[0] - logits[1]).std() > 0.2
    assert logits[0].topk(5).indices.tolist() != logits[1].topk(5).indices.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.turns(3)
def test_float32_rounding_stays_far_below_the_tolerance_of_compiled_code(name):
    model, _ = zoo.build(name, 0.9)
    photographs = sample_photographs()
    with torch.no_grad():
        logits, exact = model(photographs), model.double()(photographs.double())
    assert (logits - exact).abs().max() <= 2e-5 * exact.abs().max()


@pytest.mark.parametrize(("pattern", "sparsity", "share"), [("2:4", 0.0, 0.5), ("1:4", None, 0.75), ("8x1", 0.5, 0.5)])
def test_pattern_and_sparsity_reach_the_weights(pattern, sparsity, share):
    model, _ = zoo.build("mobilenet_v2", sparsity, pattern, size=32)
    for layer in prunable_layers(model).values():
        assert abs((layer.weight == 0).float().mean().item() - share) <= 8 / layer.weight.numel()


def test_the_same_arguments_give_the_same_model():
    (first, _), (second, _) = (zoo.build("mobilenet_v1", 0.9, size=64, seed=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize("arguments", [("resnet_9000",), ("mobilenet_v1", 0.9, "2:4"), ("mobilenet_v1", 2.0)])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"Unknown model|2:4 makes 0.5|from 0 to 1"):
        zoo.build(*arguments)


@pytest.mark.slow
def test_digits_comes_trained_and_pruned():
    model, (example,) = zoo.digits_90()
    assert example.shape == (1, 1, 8, 8)
    split = load_digits_split()
    assert accuracy(model, split.test_images, split.test_labels) >= 0.96
    assert all((layer.weight == 0).float().mean() > 0.89 for layer in prunable_layers(model).values())


def test_factory_returns_a_model_and_its_inputs():
    model, examples = zoo.mobilenet_v2_90()
    assert [example.shape for example in examples] == [(1, 3, 224, 224)]
    zeros = sum((layer.weight == 0).sum().item() for layer in prunable_layers(model).values())
    total = sum(layer.weight.numel() for layer in prunable_layers(model).values())
    assert zeros / total == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize(
    ("attribute", "asked"),
    [
        ("resnet50_dense", ("resnet50", 0.0, "unstructured")),
        ("resnet50_95", ("resnet50", 0.95, "unstructured")),
        ("bert_base_90_8x1", ("bert_base", 0.9, "8x1")),
        ("bert_base_80_32x32", ("bert_base", 0.8, "32x32")),
        ("vit_s16_2of4", ("vit_s16", 0.0, "2:4")),
        ("digits_vit_90", ("digits_vit", 0.9, "unstructured")),
    ],
)
def test_names_of_factories_say_what_they_build(monkeypatch, attribute, asked):
    monkeypatch.setattr(zoo, "build_with_inputs", lambda *arguments: arguments)
    factory = getattr(zoo, attribute)
    assert factory() == asked
    assert asked[0] in factory.__doc__


@pytest.mark.parametrize("attribute", ["resnet50_", "resnet50_100", "vit_s16_90_8", "alexnet_90", "bert_base_90_2of4", "__path__"])
def test_other_names_are_no_factories(attribute):
    assert not hasattr(zoo, attribute)


@pytest.mark.slow
def test_bert_comes_with_ids_and_mask():
    model, (ids, mask) = zoo.bert_base_90_8x1()
    assert ids.shape == mask.shape == (1, 128)
    assert not model.training
    for name, layer in prunable_layers(model).items():
        assert abs((layer.weight == 0).float().mean().item() - 0.9) <= 8 / layer.weight.numel() + 1e-6, name
    built, only = zoo.build("bert_base", 0.9, "8x1", size=64)
    assert only.shape == (1, 64)
    assert torch.equal(built.pooler.weight, model.pooler.weight)
