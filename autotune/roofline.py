"""What one core of this machine can do at best, measured in a moment and remembered per machine."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sparsec.backends.base import Machine

logger = logging.getLogger("sparsec")

_SIZES = (384, 512)
_MEMORY_BYTES = 128 << 20
_REPEATS = 6


@dataclass(frozen=True)
class Roofline:
    """Limits of one core: GFLOP/s of float32 multiply-adds (two operations each), GB/s of reads from L2 and from memory."""

    peak_gflops: float
    l2_gbs: float
    memory_gbs: float

    def bound_s(self, flops: float, traffic: float, threads: int = 1) -> float:
        """The least seconds for ``flops`` operations and ``traffic`` bytes, all of them in L2, on ``threads`` cores."""
        return max(flops / (self.peak_gflops * 1e9), traffic / (self.l2_gbs * 1e9)) / threads

    def cycles_s(self, cycles: float) -> float:
        """Seconds of ``cycles`` of a core that multiplies and adds 16 float32 in each."""
        return cycles * 32 / (self.peak_gflops * 1e9)


def roofline(machine: Machine, cache: Path | None) -> Roofline:
    """The limits of ``machine`` from ``cache`` (a directory), measured now (about 0.1 s) and kept there if absent.

    Of a machine that is not here, those that its description has. A file that cannot be read or written is as good as absent.
    """
    if machine.not_here:
        return Roofline(machine.peak_gflops, machine.l2_gbs, machine.memory_gbs)
    path = None if cache is None else cache / f"roofline-{machine.key()}.json"
    if path is not None:
        try:
            return Roofline(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            logger.debug("no roofline at %s, measuring", path)
    found = measure(machine.l2)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(found)))
        except OSError as error:
            logger.debug("the roofline cannot be kept: %s", error)
    return found


def measure(l2_bytes: int) -> Roofline:
    """Best of several on one thread: square float32 matrix products for the peak, streaming dot products for bandwidth."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Roofline(max(map(_matmul_gflops, _SIZES)), _dot_gbs(l2_bytes // 2), _dot_gbs(_MEMORY_BYTES))
    finally:
        torch.set_num_threads(threads)


def _matmul_gflops(size: int) -> float:
    a, b, out = torch.ones(size, size), torch.ones(size, size), torch.empty(size, size)
    return 2 * size**3 / _fastest_s(lambda: torch.mm(a, b, out=out)) / 1e9


def _dot_gbs(working_set: int) -> float:
    x, y = torch.ones(working_set // 8), torch.ones(working_set // 8)
    calls = max(1, (8 << 20) // working_set)
    return working_set / _fastest_s(lambda: torch.dot(x, y), calls) / 1e9


def _fastest_s(run: Callable[[], object], calls: int = 1) -> float:
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - begin) / calls)
    return min(times)
