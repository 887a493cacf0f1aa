"""One compiled graph per set of sizes, for programs whose kernels cannot take every size at run time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsec.doors.captured import Captured
from sparsec.errors import UnsupportedModel
from sparsec.run.forks import opened_in_children
from sparsec.run.heap import give_back

if TYPE_CHECKING:
    from sparsec.compiled_graph import CompiledGraph

#: Graphs kept besides the first, and bytes of their constants that are not the first's; the one not used for longest goes.
KEPT, KEPT_BYTES = 8, 256 << 20


@dataclass(frozen=True, eq=False)
class _Entry:
    sizes: Mapping[str, int]
    graph: CompiledGraph

    def serves(self, sizes: Mapping[str, int], batches: frozenset[str]) -> bool:
        """Whether the graph runs at these sizes: those that it does not take at run time are the ones that it was compiled for."""
        free = self.free(sizes, batches)
        return all(size == self.sizes[name] for name, size in sizes.items() if name not in free)

    def free(self, sizes: Mapping[str, int], batches: frozenset[str]) -> set[str]:
        """The sizes that do not matter; those of the batch where all inputs have the same."""
        taken = self.graph.programs[0].program.sizes if self.graph.fully_compiled else ()
        alike = self.graph.any_batch and all(len({given[name] for name in batches}) <= 1 for given in (sizes, self.sizes))
        return {size.name for size in taken if size.least <= sizes[size.name] <= size.most} | (batches if alike else frozenset())


class GraphsBySize:
    """Compiles a program with free sizes again where no graph serves a call's sizes, and keeps the latest. Safe in many threads."""

    def __init__(self, captured: Captured, first: CompiledGraph, build: Callable[[Captured], CompiledGraph]) -> None:
        """``first`` is compiled from ``captured`` as it is; ``build`` compiles it at other sizes."""
        self._captured, self._build = captured, build
        self._first = _Entry(captured.sizes, first)
        self._kept: list[_Entry] = []
        self._dropped = 0
        self._lock = opened_in_children(threading.Lock())

    def __call__(self, sizes: Mapping[str, int]) -> CompiledGraph:
        """The graph for these sizes. InvalidInput or UnsupportedModel where the program cannot be had at them."""
        if self._first.serves(sizes, self._captured.batches):
            return self._first.graph
        with self._lock:
            found = next((entry for entry in self._kept if entry.serves(sizes, self._captured.batches)), None)
            if found is None:
                found = self._compiled(sizes)
                self._drop(found)
            self._kept = [found, *(entry for entry in self._kept if entry is not found)]
            return found.graph

    def _drop(self, latest: _Entry) -> None:
        """Make room for one more."""
        while self._kept and (len(self._kept) == KEPT or self._nbytes(latest) > KEPT_BYTES):
            self._kept = self._kept[:-1]
            self._dropped += 1

    def _nbytes(self, latest: _Entry) -> int:
        first = self._first.graph.held
        others: dict[int, int] = {}
        for entry in (latest, *self._kept):
            others |= entry.graph.held
        return sum(nbytes for number, nbytes in others.items() if number not in first)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was compiled again, for ``explain``: the latest first."""
        with self._lock:
            made = tuple(f"compiled again for {self._text(entry)}" for entry in self._kept)
            dropped = f"{self._dropped} graphs for further sizes were compiled and dropped: at most {KEPT} are kept"
            return (*made, dropped) if self._dropped else made

    def _compiled(self, sizes: Mapping[str, int]) -> _Entry:
        """At these sizes, or at buckets of those that kernels take at run time."""
        program = self._first.graph.programs[0].program if self._first.graph.fully_compiled else None
        taken = {size.name for size in program.sizes} if program else set()
        chosen = {name: self._captured.symbols[name].aligned(size) if name in taken else size for name, size in sizes.items()}
        chosen = chosen if self._captured.signature.allows(chosen) else dict(sizes)
        try:
            graph = self._build_at(chosen)
        except UnsupportedModel:  # A table may end before the bucket does.
            if chosen == sizes:
                raise
            chosen = dict(sizes)
            graph = self._build_at(chosen)
        graph.forget_origins()
        give_back(sum(graph.held.values()))
        return _Entry(chosen, graph)

    def _build_at(self, sizes: Mapping[str, int]) -> CompiledGraph:
        return self._build(self._captured.at(sizes))

    def _text(self, entry: _Entry) -> str:
        """As in "tokens=97"; with the batch only where it is not free."""
        free = entry.free(entry.sizes, self._captured.batches) & self._captured.batches
        return ", ".join(f"{name}={size}" for name, size in entry.sizes.items() if name not in free)
