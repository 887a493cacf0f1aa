"""Words of this process's memory that change when a dictionary or a tensor does: what a check at every call can afford to read.

CPython 3.11 stamps every dictionary with a version that no other state of any dictionary ever has. A tensor's storage, version counter,
sizes and strides lie at fixed places behind ``_cdata``. Where exactly is found by probing; where the probes do not behave, nothing is read
and ``can_read`` is False. Whoever keeps a place must keep the object alive that it lies in.
"""

from __future__ import annotations

import functools
import platform
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

HALF = 4
_PAGE = 4096
_WORD = 8
_STAMP = 3  # word of ma_version_tag in PyDictObject, after reference count, type and number of items
_IMPL_WORDS = 28  # of a TensorImpl or StorageImpl that are searched
_OBJECT_WORDS = 6
_MOST_AXES = 5  # that a TensorImpl holds itself


class _Memory:
    """Words of some bytes from the second page on; nothing is read until indexed."""

    def __init__(self, word: int) -> None:
        shape = ((1 << 47) // word,)
        self.__array_interface__ = {"data": (_PAGE, True), "shape": shape, "typestr": f"<u{word}", "version": 3}


_memory = np.asarray(_Memory(_WORD))
_halves = np.asarray(_Memory(HALF))
_bytes = np.asarray(_Memory(1))


def read(places: np.ndarray) -> np.ndarray:
    """The words at ``places``, as made by the functions below."""
    return _memory.take(places)


def read_halves(places: np.ndarray) -> np.ndarray:
    """The 32-bit words at ``places`` of ``halves``."""
    return _halves.take(places)


def addresses(places: np.ndarray) -> np.ndarray:
    """Where the words at ``places`` are."""
    return places * _WORD + _PAGE


def halves(addresses: np.ndarray) -> np.ndarray:
    """Places of the 32-bit words at addresses that are multiples of 4."""
    return (addresses - _PAGE) // HALF


def stretch(start: int, size: int) -> slice:
    """Where ``size`` bytes from an address on lie for ``read_stretch``."""
    return slice(start - _PAGE, start - _PAGE + size)


def read_stretch(place: slice) -> bytes:
    """A copy of the bytes at a place of ``stretch``."""
    return _bytes[place].tobytes()


def _place(address: int) -> int:
    return (address - _PAGE) // _WORD


def stamps(dicts: Sequence[dict]) -> list[int]:
    """The place of each dictionary's version."""
    return [_place(id(d)) + _STAMP for d in dicts]


@dataclass(frozen=True)
class _Layout:
    """Words of a tensor's object, of its TensorImpl, and of what two of them point to."""

    impl: int
    sizes: int
    offset: int
    storage: int
    data: int
    counter: int
    version: int


def identities(tensors: Sequence[Tensor]) -> list[int]:
    """The place where each tensor's object points to what the functions below look at: to be read before theirs."""
    layout = _layout()
    assert layout is not None
    return [_place(id(tensor)) + layout.impl for tensor in tensors]


def shapes(tensors: Sequence[Tensor]) -> list[int]:
    """Places that hold number of axes, sizes, strides and offset of the tensors, which have at most 5 axes."""
    layout, found = _layout(), []
    assert layout is not None
    for tensor in tensors:
        start, axes = _place(tensor._cdata) + layout.sizes, tensor.dim()
        if axes > _MOST_AXES:
            raise ValueError(f"a tensor of {axes} axes")
        found += [start - 1, *range(start, start + axes), *range(start + _MOST_AXES, start + _MOST_AXES + axes)]
        found.append(_place(tensor._cdata) + layout.offset)
    return found


def contents(tensors: Sequence[Tensor]) -> list[int]:
    """Places that change when a tensor is written to or given another storage; valid while the storage and a detached alias live.

    ValueError: a tensor has no version counter, as those made in inference mode.
    """
    layout, found = _layout(), []
    assert layout is not None
    for tensor in tensors:
        start = _place(tensor._cdata)
        counter = int(_memory[start + layout.counter])
        if tensor.is_inference() or not counter:
            raise ValueError("a tensor made in inference mode")
        found += [start + layout.storage, start + layout.counter, _place(counter) + layout.version]
        found.append(_place(tensor.untyped_storage()._cdata) + layout.data)
    return found


@functools.cache
def can_read() -> bool:
    """Whether dictionaries and tensors of this interpreter and this torch are laid out as the probes expect."""
    if platform.python_implementation() != "CPython" or sys.version_info[:2] != (3, 11) or sys.byteorder != "little":
        return False
    return _stamps_work() and _layout() is not None


def _stamps_work() -> bool:
    """Every way to write a dictionary changes its stamp, reading does not."""
    holder = types.SimpleNamespace(a=1)
    probes: list[tuple[dict, Callable[[], Any]]] = []
    d: dict = {"a": 1}
    for write in (lambda: d.update(a=2), lambda: d.update(b=3), lambda: d.pop("b"), lambda: d.setdefault("c", 4), d.clear):
        probes.append((d, write))
    for write in (lambda: setattr(holder, "a", 2), lambda: setattr(holder, "b", 3), lambda: delattr(holder, "b")):
        probes.append((vars(holder), write))
    return all(_changes(target, write) for target, write in probes)


def _changes(target: dict, write: Callable[[], Any]) -> bool:
    (place,) = stamps([target])
    before = _memory[place]
    _ = target.get("a"), list(target.items())
    read_only = _memory[place] == before
    write()
    return bool(read_only and _memory[place] != before)


@functools.cache
def _layout() -> _Layout | None:
    with torch.inference_mode(False), torch.no_grad():
        base = torch.zeros(9000, device="cpu")
        probe = base.as_strided((3, 5, 7), (1009, 113, 17), 12)
        impl = [int(w) for w in _memory[_place(probe._cdata) :][:_IMPL_WORDS]]
        storage = probe.untyped_storage()
        held = [int(w) for w in _memory[_place(storage._cdata) :][:_IMPL_WORDS]]
        try:
            sizes = next(i for i in range(_IMPL_WORDS) if impl[i - 1 : i + 3] == [3, 3, 5, 7])
            assert impl[sizes + _MOST_AXES : sizes + _MOST_AXES + 3] == [1009, 113, 17]
            offset = impl.index(12, sizes + 2 * _MOST_AXES)
            head = [int(w) for w in _memory[_place(id(probe)) :][:_OBJECT_WORDS]]
            pointer = head.index(probe._cdata)
            found = impl.index(storage._cdata), held.index(storage.data_ptr())
            counter = _counter(probe, impl, exclude=(0, found[0]))
        except (AssertionError, StopIteration, ValueError):
            return None
    return None if counter is None else _Layout(pointer, sizes, offset, *found, *counter)


def _counter(probe: Tensor, impl: Sequence[int], exclude: Sequence[int]) -> tuple[int, int] | None:
    """(word that points to the version counter, word of the version in it): an alias has the same counter, another tensor has not."""
    alias, other = (_memory[_place(t._cdata) :][:_IMPL_WORDS] for t in (probe.detach(), torch.zeros(2, device="cpu")))
    for word, address in enumerate(impl):
        shared = word not in exclude and address % _WORD == 0 and address > 1 << 20 and address < 1 << 47
        if not shared or int(alias[word]) != address or int(other[word]) == address:
            continue
        place = _place(address) + 2  # after virtual table and reference counts
        before = int(_memory[place]) & 0xFFFFFFFF
        if before == probe._version and (probe.add_(0), int(_memory[place]) & 0xFFFFFFFF)[1] == probe._version == before + 1:
            return word, 2
    return None
