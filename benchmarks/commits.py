"""The same networks on two commits, in turns: `python benchmarks/commits.py main~5 --networks mobilenet_v1:90,bert_base:90:8x1`.

Each side is a process of its own with the sources of its commit (the working tree by default for the second), the same environment and
weights, and nothing tuned. A turn is some tenths of a second of calls of one side, then of the other; each side begins every other turn.
The ratio is the median of the turns' ratios: a virtual machine whose speed changes every few seconds (by half on two threads, where its
processors share a core now and then) changes it for both sides of a turn. Two processes of one commit differ by up to 6% in the time of a
small network, as their memory lies elsewhere: where some percent matter, ``--starts 8`` starts both sides anew that often.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
DOORS = ("torch.compile", "artifact")


@contextmanager
def sources(commit: str) -> Iterator[Path]:
    """A folder with the package `sparsec` of a commit; of the working tree for an empty one."""
    with tempfile.TemporaryDirectory(prefix="sparsec-commit-") as folder:
        tree = ROOT
        if commit:
            tree = Path(folder) / "tree"
            tree.mkdir()
            archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
            subprocess.run(["tar", "-x"], cwd=tree, input=archive, check=True)
        package = Path(folder) / "path" / "sparsec"
        package.mkdir(parents=True)
        for part in (*(tree / "compiler").iterdir(), *(tree / name for name in ("passes", "backends", "autotune", "models"))):
            (package / part.name).symlink_to(part)
        yield package.parent


class Side:
    """A process that runs one network with the sources of one commit."""

    def __init__(self, path: Path, network: str, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path), "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--serve", network, "--threads", str(threads)]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=path)
        self.ask: IO[str] = self.process.stdin  # type: ignore[assignment]
        self.answers: IO[str] = self.process.stdout  # type: ignore[assignment]
        ready = self._answer()
        if not Path(ready).is_relative_to(path):
            raise RuntimeError(f"The sources of {ready} were run, not those of {path}.")

    def times(self, door: str, seconds: float) -> list[float]:
        """Seconds of each call."""
        print(json.dumps([door, seconds]), file=self.ask, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        if not (line := self.answers.readline()):
            raise RuntimeError("A side ended: what it said is above.")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self.ask.close()
        self.process.wait()


def serve(network: str, threads: int) -> None:
    """Time calls as asked by lines of standard input."""
    import torch

    import sparsec
    from sparsec.models.zoo import build_with_inputs

    torch.set_num_threads(1)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    name, percent, *pattern = network.split(":", 2)
    model, inputs = build_with_inputs(name, int(percent) / 100, *pattern)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        behind = torch.compile(model, backend="sparse", options={"threads": threads, "tune": "off"})
        sparsec.compile(model, inputs, threads=threads, tune="off").save(folder + "/saved")
        loaded, arrays = sparsec.load(folder + "/saved", threads=threads), [x.numpy() for x in inputs]
        runs: dict[str, Callable[[], object]] = dict(zip(DOORS, (lambda: behind(*inputs), lambda: loaded(*arrays)), strict=True))
        for run in list(runs.values()) * 3:
            run()
        print(json.dumps(sparsec.__file__), flush=True)
        for line in sys.stdin:
            door, seconds = json.loads(line)
            print(json.dumps(list(_calls(runs[door], seconds))), flush=True)


def _calls(run: Callable[[], object], seconds: float) -> Iterator[float]:
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        run()
        yield time.perf_counter() - begin


class Found(NamedTuple):
    """Median seconds of a call of both sides and the median of the ratios, which are ``least`` to ``most`` over the starts."""

    before: float
    after: float
    ratio: float
    least: float
    most: float


def in_turns(paths: list[Path], network: str, threads: int, turns: int, seconds: float, starts: int) -> dict[str, Found]:
    """What was found through each door."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    for _ in range(starts):
        sides = [Side(path, network, threads) for path in paths]
        turned: dict[str, list[float]] = defaultdict(list)
        for turn in range(turns):
            for door in DOORS:
                both = {number: sides[number].times(door, seconds) for number in ((0, 1) if turn % 2 else (1, 0))}
                for number, some in both.items():
                    times[door, number] += some
                turned[door].append(statistics.median(both[1]) / statistics.median(both[0]))
        for side in sides:
            side.close()
        for door, some in turned.items():
            ratios[door].append(statistics.median(some))
    medians = {key: statistics.median(some) for key, some in times.items()}
    return {d: Found(medians[d, 0], medians[d, 1], statistics.median(r), min(r), max(r)) for d, r in ratios.items()}


def main(
    before: Annotated[str, typer.Argument(help="A commit.")] = "HEAD~1",
    after: Annotated[str, typer.Option(help="Another one; the working tree if not given.")] = "",
    networks: Annotated[str, typer.Option(help="Names of the zoo, percent of zeros and perhaps blocks.")] = "mobilenet_v1:90,bert_base:90",
    threads: Annotated[int, typer.Option(help="Threads, each on a processor of its own.")] = 1,
    turns: Annotated[int, typer.Option(help="How often the sides take turns.")] = 30,
    seconds: Annotated[float, typer.Option(help="Of calls, each turn, side and door.")] = 0.25,
    starts: Annotated[int, typer.Option(help="How often both processes are started.")] = 1,
    serving: Annotated[str, typer.Option("--serve", hidden=True)] = "",
) -> None:
    """Print one row per network."""
    if serving:
        serve(serving, threads)
        return
    table = Table(title=f"{after or 'working tree'} over {before}, batch 1, {threads} threads; medians of {turns} turns, {starts} starts")
    for heading in ("network", "door", "before, ms", "after, ms", "after/before", "over the starts"):
        table.add_column(heading, justify="right")
    with ExitStack() as open_folders:
        paths = [open_folders.enter_context(sources(commit)) for commit in (before, after)]
        for network in networks.split(","):
            found = in_turns(paths, network, threads, turns, seconds, starts)
            for door, (a, b, ratio, least, most) in found.items():
                table.add_row(network, door, f"{1e3 * a:.2f}", f"{1e3 * b:.2f}", f"{ratio:.3f}", f"{least:.3f} to {most:.3f}")
            print(network, *(f"{door} {each.ratio:.3f}" for door, each in found.items()), file=sys.stderr, flush=True)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
