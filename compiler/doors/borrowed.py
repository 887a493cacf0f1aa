"""Weights that a graph shares with the model it was captured from, and whether they are what they were then.

capture: addresses, versions, digest ── passes, packing, ... ── unchanged()?  yes: the program is of one moment
                                                                              no:  it is made again, of copies
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_TYPES = {Tensor, nn.Parameter, nn.Buffer}


def can_be_borrowed(value: Tensor) -> bool:
    """Whether a tensor is its bytes in memory, all of them there, and tells when torch writes to it."""
    return (
        type(value) in _TYPES
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_contiguous()
        and not (value.is_inference() or value.is_quantized or value.is_conj() or value.is_neg() or value._is_zerotensor())
        and _is_there(value)
    )


class Borrowed:
    """Tensors that are not the graph's own, as they were when this was made.

    They are held through tensors of their own, so that the model's may be swapped meanwhile. What is written and undone between two looks
    is noticed where torch knows of it.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """``tensors``: detached; each `can_be_borrowed`."""
        self._tensors = tuple(tensors)
        self._known = self._state()

    def unchanged(self) -> bool:
        """Whether nothing was written to the tensors since, nor their memory moved or given back. Takes a second per GB or so."""
        return all(map(_is_there, self._tensors)) and self._placed() == self._known[0] and self._state() == self._known

    def _placed(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for tensor in self._tensors]

    def _state(self) -> tuple[list[tuple[int, int]], bytes]:
        """Versions first: a write that is under way while bytes are read has another one afterwards."""
        placed, digest = self._placed(), hashlib.sha256()
        for tensor in self._tensors:
            if tensor.numel():
                digest.update((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
        return placed, digest.digest()


def _is_there(tensor: Tensor) -> bool:
    """Whether the storage has all elements of a contiguous tensor."""
    storage, needed = tensor.untyped_storage(), (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    return not tensor.numel() or (storage.nbytes() >= needed and storage.data_ptr() != 0)
