"""TVMScript for kernels: the statements are written, arguments and buffers follow from the kernel's parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from inspect import Parameter, signature
from typing import Any

from sparsec.backends.base import Param, Source
from sparsec.backends.extents import Step
from sparsec.backends.vector import Vector

#: The range of units that every kernel gets last.
UNITS = ("begin", "end")


def kernel(vector: Vector, symbol: str, params: Sequence[Param], body: Callable[..., None], touches: Sequence[Step]) -> Source:
    """A ``Source`` whose code are the statements of ``body``, in TVMScript.

    Pointers without a dtype show numbers of the one that ``vector`` computes in; the symbol says which where it is not float32. ``body``
    has arguments named after ``params``, ``begin`` and ``end``: it sees a buffer of a pointer, a variable of the others. An argument after
    which no parameter is named is its default. ValueError where it has none.
    """
    params = tuple(replace(p, dtype=vector.dtype) if p.kind in ("act", "ptr") and not p.dtype else p for p in params)
    symbol += f"_{vector.dtype}" * (vector.dtype != "float32")
    named = {*(p.name for p in params), *UNITS}
    absent = {name: argument.default for name, argument in signature(body).parameters.items() if name not in named}
    unknown = [name for name, default in absent.items() if default is Parameter.empty]
    if unknown:
        raise ValueError(f"{symbol}: its statements name {', '.join(unknown)}; parameters are {', '.join(p.name for p in params)}")
    return Source(symbol, params, partial(_made, body, params, absent), tuple(touches))


def _made(body: Callable[..., None], params: Sequence[Param], absent: dict[str, Any]) -> Any:
    """The private TIR function."""
    from sparsec.backends.cpu.parsing import parsed

    return parsed(body, params, absent)
