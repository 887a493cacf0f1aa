"""Parameters and multiply-adds of a network, as papers count them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Count(NamedTuple):
    """Learned parameters, and the multiply-adds of convolutions and linear layers, zeros included."""

    parameters: int
    multiply_adds: int


def count(model: nn.Module, input_shape: tuple[int, ...]) -> Count:
    """Count by running `model` once on zeros of `input_shape` (batch first; multiply-adds are of the whole batch)."""
    total = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * _per_output(module)

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(input_shape))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Count(sum(parameter.numel() for parameter in model.parameters()), total)


def _per_output(module: nn.Module) -> int:
    if isinstance(module, nn.Conv2d):
        return module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return module.in_features
    return 0
