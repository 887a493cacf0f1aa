"""The database of records: SQLite with a write-ahead log in the cache directory, shared by all processes of a user."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sparsec.autotune.database import BUSY_S, FILE, SCHEMA_VERSION, create, inode, is_damage, set_aside, unusable, version, writable
from sparsec.autotune.record import Record
from sparsec.errors import TuningError

_BATCH = 500
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
        self.persistent = writable(directory)
        if not self.persistent and directory not in _MEMORY:
            logger.warning("Records of tuning are kept in memory only: %s cannot be written.", directory)
            _MEMORY[directory] = create(":memory:")
        self._connection = self._open() if self.persistent else _MEMORY[directory]

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        if self.persistent:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        self._inode = inode(self.path)
        try:
            connection = create(str(self.path))
        except sqlite3.DatabaseError as error:
            self._replace(error)
            return self._created()
        self._inode = inode(self.path)
        return connection

    def _created(self) -> sqlite3.Connection:
        try:
            connection = create(str(self.path))
        except sqlite3.DatabaseError as error:
            raise unusable(self.path, error) from error
        self._inode = inode(self.path)
        return connection

    def _replace(self, error: sqlite3.DatabaseError) -> None:
        """Set the database aside if ``error`` is damage, else raise TuningError."""
        if not is_damage(error):
            raise unusable(self.path, error) from error
        set_aside(self.path, self._inode, str(error))

    def _attempt(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do ``work`` in one transaction; once more on a fresh database if this one turns out to be damaged."""
        try:
            with self._connection:
                return work(self._connection)
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                self._connection.close()
            self._replace(error)
        self._connection = self._created()
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
    found, connection = inode(path), _MEMORY.get(directory)
    try:
        if connection is None and found is not None:
            writable = os.access(directory, os.W_OK)
            uri = f"{path.absolute().as_uri()}?mode=ro{'' if writable else '&immutable=1'}"
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S)
        if connection is None:
            return []
        with contextlib.closing(connection) if directory not in _MEMORY else contextlib.nullcontext():
            shapes = _shapes(connection, place) if version(connection) == SCHEMA_VERSION else set()
            return _entries(connection, place, tasks(shapes)) if shapes else []
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            set_aside(path, found, str(error))
        return []


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
