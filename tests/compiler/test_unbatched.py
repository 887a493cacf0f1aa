"""One map [C,H,W] without a batch: its first axis is no batch and its second no channels, in any operator that takes such maps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsec
from tests.fuzz.prelude import seeded

C, H, W = 8, 8, 12
ROWS = (torch.arange(H) >= H // 2).float()[:, None]


class Unbatched(nn.Module):
    """A function of a map and of layers that fit it: of maps, of rows, of one number per channel."""

    def __init__(self, then: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.more = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)
        self.rows, self.then = nn.Linear(W, W), then
        self.register_buffer("upper", ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, x)


#: Rows [.., H, .] that are zero, kept from or mixed with others; layers on either side.
FUNCTIONS: dict[str, Callable[[Unbatched, Tensor], Tensor]] = {
    "maximum": lambda m, x: F.max_pool2d(x, 2),
    "mean": lambda m, x: F.avg_pool2d(x, 3, 2, 1),
    "of two": lambda m, x: F.adaptive_avg_pool2d(x, 2),
    "of one": lambda m, x: F.adaptive_avg_pool2d(x, 1),
    "maximum of rows": lambda m, x: F.max_pool2d(m.rows(x), (2, 1)),
    "rows of maximum": lambda m, x: m.rows(F.max_pool2d(x, 3, 1, 1)),
    "zero rows, maximum": lambda m, x: F.max_pool2d(x * m.upper, 3, 1, 1),
    "zero rows, maximum, rows": lambda m, x: m.rows(F.max_pool2d(m.rows(x) * m.upper, 3, 1, 1)),
    "zero rows, mean, rows": lambda m, x: m.rows(F.avg_pool2d(m.rows(x) * m.upper, 3, 1, 1)),
    "zero rows, smaller": lambda m, x: F.max_pool2d(m.rows(x) * m.upper, (2, 1)) + 1,
    "joined rows, maximum": lambda m, x: F.max_pool2d(torch.cat([m.rows(x), torch.zeros(C, 4, W)], 1), 3, 1, 1),
    "maximum, zero rows": lambda m, x: F.max_pool2d(m.rows(x), 3, 1, 1) * m.upper,
    "convolution": lambda m, x: m.conv(x),
    "convolutions": lambda m, x: m.more(m.conv(x).relu()),
    "convolutions, zero rows": lambda m, x: m.more(m.conv(x).relu() * m.upper),
    "zero rows, convolutions": lambda m, x: m.more(m.conv(x * m.upper).relu()),
    "convolution, maximum": lambda m, x: F.max_pool2d(m.conv(x).relu(), 3, 1, 1),
    "convolution, maximum, zero rows, convolution": lambda m, x: m.more(F.max_pool2d(m.conv(x).relu(), 3, 1, 1) * m.upper),
    "batch of one": lambda m, x: m.more(F.max_pool2d(m.conv(x[None]).relu(), 2))[0],
    "vectors": lambda m, x: m.rows(x.mean(1)) + F.max_pool2d(x, (H, 1)).flatten(1),
}


def agrees(fast: Callable[[Tensor], Tensor], model: nn.Module) -> None:
    for _ in range(2):
        x = torch.randn(C, H, W)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dead", [False, True], ids=["pruned", "dead channels"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_objects(without_inductor: None, kernels: Path, name: str, dead: bool) -> None:
    model = made(name, dead)
    agrees(sparsec.compile(model, (torch.randn(C, H, W),), threads=1, cache_dir=kernels), model)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_compile(strict: None, without_inductor: None, kernels: Path, name: str) -> None:
    model = made(name, True)
    agrees(torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels}), model)


def made(name: str, dead: bool) -> nn.Module:
    model = seeded(Unbatched(FUNCTIONS[name]), "90%", 0)
    if dead:
        for layer in (model.conv, model.more, model.rows):
            layer.weight.data[1::2], layer.bias.data[1::2] = 0, 0
    return model
