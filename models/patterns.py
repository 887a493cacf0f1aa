"""Which weights a sparsity pattern keeps: the largest in magnitude, one by one, by block, or N of each M."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsec.models.errors import InvalidArgument


@dataclass(frozen=True)
class Blocks:
    """Blocks of `rows` outputs times `columns` flattened inputs, kept or pruned whole. 1x1 is unstructured."""

    rows: int = 1
    columns: int = 1


@dataclass(frozen=True)
class NOfM:
    """At most `n` nonzeros in each group of `m` consecutive inputs."""

    n: int
    m: int


def parse_pattern(text: str) -> Blocks | NOfM:
    """Read "unstructured", blocks such as "8x1" (outputs x inputs) or N:M such as "2:4"; InvalidArgument else."""
    if text == "unstructured":
        return Blocks()
    if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text):
        return Blocks(int(match[1]), int(match[2]))
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if match and int(match[1]) <= int(match[2]):
        return NOfM(int(match[1]), int(match[2]))
    raise InvalidArgument(
        f"Unknown sparsity pattern {text!r}.",
        hint="use 'unstructured', a block of outputs x inputs such as '8x1', or N:M such as '2:4' with N at most M",
    )


def resolve_sparsity(pattern: Blocks | NOfM, sparsity: float | None) -> float:
    """The share of zeros to make: `sparsity`, or 1 - N/M where N:M decides. InvalidArgument where they disagree."""
    if isinstance(pattern, NOfM):
        decided = 1 - pattern.n / pattern.m
        if sparsity is not None and not math.isclose(sparsity, decided, abs_tol=1e-9):
            raise InvalidArgument(
                f"Sparsity {sparsity} disagrees with the pattern.",
                why=f"{pattern.n}:{pattern.m} makes {decided:.4g} of the weights zero",
                hint="leave the sparsity None or make them equal",
            )
        return decided
    if sparsity is None or not 0 <= sparsity <= 1:
        raise InvalidArgument(f"Sparsity must be a number from 0 to 1, got {sparsity}.")
    return sparsity


def keep_mask(weight: Tensor, sparsity: float, pattern: Blocks | NOfM) -> Tensor:
    """True where `weight` [outputs, inputs, ...] is kept; same shape. Ties go to the earlier position.

    Blocks lie on the matrix [outputs, inputs·kh·kw]; edge blocks may be smaller and compete by mean magnitude. Zeros
    come within half an element (unstructured) or one block of `sparsity`; at least one block stays unless all must go.
    N:M groups run along inputs at a fixed kernel tap; a shorter last group keeps up to N.
    """
    magnitude = weight.detach().abs()
    if isinstance(pattern, NOfM):
        return _n_of_m(magnitude.movedim(1, -1), pattern).movedim(-1, 1)
    if pattern == Blocks():
        return _largest(magnitude, sparsity)
    return _blocks(magnitude.flatten(1), sparsity, pattern).view(weight.shape)


def _largest(magnitude: Tensor, sparsity: float) -> Tensor:
    """The `_blocks` of single elements by selection: sorting all weights of a transformer takes half a minute."""
    flat = magnitude.flatten()
    count = math.floor((1 - sparsity) * len(flat) + 0.5)
    if count == 0:
        return torch.zeros_like(magnitude, dtype=torch.bool)
    least = flat.kthvalue(len(flat) - count + 1).values
    kept = flat > least
    ties = (flat == least).nonzero().flatten()
    kept[ties[: count - int(kept.sum())]] = True
    return kept.view_as(magnitude)


def _blocks(magnitude: Tensor, sparsity: float, pattern: Blocks) -> Tensor:
    sizes = _block_sums(torch.ones_like(magnitude), pattern)
    order = (_block_sums(magnitude, pattern) / sizes).flatten().argsort(stable=True, descending=True)
    kept_after = sizes.flatten()[order].double().cumsum(0)
    target = (1 - sparsity) * magnitude.numel()
    kept_before = kept_after - sizes.flatten()[order]
    kept = torch.empty_like(order, dtype=torch.bool)
    # The block that straddles the target is kept where at least half of it lies below the target.
    kept[order] = (kept_before + kept_after) / 2 <= target
    if target > 0:
        kept[order[0]] = True  # a layer smaller than a few blocks would otherwise vanish, and the network with it
    spread = kept.view(sizes.shape).repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, 1)
    return spread[: magnitude.shape[0], : magnitude.shape[1]]


def _block_sums(matrix: Tensor, pattern: Blocks) -> Tensor:
    """Sums over blocks, [ceil(outputs/rows), ceil(inputs/columns)]."""
    down, right = -matrix.shape[0] % pattern.rows, -matrix.shape[1] % pattern.columns
    padded = F.pad(matrix, (0, right, 0, down))
    grid = padded.view(padded.shape[0] // pattern.rows, pattern.rows, -1, pattern.columns)
    return grid.sum((1, 3))


def _n_of_m(magnitude: Tensor, pattern: NOfM) -> Tensor:
    length = magnitude.shape[-1]
    # Padding of -1 is below every magnitude, so it is the first to go.
    groups = F.pad(magnitude, (0, -length % pattern.m), value=-1.0).unflatten(-1, (-1, pattern.m))
    order = groups.argsort(dim=-1, stable=True, descending=True)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., : pattern.n], True)
    return kept.flatten(-2)[..., :length]
