"""What one record of a reference program does, as text that travels among the program's constants.

A record is: the kernel id, where the text is and its bytes, the values read and then the one written (three fields each, as all
activations), constants, and how many rows of each value there are: its tokens, or what else its first axis counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsec.backends.interpreter import memory
from sparsec.lower.layouts import Storage
from sparsec.lower.spec import KernelSpec, tuples
from sparsec.run.dtypes import dtype_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """One sample of ``shape`` in a storage; where rows follow a run-time size, the largest.

    ``planes``: what is stored of a map are its parity planes of this step, or the first of each channel where ``first``.
    """

    storage: Storage
    shape: Shape
    planes: int = 1
    first: bool = False

    def described(self) -> list[Any]:
        """Plain-data form."""
        return [self.storage.described(), self.shape, self.planes, self.first]

    @classmethod
    def restored(cls, data: list[Any]) -> Place:
        """The inverse of ``described``."""
        storage, shape, planes, first = data
        return cls(Storage.restored(storage), tuples(shape), planes, first)

    @cached_property
    def stored(self) -> Shape:
        """The shape of what is in memory."""
        if self.planes == 1:
            return self.shape
        return self.storage.channels, self.storage.index_space.height, self.storage.index_space.width

    @property
    def rows(self) -> int:
        """The length of the first axis of what is in memory."""
        return self.stored[0]

    @cached_property
    def addresses(self) -> np.ndarray:
        """Bytes from pixel (0, 0) of channel 0, or the first element, to each element [rows, ...]."""
        elements = self.storage.addresses(self.stored).reshape(self.stored) - self.storage.origin
        return elements * dtype_of(self.storage.dtype).nbytes

    def read(self, address: int, rows: int) -> Tensor:
        """The first ``rows`` rows; floats as doubles."""
        found = read_at(address, self.addresses[:rows], self.storage.dtype)
        if self.planes == 1:
            return found
        out = found.new_zeros(self.shape)
        for whole, plane in self._pairs(out, found):
            whole.copy_(plane)
        return out

    def write(self, address: int, values: Tensor, begin: int, end: int) -> None:
        """Rows ``begin`` to ``end`` of ``values``, or of its planes, and nothing else."""
        if self.planes > 1:
            made = values.new_zeros(self.stored)
            for whole, plane in self._pairs(values, made):
                plane.copy_(whole)
            values = made
        write_at(address, self.addresses[begin:end], self.storage.dtype, values[begin:end])

    def _pairs(self, whole: Tensor, planes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of a map [C, H, W] and of its planes that hold the same pixels: plane (c, a, b) has those of c at (a::step, b::step)."""
        kept = planes.unflatten(0, (self.shape[0], -1))
        for number in range(kept.shape[1]):
            a, b = divmod(number, self.planes)
            part, plane = whole[:, a :: self.planes, b :: self.planes], kept[:, number]
            high, wide = (min(sizes) for sizes in zip(part.shape[1:], plane.shape[1:], strict=True))
            yield part[:, :high, :wide], plane[:, :high, :wide]


def read_at(address: int, places: np.ndarray, dtype: str) -> Tensor:
    """The elements at ``places``, in bytes from an address; floats as doubles."""
    row = dtype_of(dtype)
    around, at = _around(address, places, row.nbytes)
    return _tensor(around[at].view(row.numpy)[..., 0], dtype)


def write_at(address: int, places: np.ndarray, dtype: str, values: Tensor) -> None:
    """Elements to ``places``, in bytes from an address."""
    row = dtype_of(dtype)
    cast = values.to(getattr(torch, dtype)).contiguous()
    around, at = _around(address, places, row.nbytes)
    around[at] = (cast.view(torch.uint16) if dtype == "bfloat16" else cast).numpy()[..., None].view(np.uint8)


def _around(address: int, places: np.ndarray, nbytes: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes from the first place to the last, and where in them those of each element are [..., nbytes]."""
    low, high = (int(places.min()), int(places.max())) if places.size else (0, -nbytes)
    return memory(address + low, np.dtype(np.uint8), high - low + nbytes), (places - low)[..., None] + np.arange(nbytes)


def _tensor(array: np.ndarray, name: str) -> Tensor:
    found = torch.from_numpy(array)
    found = found.view(torch.bfloat16) if name == "bfloat16" else found
    return found.double() if found.is_floating_point() else found


@dataclass(frozen=True)
class Action:
    """``spec``: its reference on what is read, a residual last. No spec: a copy; ``scattered``: of elements from the places of the first
    constant to those of the second, in bytes.

    ``constants``: dtype and shape of those that the record points to, None for an operand that is not there.
    """

    reads: tuple[Place, ...]
    writes: Place
    constants: tuple[tuple[str, Shape] | None, ...] = ()
    spec: KernelSpec | None = None
    scattered: bool = False

    def text(self) -> str:
        """Canonical JSON."""
        data: dict[str, Any] = {"reads": [p.described() for p in self.reads], "writes": self.writes.described()}
        data |= {"constants": self.constants, "scattered": self.scattered, "spec": None if self.spec is None else self.spec.json()}
        return json.dumps(data, sort_keys=True)

    @classmethod
    def of(cls, text: str) -> Action:
        """The inverse of ``text``."""
        data: Mapping[str, Any] = json.loads(text)
        return cls(
            reads=tuple(map(Place.restored, data["reads"])),
            writes=Place.restored(data["writes"]),
            constants=tuples(data["constants"]),
            spec=None if data["spec"] is None else KernelSpec.restored(data["spec"]),
            scattered=data["scattered"],
        )

    def run(self, fields: np.ndarray, begin: int, end: int) -> None:
        """What a record does for rows ``begin`` to ``end`` of its result; ``fields``: from the first value on."""
        if self.scattered:
            self._scatter(fields, begin, end)
            return
        values, rest = len(self.reads) + 1, fields[3 * (len(self.reads) + 1) :]
        present = [c for c in self.constants if c is not None]
        addresses, rows = fields[: 3 * values : 3], rest[len(present) : len(present) + values]
        read = [p.read(a, int(n)) for p, a, n in zip(self.reads, addresses, rows, strict=False)]
        held = iter([_constant(c, a) for c, a in zip(present, rest, strict=False)])
        constants = [None if c is None else next(held) for c in self.constants]
        self.writes.write(addresses[-1], self._result(read, constants), begin, end)

    def _scatter(self, fields: np.ndarray, begin: int, end: int) -> None:
        source, target = (_constant(c, a).numpy()[begin:end] for c, a in zip(self.constants, fields[6:8], strict=True) if c is not None)
        dtype = self.writes.storage.dtype
        write_at(int(fields[3]), target, dtype, read_at(int(fields[0]), source, dtype))

    def _result(self, read: list[Tensor], constants: list[Tensor | None]) -> Tensor:
        if self.spec is None:
            return read[0]
        batched, residual = [x[None] for x in read], None
        if self.spec.residual is not None:
            residual = batched.pop()
        cut = [None if c is None else _cut(self.spec, c, read) for c in constants]
        return self.spec.reference(*self.spec.arguments(batched, cut, residual))[0]


def _constant(described: tuple[str, Shape], address: int) -> Tensor:
    name, shape = described
    row = dtype_of(name)
    count = int(np.prod(shape, dtype=np.int64))
    return _tensor(memory(address, row.numpy, count).copy().reshape(shape), name)


def _cut(spec: KernelSpec, constant: Tensor, read: list[Tensor]) -> Tensor:
    """The part of a constant that belongs to the tokens of this call."""
    if spec.op == "add_table" and constant.dim() == 2:
        return constant[: len(read[0])]
    return constant[..., : len(read[0]), : len(read[1])] if spec.op in ("attention", "token_scores") else constant
