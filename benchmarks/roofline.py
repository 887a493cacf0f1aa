"""What one core of this machine can do: `python benchmarks/roofline.py [--core 1]`.

Peak: the fastest of several square float32 matrix products by the two dense libraries at hand (torch and numpy). That
is what the best library reaches, a few percent under the hardware. Bandwidth: a dot product that streams two float32
vectors once, with half the level-2 cache as working set (`l2`) and with 256 MiB (`memory`). All are best-of-several,
on one pinned core in a process of its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import print as rich_print
from sparsec.bench.child import environment

L2_SIZE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
FALLBACK_L2_BYTES = 1 << 20
MEMORY_BYTES = 256 << 20


@dataclass(frozen=True)
class Roofline:
    """Limits of one core: GFLOP/s of float32 multiply-adds (two operations each), GB/s of reads."""

    peak_gflops: float
    l2_gbs: float
    memory_gbs: float

    def bound_s(self, flops: float, traffic: float, threads: int = 1) -> float:
        """The least seconds for `flops` operations and `traffic` bytes, all of them in L2, on `threads` cores."""
        return max(flops / (self.peak_gflops * 1e9), traffic / (self.l2_gbs * 1e9)) / threads


def measure(core: int | None = None) -> Roofline:
    """Measure `core` (default: the last one this process may use) in a fresh process; takes about five seconds."""
    core = max(os.sched_getaffinity(0)) if core is None else core
    done = subprocess.run(
        [sys.executable, __file__, "--here"],
        env=environment(1),
        preexec_fn=lambda: os.sched_setaffinity(0, (core,)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Roofline(**json.loads(done.stdout))


def measure_here() -> Roofline:
    """Measure on whatever core this process runs; numpy and torch must not have been imported before pinning."""
    peak = max(map(_matmul_gflops, (512, 1024, 1536)))
    return Roofline(peak, _dot_gbs(_l2_bytes() // 2), _dot_gbs(MEMORY_BYTES))


def _l2_bytes() -> int:
    return int(L2_SIZE.read_text().strip().removesuffix("K")) << 10 if L2_SIZE.exists() else FALLBACK_L2_BYTES


def _matmul_gflops(size: int) -> float:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    x, y, z = a.numpy(), b.numpy(), out.numpy()
    fastest = min(_fastest_s(lambda: torch.mm(a, b, out=out)), _fastest_s(lambda: np.matmul(x, y, out=z)))
    return 2 * size**3 / fastest / 1e9


def _dot_gbs(working_set: int) -> float:
    import torch

    x, y = torch.ones(working_set // 8), torch.ones(working_set // 8)
    calls = max(1, (64 << 20) // working_set)
    return working_set / _fastest_s(lambda: torch.dot(x, y), calls) / 1e9


def _fastest_s(run: Callable[[], object], calls: int = 1, repeats: int = 8) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - begin) / calls)
    return min(times)


def main(
    core: Annotated[int | None, typer.Option(help="Core to pin to; the last one by default.")] = None,
    here: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print this machine's limits as JSON."""
    if here:
        print(json.dumps(asdict(measure_here())))
    else:
        rich_print(asdict(measure(core)))


if __name__ == "__main__":
    typer.run(main)
