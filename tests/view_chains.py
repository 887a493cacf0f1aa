"""Networks of layers with views of all kinds between them, drawn from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsec.models.attention import attend_packed

SIZES = (1, 1, 2, 3, 4, 6, 17)
STARTS = ((4,), (12,), (1, 8), (6, 4), (17, 2), (1, 1), (4, 3, 5), (2, 1, 1), (1, 6, 4), (6, 17, 1), (3, 1, 8))
Function = Callable[[Tensor], Tensor]


class Named(nn.Module):
    """A function with a text that says what it is."""

    def __init__(self, text: str, function: Function) -> None:
        super().__init__()
        self.text, self.function = text, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.text


class Attention(nn.Module):
    """Self-attention of one head on tokens [N, T, F]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attend_packed(self.qkv(x), 1))


def chain(seed: int, steps: int = 7) -> tuple[nn.Sequential, Tensor]:
    """A network and its input; a layer before and after every run of views. All axes keep the batch first."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        example = x = torch.randn(rng.choice([1, 3]), *rng.choice(STARTS), generator=generator)
        made: list[nn.Module] = []
        for number in range(steps):
            made.append(_layer(rng, x) if number % 3 == 0 or number == steps - 1 else _view(rng, x))
            with torch.no_grad():
                x = made[-1](x)
    return nn.Sequential(*made).eval(), example


def _layer(rng: random.Random, x: Tensor) -> nn.Module:
    size = rng.choice(SIZES)
    if x.dim() == 4:
        channels = x.shape[1]
        kinds = [
            nn.Conv2d(channels, size, 1),
            nn.Conv2d(channels, size, 3, padding=1),
            Named("max", lambda x: F.max_pool2d(x, 3, 1, 1)),
            Named("average", lambda x: F.adaptive_avg_pool2d(x, 1)),
            nn.ReLU(),
        ]
        return rng.choice(kinds)
    features = x.shape[-1]
    token_kinds = [nn.LayerNorm(features), Attention(features)] if x.dim() == 3 else []
    return rng.choice([nn.Linear(features, size), nn.Linear(features, size), nn.ReLU(), *token_kinds])


def _view(rng: random.Random, x: Tensor) -> nn.Module:
    last = x.dim() - 1
    a, b = rng.randint(1, last), rng.randint(1, last)
    sizes = _split(rng, x[0].numel(), rng.randint(1, 3))
    free = rng.randrange(len(sizes))
    shape = [-1 if axis == free else size for axis, size in enumerate(sizes)]
    order = [0, *rng.sample(range(1, x.dim()), last)]
    kinds: list[tuple[str, Function]] = [
        ("flatten(1)", lambda x: x.flatten(1)),
        (f"reshape{shape}", lambda x: x.reshape(len(x), *shape)),
        (f"turned reshape{shape}", lambda x: x.transpose(a, b).reshape(len(x), *shape)),
        (f"transpose({a}, {b})", lambda x: x.transpose(a, b)),
        (f"permute{order}", lambda x: x.permute(order).contiguous()),
    ]
    if last > 1 and x.shape[a] == 1:
        kinds.append((f"squeeze({a})", lambda x: x.squeeze(a)))
    if last < 3:
        kinds += [(f"unsqueeze({a})", lambda x: x.unsqueeze(a)), ("unsqueeze(-1)", lambda x: x.unsqueeze(-1))]
    if last > 2:
        kinds.append(("flatten(2)", lambda x: x.flatten(2)))
    return Named(*rng.choice(kinds))


def _split(rng: random.Random, count: int, parts: int) -> list[int]:
    """``parts`` factors of a number, in any order."""
    sizes = []
    for _ in range(parts - 1):
        sizes.append(rng.choice([d for d in range(1, count + 1) if count % d == 0]))
        count //= sizes[-1]
    sizes.append(count)
    rng.shuffle(sizes)
    assert math.prod(sizes) > 0
    return sizes
