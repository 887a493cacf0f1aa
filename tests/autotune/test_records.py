"""The database of records: what goes in comes out, damage and foreign files do no harm."""

import json
import logging
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sparsec.autotune import records as records_of_tuning
from sparsec.autotune.database import FILE
from sparsec.autotune.record import Record
from sparsec.autotune.records import Place, Records, look_up
from sparsec.autotune.tune import place_of
from sparsec.backends.x86.backend import X86
from sparsec.errors import TuningError
from sparsec.settings import Settings
from tests.autotune.fakes import record


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(threads=1, cache_dir=tmp_path / "cache")


@pytest.fixture
def place(settings) -> Place:
    return place_of(X86(), settings)


FAILED = {"status": "failed", "reason": "crashed (signal 11)", "samples_ns": (), "error": None, "rival": None, "rival_median_ns": None}


def test_what_goes_in_comes_out(settings, place):
    kept = [record(settings), record(settings, rank=1, time=2.0, **FAILED)]
    with Records(settings.cache_dir) as records:
        assert records.add(kept) == 2
        assert records.add(kept) == 0
    with Records(settings.cache_dir) as records:
        assert list(records.all()) == kept
        good, bad = sorted(records.entries(place, ["shape-pattern"]), key=lambda e: e.rank)
        assert (good.median_ns, good.schedule, bad.status, bad.median_ns) == (1100, json.dumps(kept[0].schedule), "failed", None)


@pytest.mark.parametrize("change", [{"library": "older sources"}, {"machine": "another"}, {"threads": 2}])
def test_records_of_other_sources_machines_and_threads_do_not_count(settings, place, change):
    with Records(settings.cache_dir) as records:
        records.add([record(settings, **change)])
        assert records.entries(place, ["shape-pattern"]) == []
    assert look_up(settings.cache_dir, place, list) == []


def test_many_tasks_in_one_look_up(settings, place):
    names = [f"shape-{i}" for i in range(1300)]
    with Records(settings.cache_dir) as records:
        records.add(record(settings, task=name) for name in names)
    assert {e.task for e in look_up(settings.cache_dir, place, lambda shapes: names)} == set(names)


def test_json_lines_there_and_back(settings, place, tmp_path):
    kept = [record(settings), record(settings, rank=1, time=2.0, **FAILED)]
    with Records(settings.cache_dir) as records:
        records.add(kept)
        assert records.export(tmp_path / "records.jsonl") == 2
    with Records(tmp_path / "elsewhere") as records:
        result = records.load(tmp_path / "records.jsonl")
        assert (result.added, result.known, result.rejected) == (2, 0, ())
        assert [(r.schedule, r.samples_ns, r.imported) for r in records.all()] == [(r.schedule, r.samples_ns, True) for r in kept]
        assert records.load(tmp_path / "records.jsonl").known == 2


BAD_LINES = {
    "not json": "{",
    "a list": "[]",
    "missing field": {"run": None},
    "unknown field": {"more": 1},
    "text for a number": {"threads": "one"},
    "true for a number": {"rank": True},
    "negative time": {"samples_ns": [-5]},
    "samples that are text": {"samples_ns": ["5"]},
    "a schedule of numbers": {"schedule": [1, 2]},
    "a schedule with a list": {"schedule": [["kernel", ["spmm"]]]},
    "a spec that is none": {"spec": "[]"},
    "a key of another spec": {"spec_key": "0" * 20},
    "a task of another shape": {"shape": "other"},
    "ok without samples": {"samples_ns": []},
    "an unknown status": {"status": "fine"},
    "a time that is not finite": {"time": 1e999},
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_lines_that_are_no_records_are_counted_with_reasons(settings, tmp_path, name):
    good, change = json.loads(record(settings).to_json()), BAD_LINES[name]
    if isinstance(change, dict):
        changed = {**good, **change}
        line = json.dumps({k: v for k, v in changed.items() if not (name == "missing field" and k in change)})
    else:
        line = change
    (tmp_path / "lines").write_text(f"{json.dumps(good)}\n\n{line}\n")
    with Records(settings.cache_dir) as records:
        result = records.load(tmp_path / "lines")
    assert result.added == 1
    ((number, reason),) = result.rejected
    assert number == 3 and reason


def test_files_that_cannot_be_read_or_written(settings, tmp_path):
    with Records(settings.cache_dir) as records:
        with pytest.raises(TuningError, match="imported"):
            records.load(tmp_path / "missing")
        with pytest.raises(TuningError, match="exported"):
            records.export(tmp_path / "no folder" / "lines")


def damage_header(path):
    path.write_bytes(b"this was never a database" * 100)


def damage_pages(path):
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


def drop_table(path):
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE records")
    connection.close()


def future(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize("harm", [damage_header, damage_pages, drop_table, future])
def test_a_database_that_cannot_be_used_is_set_aside(settings, caplog, harm):
    with Records(settings.cache_dir) as records:
        records.add(record(settings, task=f"shape-{i}") for i in range(200))
    harm(settings.cache_dir / FILE)
    with caplog.at_level(logging.WARNING, "sparsec"), Records(settings.cache_dir) as records:
        records.add([record(settings)])
        assert len(list(records.all())) == 1
    assert "set aside" in caplog.text
    assert len([p for p in settings.cache_dir.glob(f"{FILE}.corrupt-*") if not p.name.endswith(("-wal", "-shm"))]) == 1


@pytest.mark.parametrize("harm", [damage_header, damage_pages, drop_table, future])
def test_looking_up_in_a_damaged_database_finds_nothing(settings, place, harm):
    with Records(settings.cache_dir) as records:
        records.add(record(settings, task=f"shape-{i}") for i in range(200))
    harm(settings.cache_dir / FILE)
    assert look_up(settings.cache_dir, place, lambda shapes: ["shape-1"]) == []


def test_looking_up_creates_nothing(settings, place):
    assert look_up(settings.cache_dir, place, list) == []
    assert not settings.cache_dir.exists()


@pytest.mark.parametrize("taken", ["a file", "a system's"])
def test_an_unwritable_directory_keeps_records_in_memory(settings, place, taken, caplog, monkeypatch):
    if taken == "a file":
        settings.cache_dir.write_text("not a directory")
    else:  # rights say that root may write here
        settings = replace(settings, cache_dir=Path("/proc"))
    monkeypatch.setattr(records_of_tuning, "_MEMORY", {})
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "sparsec"), Records(settings.cache_dir) as records:
            records.add([record(settings)])
            assert len(list(records.all())) == 1 and not records.persistent
    assert caplog.text.count("in memory only") == 1
    assert len(look_up(settings.cache_dir, place, lambda shapes: ["shape-pattern"])) == 1


WRITER = """
import sys, time
from pathlib import Path
from sparsec.autotune.records import Records
from sparsec.settings import Settings
from tests.autotune.fakes import record
folder, name = Path(sys.argv[1]), sys.argv[2]
(folder / name).touch()
deadline = time.monotonic() + 60
while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
for i in range(60):
    with Records(folder / "cache") as records:
        records.add([record(Settings(threads=1), run=name, rank=i)])
"""


@pytest.mark.slow
def test_two_processes_write_at_once(tmp_path):
    """Both open a database that does not exist yet, at the same time, sixty times over."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in ("a", "b")]
    for writer in writers:
        assert writer.communicate(timeout=120)[1] == "" and writer.returncode == 0
    with Records(tmp_path / "cache") as records:
        found = list(records.all())
    assert {(r.run, r.rank) for r in found} == {(name, i) for name in "ab" for i in range(60)}


def test_a_record_is_one_line(settings):
    kept = record(settings, reason="two\nlines")
    assert "\n" not in kept.to_json()
    assert Record.from_json(kept.to_json()) == kept


def test_records_of_before_name_no_board(settings):
    kept = json.loads(record(settings, board="10.0.0.2:9090", cpu="cortex-a72").to_json())
    assert (Record.from_json(json.dumps(kept)).board, Record.from_json(json.dumps(kept)).cpu) == ("10.0.0.2:9090", "cortex-a72")
    del kept["board"], kept["cpu"]
    assert (Record.from_json(json.dumps(kept)).board, Record.from_json(json.dumps(kept)).cpu) == ("", "")
