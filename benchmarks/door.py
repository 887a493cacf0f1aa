"""What the check of weights costs at each call of torch.compile's door: `python benchmarks/door.py`.

Calls of one program with and without the comparison of bytes, in turns.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparsec.doors.torch_compile import contents
from sparsec.doors.torch_compile.contents import Contents
from sparsec.models.zoo import build_with_inputs

RUNS = ("without", "with")
CALLS = 20


class Switched(Contents):
    """Compares nothing while ``on`` is False: one program is timed with and without, two differ in where their memory lies."""

    on = True

    def seem_same(self) -> bool:
        """See Contents."""
        return not Switched.on or super().seem_same()


def in_turns(run: Callable[..., object], inputs: tuple[Tensor, ...], turns: int) -> dict[str, float]:
    """Median seconds of a call without and with the comparison, and of what the second takes more ("more").

    A turn is some calls of each, one after the other, as what the comparison reads costs the next run its caches; each goes first in every
    other turn.
    """
    times: dict[str, list[float]] = {name: [] for name in RUNS}
    for turn in range(turns):
        for name in RUNS[:: 1 if turn % 2 else -1]:
            Switched.on = name == "with"
            times[name].append(median(_calls(run, inputs)))
    more = [b - a for a, b in zip(*(times[name] for name in RUNS), strict=True)]
    return {name: median(taken) for name, taken in {**times, "more": more}.items()}


def _calls(run: Callable[..., object], inputs: tuple[Tensor, ...]) -> Iterator[float]:
    for _ in range(CALLS):
        begin = time.perf_counter()
        run(*inputs)
        yield time.perf_counter() - begin


def main(
    models: Annotated[str, typer.Option(help="Names of the zoo, separated by commas.")] = "mobilenet_v1,bert_base",
    sparsity: Annotated[float, typer.Option(help="Share of zeros.")] = 0.9,
    turns: Annotated[int, typer.Option(help="How often both take turns.")] = 60,
) -> None:
    """Print one row per network."""
    torch.set_num_threads(1)
    contents.Contents = Switched
    table = Table(title=f"{sparsity:.0%} zeros, batch 1, one thread; medians of {turns} turns of {CALLS} calls")
    for heading in ("model", "weights", "without, ms", "with, ms", "more, us", "share", "calls for all bytes"):
        table.add_column(heading, justify="right")
    for name in models.split(","):
        model, inputs = build_with_inputs(name, sparsity)
        weights = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
        with torch.no_grad():
            fast = torch.compile(model, backend="sparse", options={"threads": 1})
            for _ in range(2):
                fast(*inputs)
            times = in_turns(fast, inputs, turns)
        without, checked, more = (times[key] for key in (*RUNS, "more"))
        shown = f"{1e3 * without:.3f}", f"{1e3 * checked:.3f}", f"{1e6 * more:.1f}", f"{more / without:.2%}"
        table.add_row(name, str(len(weights)), *shown, str(Contents(weights).calls))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
