"""Whether a model does for every batch what it does for the example's: its functions at two batch sizes, without data.

A program works sample by sample and knows the samples as axis 0. Code may mean something else that looks the same at one size:

    x.view(1, -1)  for x [1,F]      x / len(x)      x + torch.arange(len(x))[:, None]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sparsec.from_torch.randomness import DropoutReturnsItsInput

#: Functions of these names make another shape of the same elements, from sizes among their arguments.
_RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "expand", "view_as", "reshape_as", "expand_as", "broadcast_to"})
#: All numbers among the arguments of these are sizes, and what they make is the same everywhere.
_FILLED = frozenset(new + name for new in ("", "new_") for name in ("zeros", "ones", "empty"))
#: What these fill with is a number, their sizes are a sequence.
_FULL = frozenset({"full", "new_full"})


@dataclass(frozen=True)
class _Call:
    name: str
    numbers: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]

    def differs(self, other: _Call, batch: int, another: int) -> str:
        """What depends on the batch, called with ``batch`` samples here and with ``another`` number there."""
        if self.name != other.name or [len(s) for s in self.shapes] != [len(s) for s in other.shapes]:
            return f"{self.name} makes something else"
        if self.name not in _RESHAPES | _FILLED and self.numbers != other.numbers:
            return f"{self.name} of a number that depends on it"
        if self.name not in _RESHAPES or all(_follows(a, b, batch, another) for a, b in zip(self.shapes, other.shapes, strict=True)):
            return ""
        return f"{self.name} makes {list(self.shapes[0])} of {batch} samples, {list(other.shapes[0])} of {another}"


def _follows(shape: Sequence[int], other: Sequence[int], batch: int, another: int) -> bool:
    """Whether shapes alone say at the first batch size which axis holds the samples, alone or merged with others."""
    changed = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
    if not changed:
        return True
    (axis, *more) = changed
    scaled = not more and shape[axis] * another == other[axis] * batch
    first = axis == 0 and shape[0] == batch
    return scaled and (first or batch not in (*shape[max(axis - 1, 0) : axis], *shape[axis + 1 : axis + 2]))


class _Watch(TorchFunctionMode):
    """Keeps what functions of torch are called with and make; those inside of others are torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        leaves = given if func.__name__ in _FULL else pytree.tree_leaves(given)
        numbers = tuple(leaf for leaf in leaves if isinstance(leaf, int | float | slice))
        shapes = tuple(tuple(leaf.shape) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
        if shapes:
            self.calls.append(_Call(func.__name__, numbers, shapes))
        return result


def only_batch(shapes: Sequence[Sequence[int]], what: str, option: str) -> str:
    """Why a file without free sizes serves the batch of its inputs' ``shapes`` only; empty where these have none in common.

    ``what``: the file; ``option``: of its exporter. Its numbers do not say which of them stood for the batch: ``x.reshape(2, -1)`` and
    ``x.reshape(len(x), -1)`` are the same there.
    """
    return f"{what} leaves no batch free (its exporter does with {option})" if len({shape[0] for shape in shapes if shape}) == 1 else ""


def dependence_on_batch(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a program compiled for these arguments would do wrong with another batch; empty if nothing.

    Sizes say nothing where inputs have different first dimensions, which is a batch of no kind, or none.
    """
    batches = {len(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(batches) != 1 or not (batch := batches.pop()):
        return ""
    here, there = (_calls(module, args, kwargs, size) for size in (batch, batch + 1))
    if isinstance(here, str) or isinstance(there, str):
        return f"with a batch of {batch + 1}: {there if isinstance(there, str) else here}"
    for a, b in zip_longest(here, there):
        if found := a.differs(b, batch, batch + 1) if a and b else "other functions run":
            return found
    return ""


def _calls(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], batch: int) -> list[_Call] | str:
    """The functions of a call with ``batch`` samples, or how it fails."""
    with FakeTensorMode(allow_non_fake_inputs=True), _unchanged(module), DropoutReturnsItsInput(), _Watch() as watch:

        def stand_in(leaf: Tensor) -> Tensor:
            shape = (batch, *leaf.shape[1:]) if leaf.dim() else ()
            return torch.empty(shape, dtype=leaf.dtype)

        given, named = pytree.tree_map_only(Tensor, stand_in, (tuple(args), dict(kwargs)))
        watch.calls.clear()
        try:
            module(*given, **named)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return watch.calls


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """What modules keep of a call is forgotten."""
    kept = [(part, dict(part.__dict__), dict(part._buffers)) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes, buffers in kept:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)
