"""Libraries in a cache directory: made once, taken from there where they are whole."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from sparsec.run.files import contents
from sparsec.tools.scratch import Scratch

logger = logging.getLogger("sparsec")


def cached(cache: Path | None, name: str, make: Callable[[Path], None]) -> Path:
    """The library of this name, whose content the name says. ``make`` writes it to a path in a private folder.

    A whole library already in ``cache`` is returned as it is, a damaged one is made again. An unwritable or absent cache means a temporary
    directory of this process. Concurrent makers rename what they made: the last one wins with identical content. OSError where there is
    no room.
    """
    directory = _writable(cache)
    path = directory / name
    if path.exists():
        if _is_whole(path):
            return path
        logger.warning("The library %s in the cache is damaged. It is made again.", path)
    with Scratch(directory) as scratch:
        whole = scratch.path / name
        make(whole)
        _seal(whole)
        os.replace(whole, path)
    return path


def _seal(path: Path) -> None:
    """Append the digest, which loaders leave unread, and see that all of it is on the disk before it gets its name."""
    content = path.read_bytes()
    with path.open("ab") as file:
        file.write(hashlib.sha256(content).digest())
        file.flush()
        os.fsync(file.fileno())


def _is_whole(path: Path) -> bool:
    """Whether a library ends with the digest of the rest."""
    try:
        content = contents(path)
    except OSError:
        return False
    size = hashlib.sha256().digest_size
    return hashlib.sha256(content[:-size]).digest() == content[-size:]


@lru_cache(maxsize=1)
def _process_directory() -> Scratch:
    return Scratch()


# The parent's ends with the parent.
os.register_at_fork(after_in_child=_process_directory.cache_clear)


def _writable(cache: Path | None) -> Path:
    """``cache`` if files can be made there, else a directory of this process; says so."""
    if cache is None:
        return _process_directory().path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache):
            return cache
    except OSError as error:
        _say_once(
            f"Kernels are not kept: the cache directory {cache} cannot be written ({error.strerror}). Set SPARSEC_CACHE_DIR to another."
        )
        return _process_directory().path


@lru_cache(maxsize=16)
def _say_once(message: str) -> None:
    logger.warning(message)
