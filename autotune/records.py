"""The database of records: SQLite with a write-ahead log in the cache directory, shared by all processes of a user."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sparsec.autotune.record import Record
from sparsec.errors import TuningError

FILE = "records.sqlite3"
SCHEMA_VERSION = 1
_BUSY_S = 30.0
_BATCH = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    machine TEXT, threads INTEGER, library TEXT, shape TEXT, task TEXT, run TEXT, rank INTEGER, schedule TEXT,
    status TEXT, median_ns REAL, emulated INTEGER, imported INTEGER, time REAL, body TEXT,
    UNIQUE (machine, threads, library, task, run, rank)
);
"""
_COLUMNS = "task, run, rank, schedule, status, median_ns, emulated, imported, time"

logger = logging.getLogger("sparsec")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """Which records count: same machine, number of threads, digest of the sources that kernels are made from."""

    machine: str
    threads: int
    library: str


@dataclass(frozen=True)
class Entry:
    """What choosing needs of a record; ``schedule`` is JSON."""

    task: str
    run: str
    rank: int
    schedule: str
    status: str
    median_ns: float | None
    emulated: bool
    imported: bool
    time: float


@dataclass(frozen=True)
class Import:
    """What reading a file of JSON lines did; ``rejected`` are (line number, reason)."""

    added: int
    known: int
    rejected: tuple[tuple[int, str], ...]


class Records:
    """The records of one cache directory.

    A damaged database, or one of another schema, is set aside under another name and a new one begun, with a warning. Where the
    directory cannot be written, records are kept in memory for the life of the process, with one warning.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.persistent = _writable(directory)
        if not self.persistent and directory not in _MEMORY:
            logger.warning("Records of tuning are kept in memory only: %s cannot be written.", directory)
            _MEMORY[directory] = _create(":memory:")
        self._connection = self._open() if self.persistent else _MEMORY[directory]

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        if self.persistent:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return _create(str(self.path))
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise _unusable(self.path, error) from error
            set_aside(self.path, str(error))
            return _create(str(self.path))

    def _attempt(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do ``work`` in one transaction; once more on a fresh database if this one turns out to be damaged."""
        try:
            with self._connection:
                return work(self._connection)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise _unusable(self.path, error) from error
            self._connection.close()
            set_aside(self.path, str(error))
            self._connection = self._open()
        with self._connection:
            return work(self._connection)

    def add(self, records: Iterable[Record]) -> int:
        """Store records that are not known yet; returns how many. TuningError if the database cannot be written."""
        rows = [_row(r) for r in records]
        marks = ", ".join("?" * 14)

        def insert(connection: sqlite3.Connection) -> int:
            before = connection.total_changes
            connection.executemany(f"INSERT OR IGNORE INTO records VALUES ({marks})", rows)
            return connection.total_changes - before

        return self._attempt(insert)

    def shapes(self, place: Place) -> set[str]:
        """Shape keys that have records at ``place``."""
        return self._attempt(lambda connection: _shapes(connection, place))

    def entries(self, place: Place, tasks: Sequence[str]) -> list[Entry]:
        """The records of ``tasks`` at ``place``."""
        return self._attempt(lambda connection: _entries(connection, place, tasks))

    def all(self) -> Iterator[Record]:
        """Every record, oldest first."""
        bodies = self._attempt(lambda c: [row[0] for row in c.execute("SELECT body FROM records ORDER BY time, rowid")])
        return map(Record.from_json, bodies)

    def export(self, path: Path) -> int:
        """Write every record as a line of JSON; returns how many. TuningError if the file cannot be written."""
        lines = [record.to_json() + "\n" for record in self.all()]
        try:
            path.write_text("".join(lines))
        except OSError as error:
            raise TuningError("Records cannot be exported.", where=str(path), why=str(error)) from error
        return len(lines)

    def load(self, path: Path) -> Import:
        """Add the records of a file of JSON lines; lines that are not records are counted with reasons, not added.

        TuningError if the file cannot be read.
        """
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TuningError("Records cannot be imported.", where=str(path), why=str(error)) from error
        good, rejected = [], []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                good.append(replace(Record.from_json(line), imported=True))
            except (ValueError, RecursionError) as error:
                rejected.append((number, str(error)))
        added = self.add(good)
        return Import(added, len(good) - added, tuple(rejected))


_MEMORY: dict[Path, sqlite3.Connection] = {}


def look_up(directory: Path, place: Place, tasks: Callable[[set[str]], Sequence[str]]) -> list[Entry]:
    """Records at ``place`` without creating or changing anything; none where there is no usable database.

    ``tasks`` is called with the shape keys that have records, and only if there are any; it answers with the task keys wanted.
    """
    path = directory / FILE
    connection = _MEMORY.get(directory)
    try:
        if connection is None and path.exists():
            writable = os.access(directory, os.W_OK)
            uri = f"{path.absolute().as_uri()}?mode=ro{'' if writable else '&immutable=1'}"
            connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S)
        if connection is None:
            return []
        with contextlib.closing(connection) if directory not in _MEMORY else contextlib.nullcontext():
            shapes = _shapes(connection, place)
            return _entries(connection, place, tasks(shapes)) if shapes else []
    except sqlite3.DatabaseError as error:
        if _is_damage(error):
            set_aside(path, str(error))
        return []
    except OSError:
        return []


def set_aside(path: Path, why: str) -> None:
    """Rename a database that cannot be used, with its log, and say so."""
    aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    logger.warning("The database of tuning records %s cannot be used (%s). It was set aside as %s.", path, why, aside.name)


class _OtherSchema(sqlite3.DatabaseError):
    """The database was written by another version of sparsec."""


def _create(name: str) -> sqlite3.Connection:
    """Open a database, with tables if it is new. Turning the log on ignores SQLite's own patience, hence the loop."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            return _connect(name)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=_BUSY_S, check_same_thread=False)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise _OtherSchema(f"its schema is version {version}, this sparsec reads {SCHEMA_VERSION}")
        if version == 0:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Damage, as opposed to a lock, a full disk or a missing right, which SQLite reports as OperationalError."""
    return not isinstance(error, sqlite3.OperationalError) or "no such table" in str(error) or "no such column" in str(error)


def _unusable(path: Path, error: Exception) -> TuningError:
    return TuningError("The database of tuning records cannot be used.", where=str(path), why=str(error), hint="Set SPARSEC_CACHE_DIR.")


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def _row(r: Record) -> tuple[Any, ...]:
    place = (r.machine, r.threads, r.library, r.shape, r.task, r.run, r.rank, json.dumps(r.schedule))
    return (*place, r.status, r.median_ns, r.emulated, r.imported, r.time, r.to_json())


_AT = "machine = ? AND threads = ? AND library = ?"


def _shapes(connection: sqlite3.Connection, place: Place) -> set[str]:
    rows = connection.execute(f"SELECT DISTINCT shape FROM records WHERE {_AT}", (place.machine, place.threads, place.library))
    return {row[0] for row in rows}


def _entries(connection: sqlite3.Connection, place: Place, tasks: Sequence[str]) -> list[Entry]:
    found = []
    for first in range(0, len(tasks), _BATCH):
        some = tasks[first : first + _BATCH]
        query = f"SELECT {_COLUMNS} FROM records WHERE {_AT} AND task IN ({', '.join('?' * len(some))})"
        found += [Entry(*row) for row in connection.execute(query, (place.machine, place.threads, place.library, *some))]
    return found
