"""The register panel that the 1x1 kernels share: R rows x V vectors of accumulators, their parameters and their epilogue.

    y[n, p] = act(bias[n] + sum_j value[j] * x[p + offset[j]] (+ residual[n, p]))

Rows are output channels, vectors are runs of ``lanes`` pixels. The functions below emit code into the TIR function under construction.
An allocation of 1 KiB or more would become a heap call, so every row of a panel is a buffer of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sparsec.backends.base import Param
from sparsec.backends.cpu import partition
from sparsec.backends.cpu.expr import activate, cast, dtype_of
from sparsec.backends.cpu.tir import T, fenced, tirx
from sparsec.backends.extents import Scan, Step, over, reads, writes
from sparsec.backends.vector import Vector


def params(index: str) -> tuple[Param, ...]:
    """Parameters of every panel kernel; ``index`` is the dtype of the offsets."""
    return (
        Param("x", "act"),
        Param("y", "act"),
        Param("residual", "act"),
        Param("value", "ptr"),
        Param("offset", "ptr", index),
        Param("row_start", "ptr", "int32"),
        Param("bias", "ptr"),
        Param("mask", "ptr", "float32"),
        *partition.PARAMS,
        Param("rows", "i32"),
        Param("x_tile", "i32"),
        Param("y_tile", "i32"),
        Param("y_channel", "i32"),
        Param("r_tile", "i32"),
        Param("r_channel", "i32"),
        Param("lo", "f32"),
        Param("hi", "f32"),
    )


def touches(tile: int, residual: bool, masked: bool, rows: tuple[str, str] = partition.ROWS) -> tuple[Step, ...]:
    """What every panel kernel touches of its inputs and outputs, after ``row_start`` was scanned; ``rows``: output channels."""
    tiles, entries = over(*partition.TILES, tile), over("row_start_low", "row_start_high")
    found: list[Step] = [
        Scan("offset", entries.first, entries.end),
        reads("x", over(*partition.TILES, "x_tile"), over("offset_low", "offset_high + 1"), width=tile),
        writes("y", over(*partition.TILES, "y_tile"), over(*rows, "y_channel"), width=tile),
    ]
    if residual:
        found.append(reads("residual", over(*partition.TILES, "r_tile"), over(*rows, "r_channel"), width=tile))
    return (*found, *([reads("mask", tiles, width=tile)] * masked))


@dataclass(frozen=True)
class Epilogue:
    """What happens to a finished accumulator on its way to y: compile-time choices."""

    activation: str
    residual: bool
    masked: bool
    keeping: bool = False

    @property
    def suffix(self) -> str:
        """Part of a kernel's symbol."""
        return f"{self.activation}{'_residual' * self.residual}{'_masked' * self.masked}"

    def __call__(self, value: Any, residual: Callable[[], Any] | None, mask: Callable[[], Any], lo: Any, hi: Any) -> Any:
        """The expression stored for one element."""
        total = value + residual() if self.residual and residual else value
        result = activate(self.activation, total, lo, hi, self.keeping)
        return T.Select(mask() > T.float32(0), result, cast(T.float32(0), dtype_of(result))) if self.masked else result


@dataclass(frozen=True)
class Panel:
    """Accumulators of ``rows`` x ``vectors`` registers of ``lanes`` numbers of ``dtype``."""

    lanes: int
    rows: int
    vectors: int
    dtype: str = "float32"

    @property
    def width(self) -> int:
        """Pixels of a panel."""
        return self.lanes * self.vectors

    def allocate(self) -> list[Any]:
        """One buffer per row; they become registers because every index into them is a constant."""
        return [T.alloc_buffer((self.width,), self.dtype, scope="global") for _ in range(self.rows)]

    def row(self, buffer: Any, start: Any, value: Callable[[Any], Any]) -> None:
        """buffer[start + e] = value(e) for e over the panel's width, one vector at a time."""
        for v in range(self.vectors):
            with T.vectorized(0, self.lanes) as e:
                T.buffer_store(buffer, value(v * self.lanes + e), [start + v * self.lanes + e])

    def fill(self, accumulators: Sequence[Any], value: Callable[[int], Any]) -> None:
        """accumulator[r] = value(r)"""
        for r, a in enumerate(accumulators):
            self._fill(a, value(r))

    def add(self, accumulator: Any, factor: Any, x: Any, start: Any) -> None:
        """accumulator += factor * x[start:start + width]; ``factor`` is a vector."""
        for v in range(self.vectors):
            here, there = (T.ramp(at + v * self.lanes, 1, self.lanes) for at in (0, start))
            T.buffer_store(accumulator, accumulator[here] + factor * x[there], [here])

    def multiply_add(self, accumulators: Sequence[Any], value: Callable[[int], Any], x: Any, start: Any) -> None:
        """accumulator[r] += value(r) * x[start:start + width]"""
        for r, a in enumerate(accumulators):
            self._multiply_add(a, value(r), x, start)

    def store(self, y: Any, start: Callable[[int], Any], value: Callable[[int, Any], Any], exists: Callable[[int], Any]) -> None:
        """y[start(r):start(r) + width] = value(r, e) for the rows that exist."""
        for r in range(self.rows):
            with T.If(exists(r)), T.Then():
                self.row(y, start(r), partial(value, r))

    def _fill(self, accumulator: Any, value: Any) -> None:
        self.row(accumulator, 0, lambda e: value)

    def _multiply_add(self, accumulator: Any, value: Any, x: Any, start: Any) -> None:
        self.row(accumulator, 0, lambda e: accumulator[e] + cast(value, self.dtype) * cast(x[start + e], self.dtype))


def factors(vector: Vector, count: int, value: Any, first: Any) -> Callable[[int], Any]:
    """g -> a vector of copies of value[first + g], for ``count`` of them.

    Where multiply-adds take an element, one load has the values of all. Elsewhere one load fills a register with copies of these values,
    and shuffles inside each copy make the vectors: without the fence LLVM would turn every shuffle back into a broadcasting load.
    """
    lanes = vector.lanes
    if count == 1:
        return lambda g: T.broadcast(value[first], lanes)
    loaded = T.bind(value[T.ramp(first, 1, count)])
    if vector.by_element:
        return lambda g: tirx.Shuffle([loaded] * -(-lanes // count), [T.int32(g)] * lanes)
    copies = tirx.Shuffle([loaded] * (lanes // count), [T.int32(e) for e in range(lanes)])
    held = fenced(copies, vector.dtype, lanes)
    return lambda g: tirx.Shuffle([held], [T.int32(e - e % count + g) for e in range(lanes)])
