"""What this machine offers and what is wrong with it: one line per check, and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sparsec.errors import SparsecError
from sparsec.settings import Settings

#: What running an artifact needs, what compiling needs, and what makes comparisons possible: package -> version prefix that is tested.
RUNNING = {"numpy": "2.", "safetensors": ""}
COMPILING = {"torch": "2.13.", "apache-tvm": "0.27.", "networkx": "3.", "filelock": ""}
COMPARING = {"onnx": "", "onnxruntime": "", "openvino": "", "scikit-learn": ""}
_DATABASES = ("*.db", "*.sqlite", "*.sqlite3")


@dataclass(frozen=True)
class Check:
    """One finding. ``hint`` says what to do where it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    hint: str = ""

    def __str__(self) -> str:
        line = f"{'ok     ' if self.ok else 'problem'}  {self.name}: {self.detail}"
        return line if self.ok or not self.hint else f"{line}\n         do: {self.hint}"


def examine(settings: Settings | None = None) -> list[Check]:
    """All checks in order; never raises for what it finds."""
    settings = settings or Settings()
    return [
        _processor(),
        _cores(settings),
        Check("python", True, f"{platform.python_version()} on {platform.platform()}"),
        *_packages(),
        *_compilers(),
        _guarded("cache directory", lambda: _cache(settings.cache_dir)),
        *_records(settings.cache_dir),
    ]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (OSError, ImportError, SparsecError) as error:
        return Check(name, False, str(error).replace("\n", ";"), getattr(error, "hint", ""))


def _processor() -> Check:
    from sparsec.backends import machine_for

    def found() -> Check:
        here = machine_for()
        sizes = " · ".join(f"{name} {size >> 10} KiB" for name, size in (("L1", here.l1), ("L2", here.l2), ("L3", here.l3)))
        return Check("processor", True, f"{_model()}: {here.arch}, {here.vector.name}, {here.vector.lanes} lanes, {sizes}")

    return _guarded("processor", found)


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown model"
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "unknown model")


def _cores(settings: Settings) -> Check:
    allowed, total = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    detail = f"{allowed} of {total} may be used; programs run on {settings.thread_count} unless told otherwise"
    enough = settings.thread_count <= allowed
    return Check("cores", enough, detail, "Use no more threads than cores: waiting threads slow each other down.")


def _packages() -> Iterator[Check]:
    yield from (_package(name, tested, "running an artifact") for name, tested in RUNNING.items())
    if any(map(_version, ("torch", "apache-tvm"))):
        yield from (_package(name, tested, "compiling") for name, tested in COMPILING.items())
    else:
        yield Check("compiler", True, "torch and apache-tvm are not installed: artifacts run here, compiling does not")
    rivals = [f"{package} {found}" for package in COMPARING if (found := _version(package))]
    yield Check("rivals", True, ", ".join(rivals) or "none installed")


def _compilers() -> Iterator[Check]:
    """What compiling calls, as TVM and Inductor look for it; running artifacts takes neither."""
    needed, chosen = _version("torch") is not None, os.environ.get("CXX")
    usual = ("g++", "gcc", "clang++", "clang", "c++", "cc")
    linkers = (chosen,) if chosen else (os.environ["CC"],) if os.environ.get("CC") else usual
    for name, tried, purpose in (
        ("linker", linkers, "every new kernel library is linked by a C or C++ compiler"),
        ("C++ compiler", (chosen or "g++",), "Inductor compiles with it what no kernel covers"),
    ):
        found = next(filter(None, map(shutil.which, tried)), None)
        missing = f"none found; {purpose}" + ("" if needed else "; nothing is compiled here")
        yield Check(name, found is not None or not needed, found or missing, "Install g++, or name a compiler in CXX.")


def _package(name: str, tested: str, purpose: str) -> Check:
    hint = f"pip install '{name}=={tested}*'" if tested else f"pip install {name}"
    found = _version(name)
    if found is None:
        return Check(name, False, f"not installed; {purpose} needs it", hint)
    fits = found.startswith(tested)
    return Check(name, fits, found if fits else f"{found}; tested with {tested}*", hint)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cache(folder: Path) -> Check:
    hint = "Set SPARSEC_CACHE_DIR to a directory you may write to; until then kernels are compiled anew in each process."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("cache directory", False, f"{folder} cannot be written: {error.strerror}", hint)
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Check("cache directory", True, f"{folder}, {used / 2**20:.1f} MiB used")


def _records(folder: Path) -> Iterator[Check]:
    found = sorted(path for pattern in _DATABASES for path in folder.glob(pattern)) if os.access(folder, os.R_OK) else []
    if not found:
        yield Check("tuned records", True, "none yet; `sparsec tune` makes them")
    for path in found:
        yield _database(path)


def _database(path: Path) -> Check:
    hint = f"Move {path} away: it is rebuilt by the next `sparsec tune`."
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            rows = {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}
    except sqlite3.Error as error:
        return Check("tuned records", False, f"{path.name}: {error}", hint)
    counts = ", ".join(f"{count} {name}" for name, count in rows.items()) or "empty"
    return Check("tuned records", verdict == "ok", f"{path.name}: {counts if verdict == 'ok' else verdict}", hint)
