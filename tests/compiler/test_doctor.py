"""The doctor: sound machines pass, each kind of trouble is named with a remedy."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sparsec.errors import MachineError
from sparsec.report import doctor
from sparsec.report.doctor import Check, examine
from sparsec.settings import Settings


def found(settings: Settings, name: str) -> Check:
    """The one check of this name."""
    (check,) = (check for check in examine(settings) if check.name == name)
    return check


@pytest.fixture
def at(tmp_path: Path) -> Settings:
    """Settings with a cache directory of their own."""
    return Settings(cache_dir=tmp_path / "cache", threads=1)


def test_a_sound_machine(at: Settings) -> None:
    checks = examine(at)
    assert [str(check) for check in checks if not check.ok] == []
    assert {"processor", "cores", "python", "numpy", "torch", "apache-tvm", "cache directory", "tuned records"} <= {
        check.name for check in checks
    }


def test_cache_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    check = found(Settings(cache_dir=tmp_path / "file" / "cache", threads=1), "cache directory")
    assert not check.ok
    assert "SPARSEC_CACHE_DIR" in str(check)


def test_corrupt_records(at: Settings) -> None:
    at.cache_dir.mkdir()
    (at.cache_dir / "records.db").write_bytes(b"garbage" * 1000)
    check = found(at, "tuned records")
    assert not check.ok
    assert "records.db" in check.hint


def test_healthy_records_are_counted(at: Settings) -> None:
    at.cache_dir.mkdir()
    with closing(sqlite3.connect(at.cache_dir / "records.db")) as connection:
        connection.executescript("CREATE TABLE records (key TEXT); INSERT INTO records VALUES ('a'), ('b');")
    check = found(at, "tuned records")
    assert check.ok
    assert "2 records" in check.detail


def test_packages_that_are_missing_or_untested(at: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", {"numpy": "1.26", "torch": "2.13.0"}.get)
    assert "tested with 2." in found(at, "numpy").detail
    assert not found(at, "safetensors").ok
    assert not found(at, "apache-tvm").ok
    assert found(at, "torch").ok


def test_a_machine_that_only_runs_artifacts_is_sound(at: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", {"numpy": "2.1", "safetensors": "0.5"}.get)
    assert found(at, "compiler").ok
    assert "compiling does not" in found(at, "compiler").detail


def test_processor_without_avx2(at: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cpu: str | None) -> None:
        raise MachineError("No AVX2 here.", hint="Run on another machine.")

    monkeypatch.setattr("sparsec.backends.x86.machine.machine", refuse)
    check = found(at, "processor")
    assert not check.ok
    assert check.hint == "Run on another machine."


def test_more_threads_than_cores(tmp_path: Path) -> None:
    assert not found(Settings(cache_dir=tmp_path, threads=4096), "cores").ok


@pytest.mark.parametrize(
    ("there", "variables", "linker", "inductors"),
    [
        ((), {}, False, False),
        (("gcc",), {}, True, False),
        (("clang++",), {}, True, False),
        (("clang++",), {"CXX": "clang++"}, True, True),
        (("g++",), {}, True, True),
        (("g++",), {"CC": "nonesuch"}, False, True),
        (("g++",), {"CXX": "nonesuch"}, False, False),
    ],
)
def test_compilers_are_those_that_would_be_called(
    at: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple, variables: dict, linker: bool, inductors: bool
) -> None:
    """TVM calls CXX, else CC, else what it finds; Inductor calls CXX, else g++."""
    for name in there:
        (tmp_path / name).touch(0o755)
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**variables, "PATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert (found(at, "linker").ok, found(at, "C++ compiler").ok) == (linker, inductors)
    assert linker or ("every new kernel library" in str(found(at, "linker")) and "CXX" in found(at, "linker").hint)
