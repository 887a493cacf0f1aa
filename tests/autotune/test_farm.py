"""Boards on the loopback: one dies in the middle, one lies, one is emulated; all is measured once, on who is honest."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count

import pytest
import torch

from sparsec.autotune import farm, tune
from sparsec.autotune.board_measuring import UNKNOWN, BoardMeasuring, Died, Site
from sparsec.autotune.child import Failed
from sparsec.autotune.expected import TOLERANCE
from sparsec.autotune.farm import Farm
from sparsec.autotune.measure import EFFORTS, Limits
from sparsec.autotune.records import Records
from sparsec.autotune.serving import serving as tracking
from sparsec.autotune.tasks import task_key
from sparsec.autotune.tracker import Tracker
from sparsec.backends import backend_for
from sparsec.backends.lowering import draft
from sparsec.backends.x86.backend import X86
from sparsec.errors import MachineError
from sparsec.settings import Settings
from tests.autotune import boards
from tests.autotune.fakes import Pair, Variety, region_of


@pytest.fixture(scope="module")
def tracker():
    pytest.importorskip("tornado")
    (port,) = boards.free_ports(1)
    with tracking("127.0.0.1", port):
        yield Tracker(f"127.0.0.1:{port}")


def work_of(backend, model, x, settings):
    """All candidates of all tasks that have a choice, by key."""
    tasks = [t for t in draft(region_of(model, x, settings), backend).tasks if t.weights and len(backend.schedules(t)) > 1]
    return {task_key(t): (t, dict(enumerate(backend.schedules(t)))) for t in tasks}


def all_of(work):
    """Each candidate once."""
    return sorted((key, rank) for key, (_, ranks) in work.items() for rank in ranks)


@contextmanager
def measured_beside(tracker, tmp_path):
    """Meanwhile another farm of the same tracker measures for ARM, on an emulated board, if there is one; yields its work and records."""
    if not boards.has_arm():
        yield {}, []
        return
    backend, settings, kept = backend_for("arm", "cortex-a72"), Settings(target="arm", cpu="cortex-a72", threads=1, cache_dir=tmp_path), []
    work = work_of(backend, Pair(), torch.randn(1, 16, 9, 9), settings)
    session = partial(BoardMeasuring, tune.place_of(backend, settings), EFFORTS["quick"], tmp_path, Limits(), tune.tools(), UNKNOWN)
    (port,) = boards.free_ports(1)
    with boards.serving(tracker, "beside", port, python=boards.emulated("cortex-a72")), ThreadPoolExecutor(1) as pool:
        done = pool.submit(Farm(Site(tracker, "beside"), backend, session).measure, work, tmp_path, kept.extend)
        yield work, kept
        done.result()


@pytest.mark.slow
def test_one_dies_and_one_lies(tracker, tmp_path, caplog, monkeypatch):
    torch.manual_seed(0)
    backend, settings = X86(), Settings(threads=1, cache_dir=tmp_path)
    work, kept, begin = work_of(backend, Variety(), torch.randn(1, 3, 17, 17), settings), [], time.monotonic()
    ports = dict(zip(("honest", "mortal", "liar"), boards.free_ports(3), strict=True))
    all_here, names = threading.Barrier(3), {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    with measured_beside(tracker, tmp_path) as (work_for_arm, kept_of_arm), ExitStack() as stack:
        lying = {"liar": boards.bad_library(tmp_path, boards.LIES)}
        servers = {
            name: stack.enter_context(boards.serving(tracker, "x86", port, *filter(None, [lying.get(name)])))
            for name, port in ports.items()
        }

        class Session(BoardMeasuring):
            def connect(self, *arguments):
                again, board = bool(self._on.board), super().connect(*arguments)
                if not again:
                    all_here.wait(100)
                return board

            def _take(self, outcome, number):
                if self._on.board == names["mortal"]:
                    boards.kill(servers["mortal"])
                super()._take(outcome, number)

        place = tune.place_of(backend, settings)
        session = partial(Session, place, EFFORTS["quick"], tmp_path, Limits(), tune.tools(), UNKNOWN)
        monkeypatch.setattr(farm, "_RETURN_S", 3.0)
        it = Farm(Site(tracker, "x86", tune.processor()), backend, session)
        it.measure(work, tmp_path, kept.extend)
    assert time.monotonic() - begin < 240
    assert sorted((r.task, r.rank) for r in kept) == all_of(work)
    assert sorted((r.task, r.rank) for r in kept_of_arm) == all_of(work_for_arm) and all(r.emulated for r in kept_of_arm)
    assert {(r.status, r.board, r.cpu, r.emulated) for r in kept} == {("ok", names["honest"], tune.processor(), False)}
    assert all(len(r.samples_ns) == 25 and r.error < 1e-5 for r in kept)
    dropped = it._scheduler.dropped
    assert dropped.keys() == {names["mortal"], names["liar"]}
    assert "right on" in dropped[names["liar"]] and "the session failed" in dropped[names["mortal"]]
    assert caplog.text.count("was dropped") == 2


@pytest.mark.slow
def test_a_candidate_that_crashes_on_the_board_leaves_the_server(tracker, tmp_path):
    torch.manual_seed(0)
    backend, settings, kept = X86(), Settings(threads=1, cache_dir=tmp_path), []
    work = work_of(backend, Pair(), torch.randn(1, 16, 9, 9), settings)
    session = partial(BoardMeasuring, tune.place_of(backend, settings), EFFORTS["quick"], tmp_path, Limits(), tune.tools(), UNKNOWN)
    (port,) = boards.free_ports(1)
    with boards.serving(tracker, "crashing", port, boards.bad_library(tmp_path, boards.CRASHES)) as server:
        it = Farm(Site(tracker, "crashing"), backend, session)
        it.measure({key: (task, {rank: ranks[rank] for rank in (0, 1)}) for key, (task, ranks) in work.items()}, tmp_path, kept.extend)
        assert server.poll() is None and tracker.boards("crashing") == 1 and not it._scheduler.dropped
    assert [(r.rank, r.status, r.samples_ns) for r in kept] == [(0, "failed", ()), (1, "failed", ())]
    assert all(r.reason.startswith("the session failed: ") for r in kept)


@boards.needs_arm
@pytest.mark.slow
def test_an_emulated_board_measures_and_never_wins(tracker, tmp_path):
    torch.manual_seed(0)
    (port,) = boards.free_ports(1)
    options = {"target": "arm", "threads": 1, "cache_dir": tmp_path, "tracker": tracker.address, "tracker_key": "arm"}
    settings = Settings(cpu="cortex-a72", tune="quick", **options)
    backend = backend_for(settings.target, settings.cpu)
    tasks = draft(region_of(Pair(), torch.randn(1, 16, 9, 9), settings), backend).tasks
    with boards.serving(tracker, "arm", port, python=boards.emulated("cortex-a72")):
        chosen = tune.choose(tasks, backend, settings)
        with pytest.raises(MachineError, match=r"(?s)No board of key 'arm' can be had.*lacks dotprod.*which neoverse-n1 has"):
            tune.choose(tasks, backend_for("arm", "neoverse-n1"), Settings(cpu="neoverse-n1", tune="quick", **options))
    assert not chosen.schedules
    with Records(tmp_path) as records:
        found = list(records.all())
    (task,) = [t for t in tasks if t.weights]
    assert [r.rank for r in found] == EFFORTS["quick"].ranks(backend.schedules(task))
    assert {(r.status, r.board, r.emulated, r.machine) for r in found} == {("ok", f"127.0.0.1:{port}", True, backend.machine.key())}
    assert all(r.cpu.startswith("emulated on ") for r in found)


@boards.needs_arm
@pytest.mark.slow
def test_half_precision_is_measured_in_half_precision(tracker, tmp_path):
    """All candidates of maps and vectors: each is near the reference, and farther from it than float32 would be."""
    torch.manual_seed(0)
    options = {"target": "arm", "cpu": "cortex-a76", "threads": 1, "cache_dir": tmp_path}
    settings = Settings(tune="quick", tracker=tracker.address, tracker_key="half", **options)
    backend, x = backend_for("arm", "cortex-a76"), torch.randn(1, 3, 17, 17)
    tasks = draft(region_of(Variety().half(), x.half(), settings, backend), backend).tasks
    (port,) = boards.free_ports(1)
    with boards.serving(tracker, "half", port, python=boards.emulated("cortex-a76")):
        tune.choose(tasks, backend, settings)
    with Records(tmp_path) as records:
        found = list(records.all())
    asked = {task_key(t): EFFORTS["quick"].ranks(backend.schedules(t)) for t in tasks if len(backend.schedules(t)) > 1}
    assert sorted((r.task, r.rank) for r in found) == sorted((key, rank) for key, ranks in asked.items() for rank in ranks)
    assert {r.status for r in found} == {"ok"} and all(1e-5 < r.error <= TOLERANCE["float16"] for r in found)


class Absent:
    """A tracker with boards that are made up."""

    address = "nowhere:1"

    def __init__(self, boards):
        self._boards = boards

    def boards(self, key):
        return self._boards


class Session:
    """What measures on a made-up board ``b0``, ``b1``, ...: ``behave(board, unit)`` answers or raises."""

    numbers = count()

    def __init__(self, behave, connect=lambda board: board):
        self._behave, self._connect, self._board = behave, connect, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def connect(self, *_):
        self._board = self._board or f"b{next(self.numbers)}"
        return self._connect(self._board)

    def measure_all(self, task, candidates, backend, left_out):
        return self._behave(self._board, task.node, left_out)


@pytest.fixture
def units():
    torch.manual_seed(0)
    return {f"u{i}": (type("Task", (), {"node": f"u{i}"}), {0: (), 1: ()}) for i in range(20)}


def run(units, tmp_path, behave, boards=4, **connect):
    kept, Session.numbers = [], count()
    it = Farm(Site(Absent(boards), "k", patience_s=0), X86(), lambda: Session(behave, **connect))
    return it, kept, partial(it.measure, units, tmp_path, kept.append)


def test_all_boards_measure_at_once(units, tmp_path):
    together = threading.Barrier(4)
    used = set()

    def behave(board, unit, _):
        if board not in used:
            used.add(board)
            together.wait(30)
        return [unit], frozenset()

    _, kept, measure = run(units, tmp_path, behave)
    measure()
    assert sorted(kept) == sorted([unit] for unit in units) and len(used) == 4


def test_a_board_whose_server_is_back_goes_on_without_the_candidate(units, tmp_path):
    def behave(board, unit, left_out):
        if unit == "u3" and not left_out:
            raise Died("crashed", 1)
        return [unit, *left_out], frozenset()

    it, kept, measure = run(units, tmp_path, behave, boards=1)
    measure()
    assert ["u3", 1] in kept and len(kept) == 20 and not it._scheduler.dropped


def test_no_board_is_left(units, tmp_path, caplog):
    def behave(board, unit, _):
        if unit in ("u5", "u6", "u7"):
            raise Died(f"died of {unit}")
        if unit == "u2":
            raise Failed("no such spec")
        return [unit], frozenset()

    _, kept, measure = run(units, tmp_path, behave, boards=2)
    with pytest.raises(MachineError, match=r"No board of key 'k' is left to measure on.*\n.*nowhere:1\n.*died of u5") as failed:
        measure()
    assert "b0" in failed.value.why and "b1" in failed.value.why
    assert {tuple(unit) for unit in kept} <= {(unit,) for unit in units} and ["u0"] in kept and ["u5"] not in kept
    assert "u2 keeps its default schedule: it could not be measured (no such spec)." in caplog.text


def test_boards_of_another_processor_are_not_used(units, tmp_path):
    def connect(board):
        raise Failed(f"The board {board} has another processor. It is a, not b.")

    _, kept, measure = run(units, tmp_path, lambda *_: pytest.fail("it measured"), boards=1, connect=connect)
    with pytest.raises(MachineError, match=r"No board of key 'k' can be had.*\n.*\n.*b0 has another processor. It is a, not b\."):
        measure()
    assert not kept


def test_an_error_of_ours_loses_the_board_and_hangs_nobody(units, tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def behave(board, unit, _):
        raise ZeroDivisionError

    _, kept, measure = run(units, tmp_path, behave, boards=2)
    with pytest.raises(MachineError, match="Its session ended"):
        measure()
    assert not kept
