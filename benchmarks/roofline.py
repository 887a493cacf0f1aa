"""What one core of this machine can do: `python benchmarks/roofline.py [--core 1]`.

Measures with `sparsec.autotune.roofline` in a fresh process pinned to one core.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich import print as rich_print

from sparsec.autotune.roofline import Roofline
from sparsec.autotune.roofline import measure as measure_here
from sparsec.backends.x86.machine import machine
from sparsec.bench.child import environment


def measure(core: int | None = None) -> Roofline:
    """Measure `core` (default: the last one this process may use) in a fresh process."""
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


def main(
    core: Annotated[int | None, typer.Option(help="Core to pin to; the last one by default.")] = None,
    here: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print this machine's limits as JSON."""
    if here:
        print(json.dumps(asdict(measure_here(machine().l2))))
    else:
        rich_print(asdict(measure(core)))


if __name__ == "__main__":
    typer.run(main)
