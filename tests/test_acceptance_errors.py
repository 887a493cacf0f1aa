"""The largest relative error to eager, of every network, density, pattern, batch and image size."""

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.models.patterns import keep_mask, parse_pattern
from sparsec.models.zoo import NAMES, build

LIMIT = 1e-4
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05)
PATTERNS = ("unstructured", "8x1", "32x32", "2:4")
BATCHES = (1, 3, 8)
#: Image sizes take turns, large ones being rare.
SIZES = (96, 96, 96, 160, 96, 96, 192, 96, 96, 224)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest magnitude; NaN, which no limit admits, where either has one. Zeros must be matched exactly."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30))


def cases() -> list:
    """(name, density, pattern, size): the whole product for MobileNets, each density and each pattern for the others.

    2:4 decides its density itself.
    """
    found = []
    for name in NAMES:
        for pattern in PATTERNS:
            every = pattern == "unstructured" or (pattern != "2:4" and name in ("mobilenet_v1", "mobilenet_v2"))
            for density in DENSITIES if every else (0.5,):
                found.append((name, density, pattern, SIZES[len(found) % len(SIZES)]))
    return found


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


def images(example: Tensor, batch: int) -> Tensor:
    """The example and disturbed copies of it."""
    noise = torch.randn(batch, *example.shape[1:], generator=torch.Generator().manual_seed(batch))
    return example + 0.3 * noise * (torch.arange(batch) > 0).view(-1, 1, 1, 1)


def check(model: nn.Module, example: Tensor, kernels, batches: tuple[int, ...] = BATCHES) -> None:
    compiled = sparsec.compile(model, (example,), threads=1, cache_dir=kernels)
    assert compiled.explain().uncovered == ()
    for batch in batches:
        x = images(example, batch)
        with torch.no_grad():
            expected = model(x)
        error = relative_error(compiled(x), expected)
        assert error <= LIMIT, (batch, error)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "density", "pattern", "size"), cases())
def test_every_network_density_and_pattern_stays_within_the_limit(kernels, name, density, pattern, size):
    check(*build(name, 1 - density, pattern, size), kernels)


def test_a_network_stays_within_the_limit(kernels):
    check(*build("mobilenet_v2", 0.9, "unstructured", 64), kernels, (1, 3))


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


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("density", DENSITIES)
def test_layers_of_every_density_and_pattern_stay_within_the_limit(kernels, density, pattern):
    example = torch.randn(1, 3, 29, 31, generator=torch.Generator().manual_seed(1))
    check(Layers(density if pattern != "2:4" else 0.5, pattern), example, kernels)


def test_nan_fails_the_comparison():
    value, broken = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    for found, expected in [(broken, value), (value, broken), (broken, broken)]:
        assert not relative_error(found, expected) <= LIMIT
    assert relative_error(value * (1 + 2 * LIMIT), value) > LIMIT
    assert relative_error(value * 1e-9, value * 0) > LIMIT
