"""Run the rivals in turns.

    round 0:  A A A A   B B   C C C
    round 1:  B B   C C C   A A A A        the order rotates, so that nobody always follows the same neighbour
    round 2:  C C C   A A A A   B B

All rivals are loaded before the first round. In its turn a rival makes as many calls as fit in one slice of time.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from sparsec.bench.child import Child, RivalFailed
from sparsec.bench.comparison import Comparison, Kernel, RivalResult
from sparsec.bench.names import RIVALS
from sparsec.errors import SparsecError
from sparsec.tools.scratch import Scratch

Progress = Callable[[str, int, int], None]

LOAD_TIMEOUT_S = 600.0
RUN_TIMEOUT_S = 120.0


class BenchError(SparsecError):
    """A comparison cannot start as it was asked for."""


def compare(
    factory: str,
    rivals: Sequence[str],
    *,
    threads: int = 1,
    rounds: int = 10,
    seconds_per_rival: float = 2.0,
    batch: int = 1,
    tune: str = "off",
    cores: Sequence[int] | None = None,
    load_timeout_s: float = LOAD_TIMEOUT_S,
    progress: Progress | None = None,
    shapes: Sequence[str] = (),
) -> Comparison:
    """Time one model under several engines, in turns, each in its own pinned process.

    `factory` is "module:function", a function without arguments that returns a model, with its example inputs unless `shapes` says which,
    as "x=1,3,224,224".
    `rivals` are names of `RIVALS` or "module:function" loaders of one's own, which take a `Program` and return
    something callable without arguments. Every rival gets about `seconds_per_rival` seconds of calls spread over
    `rounds`; `cores` defaults to the last `threads` cores this process may use. `progress(what, done, total)` is
    called before each step. A rival that fails is reported with its reason. Raises BenchError for a request that
    makes no sense.
    """
    cores = tuple(cores) if cores is not None else _last_cores(threads)
    _check(factory, rivals, rounds, threads, cores)
    steps = _Steps(progress, len(rivals) * (rounds + 1))
    with Scratch() as scratch, _Race(scratch.path, cores) as race:
        for name in rivals:
            steps.next(f"load {name}")
            load = {
                "factory": factory,
                "batch": batch,
                "threads": threads,
                "folder": str(scratch.path),
                "tune": tune,
                "shapes": list(shapes),
            }
            race.load(name, {**load, "shapes": list(shapes)}, load_timeout_s)
        order = rotations(rivals, rounds)
        for names in order:
            for name in names:
                steps.next(f"run {name}")
                race.run(name, seconds_per_rival / rounds)
        for name in rivals:
            race.profile(name)
        return Comparison(factory, threads, batch, cores, order, tuple(race.results[name] for name in rivals))


def rotations(names: Sequence[str], rounds: int) -> tuple[tuple[str, ...], ...]:
    """The order of each round: `names` rotated left by the number of the round."""
    starts = (number % len(names) for number in range(rounds))
    return tuple((*names[start:], *names[:start]) for start in starts)


def iterations(warm_ns: Sequence[int], slice_s: float) -> int:
    """How many calls fill `slice_s` seconds, at least one, judging by the median warm call."""
    return max(1, round(slice_s * 1e9 / median(warm_ns)))


class _Race:
    """The children that are still alive and what is known of every rival."""

    def __init__(self, folder: Path, cores: tuple[int, ...]) -> None:
        self.results: dict[str, RivalResult] = {}
        self._folder, self._cores = folder, cores
        self._children: dict[str, Child] = {}
        self._warm_ns: dict[str, list[int]] = {}

    def __enter__(self) -> "_Race":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.close()

    def load(self, name: str, load: dict[str, Any], timeout_s: float) -> None:
        log = self._folder / f"{len(self._children)}.log"
        self._children[name] = Child(self._cores, log)
        self.results[name] = RivalResult(name)
        reply = self._ask(name, {"do": "load", "rival": name, **load}, timeout_s)
        if reply is not None:
            self._warm_ns[name] = reply.pop("warm_ns")
            self.results[name] = replace(self.results[name], **reply)

    def run(self, name: str, slice_s: float) -> None:
        if self.results[name].failure is not None:
            return
        count = iterations(self._warm_ns[name], slice_s)
        reply = self._ask(name, {"do": "run", "iterations": count}, RUN_TIMEOUT_S + 10 * slice_s)
        if reply is not None:
            result = self.results[name]
            self.results[name] = replace(result, rounds_ns=(*result.rounds_ns, tuple(reply["samples_ns"])))

    def profile(self, name: str) -> None:
        if self.results[name].failure is not None:
            return
        reply = self._ask(name, {"do": "profile"}, RUN_TIMEOUT_S)
        if reply is not None:
            self.results[name] = replace(self.results[name], kernels=tuple(Kernel(*row) for row in reply["kernels"]))

    def _ask(self, name: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        try:
            return self._children[name].ask(request, timeout_s)
        except RivalFailed as failed:
            self.results[name] = replace(self.results[name], failure=str(failed))
            return None


class _Steps:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def next(self, what: str) -> None:
        if self._progress is not None:
            self._progress(what, self._done, self._total)
        self._done += 1


def _last_cores(threads: int) -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0))[-threads:])


def _check(factory: str, rivals: Sequence[str], rounds: int, threads: int, cores: tuple[int, ...]) -> None:
    module, _, function = factory.partition(":")
    if not (module and function):
        raise BenchError(f"{factory!r} is not a factory.", hint="write module:function")
    _check_rivals(rivals)
    if rounds < 1:
        raise BenchError(f"{rounds} rounds measure nothing.", hint="ask for at least 1")
    if threads < 1 or len(cores) != threads:
        why = f"every thread gets a core of its own, and {len(cores)} can be used"
        raise BenchError(f"Cannot run {threads} threads.", why=why, hint="ask for as many threads as cores")


def _check_rivals(rivals: Sequence[str]) -> None:
    unknown = [name for name in rivals if name not in RIVALS and ":" not in name]
    if unknown:
        raise BenchError(f"Unknown rivals: {', '.join(unknown)}.", hint=f"choose from {', '.join(RIVALS)}")
    if not rivals or len(set(rivals)) != len(rivals):
        raise BenchError("Nothing to compare.", why="the list of rivals is empty or names one twice")
