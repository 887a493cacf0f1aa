"""Weights as detached, dense, contiguous tensors, whatever layout the user keeps them in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is strided and contiguous, and known to autograd."""
    return tensor.layout == torch.strided and tensor.is_contiguous() and not tensor.is_inference()


def plain(tensor: Tensor) -> Tensor:
    """The same values detached, dense and contiguous; shares memory where the tensor already is."""
    detached = tensor.detach()
    dense = (detached if detached.layout == torch.strided else detached.to_dense()).contiguous()
    return dense.clone() if dense.is_inference() else dense


@contextmanager
def plain_weights(module: nn.Module) -> Iterator[None]:
    """While entered, every parameter and buffer of the module is plain; afterwards the user's own are back."""
    taken: list[tuple[dict[str, Any], str, Tensor]] = []
    made: dict[int, Tensor] = {}
    try:
        for part in module.modules():
            tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for table in tables:
                for name, tensor in list(table.items()):
                    if tensor is not None and not is_plain(tensor):
                        taken.append((table, name, tensor))
                        table[name] = made.setdefault(id(tensor), _plain_like(tensor))
        yield
    finally:
        for table, name, tensor in reversed(taken):
            table[name] = tensor


def _plain_like(tensor: Tensor) -> Tensor:
    value = plain(tensor)
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
