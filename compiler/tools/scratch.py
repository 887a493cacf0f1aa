"""Folders that live as long as their process: what a killed one leaves behind, the next one removes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from functools import lru_cache
from pathlib import Path
from types import TracebackType

_PREFIX = "sparsec-scratch-"
#: Seconds in which a new folder is locked by its maker.
_SETTLED = 60.0


class Scratch:
    """A new folder in ``parent`` (the system's for temporary files), removed at the end of the context or of the process.

    Its lock tells other processes that somebody lives here, also across containers that share a disk. A forked child keeps it locked,
    and never removes it. Leftovers beside it are swept first.
    """

    def __init__(self, parent: Path | None = None) -> None:
        home = parent or Path(tempfile.gettempdir())
        sweep_once(home)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
        lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._end = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder and what is in it."""
        self._end()


def _remove(path: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


@lru_cache(maxsize=64)
def sweep_once(home: Path) -> None:
    """``sweep``, once in this process."""
    sweep(home)


def sweep(home: Path, settled: float = _SETTLED) -> None:
    """Remove this user's folders of dead processes, older than ``settled`` seconds. Where a file system has no locks nothing is removed."""
    for path in home.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = path.lstat()
            if about.st_uid == os.getuid() and time.time() - about.st_mtime > settled:
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
