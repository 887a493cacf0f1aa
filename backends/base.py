"""What a backend is to the rest: a machine description, refusals as values, kernels as (template, schedule) pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sparsec.backends.extents import Step

ParamKind = Literal["act", "ptr", "i32", "f32"]


@dataclass(frozen=True)
class Refusal:
    """Why a backend does not offer a kernel for a spec."""

    reason: str


@dataclass(frozen=True)
class Machine:
    """The facts of a processor that kernels depend on.

    ``lanes`` is float32 elements per vector register; cache sizes are bytes per core (``l3``: whole package).
    """

    arch: str
    mcpu: str
    features: tuple[str, ...]
    lanes: int
    registers: int
    l1: int
    l2: int
    l3: int
    cores: int

    def key(self) -> str:
        """Identity used by tuned records and kernel caches."""
        return f"{self.arch}-{self.mcpu}-{self.lanes}x{self.registers}-l1.{self.l1 >> 10}k-l2.{self.l2 >> 10}k"


@dataclass(frozen=True)
class Param:
    """One parameter of a kernel.

    ``act``: pointer to an activation (may live in a per-thread strip buffer) · ``ptr``: pointer to a constant ·
    ``i32``/``f32``: scalar known when the program is laid out.
    """

    name: str
    kind: ParamKind
    dtype: str = "float32"


@dataclass(frozen=True)
class Source:
    """One code variant: its symbol, its parameters in call order, how to make its TIR function and what that touches.

    Every kernel takes, after ``params``, the half-open range of units ``[begin, end)`` it has to produce. No program may call a kernel that
    does not say what it touches.
    """

    symbol: str
    params: tuple[Param, ...]
    make: Callable[[], Any] = field(compare=False, repr=False)
    touches: tuple[Step, ...] | None = field(default=None, compare=False, repr=False)


#: Values for the non-activation parameters of one call, by parameter name: arrays become weights, numbers become scalars.
Arguments = Mapping[str, Any]
