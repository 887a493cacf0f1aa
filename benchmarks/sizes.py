"""Latency against batch and number of tokens, and what removing padding gains: `python benchmarks/sizes.py`.

One compiled model serves all sizes of a table; the sizes take turns, several times over. Padding: a batch of sentences of unequal length,
compiled with and without `remove_padding`, both against eager on the valid tokens.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sparsec
from sparsec.models.zoo import build_with_inputs

LONGEST = 128


def interleaved(runs: Mapping[Any, Callable[[], object]], repeats: int) -> dict[Any, float]:
    """Median milliseconds of each; they take turns."""
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: 1e3 * median(taken[1:]) for name, taken in times.items()}


def table_of(title: str, heading: str, times: Mapping[Any, float]) -> Table:
    """One row per size, with the time per unit of size."""
    table = Table(title=title)
    for name in (heading, "ms", f"ms / {heading}"):
        table.add_column(name, justify="right")
    for size, milliseconds in times.items():
        table.add_row(str(size), f"{milliseconds:.2f}", f"{milliseconds / size:.3f}")
    return table


def sentences(lengths: list[int], tokens: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of a batch with these numbers of valid tokens."""
    ids = torch.randint(0, 30000, (len(lengths), tokens), generator=torch.Generator().manual_seed(0))
    return ids, (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()


def padding(share: float, batch: int, sparsity: float, repeats: int) -> Table:
    """BERT-base on a batch with this share of valid tokens."""
    model, inputs = build_with_inputs("bert_base", sparsity)
    # Lengths from 1/4 to 7/4 of the mean, evenly spread.
    lengths = [max(1, min(LONGEST, round(LONGEST * share * (0.25 + 1.5 * i / max(batch - 1, 1))))) for i in range(batch)]
    ids, mask = sentences(lengths, LONGEST)
    kept, removed = (sparsec.compile(model, inputs, threads=1, remove_padding=remove) for remove in (False, True))
    with torch.no_grad():
        expected = model(ids, mask)[0]
    valid = mask.bool()
    times = interleaved({"kept": lambda: kept(ids, mask), "removed": lambda: removed(ids, mask)}, repeats)
    table = Table(title=f"bert_base at {sparsity:.0%} zeros, batch {batch}, {float(mask.float().mean()):.0%} valid tokens")
    for name in ("padding", "ms", "ratio", "error on valid tokens"):
        table.add_column(name, justify="right")
    for name, run in (("kept", kept), ("removed", removed)):
        error = (run(ids, mask)[0] - expected)[valid].abs().max()
        table.add_row(name, f"{times[name]:.1f}", f"{times['kept'] / times[name]:.2f}", f"{error:.1e}")
    return table


def main(
    sparsity: Annotated[float, typer.Option(help="Share of zeros.")] = 0.9,
    model: Annotated[str, typer.Option(help="Whose latency is taken against the batch.")] = "vit_s16",
    valid: Annotated[float, typer.Option(help="Share of valid tokens.")] = 0.44,
    batch: Annotated[int, typer.Option(help="Sentences in the padded batch.")] = 8,
    repeats: Annotated[int, typer.Option(help="How often sizes take turns.")] = 7,
) -> None:
    """Print three tables, one thread."""
    torch.set_num_threads(1)
    console = Console()
    network, inputs = build_with_inputs(model, sparsity)
    compiled = sparsec.compile(network, inputs, threads=1)
    given = {n: tuple(x.repeat(n, *[1] * (x.dim() - 1)) for x in inputs) for n in (1, 2, 3, 4, 6, 8)}
    times = interleaved({n: (lambda x=x: compiled(*x)) for n, x in given.items()}, repeats)
    console.print(table_of(f"{model} at {sparsity:.0%} zeros", "batch", times))
    bert, (ids, mask) = build_with_inputs("bert_base", sparsity)
    free = {1: torch.export.Dim("tokens", max=LONGEST)}
    compiled = sparsec.compile(bert, (ids, mask), threads=1, dynamic_shapes=(free, free))
    shorter = {t: (ids[:, :t], mask[:, :t]) for t in (1, 8, 16, 24, 32, 48, 64, 96, LONGEST)}
    times = interleaved({t: (lambda x=x: compiled(*x)) for t, x in shorter.items()}, repeats)
    console.print(table_of(f"bert_base at {sparsity:.0%} zeros, one program", "tokens", times))
    console.print(padding(valid, batch, sparsity, repeats))


if __name__ == "__main__":
    typer.run(main)
