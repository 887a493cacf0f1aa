"""Parameters and multiply-adds of a network, as papers count them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Count(NamedTuple):
    """Learned parameters, and the multiply-adds of convolutions, linear layers and attention, zeros included."""

    parameters: int
    multiply_adds: int


class _Attention(TorchFunctionMode):
    """Adds up the two products of every scaled dot-product attention."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            scores = query.numel() // query.shape[-1] * key.shape[-2]
            self.multiply_adds += scores * (query.shape[-1] + value.shape[-1])
        return func(*args, **(kwargs or {}))


def count(model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Count:
    """Count by running `model` once on zeros of `input_shape` (batch first; multiply-adds are of the whole batch).

    `dtype` is that of the input: int64 for a model that reads ids.
    """
    total = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * _per_output(module)

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    training = model.training
    try:
        with torch.no_grad(), _Attention() as attention:
            model.eval()(torch.zeros(input_shape, dtype=dtype))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Count(sum(parameter.numel() for parameter in model.parameters()), total + attention.multiply_adds)


def _per_output(module: nn.Module) -> int:
    if isinstance(module, nn.Conv2d):
        return module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return module.in_features
    return 0
