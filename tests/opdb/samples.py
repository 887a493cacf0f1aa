"""PyTorch's operator database: every operator with the float32 samples that PyTorch tests it with."""

import random
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# What these return is memory that nobody has written: only shapes, dtypes and strides can be compared.
UNWRITTEN = ("empty", "new_empty", "resize_")


@cache
def operators() -> dict[str, Any]:
    """All operators that take float32 by name; variants as "name.variant"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return {op.name + (f".{op.variant_test_name}" if op.variant_test_name else ""): op for op in op_db if torch.float32 in op.dtypes}


@cache
def samples(name: str) -> tuple[Any, ...]:
    """The samples of one operator, the same in every process."""
    seed_everything(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(operators()[name].sample_inputs("cpu", torch.float32, requires_grad=False))


def seed_everything(seed: int) -> None:
    """Random numbers of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def empty(sample: Any) -> bool:
    """Whether a tensor of a sample has no elements."""
    return any(leaf.numel() == 0 for leaf in pytree.tree_leaves((sample.input, sample.args, sample.kwargs)) if isinstance(leaf, Tensor))


def unwritten(name: str) -> bool:
    """Whether the operator's result holds memory that nobody has written."""
    return name.startswith(UNWRITTEN)


def twins(tree: Any) -> Any:
    """A deep copy of all tensors: strides, offsets and what shares memory with what stay."""
    storages: dict[int, torch.UntypedStorage] = {}

    def twin(tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided or tensor.is_neg() or tensor.is_conj():
            return tensor.clone()
        old = tensor.untyped_storage()
        new = storages.setdefault(old._cdata, old.clone())
        return torch.empty(0, dtype=tensor.dtype).set_(new, tensor.storage_offset(), tensor.shape, tensor.stride())

    return pytree.tree_map_only(Tensor, twin, tree)


def strided(tensor: Tensor) -> Tensor:
    """The same values in every second place of a larger storage, the last axis outermost."""
    if tensor.layout != torch.strided or tensor.dim() == 0:
        return tensor
    places = torch.zeros((tensor.shape[-1], *tensor.shape[:-1], 2), dtype=tensor.dtype)
    order = (*range(1, tensor.dim()), 0)
    return places[..., 1].permute(order).copy_(tensor) if tensor.dim() > 1 else places[..., 1].copy_(tensor)
