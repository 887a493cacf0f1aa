"""Arrays of numpy as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsec.errors import InvalidInput


def tensor_of(array: np.ndarray) -> Tensor:
    """The array as a tensor that torch may read and write; a copy where it is reversed or read-only.

    InvalidInput for types that torch has not, another order of bytes, and masked arrays: an answer would not know of the mask.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidInput("An input is a masked array.", hint="Give an array without a mask: array.filled(value) makes one.")
    try:
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"An input is an array of {array.dtype}.", why=str(error)) from error
