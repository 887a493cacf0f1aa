"""Whether a compiled model's result is eager's: structure, dtypes, values."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

LIMIT = 1e-4
#: Scores that masks hide are minus this and more.
HUGE = 1e30


def disagreement(found: Any, model: nn.Module, keywords: Any) -> str:
    """What is wrong with the result of a call; empty if nothing is."""
    expected = eager(model, keywords)
    exact = wide(model, keywords, expected)
    mine, theirs = pytree.tree_flatten(found), pytree.tree_flatten(expected)
    if mine[1] != theirs[1]:
        return f"structure {mine[1]} ≠ {theirs[1]}"
    return "; ".join(filter(None, map(_differ, mine[0], theirs[0], pytree.tree_leaves(exact))))


def eager(model: nn.Module, keywords: Any) -> Any:
    """The result as it is."""
    with torch.no_grad():
        return model(**keywords)


def wide(model: nn.Module, keywords: Any, otherwise: Any) -> Any:
    """The result in float64, where the model can compute in that."""
    double = pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, dict(keywords))
    try:
        return eager(_widened(model), double)
    except RuntimeError:
        return otherwise


def _widened(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are in float64. What it keeps besides stays: ``double()`` makes some forget what eager uses."""
    copied = copy.deepcopy(model)
    for value in (*copied.parameters(), *copied.buffers()):
        if value.is_floating_point():
            value.data = value.data.double()
    return copied


def _differ(found: Any, expected: Any, exact: Any) -> str:
    if not isinstance(expected, Tensor):
        return "" if found == expected and type(found) is type(expected) else f"{found!r} ≠ {expected!r}"
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"{tuple(found.shape)} {found.dtype} ≠ {tuple(expected.shape)} {expected.dtype}"
    if not expected.is_floating_point():
        return "" if torch.equal(found, expected) else "integers differ"
    own = relative_error(expected, exact)
    error = relative_error(found, exact if own <= LIMIT else expected)
    return "" if error <= LIMIT else f"relative error {error:.1e} (eager's is {own:.1e})"


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest deviation over the largest magnitude; infinite where NaN or what masks put in place of scores is not the same."""
    found, exact = found.double(), exact.double()
    usual = exact.abs() < HUGE
    if not torch.allclose(found[~usual], exact[~usual], rtol=LIMIT, atol=0, equal_nan=True):
        return math.inf
    error = (found - exact)[usual].abs().amax().item() if usual.any() else 0.0
    scale = exact[usual].abs().amax().item() if usual.any() else 1.0
    return error / max(scale, 1e-30) if math.isfinite(error) else math.inf
