"""Where a tensor is zero: the measurements behind facts. A mask is a bool tensor, True where a value is nonzero."""

import hashlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_SAMPLE_ROWS = 8


def share(mask: Tensor) -> float:
    """The share of nonzeros, 0 for an empty tensor."""
    return int(mask.count_nonzero()) / mask.numel() if mask.numel() else 0.0


def group_bound(mask: Tensor, m: int) -> int:
    """The most nonzeros in any group of `m` consecutive indices of dimension 1 of mask [O, I, ...]."""
    lines = mask.movedim(1, -1)
    if not lines.numel():
        return 0
    return int(F.pad(lines, (0, -lines.shape[-1] % m)).reshape(-1, m).count_nonzero(1).max())


def has_groups(mask: Tensor, n: int, m: int) -> bool:
    """Whether every group of `m` along dimension 1 has at most `n` nonzeros; a few rows are looked at first."""
    return group_bound(mask[:_SAMPLE_ROWS], m) <= n and group_bound(mask, m) <= n


def block_mask(mask: Tensor, rows: int, columns: int) -> Tensor:
    """True for the blocks of rows x columns of the matrix [O, rest] that hold a nonzero, [ceil(O/r), ceil(rest/c)]."""
    matrix = mask.flatten(1)
    down, right = -matrix.shape[0] % rows, -matrix.shape[1] % columns
    if down or right:
        matrix = F.pad(matrix, (0, right, 0, down))
    if rows > 1:
        matrix = _any(matrix.view(-1, rows, matrix.shape[1]), 1)
    return _any(matrix.view(matrix.shape[0], -1, columns), 2) if columns > 1 else matrix


def _any(mask: Tensor, dim: int) -> Tensor:
    """``mask.any(dim)``, a hundred times as fast on large masks."""
    return mask.view(torch.uint8).amax(dim).view(torch.bool) if mask.shape[dim] else mask.any(dim)


def dead(mask: Tensor, dim: int) -> frozenset[int]:
    """The indices of a dimension at which everything is zero."""
    alive = _any(mask.movedim(dim, 0).flatten(1), 1)
    return frozenset(torch.nonzero(~alive).flatten().tolist())


def digest(mask: Tensor) -> str:
    """A name for the exact set of nonzero positions and the shape."""
    bits = np.packbits(mask.contiguous().numpy())
    return hashlib.blake2b(bits.tobytes(), digest_size=16, key=str(tuple(mask.shape)).encode()[:64]).hexdigest()
