"""What operators mean that are neither ours nor one call of torch: per batch, on tensors of any floating-point dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def same(x: Tensor) -> Tensor:
    """x."""
    return x


def permute(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """Axes in another order; ``dims`` does not count the batch."""
    return x.permute(0, *(dim + 1 for dim in dims))


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y."""
    return x + y


def mul(x: Tensor, y: Tensor, *, channels: int | None = None) -> Tensor:
    """x · y; operand ``channels`` has one pixel per channel, [N,C,1,1]."""
    return x * y


def max_pool2d(x: Tensor, *, kernel_size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """The maximum of each window: [N,C,H,W] → [N,C,H',W']."""
    return F.max_pool2d(x, kernel_size, stride, padding)


def avg_pool2d(
    x: Tensor, *, kernel_size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], count_include_pad: bool
) -> Tensor:
    """The mean of each window: [N,C,H,W] → [N,C,H',W']."""
    return F.avg_pool2d(x, kernel_size, stride, padding, False, count_include_pad)


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean of each channel: [N,C,H,W] → [N,C]."""
    return x.mean((2, 3))


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """Features of each token [N,T,F] normalised to mean 0 and deviation 1, times weight [F], plus bias [F]."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """The rows of a table [V,F] at ids [N,T] → [N,T,F]."""
    return F.embedding(ids, table)


def prepend(x: Tensor, prefix: Tensor) -> Tensor:
    """Tokens [P,F] or [1,P,F] before those of each sample: [N,T,F] → [N,P+T,F]."""
    return torch.cat([prefix.expand(len(x), -1, -1), x], 1)


def select_token(x: Tensor, *, index: int) -> Tensor:
    """One token of each sample: [N,T,F] → [N,F]."""
    return x[:, index]


def mean_tokens(x: Tensor) -> Tensor:
    """The mean over tokens: [N,T,F] → [N,F]."""
    return x.mean(1)
