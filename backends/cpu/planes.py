"""Space-to-depth for strides too long to shuffle apart in registers: patches of a vision transformer."""

from __future__ import annotations

from typing import Any

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import script
from sparsec.backends.cpu.registers import load_below, square, store, store_below, transpose
from sparsec.backends.cpu.tir import T
from sparsec.backends.extents import Need, Step, over, reads, writes
from sparsec.backends.vector import Vector


def wide_planes(vector: Vector, step: int) -> Source:
    """``convert.to_planes`` for a long ``step``: runs of ``lanes`` cells x ``lanes`` columns of a cell are transposed.

    A row of ``step * width`` pixels is a matrix [width, step], the planes' rows are its transpose. Units of work are the pairs (c, a).
    """
    lanes = vector.lanes
    names = ("height", "width", "x_channel", "x_pitch", "y_height", "y_pitch", "y_channel")
    params = (Param("x", "act"), Param("y", "act"), *(Param(n, "i32") for n in names))

    def block(x: Any, x0: Any, y: Any, y0: Any, y_channel: Any, planes: Any, cells: Any, pixels: Any) -> None:
        """Emit a block of ``planes`` columns and ``cells`` cells, zeros where a row ends after ``pixels`` pixels."""
        rows = square(vector)
        for r, row in enumerate(rows):
            store(vector, row, 0, load_below(vector, x, x0 + r * step, pixels - r * step))
        columns = transpose(vector, rows)
        with T.If(cells >= lanes):
            with T.Then():
                for b, column in enumerate(columns):
                    with T.If(planes > b), T.Then():
                        store(vector, y, y0 + b * y_channel, column)
            with T.Else():
                for b, column in enumerate(columns):
                    with T.If(planes > b), T.Then():
                        store_below(vector, y, y0 + b * y_channel, column, cells)

    def kernel(x, y, height, width, x_channel, x_pitch, y_height, y_pitch, y_channel, begin, end):
        for i in range(end - begin):
            for h in range(y_height):
                line: T.let = h * step + (begin + i) % step
                present: T.let = T.Select(line < height, width, T.int32(0))
                for g in range((step + lanes - 1) // lanes):
                    for v in range((y_pitch + lanes - 1) // lanes):
                        column: T.let = v * lanes * step + g * lanes
                        x0: T.let = (begin + i) // step * x_channel + line * x_pitch + column
                        y0: T.let = ((begin + i) * step + g * lanes) * y_channel + h * y_pitch + v * lanes
                        block(x, x0, y, y0, y_channel, step - g * lanes, y_pitch - v * lanes, present - column)

    steps = (
        *lines_read(step, step),
        writes(
            "y", over("begin", "end", f"{step} * y_channel"), over(0, step, "y_channel"), over(0, "y_height", "y_pitch"), width="y_pitch"
        ),
    )
    return script.kernel(vector, f"wide_planes_l{lanes}_s{step}", params, kernel, steps)


def lines_read(lines: int, step: int) -> tuple[Step, ...]:
    """What is read of x by the units [begin, end), ``lines`` for each channel: lines below ``height``, whole."""
    channels, line = (
        over(f"begin / {lines}", f"(end - 1) / {lines} + 1", "x_channel"),
        over(0, f"least(height, y_height * {step})", "x_pitch"),
    )
    small = Need(f"width >= 0 && is_small(y_height * {step}) && is_small((y_pitch + 16) * {step})")
    return small, reads("x", channels, line, width="width")
