"""What a kernel touches of what its pointers point to, as data that is compiled into the kernel library beside the kernel.

A *step* says something for the units [begin, end) of one call, in C expressions over the kernel's int32 parameters, ``begin``, ``end``
and what earlier steps named. ``up(a, b)`` is a / b rounded up, ``most`` and ``least`` take two numbers.

    Need("run_count > 0")                         else the call is refused
    Let("last", "least(count, end * 16) - 1")     a name for a number
    Scan("row_start", "0", "rows + 1", ordered=True)    reads row_start[0 .. rows]: row_start_low and row_start_high bound the values
    Reads("x", over("begin", "end", "x_tile"), over("0", "channels", "x_channel"), width=64)

The last one: elements i * x_tile + j * x_channel + [0, 64) for begin <= i < end and 0 <= j < channels, none where a span is empty. What a
part of the units touches has to be among what all of them touch. Saying more than the kernel touches is sound, less is not.
"""

from __future__ import annotations

from dataclasses import dataclass

Number = str | int


@dataclass(frozen=True)
class Span:
    """The numbers ``first`` <= n < ``end``, times ``step``."""

    first: str
    end: str
    step: str


def over(first: Number, end: Number, step: Number = 1) -> Span:
    """The numbers ``first`` <= n < ``end``, times ``step``."""
    return Span(str(first), str(end), str(step))


def at(place: Number) -> Span:
    """One number."""
    return Span(f"({place})", f"({place}) + 1", "1")


class Step:
    """One of the following."""


@dataclass(frozen=True)
class Need(Step):
    """A condition without which nothing below holds."""

    condition: str


@dataclass(frozen=True)
class Let(Step):
    """A name for a number."""

    name: str
    value: str


@dataclass(frozen=True)
class Scan(Step):
    """Reads of a constant table of integers, ``table[first]`` to before ``table[end]``; bounds of what is there are known to later steps.

    ``ordered``: refused unless no value is below the one before.
    """

    table: str
    first: str
    end: str
    ordered: bool = False


@dataclass(frozen=True)
class Touch(Step):
    """Elements of the memory of a pointer: sums of one number of each span, and ``width`` elements from there on."""

    pointer: str
    spans: tuple[Span, ...]
    width: str
    writes: bool


def reads(pointer: str, *spans: Span, width: Number = 1) -> Touch:
    """Elements that may be read."""
    return Touch(pointer, spans, str(width), writes=False)


def writes(pointer: str, *spans: Span, width: Number = 1) -> Touch:
    """Elements that may be written, or read."""
    return Touch(pointer, spans, str(width), writes=True)


def tiled(features: Number, tile: int) -> tuple[Span, Span]:
    """The tiles [begin, end) of tiled tokens, or of a tiled map: runs of ``tile`` elements."""
    return over("begin", "end", f"{features} * {tile}"), over(0, features, tile)
