"""What kernels say they touch is all that they touch, whatever their numbers, tables and indices: memory ends where they say it may.

For each kernel drawn records are offered to the library's own check with less and less memory; what it lets pass with the least is run with
pages before and behind every array that may not be touched. What the compiler makes has to pass as well: every other test runs it.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from sparsec.backends.base import Machine, Param, Source
from sparsec.backends.cpu import (
    attention,
    block,
    checks,
    convert,
    depthwise,
    depthwise_strided,
    embedding,
    gemv,
    gemv_windows,
    key_bias,
    layer_norm,
    library,
    permute,
    pointwise_ops,
    pool,
    prepend,
    repack,
    spmm,
    token_choice,
    token_merging,
    token_moves,
    token_table,
    token_vectors,
)
from sparsec.backends.cpu.attention import Masks
from sparsec.backends.extents import Scan, Touch, reads
from sparsec.run.instance import split
from sparsec.run.kernels import load_kernels
from sparsec.run.program import RECORD_WIDTH
from tests.hostile.guarded import Memory
from tests.machines import MACHINES, WIDEST, lanes_of

ENOUGH = 1 << 22
SPARE = 256  # bytes after the weights that may be read
ARENA, WEIGHTS, INPUT, OUTPUT = range(4)
NUMBERS = [0, 1, 1, 1, 1, 2, 2, 2, 3, 5, 7, 16, 16, 32, 64, 64, 100, -1]
#: Records of each kernel that are run, and that are drawn for them at most.
WANTED, MOST = 20, 3000


def all_kernels(machine: Machine) -> list[Source]:
    """At least one of every template, with every choice that changes what it touches."""
    n, lanes = machine.vector, lanes_of(machine)
    wide = 4 * lanes
    plain, masked = Masks(), Masks(True, True, True)
    sparse = [
        ("uint16", False, True, 1, False),
        ("int32", True, False, 2, True),
        ("int32", True, True, 4, False),
        ("uint16", False, False, 4, True),
    ]
    found = [spmm.spmm(n, 2, i, "clamp", r, m, unroll=u, split=s, tile=wide) for i, r, m, u, s in sparse]
    found += [block.block(n, r, 1, wide, i, "clamp", s, not s) for r, i, s in ((8, "uint16", False), (4, "int32", True))]
    found += [
        make(n, 4, k, "clamp", not r, r)
        for make in (depthwise.depthwise, depthwise_strided.depthwise_strided)
        for k in (3, 5)
        for r in (False, True)
    ]
    found += [pool.window_pool(n, "max", 3, 2), pool.window_pool(n, "mean", 2, 1), pool.global_pool(n, 4, "mean"), convert.copy_rows(n)]
    found += [convert.to_planes(n, *how) for how in ((2,), (2, True), (8,))] + [convert.retile(n, 4, m) for m in (False, True)]
    found += [repack.repack(n, 4), repack.gather(n, 4), prepend.prepend(n, 4, 1), prepend.prepend(n, 4, lanes), permute.permute(n)]
    found += [gemv.gemv_blocks(n, 4, "uint16", "clamp", False), gemv.gemv_blocks(n, 1, "int32", "clamp", True)]
    scattered = (gemv.gemv_rows, gemv_windows.gemv_windows) if n.permute else (gemv.gemv_rows,)
    found += [make(n, "uint16", "clamp", r) for make in scattered for r in (False, True)]
    found += [pointwise_ops.map_op(n, 4, op, "clamp", op == "add") for op in pointwise_ops.MAP_OPS]
    found += [pointwise_ops.vector_op(n, op, "clamp") for op in pointwise_ops.VECTOR_OPS]
    found += [embedding.embedding(n, 4, "int64"), key_bias.key_bias(n, "bool", False), key_bias.key_bias(n, "int64", True)]
    rows, vectors, _ = machine.panels.attention[0]
    found += [attention.attention(n, rows, vectors, wide, plain), attention.attention(n, 8, 1, wide, masked)]
    found += [token_choice.token_scores(n, wide, Masks(True, True), True), token_choice.token_scores(n, wide, plain, False)]
    found += [token_choice.keep_tokens(n), token_choice.gather_tokens(n, wide), token_choice.gather_keys(n)]
    found += [token_merging.merge_plan(n, wide), token_merging.mean_merged(n, wide), token_merging.size_op(n, "log_sizes")]
    found += [m for sized in (False, True) for m in (token_merging.merge_tokens(n, wide, sized), token_merging.merge_sizes(n, sized))]
    found += [
        token_moves.rows_to_tiled(n, 4),
        token_moves.tiled_to_rows(n, 4),
        token_vectors.select_token(n),
        token_vectors.mean_tokens(n, 4),
    ]
    return [*found, layer_norm.layer_norm(n, 4), token_table.add_table(n, 4)]


@dataclass
class Drawn:
    """A record of one kernel with tables and units; ``before`` and ``after`` are bytes around each pointer, by field."""

    record: np.ndarray
    group: np.ndarray
    threads: int
    tables: dict[int, np.ndarray]
    before: dict[int, int] = field(default_factory=dict)
    after: dict[int, int] = field(default_factory=dict)


def scanned(source: Source) -> set[str]:
    return {step.table for step in source.touches or () if isinstance(step, Scan)}


def written(source: Source) -> set[str]:
    return {step.pointer for step in source.touches or () if isinstance(step, Touch) and step.writes}


def draw(source: Source, rng: random.Random) -> Drawn:
    """Numbers that may be anything, though small, and tables of which most are in order."""
    record, tables, places = np.zeros((1, RECORD_WIDTH), np.int64), {}, checks.fields(source.params)
    for p in source.params:
        place = places[p.name]
        if p.kind == "i32":
            record[0, place] = rng.choice(NUMBERS) if rng.random() < 0.95 else rng.choice([rng.randrange(-200, 400), 1 << 29, -(1 << 31)])
        elif p.kind == "ptr" and p.name in scanned(source):
            low = 0 if p.dtype == "uint16" or rng.random() < 0.7 else -3
            values = [rng.randrange(low, rng.choice([2, 8, 40])) for _ in range(rng.choice([40, 300, 3000]))]
            ordered = p.name in ("row_start", "runs") and rng.random() < 0.95
            table = np.array(sorted(values) if ordered else values, p.dtype)
            tables[place] = np.concatenate([table, np.zeros(SPARE // table.itemsize, p.dtype)])[: len(table)]
        elif p.kind == "act" and p.name in ("scores", "room", "scratch", "partner", "at") and rng.random() < 0.7:
            record[0, place + 1] = 4 * rng.choice([16, 64, 1024])
        elif p.kind == "act" and rng.random() < 0.1:
            record[0, place + 1 : place + 3] = 4 * rng.choice([64, 1024]), 4 * rng.choice([1, 16, 64])
    group = np.array([[0, 1, rng.choice([0, 1, 1, 2, 3, 5, 9]), rng.choice([0, 0, 1, 2]), 0]], np.int64)
    return Drawn(record, group, rng.choice([1, 1, 2, 3]), tables)


_words = np.zeros(16, np.int64)


def address_of(*words: Any) -> int:
    """Of numbers and of arrays' addresses, until the next call."""
    _words[: len(words)] = [word.ctypes.data if isinstance(word, np.ndarray) else word for word in words]
    return int(_words.ctypes.data)


class Trial:
    """One kernel of a library, offered records."""

    def __init__(self, source: Source, number: int, entries: Any, seed: int) -> None:
        self.source, self.number, self.run, self.check = source, number, entries.run, entries.check
        self.random = random.Random(f"{source.symbol} {seed}")
        self.places, self.writes = checks.fields(source.params), written(source)
        self.pointers = [p for p in source.params if p.kind in ("act", "ptr")]

    def segment(self, p: Param) -> int:
        return WEIGHTS if p.name in scanned(self.source) else OUTPUT if p.name in self.writes else INPUT

    def passes(self, drawn: Drawn, may_scan: bool = True) -> bool:
        places = [[f, self.segment(p), drawn.before[f], drawn.after[f]] for p in self.pointers if (f := self.places[p.name])]
        table, scans = np.array(places, np.int64).reshape(-1, 4), np.zeros((1, 4, 4), np.int64)
        groups = split(drawn.group, drawn.threads)
        return not self.check(address_of(drawn.record, groups, table, scans, 1, 1, len(table), drawn.threads, int(may_scan)))

    def shrunk(self, drawn: Drawn) -> bool:
        """Whether it passes with enough memory; leaves the least with which it does."""
        for p in self.pointers:
            place = self.places[p.name]
            table = drawn.tables.get(place)
            drawn.before[place], drawn.after[place] = (0, table.nbytes) if table is not None else (ENOUGH, ENOUGH)
        if not self.passes(drawn):
            return False
        for p in self.pointers:
            place = self.places[p.name]
            for side in (drawn.before, drawn.after) if place not in drawn.tables else ():
                self._least(drawn, side, place)
        return True

    def _least(self, drawn: Drawn, side: dict[int, int], place: int) -> None:
        low, high = 0, ENOUGH
        while low < high:
            side[place] = (low + high) // 2 // 4 * 4
            low, high = (low, side[place]) if self.passes(drawn) else (side[place] + 4, high)
        side[place] = high

    def trials(self, wanted: int) -> Iterator[Drawn]:
        """Records that pass; ``wanted`` of them touch anything."""
        for _ in range(MOST):
            if not wanted:
                return
            drawn = draw(self.source, self.random)
            drawn.record[0, 0] = self.number
            for place, table in drawn.tables.items():
                drawn.record[0, place] = table.ctypes.data
            if self.shrunk(drawn):
                wanted -= any(drawn.after[place] for place in drawn.after if place not in drawn.tables)
                yield drawn

    def runs(self, drawn: Drawn, at_end: bool) -> None:
        """Run it where memory ends, or begins, where the check says; what is read holds anything."""
        record, kept = drawn.record.copy(), []
        for p in self.pointers:
            place = self.places[p.name]
            before, after = drawn.before[place], drawn.after[place]
            memory = Memory(before + after + (spare := SPARE * (place in drawn.tables)))
            kept.append(memory)
            address = memory.end - after - spare if at_end else memory.first + before
            noise = np.random.default_rng(self.random.randrange(1 << 30)).bytes(before + after)
            ctypes.memmove(address - before, noise, before + after)
            if place in drawn.tables:
                ctypes.memmove(address, drawn.tables[place].ctypes.data, after + spare)
            record[0, place] = address
        groups, moves = split(drawn.group, drawn.threads), np.zeros((1, 2), np.int64)
        self.run(address_of(record, groups, moves, 1, 0, 1, drawn.threads))


def survives(trial: Trial, drawn: Sequence[Drawn]) -> int:
    """How many of ``drawn`` a child runs before it dies, from either side of memory."""
    done, mine = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(300)
        for each in drawn:
            for at_end in (True, False):
                trial.runs(each, at_end)
                os.write(mine, b".")
        os._exit(0)
    os.close(mine)
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) in (signal.SIGSEGV, signal.SIGBUS), f"{trial.source.symbol}: {status}"
    with open(done, "rb") as stream:
        return len(stream.read())


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Source], Any]:
    sources = all_kernels(request.param)
    return sources, load_kernels(library.build(sources, request.param, tmp_path_factory.mktemp("extents")))


@pytest.mark.slow
def test_kernels_touch_what_they_say_and_nothing_else(built: tuple[list[Source], Any]) -> None:
    sources, entries = built
    wanted, wrong = WANTED * (10 if os.environ.get("SPARSEC_SWEEP") else 1), []
    for number, source in enumerate(sources):
        trial = Trial(source, number, entries, wanted)
        drawn = list(trial.trials(wanted))
        assert len(drawn) >= 5, f"{source.symbol}: {len(drawn)} of {MOST} records passed"
        survived = survives(trial, drawn)
        if survived < 2 * len(drawn):
            wrong.append(f"{source.symbol}, {'end' if survived % 2 == 0 else 'start'}: {told(source, drawn[survived // 2])}")
    assert not wrong, "\n".join(wrong)


def told(source: Source, drawn: Drawn) -> str:
    places = checks.fields(source.params)
    fields = {p.name: drawn.record[0, places[p.name] : places[p.name] + (3 if p.kind == "act" else 1)].tolist() for p in source.params}
    return f"{fields}, group {drawn.group[0, 2:4]} on {drawn.threads}, before {drawn.before}, after {drawn.after}"


def test_a_kernel_that_does_not_say_what_it_touches_is_not_called(tmp_path: Any) -> None:
    params = (Param("x", "act"),)
    silent = Source("silent", params, token_vectors.select_token(WIDEST.vector).make)
    assert "return refuse(c, 0);" in checks.source([silent])
    with pytest.raises(KeyError):
        checks.source([replace(silent, touches=(reads("y"),))])
    with pytest.raises(ValueError, match="scans 5 tables"):
        table = Source("s", (Param("t", "ptr", "int32"),), silent.make, (Scan("t", "0", "1"),) * 5)
        checks.source([table])
