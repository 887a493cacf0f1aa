"""Sums into depthwise convolutions, as networks write them: x + dw(x), x + dw(pw(x)), act(x + dw(x)), dw(x) + dw(x)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsec

STRIDES, CHANNELS = (1, 2), 6


class Sums(nn.Module):
    """All sums with a depthwise convolution of one kernel size and stride."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, kernel // 2, groups=CHANNELS) for _ in range(2))
        self.mix, self.short = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1, stride)
        self.bare = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, kernel // 2, groups=CHANNELS, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        s = x if self.stride == 1 else self.short(x)
        both = self.first(x) + self.second(x)
        return (
            s + self.bare(x),
            self.first(self.mix(x)) + s,
            F.relu(s + self.first(x)),
            F.gelu(self.second(x) + s),
            both,
            self.mix(both) + s,
        )


class All(nn.Module):
    """The sums of some kernel sizes and every stride; of the weights a share is left."""

    def __init__(self, density: float, kernels: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sums = nn.ModuleList(Sums(kernel, stride) for kernel in kernels for stride in STRIDES)
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(torch.rand_like(weight) < (density if weight.dim() > 1 else 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(y for each in self.sums for y in each(x))


def check(function, model: nn.Module, x: Tensor, count: int) -> None:
    with torch.no_grad():
        found, wanted = function(x), model.double()(x.double())
    model.float()
    assert len(found) == count
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


IMAGES = torch.randn(2, CHANNELS, 9, 7, generator=torch.Generator().manual_seed(1))


class Sum(nn.Module):
    """relu(x + dw(x)) alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, groups=CHANNELS)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (F.relu(x + self.layer(x)),)


def test_a_sum_into_a_depthwise_convolution(kernels) -> None:
    model = Sum().eval()
    check(sparsec.compile(model, (IMAGES,), cache_dir=kernels), model, IMAGES, 1)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3,), (3, 5, 7)])
@pytest.mark.parametrize("density", [1.0, 0.2])
@pytest.mark.turns(2)
def test_sums_into_depthwise_convolutions(density: float, sizes: tuple[int, ...], kernels) -> None:
    model = All(density, sizes).eval()
    compiled = sparsec.compile(model, (IMAGES,), cache_dir=kernels)
    check(compiled, model, IMAGES, 12 * len(sizes))
    assert "left out" not in str(compiled.explain())


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("sizes", [(3,), (3, 5, 7)])
@pytest.mark.turns(2)
def test_sums_into_depthwise_convolutions_through_torch_compile(sizes: tuple[int, ...], kernels) -> None:
    model = All(0.2, sizes).eval()
    check(torch.compile(model, backend="sparse", options={"cache_dir": kernels}), model, IMAGES, 12 * len(sizes))
