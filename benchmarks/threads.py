"""More threads over one, for ours: `python benchmarks/threads.py --factories sparsec.models.zoo:mobilenet_v1_90`.

The thread counts alternate, several times over, so that a slow minute of the machine hits both.
"""

from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sparsec.bench import BenchError, RivalResult, compare


def alternate(factory: str, rival: str, counts: tuple[int, int], repeats: int, seconds: float) -> list[list[int]]:
    """Nanoseconds of all calls for each of the two thread counts; BenchError if `rival` fails."""
    samples: list[list[int]] = [[], []]
    for _ in range(repeats):
        for slot, threads in enumerate(counts):
            result = compare(factory, [rival], threads=threads, rounds=1, seconds_per_rival=seconds).result(rival)
            samples[slot].extend(_samples(factory, result, threads))
    return samples


def _samples(factory: str, result: RivalResult, threads: int) -> tuple[int, ...]:
    if result.failure is not None:
        what = f"{result.name} did not run with {threads} thread(s)."
        raise BenchError(what, where=factory, why=result.failure)
    return result.samples_ns


def main(
    factories: Annotated[str, typer.Option(help="module:function, separated by commas.")] = (
        "sparsec.models.zoo:mobilenet_v1_90,sparsec.models.zoo:mobilenet_v2_90"
    ),
    rival: Annotated[str, typer.Option(help="Who is measured.")] = "sparsec",
    threads: Annotated[int, typer.Option(help="Threads to set against one.")] = 2,
    repeats: Annotated[int, typer.Option(help="How often the two alternate.")] = 3,
    seconds: Annotated[float, typer.Option(help="Seconds of calls per turn.")] = 1.0,
) -> None:
    """Print the median time with one thread, with more, and their ratio."""
    table = Table(title=f"{rival}: {threads} threads over one")
    table.add_column("model")
    for heading in ("1 thread, ms", f"{threads} threads, ms", "ratio"):
        table.add_column(heading, justify="right")
    for factory in factories.split(","):
        one, more = (median(times) / 1e6 for times in alternate(factory, rival, (1, threads), repeats, seconds))
        table.add_row(factory, f"{one:.3f}", f"{more:.3f}", f"{one / more:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
