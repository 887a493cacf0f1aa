"""Small convolutional networks drawn from a seed, and the way from a module to runners without a library per network."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsec.backends.assemble import assemble
from sparsec.backends.base import Source
from sparsec.backends.lowering import Lowered, draft, lower
from sparsec.backends.x86.backend import X86
from sparsec.doors.captured import Captured
from sparsec.doors.from_torch.capture import capture
from sparsec.ir.pipeline import Context, Result, run
from sparsec.lower import regions
from sparsec.lower.costs import Costs
from sparsec.lower.regions import Region
from sparsec.passes import PIPELINE
from sparsec.run.runtime import Runner
from sparsec.settings import Settings

SIZES = [(7, 7), (5, 9), (1, 8), (9, 1), (13, 6), (16, 16), (3, 2), (2, 2), (1, 1)]
ZEROS = ("dense", "unstructured", "unstructured", "nearly none", "none", "rows", "blocks")
Draw = Callable[[random.Random, int], nn.Module]


class Excite(nn.Module):
    """Squeeze and excite: x times a gate computed from its means."""

    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.gate = rng.choice([nn.Sigmoid, nn.Hardsigmoid])()
        self.keep = rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True) if self.keep else F.adaptive_avg_pool2d(x, 1)
        gate = self.gate(self.up(F.silu(self.down(mean))))
        return x * gate if self.keep else gate * x


class Residual(nn.Module):
    """act(x + body(x)), either way round."""

    def __init__(self, rng: random.Random, body: nn.Module) -> None:
        super().__init__()
        self.body, self.act, self.swap = body, activation(rng), rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.act(x + y if self.swap else y + x)


def activation(rng: random.Random) -> nn.Module:
    """One of a few, so that libraries stay small."""
    return rng.choice([nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU])()


def convolution(
    rng: random.Random, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """Same-padded."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=rng.random() < 0.6)


def dense_step(rng: random.Random, channels: int) -> nn.Module:
    outputs, kernel, stride = rng.choice([1, 4, 7, 17, 33]), rng.choice([1, 1, 3, 5]), rng.choice([1, 1, 2])
    return nn.Sequential(convolution(rng, channels, outputs, kernel, stride), nn.BatchNorm2d(outputs), activation(rng))


def odd_step(rng: random.Random, channels: int) -> nn.Module:
    kinds = [
        nn.Conv2d(channels, 8, (1, 3), padding=(0, 1)),
        nn.Conv2d(channels, 8, 2, 2),
        convolution(rng, channels, 8, 3, dilation=2),
        convolution(rng, channels, 2 * channels, 3, rng.choice([1, 2]), groups=channels),
        convolution(rng, channels, channels, 1, groups=channels),
        nn.BatchNorm2d(channels),
        nn.Hardswish(),
    ]
    return rng.choice(kinds)


def separable_step(rng: random.Random, channels: int) -> nn.Module:
    first = convolution(rng, channels, channels, rng.choice([3, 5]), rng.choice([1, 2]), groups=channels)
    return nn.Sequential(first, nn.BatchNorm2d(channels), nn.ReLU6(), convolution(rng, channels, rng.choice([4, 17]), 1), activation(rng))


def residual_step(rng: random.Random, channels: int) -> nn.Module:
    inner = nn.Sequential(convolution(rng, channels, 9, 1), nn.ReLU(), convolution(rng, 9, channels, rng.choice([1, 3])))
    return Residual(rng, rng.choice([inner, inner, nn.Identity()]))


def pool_step(rng: random.Random, channels: int) -> nn.Module:
    kinds = [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, 2, 1, count_include_pad=rng.random() < 0.5),
        nn.MaxPool2d(3, 1, 1),
    ]
    return rng.choice(kinds)


STEPS: tuple[Draw, ...] = (dense_step, dense_step, separable_step, residual_step, lambda rng, c: Excite(rng, c), pool_step, odd_step)


def head(rng: random.Random, x: Tensor) -> nn.Module:
    """Linear layers behind a global pool or a flattened map."""
    pooled = rng.random() < 0.6
    inputs = x.shape[1] if pooled else x[0].numel()
    pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
    hidden, outputs = rng.choice([6, 40]), rng.choice([1, 10, 100])
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs, bias=rng.random() < 0.5))


def draw(seed: int) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode with zeros in its weights, and an input of batch 1 or 2."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        example = x = torch.randn(rng.choice([1, 2]), rng.choice([1, 2, 3, 5, 8]), *rng.choice(SIZES), generator=generator)
        steps: list[nn.Module] = []
        for _ in range(rng.randint(1, 5)):
            step = rng.choice(STEPS)(rng, x.shape[1]).eval()
            if (result := _fits(step, x)) is not None:
                x = result
                steps.append(step)
        if rng.random() < 0.6:
            steps.append(head(rng, x))
        model = nn.Sequential(*steps).eval()
    disturb(model, rng, generator)
    return model, example


def _fits(step: nn.Module, x: Tensor) -> Tensor | None:
    try:
        with torch.no_grad():
            y = step(x)
    except RuntimeError:  # a window larger than the map
        return None
    return y if y.numel() else None


@torch.no_grad()
def disturb(model: nn.Module, rng: random.Random, generator: torch.Generator) -> None:
    """Put zeros of some pattern into each weight and numbers into each normalisation."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.mul_(mask(module.weight, rng.choice(ZEROS), generator))
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.uniform_(-1.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.3, generator=generator)


def mask(weight: Tensor, zeros: str, generator: torch.Generator) -> Tensor:
    """0 and 1 in the shape of ``weight``, by the name of a pattern."""
    flat = weight.flatten(1)
    noise = torch.rand(flat.shape, generator=generator)
    match zeros:
        case "unstructured":
            kept = noise < 0.3
        case "nearly none":
            kept = noise < 0.03
        case "none":
            kept = noise < 0
        case "rows":
            kept = (noise[:, :1] < 0.5).expand_as(flat)
        case "blocks":
            kept = (noise[::8] < 0.3).repeat_interleave(8, 0)[: len(flat)]
        case _:
            kept = noise < 2
    return kept.view(weight.shape).to(weight.dtype)


@cache
def captured(seed: int) -> tuple[nn.Module, Tensor, Captured]:
    """A drawn network and its graph."""
    model, x = draw(seed)
    return model, x, capture(model, (x,))


def grouped(graph_module: fx.GraphModule, backend: X86, **costs: Any) -> tuple[Result, list[Region]]:
    """The graph after all passes, and its regions; dense ones are kept."""
    context = Context(Settings(threads=1), backend.offers, backend.layouts, Costs(**costs), keep_dense=True)
    result = run(graph_module, PIPELINE, context)
    return result, [backend.arrange(region) for region in regions.extract(result.graph_module)]


def sources_of(plans: Sequence[Lowered]) -> list[Source]:
    """The kernels that plans call, each once, in order."""
    used = {call.source.symbol: call.source for lowered in plans for group in lowered.plan.groups for call in group.calls}
    return [used[symbol] for symbol in sorted(used)]


@dataclass(frozen=True, eq=False)
class Part:
    """One region of a drawn network, lowered. ``whole``: the region is the network."""

    seed: int
    region: Region
    lowered: Lowered
    result: Result

    def runner(self, kernels: Sequence[Source], library: Path, threads: int = 1) -> Runner:
        """The region with a library of at least its own kernels."""
        names = [node.name for node in self.region.inputs], [node.name for node in self.region.outputs]
        return Runner(assemble(self.lowered.plan, kernels, names, 2), library, threads)


def parts(seeds: Sequence[int], backend: X86) -> list[Part]:
    """All regions of drawn networks; every second network joins depthwise and 1x1 convolutions of any size."""
    found = []
    for seed in seeds:
        costs = {"joined_bytes": 0} if seed % 2 else {"convert": 0.1}
        result, made = grouped(captured(seed)[2].graph_module, backend, **costs)
        found += [Part(seed, region, lower(draft(region, backend), backend), result) for region in made]
    return found
