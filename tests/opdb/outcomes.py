"""What a call did, and whether two calls did the same."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.opdb.samples import seed_everything, twins

RELATIVE = 1e-4


@dataclass(frozen=True)
class Outcome:
    """Results and inputs after the call, as (path, leaf), and which of them share memory; or the exception."""

    leaves: tuple[tuple[str, Any], ...] = ()
    shared: frozenset[tuple[str, str]] = frozenset()
    error: BaseException | None = None


def outcome(call: Callable[..., Any], inputs: Sequence[Tensor]) -> Outcome:
    """Call on copies of the inputs, with random numbers that are the same each time."""
    given = twins(list(inputs))
    seed_everything(1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call(*given)
    except Exception as error:
        return Outcome(error=error)
    leaves, _ = pytree.tree_flatten_with_path((result, given))
    named = tuple((pytree.keystr(path), leaf) for path, leaf in leaves)
    return Outcome(named, _shared(named))


def _shared(leaves: Sequence[tuple[str, Any]]) -> frozenset[tuple[str, str]]:
    owners: dict[int, str] = {}
    strided = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.numel()]
    return frozenset(
        (owner, path) for path, leaf in strided if (owner := owners.setdefault(leaf.untyped_storage().data_ptr(), path)) != path
    )


def difference(ours: Outcome, eager: Outcome, values: bool = True) -> str:
    """What differs, in a line; empty if nothing does. values: False compares shapes and dtypes only."""
    if ours.error is not None or eager.error is not None:
        what = "answered" if ours.error is None else "raised"
        return "" if type(ours.error) is type(eager.error) else f"{what}: {line(ours.error)} instead of {line(eager.error)}"
    if [path for path, _ in ours.leaves] != [path for path, _ in eager.leaves]:
        return "wrong: the result is nested otherwise"
    for (path, a), (_, b) in zip(ours.leaves, eager.leaves, strict=True):
        if found := _differs(a, b, values):
            return f"wrong: {path}: {found}"
    if ours.shared != eager.shared:
        lost, new = sorted(eager.shared - ours.shared), sorted(ours.shared - eager.shared)
        return f"memory: lost {lost} new {new}"
    return ""


def line(error: BaseException | None) -> str:
    """An exception in a line."""
    text = " ".join(str(error).split())
    return "a result" if error is None else f"{type(error).__name__}: {text[:300]}"


def _differs(a: Any, b: Any, values: bool) -> str:
    if type(a) is not type(b):
        return f"{type(a).__name__} is not {type(b).__name__}"
    if not isinstance(a, Tensor):
        return "" if a == b or (a != a and b != b) or not values else f"{a} is not {b}"
    if (a.shape, a.dtype, a.layout, a.requires_grad) != (b.shape, b.dtype, b.layout, b.requires_grad):
        return f"{tuple(a.shape)} {a.dtype} {a.layout} is not {tuple(b.shape)} {b.dtype} {b.layout}"
    if not values or not a.numel():
        return ""
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.dtype == torch.complex32:
        # Not compared by torch.
        a, b = a.to(torch.complex64), b.to(torch.complex64)
    if torch.equal(a, b):
        return ""
    scale = float(b.where(b.isfinite(), 0.0).abs().max()) if b.is_floating_point() and b.isfinite().any() else 1.0
    try:
        torch.testing.assert_close(a, b, rtol=RELATIVE, atol=RELATIVE * min(scale, 1e30), equal_nan=True)
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return ""
