"""Tensors as numpy arrays of the same memory, which the tensor's owner may still give back or enlarge."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class _Memory:
    """What numpy asks of an object that holds memory. It keeps the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        name = str(tensor.dtype).removeprefix("torch.")
        self._tensor = tensor
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "typestr": np.dtype(name).str,
            "version": 3,
        }


def array_of(tensor: Tensor) -> np.ndarray:
    """A contiguous tensor of the CPU as an array, bfloat16 as its bits in uint16. Not to be written to.

    Unlike ``Tensor.numpy`` it leaves the storage resizable. TypeError for dtypes that numpy has not.
    """
    tensor = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return np.asarray(_Memory(tensor)) if tensor.numel() else tensor.numpy()
