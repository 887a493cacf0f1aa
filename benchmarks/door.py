"""What the check of weights costs at each call of torch.compile's door: `python benchmarks/door.py`.

Two ways to see it: whole calls with and without the comparison of bytes, in turns; and the check alone, right after a run, which counts the
Python around it as if that were cold at every call.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sparsec.models.zoo import build_with_inputs
from sparsec.torch_door.contents import Contents

CHECKS = ("versions", "sampled")


def fast_of(model: nn.Module, check: str) -> Callable[..., object]:
    """The model behind torch.compile with this check of weights, one thread."""
    return torch.compile(model, backend="sparse", options={"threads": 1, "check_weights": check})


def in_turns(runs: Mapping[str, Callable[..., object]], inputs: tuple[Tensor, ...], held: Contents, repeats: int) -> dict[str, float]:
    """Median seconds of each run, of what the second takes more than the first in one turn ("more"), and of the check alone ("check").

    Each run goes first in every other turn.
    """
    times: dict[str, list[float]] = {name: [] for name in (*runs, "check")}
    for turn in range(repeats):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            runs[name](*inputs)
            end = time.perf_counter()
            held.seem_same()
            times[name].append(end - begin)
            times["check"].append(time.perf_counter() - end)
    one, other = runs
    more = [b - a for a, b in zip(times[one], times[other], strict=True)]
    return {name: median(taken) for name, taken in {**times, "more": more}.items()}


def main(
    models: Annotated[str, typer.Option(help="Names of the zoo, separated by commas.")] = "mobilenet_v1,bert_base",
    sparsity: Annotated[float, typer.Option(help="Share of zeros.")] = 0.9,
    repeats: Annotated[int, typer.Option(help="How often the settings take turns.")] = 200,
) -> None:
    """Print one row per network."""
    torch.set_num_threads(1)
    table = Table(title=f"{sparsity:.0%} zeros, batch 1, one thread; medians of {repeats} turns")
    for heading in ("model", "weights", "versions only, ms", "sampled, ms", "more, us", "share", "check alone, us", "calls for all bytes"):
        table.add_column(heading, justify="right")
    for name in models.split(","):
        model, inputs = build_with_inputs(name, sparsity)
        weights = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
        held = Contents(weights)
        with torch.no_grad():
            runs = {check: fast_of(model, check) for check in CHECKS}
            for run in (*runs.values(), *runs.values()):
                run(*inputs)
            times = in_turns(runs, inputs, held, repeats)
        versions, sampled, more, check = (times[key] for key in (*CHECKS, "more", "check"))
        shown = f"{1e3 * versions:.3f}", f"{1e3 * sampled:.3f}", f"{1e6 * more:.1f}", f"{more / versions:.2%}", f"{1e6 * check:.1f}"
        table.add_row(name, str(len(weights)), *shown, str(held.calls))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
