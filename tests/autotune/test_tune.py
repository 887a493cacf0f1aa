"""Tuning: misbehaving candidates are contained and recorded, records decide, and nothing is measured twice."""

import io
import json
import logging
import platform
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import sparsec
from sparsec.autotune import tune
from sparsec.autotune.child import Child
from sparsec.autotune.database import FILE
from sparsec.autotune.measure import EFFORTS, Limits, rotated
from sparsec.autotune.progress import shown
from sparsec.autotune.records import Entry, Records
from sparsec.autotune.tasks import shape_key, task_key
from sparsec.backends import backend_for
from sparsec.backends.lowering import draft
from sparsec.backends.x86.backend import X86
from sparsec.settings import Settings
from tests.autotune.fakes import Misbehaving, Pair, Variety, record, region_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(tmp_path):
    return Settings(threads=1, cache_dir=tmp_path)


@pytest.fixture
def region(settings):
    torch.manual_seed(0)
    return region_of(Pair(), torch.randn(1, 16, 9, 9), settings)


@pytest.fixture
def no_process(monkeypatch):
    def refuse(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr("sparsec.autotune.measure.Child", refuse)


def choose(region, backend, *asked):
    return tune.choose(draft(region, backend).tasks, backend, *asked)


@pytest.mark.slow
def test_misbehaving_candidates_are_contained_and_recorded(region, settings):
    backend, limits = Misbehaving(), Limits(load=120, prepare=8, time=8)
    (task,) = draft(region, backend).tasks
    schedules = backend.schedules(task)
    chosen = choose(region, backend, Settings(tune="full", threads=1, cache_dir=settings.cache_dir), limits)
    with Records(settings.cache_dir) as database:
        records = sorted(database.all(), key=lambda r: r.rank)
    assert [r.schedule for r in records] == schedules and {(r.task, r.run) for r in records} == {(task_key(task), records[0].run)}
    reasons = {dict(r.schedule)["kernel"]: (r.status, r.reason, r.samples_ns) for r in records[1:5]}
    assert reasons["crash"] == ("failed", "crashed (signal 11)", ())
    assert reasons["hang"] == ("failed", "timed out after 8 s", ())
    assert reasons["raise"] == ("failed", "KeyError: 'no such kernel'", ())
    assert reasons["wrong"][0] == "failed" and reasons["wrong"][1].startswith("wrong result: max error 1.0e-03")
    good = [records[0], records[5]]
    assert all(r.status == "ok" and len(r.samples_ns) == 81 and r.error is not None and r.error < 1e-5 for r in good)
    assert chosen.schedules[task.node] in [r.schedule for r in good]
    assert chosen.times[task.node] == {json.dumps(r.schedule): r.median_ns / 1e3 for r in good}


def entries(*medians, **changes):
    common = {"task": "t", "run": "r", "status": "ok", "emulated": False, "imported": False, "time": 1.0}
    return [Entry(**{**common, "rank": i, "schedule": f"[{i}]", "median_ns": m, **changes}) for i, m in enumerate(medians)]


def test_the_default_wins_ties():
    assert tune.best(entries(100.0, 97.0, 95.0)).rank == 2
    assert tune.best(entries(100.0, 98.5, 99.0)).rank == 0
    assert tune.best(entries(100.0, 100.0, 300.0)).rank == 0
    assert tune.best(entries(None, None, status="failed")) is None
    failed_default = [*entries(None, status="failed"), *entries(1.0, 50.0)[1:]]
    assert tune.best(failed_default).rank == 1


def test_times_of_different_runs_are_not_compared():
    old, late = entries(100.0, 10.0), entries(80.0, 60.0, run="s", time=2.0)
    assert tune.latest_runs([*late, *old]) == {"t": late}


def test_emulated_records_never_win():
    real, emulated = entries(100.0, 50.0), entries(1.0, 2.0, run="e", time=9.0, emulated=True)
    assert tune.latest_runs([*emulated, *real]) == {"t": real}
    assert tune.latest_runs(emulated) == {}


def stored(region, settings, **changes):
    """Records that make the last candidate of the region's only task the fastest."""
    (task,) = draft(region, X86()).tasks
    schedules = X86().schedules(task)
    keys = {"task": task_key(task), "shape": shape_key(task)}
    last = len(schedules) - 1
    with Records(settings.cache_dir) as records:
        records.add(
            record(settings, schedule=s, rank=i, samples_ns=(10 if i == last else 1000,), **keys, **changes)
            for i, s in enumerate(schedules)
        )
    return task.node, schedules[-1]


def test_records_decide_without_measuring(region, settings, no_process):
    node, fastest = stored(region, settings)
    for level in ("off", "quick", "full"):
        asked = Settings(tune=level, threads=1, cache_dir=settings.cache_dir)
        assert choose(region, X86(), asked).schedules == {node: fastest}


@pytest.mark.parametrize("change", [{"library": "older sources"}, {"machine": "another"}, {"emulated": True}, {"threads": 2}])
def test_records_that_do_not_count_decide_nothing(region, settings, no_process, change):
    stored(region, settings, **change)
    assert choose(region, X86(), settings).schedules == {}
    assert choose(region, X86(), settings).times == {}


@pytest.mark.skipif(platform.machine() == "aarch64", reason="this is an ARM machine")
@pytest.mark.parametrize("emulated", [False, True])
def test_records_of_boards_decide_for_a_machine_that_is_not_here(region, settings, no_process, emulated):
    backend = backend_for("arm", "cortex-a72")
    place, (task,) = tune.place_of(backend, settings), draft(region, backend).tasks
    assert place.machine == backend.machine.key() and place.threads == 1
    where = {"machine": place.machine, "library": place.library, "board": "10.0.0.2:9090", "cpu": "cortex-a72", "emulated": emulated}
    schedules = backend.schedules(task)
    with Records(settings.cache_dir) as records:
        for rank, schedule in enumerate(schedules):
            keys = {"task": task_key(task), "shape": shape_key(task), "rank": rank, "schedule": schedule}
            records.add([record(settings, **where, **keys, samples_ns=(10 if schedule == schedules[-1] else 1000,))])
    assert len(schedules) > 1 and choose(region, backend, settings).schedules == ({} if emulated else {task.node: schedules[-1]})
    assert choose(region, backend_for("arm", "cortex-a76"), settings).schedules == {}


def test_an_imported_schedule_that_the_backend_does_not_have_is_not_used(region, settings, no_process):
    (task,) = draft(region, X86()).tasks
    made = {"task": task_key(task), "shape": shape_key(task), "schedule": (("kernel", "spmm"), ("vectors", 99))}
    with Records(settings.cache_dir) as records:
        records.add([record(settings, imported=True, **made)])
    assert choose(region, X86(), settings).schedules == {}


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no locks here")], ids=["system", "platform"])
def test_a_cache_that_cannot_be_locked_is_said(tmp_path, monkeypatch, caplog, error):
    """On network file systems, and where a lock is asked of a system without any."""

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("filelock.BaseFileLock.acquire", refuse)
    with caplog.at_level(logging.WARNING, "sparsec"), tune._turn(tmp_path):
        pass
    assert [f"{tmp_path} cannot be locked" in line for line in caplog.messages] == [True]


def test_off_does_nothing_without_a_database(region, tmp_path, monkeypatch, no_process):
    monkeypatch.setattr(tune, "shape_key", lambda *_: pytest.fail("tasks were looked at"))
    for folder in (tmp_path / "missing", tmp_path / "file" / "inside"):
        (tmp_path / "file").touch()
        assert choose(region, X86(), Settings(threads=1, cache_dir=folder)).schedules == {}
        assert not folder.exists()


def test_off_survives_a_damaged_database(region, settings, caplog):
    (settings.cache_dir / FILE).write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.WARNING, "sparsec"):
        assert choose(region, X86(), settings).schedules == {}
        assert choose(region, X86(), settings).schedules == {}
    assert caplog.text.count("set aside") == 1


def test_a_child_that_cannot_start_leaves_the_defaults(region, settings, monkeypatch, caplog):
    monkeypatch.setattr("sparsec.autotune.child.sys.executable", "/bin/false")
    quick = Settings(tune="quick", threads=1, cache_dir=settings.cache_dir)
    with caplog.at_level(logging.WARNING, "sparsec"):
        assert choose(region, X86(), quick).schedules == {}
    assert "could not be measured (crashed (exit status 1))" in caplog.text


@pytest.mark.slow
def test_compiled_with_tuning_means_the_same_and_is_measured_once(tmp_path, monkeypatch):
    torch.manual_seed(1)
    model, x = Variety().eval(), torch.randn(2, 3, 17, 17)
    started = []
    monkeypatch.setattr("sparsec.autotune.measure.Child", lambda threads: started.append(threads) or Child(threads))
    with torch.no_grad():
        wanted = model(x)
    results = [sparsec.compile(model, (x,), tune=level, threads=1, cache_dir=tmp_path)(x) for level in ("quick", "quick", "off")]
    assert started == [1]
    for result in results:
        np.testing.assert_allclose(result.detach().numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])
    with Records(tmp_path) as records:
        found = list(records.all())
    assert found and {r.status for r in found} == {"ok"} and max(r.error for r in found) < 1e-5
    tasks = [r.task for r in found if r.rank == 0]
    assert len(tasks) == len(set(tasks))
    assert any(r.rival is not None and r.rival_median_ns > 0 for r in found)


def test_everybody_follows_everybody():
    assert [rotated(3, turn) for turn in range(3)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]


def test_quick_measures_the_first_candidates_and_a_dense_rival():
    sparse = [(("kernel", "spmm"), ("parts", parts)) for parts in (1, 2, 3, 4)]
    dense = (("kernel", "block"), ("rows", 4))
    assert EFFORTS["quick"].ranks([*sparse, dense, dense]) == [0, 1, 2, 4]
    assert EFFORTS["quick"].ranks([sparse[0], dense, *sparse]) == [0, 1, 2]
    assert EFFORTS["quick"].ranks(sparse[:2]) == [0, 1]
    assert EFFORTS["full"].ranks([*sparse, dense]) == [0, 1, 2, 3, 4]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_progress_shows_on_a_terminal_once_work_takes_long(monkeypatch, patience):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sparsec.autotune.progress._PATIENCE_S", patience)
    assert list(shown(iter("abc"), 3, "tuning")) == ["a", "b", "c"]
    assert ("tuning" in terminal.getvalue()) == (patience == 0)


def test_no_progress_in_files_and_pipes(capsys, monkeypatch):
    monkeypatch.setattr("sparsec.autotune.progress._PATIENCE_S", 0.0)
    assert list(shown(iter("abc"), 3, "tuning")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_two_that_tune_one_network_at_once_measure_it_once(monkeypatch, tmp_path):
    """One measures at a time, and takes what the other has measured before."""
    torch.manual_seed(0)
    settings = Settings(threads=1, cache_dir=tmp_path, tune="quick")
    region, backend = region_of(Variety(), torch.randn(1, 3, 12, 12), settings), X86()
    measured, inside = [], []

    def measure(self, task, candidates, backend):
        assert not inside
        inside.append(task.node)
        time.sleep(0.05)
        measured.append(task_key(task))
        named = {"task": task_key(task), "shape": shape_key(task)}
        made = [record(settings, **named, rank=rank, schedule=schedule) for rank, schedule in candidates.items()]
        inside.pop()
        return made

    monkeypatch.setattr("sparsec.autotune.measure.Measuring.measure", measure)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: choose(region, backend, settings), range(2))
    assert first == second and len(measured) == len(set(measured)) > 2
