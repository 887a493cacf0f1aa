"""Why a product runs the kernel it runs: predicted times of the best sparse and the dense kernel, and where they would meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sparsec.backends.base import Machine
from sparsec.backends.cpu.panel_costs import Work, block_rows, candidates
from sparsec.lower.spec import Schedule


@dataclass(frozen=True)
class Verdict:
    """Predicted cycles of the best sparse and the best dense kernel; the density of single nonzeros at which they are equal."""

    density: float
    sparse: float
    dense: float
    stays_dense: bool
    flip_density: float | None

    def reason(self, seconds: Callable[[float], float]) -> str:
        """One sentence; ``seconds`` converts cycles."""
        sparse, dense = (f"{seconds(cycles) * 1e6:.0f} µs" for cycles in (self.sparse, self.dense))
        if self.stays_dense:
            return f"at {self.density:.0%} nonzero, skipping zeros would take {sparse}, dense {dense}"
        return f"dense would take {dense}, predicted {sparse}"


def _best(work: Work, machine: Machine, tile: int, kernel: str) -> float:
    return min(cycles for cycles, schedule in candidates(work, machine, (tile,)) if _kernel(schedule) == kernel)


def _kernel(schedule: Schedule) -> str:
    return str(dict(schedule)["kernel"])


def _at(work: Work, density: float, machine: Machine) -> Work:
    """``work`` with single nonzeros at random places; a row of blocks holds one with probability 1 - (1 - density)^R."""
    size = work.outputs * work.inputs
    blocks = {r: round(-(-work.outputs // r) * work.inputs * (1 - (1 - density) ** r)) for r in block_rows(machine)}
    return replace(work, nonzeros=round(size * density), blocks=blocks)


def compare(work: Work, machine: Machine, tile: int, stays_dense: bool) -> Verdict:
    """The verdict on ``work`` on tiles of ``tile`` pixels."""
    size = max(work.outputs * work.inputs, 1)
    full = _at(work, 1.0, machine)
    dense = _best(full, machine, tile, "block")
    sparse = min(_best(work, machine, tile, kernel) for kernel in (("spmm",) if stays_dense else ("spmm", "block")))
    return Verdict(work.nonzeros / size, sparse, dense, stays_dense, _flip(work, machine, tile, dense))


def _flip(work: Work, machine: Machine, tile: int, dense: float) -> float | None:
    """The density at which skipping single zeros takes as long as the dense kernel, by bisection."""
    low, high = 0.0, 1.0
    if _best(_at(work, low, machine), machine, tile, "spmm") >= dense:
        return None
    for _ in range(10):
        middle = (low + high) / 2
        if _best(_at(work, middle, machine), machine, tile, "spmm") < dense:
            low = middle
        else:
            high = middle
    return low
