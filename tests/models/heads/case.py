"""One published architecture, small: how it is made, and what it is called with."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SPARSITY = 0.85
SEED = 0

Keywords = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """``make`` gives the model with any weights, ``inputs`` the keywords of a call with this batch and length (tokens, pixels, samples).

    lengths: of two calls; models of one size have it twice. gain: of normalisations, less than 1 where many of them are summed: values that
    grow from block to block end where gates jump with the last bit.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Keywords]
    lengths: tuple[int, int]
    batches: tuple[int, int] = (2, 3)
    gain: float = 1.0

    def model(self, seed: int = SEED) -> nn.Module:
        """In evaluation mode, every parameter drawn, most of each matrix zero."""
        return drawn(self.make().eval(), seed, self.gain)

    def calls(self) -> list[Keywords]:
        """Keywords of two calls that differ in batch and, where the model takes it, in length."""
        return [self.inputs(batch, length) for batch, length in zip(self.batches, self.lengths, strict=True)]


def generator(*seed: int) -> torch.Generator:
    """Random numbers that depend on these numbers alone."""
    return torch.Generator().manual_seed(sum(part * 1009**place for place, part in enumerate(seed)))


def drawn(model: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Draw all parameters and running statistics, and prune every matrix but embeddings; in place.

    No parameter keeps a value such as 0 or 1 at which a network that forgets it computes the same. Products keep the size of values.
    """
    random = generator(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                _draw(parameter, name, random, gain)
                if parameter.dim() > 1 and "weight" in name and id(parameter) not in embeddings and not isinstance(module, nn.Embedding):
                    _prune(parameter)
            for name, statistic in module.named_buffers(recurse=False):
                if name == "running_mean":
                    statistic.normal_(0, 0.2, generator=random)
                elif name == "running_var":
                    statistic.uniform_(0.5, 1.5, generator=random)
    return model


def _draw(parameter: Tensor, name: str, random: torch.Generator, gain: float) -> None:
    if not parameter.is_floating_point():
        return
    if parameter.dim() > 1:
        parameter.normal_(0, 1 / math.sqrt(max(1, parameter[0].numel())), generator=random)
    else:
        parameter.normal_(1.0 if "weight" in name or "gamma" in name else 0.0, 0.2, generator=random).mul_(gain)


def _prune(weight: Tensor) -> None:
    """Zeros at the smallest values; the rest grows by as much as products lose."""
    keep = max(1, round(weight.numel() * (1 - SPARSITY)))
    if weight[0].numel() < 8:
        return
    threshold = weight.abs().flatten().kthvalue(weight.numel() - keep + 1).values
    before = weight.norm()
    weight[weight.abs() < threshold] = 0
    weight.mul_(before / weight.norm().clamp_min(1e-12))
