"""The largest relative error to eager: networks, densities, patterns, batches and doors."""

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.doors.torch_compile import backend as torch_backend
from sparsec.models.attention import seed_transformer
from sparsec.models.bert import Bert
from sparsec.models.blocks import ConvNorm, ConvolutionalClassifier, seed_weights
from sparsec.models.patterns import keep_mask, parse_pattern
from sparsec.models.prune import calibrate_batchnorm, prune
from sparsec.models.resnet import Bottleneck
from sparsec.models.vit import VisionTransformer
from sparsec.models.zoo import NAMES, build_with_inputs

LIMIT = 1e-4
DENSITIES = (1.0, 0.5, 0.1, 0.05)
PATTERNS = ("unstructured", "8x1", "32x32", "2:4", "1:4")
#: 2:4 and 1:4 decide their density themselves.
KINDS = tuple((p, d) for p in PATTERNS for d in (DENSITIES if ":" not in p else (int(p[0]) / int(p[2]),)))
BATCHES = (1, 3, 8)
VOCABULARY, TOKENS, PIXELS = 100, 33, 48
#: Cases and image sizes of the networks as published: each kind of kernel, and the densities of the latency targets.
WHOLE = (
    ("mobilenet_v1", 224, "unstructured", 0.1),
    ("mobilenet_v2", 128, "32x32", 0.2),
    ("efficientnet_b0", 96, "2:4", 0.5),
    ("mobilenet_v3_small", 160, "unstructured", 0.5),
    ("resnet50", 224, "unstructured", 0.1),
    ("vit_s16", 224, "unstructured", 0.1),
    ("bert_base", 128, "8x1", 0.1),
    ("digits", None, "unstructured", 0.1),
    ("digits_vit", None, "1:4", 0.25),
)
#: The product of the networks of the latency targets with all kinds, for `make sweep`; else a case of it, skipped.
SWEEP = bool(os.environ.get("SPARSEC_SWEEP"))
SWEPT = list(product(("mobilenet_v1", "mobilenet_v2", "resnet50", "vit_s16", "bert_base"), KINDS))[: None if SWEEP else 1]

Inputs = tuple[Tensor, ...]
Draw = Callable[[int], Inputs]


def relative_error(found: Any, expected: Any) -> float:
    """Largest deviation over the largest magnitude; NaN, which no limit admits, where either has one. Zeros must be matched exactly."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def sentences(batch: int) -> Inputs:
    """Ids and masks: the first row full, each with a valid token, without which exported ONNX files mean something else than eager."""
    ids = torch.randint(VOCABULARY, (batch, TOKENS), generator=torch.Generator().manual_seed(batch))
    lengths = torch.tensor([TOKENS, 9, 11, 32, 1, 17, 33, 5])[:batch]
    return ids, (torch.arange(TOKENS) < lengths[:, None]).long()


def photographs(batch: int) -> Inputs:
    return (normal(batch, 3, PIXELS, PIXELS),)


def small_resnet() -> nn.Module:
    """A stem and two stages of two bottlenecks."""
    blocks = (Bottleneck(64, 32, 1), Bottleneck(128, 32, 1), Bottleneck(128, 64, 2), Bottleneck(256, 64, 1))
    layers = nn.Sequential(ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks)
    model = ConvolutionalClassifier(layers, nn.Linear(256, 10))
    seed_weights(model, 0)
    return model


#: Relatives of the large networks, wide enough for whole blocks of 32 x 32, and their inputs.
SMALL: dict[str, tuple[Callable[[], nn.Module], Draw]] = {
    "resnet": (small_resnet, photographs),
    "bert": (lambda: seed_transformer(Bert(VOCABULARY, 64, 128, 2, 4, 256), 0, 0.1), sentences),
    "vit": (lambda: seed_transformer(VisionTransformer(PIXELS, 8, 128, 2, 4, 256, num_classes=10), 0, 0.1), photographs),
}


def pruned(name: str, pattern: str, density: float) -> tuple[nn.Module, Draw]:
    make, draw = SMALL[name]
    model = prune(make(), None if ":" in pattern else 1 - density, pattern).eval()
    if name == "resnet":
        calibrate_batchnorm(model, [draw(8)[0]])
    return model, draw


def agrees(fast: Any, model: nn.Module, draw: Draw, batches: tuple[int, ...] = BATCHES) -> float:
    """The largest relative error. It is within the limit, and so is the absolute one where no element is above 10."""
    errors = []
    for batch in batches:
        inputs = draw(batch)
        with torch.no_grad():
            found, expected = (made if isinstance(made, tuple | list) else (made,) for made in (fast(*inputs), model(*inputs)))
        for a, b in zip(found, expected, strict=True):
            errors.append(relative_error(a, b))
            assert errors[-1] <= LIMIT, (batch, errors[-1])
            assert (a - b).abs().max() <= LIMIT or b.abs().max() > 10, batch
    return max(errors)


def whole(fast: Any) -> Any:
    """`fast`, which runs none of its layers dense."""
    assert not isinstance(fast, sparsec.CompiledModel) or fast.explain().uncovered == ()
    return fast


def through_compile(model: nn.Module, draw: Draw, kernels: Path, tmp_path: Path) -> Any:
    return sparsec.compile(model, draw(1), threads=1, cache_dir=kernels)


def free_batch(inputs: Inputs) -> tuple[dict[int, Any], ...]:
    """Without it a file serves the batch of its example only."""
    return ({0: torch.export.Dim("batch")},) * len(inputs)


def through_program(model: nn.Module, draw: Draw, kernels: Path, tmp_path: Path) -> Any:
    path, inputs = tmp_path / "model.pt2", draw(2)
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=free_batch(inputs)), path)
    return sparsec.compile(path, threads=1, cache_dir=kernels)


def through_onnx(model: nn.Module, draw: Draw, kernels: Path, tmp_path: Path) -> Any:
    pytest.importorskip("onnxscript", reason="the exporter of torch needs onnxscript")
    path, inputs = tmp_path / "model.onnx", draw(2)
    torch.onnx.export(model, inputs, path, dynamo=True, verbose=False, dynamic_shapes=free_batch(inputs))
    return sparsec.compile(path, threads=1, cache_dir=kernels)


def through_torch_compile(model: nn.Module, draw: Draw, kernels: Path, tmp_path: Path) -> Any:
    return torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels})


DOORS = (through_program, through_onnx, through_torch_compile)
NOISY = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "density"), KINDS)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.turns(9)
def test_every_density_and_pattern_stays_within_the_limit(kernels, tmp_path, name, pattern, density):
    model, draw = pruned(name, pattern, density)
    agrees(whole(through_compile(model, draw, kernels, tmp_path)), model, draw)


@pytest.mark.slow
@NOISY
@pytest.mark.parametrize("way", DOORS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.turns(11)
def test_every_pattern_stays_within_the_limit_through_every_door(strict, kernels, tmp_path, name, pattern, way):
    model, draw = pruned(name, pattern, 0.1)
    agrees(whole(way(model, draw, kernels, tmp_path)), model, draw)
    assert not torch_backend._said


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "pattern", "density"), WHOLE)
@pytest.mark.turns(5)
def test_every_network_as_published_stays_within_the_limit(kernels, tmp_path, name, size, pattern, density):
    model, draw = published(name, size, pattern, density)
    agrees(whole(through_compile(model, draw, kernels, tmp_path)), model, draw, (1, 3))


@pytest.mark.slow
@pytest.mark.skipif(not SWEEP, reason="takes an hour: make sweep")
@NOISY
@pytest.mark.parametrize(("name", "kind"), SWEPT)
def test_every_network_kind_batch_and_door_stays_within_the_limit(strict, kernels, tmp_path, name, kind):
    model, draw = published(name, None, *kind)
    for way in DOORS:
        print(f"{name} {kind} {way.__name__}: {agrees(way(model, draw, kernels, tmp_path), model, draw):.1e}")
        torch._dynamo.reset()


def published(name: str, size: int | None, pattern: str, density: float) -> tuple[nn.Module, Draw]:
    model, inputs = build_with_inputs(name, None if ":" in pattern else 1 - density, pattern, size)
    return model, lambda batch: disturbed(inputs, batch)


def disturbed(inputs: Inputs, batch: int) -> Inputs:
    """The example, and copies of it with noise; ids are shifted in place of that."""
    rows = torch.arange(batch).view(-1, *[1] * (inputs[0].dim() - 1))
    if not inputs[0].is_floating_point():
        return inputs[0] + rows, *(x.expand(batch, -1).contiguous() for x in inputs[1:])
    return (inputs[0] + 0.3 * normal(batch, *inputs[0].shape[1:]) * (rows > 0),)


def test_every_network_is_tested_as_published():
    assert {name for name, *_ in WHOLE} == set(NAMES)


class Layers(nn.Module):
    """Two convolutions and a classifier, wide enough for whole 32x32 blocks."""

    def __init__(self, density: float, pattern: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU6(), nn.Conv2d(64, 96, 1), nn.ReLU6())
        self.head = nn.Linear(96, 40)
        with torch.no_grad():
            for layer in (self.features[2], self.head):
                layer.weight.mul_(keep_mask(layer.weight, 1 - density, parse_pattern(pattern)))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "density"), KINDS)
@pytest.mark.turns(3)
def test_layers_of_every_density_and_pattern_stay_within_the_limit(kernels, tmp_path, pattern, density):
    model, draw = Layers(density, pattern), lambda n: (normal(n, 3, 29, 31),)
    agrees(whole(through_compile(model, draw, kernels, tmp_path)), model, draw)


def test_nan_fails_the_comparison():
    value, broken = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    for found, expected in [(broken, value), (value, broken), (broken, broken)]:
        assert not relative_error(found, expected) <= LIMIT
    assert relative_error(value * (1 + 2 * LIMIT), value) > LIMIT
    assert relative_error(value * 1e-9, value * 0) > LIMIT
