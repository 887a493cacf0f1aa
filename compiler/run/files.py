"""Files that may come from anywhere: read once, whole, and only where they are files; written as the user's umask says."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def contents(path: Path) -> bytes:
    """What is in a file. OSError for a pipe or a device, which would never end, and for more than the memory holds."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "It is no regular file", str(path))
        try:
            return file.read()
        except (MemoryError, OverflowError) as error:
            raise OSError(errno.ENOMEM, f"It has {os.fstat(handle).st_size:,} bytes, more than the memory", str(path)) from error


def open_to_others(path: Path) -> None:
    """Give a file that was made for its maker only the permissions that the process's umask gives to new files."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    """Read where Linux tells it: asking the system call sets it for a moment, for all threads."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).partition(":")[2], 8)
    except (OSError, StopIteration, ValueError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask
