"""The whole tour in one command: `python benchmarks/demo.py` (or `make demo`). Exits with 1 if any two answers disagree.

1. A small CNN, trained and pruned on scikit-learn's digits: the same accuracy before and after compiling.
2. MobileNetV1 with 90% of its pointwise weights zero: the same top-5 for two photographs.
3. The same network under other engines, in turns, one thread each.
4. What the compiler found and chose, layer by layer, with measured times.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import sparsec
from sparsec.bench import compare
from sparsec.models import pruned_digits_cnn, sample_photographs
from sparsec.models.zoo import build

RIVALS = ("sparsec", "eager", "inductor", "inductor-freezing", "onnxruntime", "openvino")
FACTORY = "sparsec.models.zoo:mobilenet_v1_90"
TOLERANCE = 1e-4
TOP = 5

console = Console(width=None if Console().is_terminal else 160)


class Disagreement(Exception):
    """Two engines gave different answers."""


@contextmanager
def _step(what: str) -> Iterator[None]:
    begin = time.perf_counter()
    with console.status(what):
        yield
    console.print(f"[dim]{what}: {time.perf_counter() - begin:.1f} s[/dim]")


def relative_error(got: Tensor, expected: Tensor) -> float:
    """max|got - expected| / max|expected|; infinite if NaN appears."""
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    return error if error == error else float("inf")


def require(condition: bool, what: str) -> None:
    """Disagreement unless the condition holds."""
    if not condition:
        raise Disagreement(what)


def outputs_of(model: nn.Module, example: Tensor, images: Tensor) -> dict[str, Tensor]:
    """The outputs for `images` of the module itself, of `sparsec.compile` and of `torch.compile(backend="sparse")`."""
    with torch.no_grad():
        with _step("sparsec.compile(model, (x,))"):
            compiled = sparsec.compile(model, (example,))
        fast = torch.compile(model, backend="sparse")
        with _step('torch.compile(model, backend="sparse") and the first call'):
            fast(images)
        engines: dict[str, Callable[[Tensor], Tensor]] = {"eager": model, "sparsec.compile": compiled, 'torch.compile(…, "sparse")': fast}
        return {name: engine(images) for name, engine in engines.items()}


def digits() -> RenderableType:
    """Train, prune, compile; accuracy on the held-out images under each engine."""
    with _step("train a CNN on scikit-learn's digits while pruning it to 90%"):
        trained = pruned_digits_cnn(0.9)
    found = outputs_of(trained.model, trained.test_images[:1], trained.test_images)
    table = Table(title=f"digits: {len(trained.test_labels)} images that training never saw", title_justify="left")
    for heading in ("engine", "accuracy", "max error to eager"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for name, logits in found.items():
        reached = (logits.argmax(1) == trained.test_labels).float().mean().item()
        error = relative_error(logits, found["eager"])
        table.add_row(name, f"{reached:.2%}", f"{error:.1e}")
        require(reached == trained.accuracy, f"{name} reaches {reached:.4%} on the digits, the trained model {trained.accuracy:.4%}.")
        require(error <= TOLERANCE, f"{name} is off by {error:.1e} on the digits.")
    return table


def photographs(model: nn.Module, example: Tensor) -> RenderableType:
    """The five largest logits for scikit-learn's sample photographs under each engine."""
    images = sample_photographs()
    found = outputs_of(model, example, images)
    table = Table(title="MobileNetV1, 90% zeros: top 5 of 1000 outputs", title_justify="left")
    table.caption = "Weights are seeded, not trained: outputs are numbers of classes without a meaning."
    for heading in ("engine", "china.jpg", "flower.jpg", "max error to eager"):
        table.add_column(heading)
    expected = found["eager"].topk(TOP).indices
    for name, logits in found.items():
        top, error = logits.topk(TOP).indices, relative_error(logits, found["eager"])
        table.add_row(name, *(" ".join(map(str, row)) for row in top.tolist()), f"{error:.1e}")
        require(torch.equal(top, expected), f"{name} ranks the classes of a photograph otherwise than eager.")
        require(error <= TOLERANCE, f"{name} is off by {error:.1e} on the photographs.")
    return table


def rivals(seconds: float) -> RenderableType:
    """The network under every engine, interleaved, each in its own process pinned to one core."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("compare", total=None)
        found = compare(
            FACTORY,
            RIVALS,
            seconds_per_rival=seconds,
            progress=lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
        )
    ours = found.result("sparsec")
    require(ours.timed, f"sparsec did not run: {ours.failure}")
    require(ours.error is not None and ours.error <= TOLERANCE, f"sparsec is off by {ours.error} in the comparison.")
    ratio = found.ratio("sparsec")
    console.print(f"sparsec is {ratio:.2f} times as fast as the best dense float32 rival of this run." if ratio else "No dense rival ran.")
    return found.table()


def explained(model: nn.Module, example: Tensor) -> RenderableType:
    """The layers as compiled, with the median time of each on one thread."""
    with _step("measure every layer"):
        compiled = sparsec.compile(model, (example,), threads=1)
        profile = compiled.profile(example)
    # Two calls that share a strip are one step, named after both; the layer is the last.
    seconds = {step.step.node.rpartition(" + ")[2]: step.seconds for step in profile}
    return compiled.explain().timed(seconds)


def main(seconds: Annotated[float, typer.Option(help="Seconds of calls per rival.")] = 2.0) -> None:
    """Train, prune, compile, compare, explain; exit with 1 on any disagreement."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        console.print(digits())
        with _step("build MobileNetV1, prune it to 90%, calibrate BatchNorm"):
            model, example = build("mobilenet_v1", 0.9)
        console.print(photographs(model, example))
        console.print(rivals(seconds))
        console.print(explained(model, example))
    except Disagreement as found:
        console.print(f"[bold red]Disagreement:[/bold red] {found}")
        raise typer.Exit(1) from found
    console.print("[green]All engines agree.[/green]")


if __name__ == "__main__":
    typer.run(main)
