"""Time and peak memory of compiling without tuning: `python benchmarks/compile_cost.py`.

Two fresh processes share a cache directory that starts empty: the first finds no compiled kernels, the second finds
those of the first. Peak memory is the process's high-water mark, torch, TVM and the model included.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sparsec.bench import BenchError
from sparsec.bench.child import environment

MEBIBYTE = 1 << 20


def in_fresh_process(factory: str, cache: Path) -> dict[str, float]:
    """Compile in a new process whose cache directory is `cache`: seconds, and bytes before and at the peak."""
    command = [sys.executable, __file__, "--factory", factory, "--here"]
    done = subprocess.run(command, env={**environment(1), "SPARSEC_CACHE_DIR": str(cache)}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"Compiling {factory} ended with status {done.returncode}.", hint="see the message above")
    return json.loads(done.stdout.splitlines()[-1])


def compile_here(factory: str) -> dict[str, float]:
    """Build the model, compile it with `tune="off"`, and say what that took in this process."""
    import sparsec
    from sparsec.bench.program import load_program

    with tempfile.TemporaryDirectory() as folder:
        program = load_program(factory, 1, Path(folder), 1, "off")
    before, begin = peak_bytes(), time.perf_counter()
    sparsec.compile(program.model, program.inputs, tune="off")
    return {"seconds": time.perf_counter() - begin, "before_bytes": before, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """High-water mark of this process's resident memory; unlike `ru_maxrss` it knows nothing of the parent's."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise BenchError("/proc/self/status has no VmHWM.", hint="run this on Linux")
    return int(found[1]) * 1024


def main(
    factory: Annotated[str, typer.Option(help="module:function")] = "sparsec.models.zoo:mobilenet_v1_90",
    here: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print compile time and peak memory with an empty and with a filled kernel cache."""
    if here:
        print(json.dumps(compile_here(factory)))
        return
    table = Table(title=f'sparsec.compile({factory}, tune="off")')
    table.add_column("kernel cache")
    for heading in ("seconds", "MiB before", "MiB at the peak"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory(prefix="sparsec-cache-") as cache:
        for state in ("cold", "warm"):
            cost = in_fresh_process(factory, Path(cache))
            memory = (f"{cost[key] / MEBIBYTE:.0f}" for key in ("before_bytes", "peak_bytes"))
            table.add_row(state, f"{cost['seconds']:.2f}", *memory)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
