"""Offsets of a group of nonzeros in a row: each loaded where it is used, or a whole group at once and ahead of its use.

    for group:                                   w, next = word[0], word[1]
        x[origin + offset[j]] ...       ->       for group:
        x[origin + offset[j + 1]] ...                x[origin + (w & 0xffff)] ..., x[origin + (w >> 16 & 0xffff)] ...
                                                     w, next = next, word[j + 2]

A load of 4 offsets takes the place of 4, where loads are the limit, and no vector waits for an address. One group ahead is not enough:
LLVM would load it at the end of the loop, for the register's sake, and what follows would wait. So up to two groups past the last one
are read, and not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.backends.cpu.tir import T

#: Groups that are loaded before their use.
AHEAD = 2
_WORD = 64


@dataclass(frozen=True)
class Offsets:
    """Groups of ``unroll`` offsets of dtype ``index``; ``ahead``: whether they are loaded at once and ahead."""

    index: str
    unroll: int
    ahead: bool

    @property
    def past(self) -> int:
        """Offsets past the end of a row that are read."""
        return AHEAD * self.unroll * self.ahead

    def begin(self, offset: Any, first: Any) -> list[Any]:
        """Emit the loads of the first groups, from ``offset[first]`` on; what is held of them from one group to the next."""
        held = [T.alloc_buffer((AHEAD,), self._word, scope="global") for _ in range(self._words * self.ahead)]
        for number, buffer in enumerate(held):
            for group in range(AHEAD):
                T.buffer_store(buffer, self._loaded(offset, first + group * self.unroll, number), [group])
        return held

    def take(self, held: Sequence[Any], offset: Any, first: Any) -> Callable[[int], Any]:
        """Emit what goes from the group at ``offset[first]`` to the next; g -> offset[first + g]."""
        if not self.ahead:
            return lambda g: T.Cast("int32", offset[first + g])
        words = [T.bind(buffer[0]) for buffer in held]
        for number, buffer in enumerate(held):
            T.buffer_store(buffer, buffer[1], [0])
            T.buffer_store(buffer, self._loaded(offset, first + AHEAD * self.unroll, number), [1])
        return lambda g: T.Cast("int64", T.Cast(self.index, words[g // self._per_word] >> self._shift(g)))

    @property
    def _bits(self) -> int:
        return 8 * np.dtype(self.index).itemsize

    @property
    def _per_word(self) -> int:
        return min(self.unroll, _WORD // self._bits)

    @property
    def _words(self) -> int:
        return self.unroll // self._per_word

    @property
    def _word(self) -> str:
        return f"uint{self._per_word * self._bits}"

    def _loaded(self, offset: Any, first: Any, number: int) -> Any:
        return T.reinterpret(self._word, offset[T.ramp(first + number * self._per_word, 1, self._per_word)])

    def _shift(self, g: int) -> Any:
        return getattr(T, self._word)(g % self._per_word * self._bits)
