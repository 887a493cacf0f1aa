"""Which element of a value lies where, and how it gets from one storage to another.

Views are not computed. Element i of a value is element ``order[i]`` of what its buffer holds; with both storages' addresses that says which
element of one is which of the other. Where those are equal the memory is read as it is, where rows keep their order there are copies of
rows, everything else goes element by element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sparsec.backends.plan import Buffer
from sparsec.lower.layouts import Storage, dense

Shape = tuple[int, ...]
#: Whether a kernel copies a value of one shape from one storage to another.
Covers = Callable[[Storage, Storage, Shape], bool]


@dataclass(frozen=True)
class Step:
    """A copy of a value of one shape between two storages."""

    have: Storage
    want: Storage
    shape: Shape


@dataclass(frozen=True, eq=False)
class Value:
    """One sample of ``shape``: element i, in row-major order, is element ``order[i]`` of the sample of shape ``stored`` in the buffer.

    ``order`` None: element i is element i.
    """

    buffer: Buffer
    stored: Shape
    shape: Shape
    order: np.ndarray | None = None

    @classmethod
    def whole(cls, buffer: Buffer, shape: Shape) -> Value:
        """All that a buffer holds."""
        return cls(buffer, shape, shape)

    @property
    def is_whole(self) -> bool:
        """Whether the value is what the buffer holds."""
        return self.order is None and self.stored == self.shape

    @cached_property
    def places(self) -> np.ndarray:
        """Where each element lies in the buffer."""
        addresses = self.buffer.storage.addresses(self.stored)
        return addresses if self.order is None else addresses[self.order]

    def viewed(self, shape: Shape, dims: Sequence[int] | None = None) -> Value:
        """The value with its axes in the order ``dims``, then in another shape."""
        if dims is not None:
            index = np.arange(math.prod(self.shape)) if self.order is None else self.order
            return replace(self, shape=shape, order=index.reshape(self.shape).transpose(dims).reshape(-1))
        return self if shape == self.shape else replace(self, shape=shape)


def lies_as(value: Value, want: Storage) -> bool:
    """Whether the memory of a value can be read as ``want``; of other halo rows it is not known that their pads are zero."""
    have = value.buffer.storage
    if value.is_whole and have == want:
        return True
    if want.layout == "halo" or want.dtype != have.dtype or want.elements > value.buffer.memory.storage.elements:
        return False
    tiled = "tiled" in (have.layout, want.layout) and (have.layout, have.geometry) != (want.layout, want.geometry)
    if tiled and (have.follows or want.follows):
        return False  # Fewer tokens have whole tiles as well.
    return want.holds(value.shape) and np.array_equal(value.places, want.addresses(value.shape))


def copies(value: Value, want: Storage, covers: Covers) -> list[Step]:
    """Copies, one after the other, that write a value to ``want``; none where there are no kernels for that.

    Where a step reads or writes another storage than its neighbours, it is the same memory in another shape.
    """
    have, stored = value.buffer.storage, value.stored
    if value.order is not None:
        if not np.array_equal(value.places, np.arange(value.places.size)):
            return []
        have, stored = dense(value.shape, have.dtype), value.shape
    if stored == value.shape:
        return _route(have, want, stored, covers)
    before, after = dense(stored, have.dtype), dense(value.shape, have.dtype)
    if have.is_dense:
        return _route(after, want, value.shape, covers)
    first = _route(have, before, stored, covers)
    if want.is_dense or not first:
        return first
    last = _route(after, want, value.shape, covers)
    return [*first, *last] if last else []


def _route(have: Storage, want: Storage, shape: Shape, covers: Covers) -> list[Step]:
    """Copies between two storages of a value of one shape, by way of halo rows where there is none from one to the other."""
    if covers(have, want, shape):
        return [Step(have, want, shape)]
    for middle in (replace(s, layout="halo") for s in (have, want) if s.layout == "tiled"):
        if covers(have, middle, shape) and covers(middle, want, shape):
            return [Step(have, middle, shape), Step(middle, want, shape)]
    return []
