"""Latency and accuracy against the share of tokens kept: `python benchmarks/token_pruning.py --plot pruning.svg`.

A small vision transformer is trained on scikit-learn's digits, compiled once per strategy and share, judged on images that it never saw
and timed on one of them, all variants in turns. `--factory sparsec.models.zoo:vit_s16_90` adds the latency of another model.
The plot needs matplotlib: `pip install matplotlib`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sparsec
from sparsec.doors.factories import load_factory
from sparsec.models.digits_vit import pruned_digits_vit

CHAPTER = "insert_token_pruning"


@dataclass(frozen=True)
class Point:
    """One compiled variant: `keep` of the tokens stay after each of its blocks. `accuracy` is 0..1, None where there are no labels.

    `refusal`: why no token went, empty if some did or all should stay.
    """

    model: str
    strategy: str
    keep: float
    milliseconds: float
    accuracy: float | None
    refusal: str = ""


@dataclass(frozen=True)
class Variant:
    """A compiled model before it is timed."""

    strategy: str
    keep: float
    run: Callable[..., Any]
    refusal: str


def compiled(model: nn.Module, inputs: tuple[Tensor, ...], strategy: str, keep: float, after: Sequence[int]) -> Variant:
    """The model with tokens left out after the blocks `after`; with `keep` 1 the option changes nothing."""
    option = {"keep": keep, "after": list(after), "strategy": strategy}
    made = sparsec.compile(model, inputs, threads=1, token_pruning=option)
    lines = made.story().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(CHAPTER)) + 1
    refusals = [line.strip(" -") for line in lines[start : start + 1] if line.startswith("  - ")]
    return Variant(strategy, keep, made, next(iter(refusals), ""))


def timed(variants: Sequence[Variant], inputs: tuple[Tensor, ...], seconds: float, rounds: int = 5) -> list[float]:
    """Median milliseconds of one call of each variant; the variants take turns, so that a slow moment hits all."""
    samples: list[list[float]] = [[] for _ in variants]
    for _ in range(rounds):
        for variant, mine in zip(variants, samples, strict=True):
            end = time.perf_counter() + seconds / rounds
            while not mine or time.perf_counter() < end:
                begin = time.perf_counter()
                variant.run(*inputs)
                mine.append((time.perf_counter() - begin) * 1e3)
    return [median(mine) for mine in samples]


def points(
    name: str,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    grid: Sequence[tuple[str, float]],
    after: Sequence[int],
    seconds: float,
    judge: Callable[[Callable[..., Any]], float] | None = None,
) -> list[Point]:
    """One point per strategy and share of the grid, in its order; `judge` gives the accuracy of a variant."""
    variants = [compiled(model, inputs, strategy, keep, after) for strategy, keep in grid]
    times = timed(variants, inputs, seconds)
    return [
        Point(name, v.strategy, v.keep, spent, judge(v.run) if judge is not None else None, v.refusal)
        for v, spent in zip(variants, times, strict=True)
    ]


def digits_points(
    grid: Sequence[tuple[str, float]], after: Sequence[int], sparsity: float, epochs: int | None, seconds: float
) -> list[Point]:
    """Train, compile, time on one image, judge on all held-out images."""
    trained = pruned_digits_vit(sparsity, epochs=epochs)

    def judge(run: Callable[..., Any]) -> float:
        found = torch.cat([run(image).argmax(1) for image in trained.test_images.split(1)])
        return (found == trained.test_labels).double().mean().item()

    return points("digits_vit", trained.model, (trained.test_images[:1],), grid, after, seconds, judge)


def table_of(found: Sequence[Point]) -> Table:
    """A row per point; speed is relative to the point of the same model and strategy that keeps all."""
    table = Table(title="Tokens kept after each block", title_justify="left")
    for heading in ("model", "strategy", "keep", "ms", "speed", "accuracy", "refused because"):
        table.add_column(heading, justify="left" if heading in ("model", "strategy", "refused because") else "right")
    for point in found:
        (whole,) = (p.milliseconds for p in found if (p.model, p.strategy, p.keep) == (point.model, point.strategy, 1.0))
        accuracy = "" if point.accuracy is None else f"{point.accuracy:.1%}"
        speed = f"{whole / point.milliseconds:.2f}x"
        table.add_row(point.model, point.strategy, f"{point.keep:.2f}", f"{point.milliseconds:.3f}", speed, accuracy, point.refusal)
    return table


def plot(found: Sequence[Point], path: Path) -> None:
    """Two panels over the share kept, latency and accuracy, a line per model and strategy; refused points are left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for name, strategy in dict.fromkeys((p.model, p.strategy) for p in found):
        mine = [p for p in found if (p.model, p.strategy) == (name, strategy) and not p.refusal]
        judged = [p for p in mine if p.accuracy is not None]
        panels[0].plot([p.keep for p in mine], [p.milliseconds for p in mine], marker="o", label=f"{name}, {strategy}")
        panels[1].plot([p.keep for p in judged], [100 * (p.accuracy or 0.0) for p in judged], marker="o", label=f"{name}, {strategy}")
    for panel, label in zip(panels, ("latency, ms", "accuracy, %"), strict=True):
        panel.set(xlabel="share of tokens kept after each block", ylabel=label)
        panel.invert_xaxis()
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    figure.savefig(path)


def _numbers(text: str, kind: Callable[[str], Any]) -> list[Any]:
    return [kind(part) for part in text.split(",")]


def main(
    keep: Annotated[str, typer.Option(help="Shares of tokens to keep, separated by commas; 1 is added.")] = "0.9,0.8,0.7,0.6,0.5,0.4,0.3",
    strategies: Annotated[str, typer.Option(help="Of prune and merge.")] = "prune,merge",
    after: Annotated[str, typer.Option(help="Blocks of the digits model after which tokens go.")] = "2,4",
    sparsity: Annotated[float, typer.Option(help="Share of zero weights of the digits model.")] = 0.9,
    epochs: Annotated[int | None, typer.Option(help="Epochs of training; none: as many as it takes.")] = None,
    factory: Annotated[str, typer.Option(help="module:function of a further model, timed only; empty for none.")] = "",
    factory_after: Annotated[str, typer.Option(help="Its blocks after which tokens go.")] = "3,6",
    seconds: Annotated[float, typer.Option(help="Seconds of calls per point.")] = 1.0,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="Where to draw (.svg, .png, .pdf).")] = None,
) -> None:
    """Print the table, and draw it where --plot is given."""
    torch.set_num_threads(1)
    shares = sorted({1.0, *_numbers(keep, float)}, reverse=True)
    grid = [(strategy, share) for strategy in strategies.split(",") for share in shares]
    found = digits_points(grid, _numbers(after, int), sparsity, epochs, seconds)
    if factory:
        model, inputs = load_factory(factory)()
        found += points(factory.rpartition(":")[2], model, tuple(inputs), grid, _numbers(factory_after, int), seconds)
    Console().print(table_of(found))
    if plot_path is not None:
        plot(found, plot_path)
        Console().print(f"Drawn to {plot_path}.")


if __name__ == "__main__":
    typer.run(main)
