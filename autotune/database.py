"""Opening, damage and replacement of the SQLite database that records live in."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
import time
from pathlib import Path

from sparsec.errors import TuningError

FILE = "records.sqlite3"
SCHEMA_VERSION = 1
BUSY_S = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    machine TEXT, threads INTEGER, library TEXT, shape TEXT, task TEXT, run TEXT, rank INTEGER, schedule TEXT,
    status TEXT, median_ns REAL, emulated INTEGER, imported INTEGER, time REAL, body TEXT,
    UNIQUE (machine, threads, library, task, run, rank)
);
"""

logger = logging.getLogger("sparsec")


def inode(path: Path) -> int | None:
    """Which file is at ``path``; None without one."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def set_aside(path: Path, found: int | None, why: str) -> None:
    """Rename a database that cannot be used, with its log, and say so; unless file ``found`` is gone, so that somebody else has done it."""
    if inode(path) != found:
        return
    aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    try:
        os.replace(path, aside)
    except OSError as error:
        logger.warning("The database of tuning records %s cannot be used (%s), nor set aside (%s).", path, why, error)
        return
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(OSError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    logger.warning("The database of tuning records %s cannot be used (%s). It was set aside as %s.", path, why, aside.name)


class _OtherSchema(sqlite3.DatabaseError):
    """The database was written by another version of sparsec."""


def create(name: str) -> sqlite3.Connection:
    """Open a database, with tables if it is new. Turning the log on ignores SQLite's own patience, hence the loop."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            return _connect(name)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=BUSY_S, check_same_thread=False)
    try:
        found = version(connection)
        if found not in (0, SCHEMA_VERSION):
            raise _OtherSchema(f"its schema is version {found}, this sparsec reads {SCHEMA_VERSION}")
        if found == SCHEMA_VERSION and not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone():
            raise _OtherSchema("it has no table of records")
        if found == 0:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def version(connection: sqlite3.Connection) -> int:
    """The schema's version, 0 for a database without tables."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Damage, as opposed to a lock, a full disk or a missing right, which SQLite reports as OperationalError."""
    return not isinstance(error, sqlite3.OperationalError)


def unusable(path: Path, error: Exception) -> TuningError:
    """The error for a database that is neither damaged nor usable."""
    return TuningError("The database of tuning records cannot be used.", where=str(path), why=str(error), hint="Set SPARSEC_CACHE_DIR.")


def writable(directory: Path) -> bool:
    """Whether files can be made in ``directory``, which is made if it does not exist: tried, as rights do not tell."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
