"""Model x sparsity x rival: `python benchmarks/networks.py --models mobilenet_v1 --sparsity 0,80,90,95 --threads 1`.

A sparsity is a percentage of zeros, with a block of outputs x inputs or without, or N:M; for transformers and ResNet-50
`--models resnet50,bert_base,vit_s16 --sparsity 0,80,90,95,90:8x1,90:32x32,2:4`.

Prints medians, the ratio to the best dense float32 rival of the same run, the maximum error against eager, and, for
our artifact, the time per kind of kernel and how near it comes to the roofline of `roofline.py` (the time that its
operations at peak speed or its bytes at L2 bandwidth would take, whichever is longer, over the time it took). Ends
with the ratios of all models in one table.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from roofline import Roofline
from roofline import measure as measure_roofline

from sparsec.bench import DENSE_FP32, OURS, Comparison, Kernel, compare

ZOO = "sparsec.models.zoo"


def kinds_table(comparisons: Sequence[Comparison], roofline: Roofline) -> Table:
    """One row per model and kind of kernel: milliseconds, share of the model's kernel time, fraction of roofline."""
    table = Table(title="our time per kind of kernel")
    for heading in ("model", "kind"):
        table.add_column(heading)
    for heading in ("kernels", "ms", "share", "GFLOP/s", "of roofline"):
        table.add_column(heading, justify="right")
    for comparison in comparisons:
        kernels = [kernel for rival in comparison.rivals for kernel in rival.kernels]
        total = sum(kernel.seconds for kernel in kernels)
        for kind, members in _by_kind(kernels).items():
            table.add_row(comparison.factory, kind, *_kind_cells(members, total, roofline, comparison.threads))
    return table


def _by_kind(kernels: Sequence[Kernel]) -> dict[str, list[Kernel]]:
    kinds: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        kinds[kernel.kind].append(kernel)
    return dict(sorted(kinds.items(), key=lambda item: -sum(kernel.seconds for kernel in item[1])))


def _kind_cells(members: Sequence[Kernel], total_s: float, roofline: Roofline, threads: int) -> tuple[str, ...]:
    seconds = sum(kernel.seconds for kernel in members)
    bound = sum(roofline.bound_s(kernel.flops, kernel.bytes, threads) for kernel in members)
    speed = sum(kernel.flops for kernel in members) / seconds / 1e9
    share = f"{seconds / total_s:.0%}"
    return str(len(members)), f"{seconds * 1e3:.3f}", share, f"{speed:.1f}", f"{bound / seconds:.0%}"


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, and the function that moves it."""
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name)
        yield lambda what, done, total: bar.update(task, description=f"{name}: {what}", completed=done, total=total)


def suffix(sparsity: str) -> str:
    """How factories of the zoo spell a sparsity: "0" → "dense", "90:8x1" → "90_8x1", "2:4" → "2of4"."""
    if sparsity == "0":
        return "dense"
    n_of_m = re.fullmatch(r"(\d+):(\d+)", sparsity)
    return f"{n_of_m[1]}of{n_of_m[2]}" if n_of_m else sparsity.replace(":", "_")


def ratios_table(comparisons: Sequence[Comparison]) -> Table:
    """One row per model, one column per rival: how many times as fast as the best dense float32 rival of the same run."""
    names = list(dict.fromkeys(rival.name for comparison in comparisons for rival in comparison.rivals))
    table = Table(title="× best dense float32")
    table.add_column("model")
    for name in (*names, "best dense"):
        table.add_column(name, justify="right")
    for comparison in comparisons:
        known, best = {rival.name for rival in comparison.rivals}, comparison.best_dense
        ratios = [comparison.ratio(name) if name in known else None for name in names]
        cells = ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        table.add_row(comparison.factory.rpartition(":")[2], *cells, best.name if best else "–")
    return table


def main(
    models: Annotated[str, typer.Option(help="Names in the zoo, without the sparsity.")] = "mobilenet_v1",
    sparsity: Annotated[str, typer.Option(help="Percent of zeros in the weights, or percent:block such as 90:8x1, or N:M.")] = "0,80,90,95",
    rivals: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join((*OURS, *DENSE_FP32)),
    threads: Annotated[int, typer.Option(help="Threads and pinned cores per rival.")] = 1,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 10,
    seconds: Annotated[float, typer.Option(help="Seconds of calls per rival.")] = 2.0,
    batch: Annotated[int, typer.Option(help="Rows per call.")] = 1,
    tune: Annotated[str, typer.Option(help="Tuning of our compiler.")] = "off",
    zoo: Annotated[str, typer.Option(help="Module with factories named MODEL_dense, MODEL_90, MODEL_90_8x1, MODEL_2of4.")] = ZOO,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
) -> None:
    """Compare pruned networks under several engines, interleaved, each in its own pinned process."""
    console = Console()
    names = [f"{model}_{suffix(part)}" for model in models.split(",") for part in sparsity.split(",")]
    factories = [f"{zoo}:{name}" for name in names]
    comparisons = []
    for factory in factories:
        with progress_bar(factory) as progress:
            found = compare(
                factory,
                rivals.split(","),
                threads=threads,
                rounds=rounds,
                seconds_per_rival=seconds,
                batch=batch,
                tune=tune,
                progress=progress,
            )
        comparisons.append(found)
        console.print(found.table())
    if len(comparisons) > 1:
        console.print(ratios_table(comparisons))
    roofline = measure_roofline()
    if any(rival.kernels for comparison in comparisons for rival in comparison.rivals):
        console.print(kinds_table(comparisons, roofline))
    console.print(f"one core: {asdict(roofline)}")
    if json_path is not None:
        everything = [json.loads(comparison.to_json()) for comparison in comparisons]
        json_path.write_text(json.dumps({"roofline": asdict(roofline), "comparisons": everything}))


if __name__ == "__main__":
    typer.run(main)
