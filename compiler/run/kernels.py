"""Kernel libraries, loaded. They need the C library alone."""

from __future__ import annotations

import _ctypes
import ctypes
import weakref
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sparsec.errors import ArtifactError
from sparsec.run.ending import waited_for


class Entries(NamedTuple):
    """The functions of a kernel library; each takes the address of int64 words.

    ``run``: runs tables. Words: addresses of records, groups and moves, numbers of groups and moves, batch, threads.
    ``check``: says whether tables stay inside their memory (see ``sparsec.run.extents``). Words: addresses of records, groups, places and
    scans, numbers of records, groups and places, threads, whether tables in the weights may be read. 0, or 1 + a field of the records.
    """

    run: Callable[[int], object]
    check: Callable[[int], int]


@lru_cache(maxsize=64)
def load_kernels(library: Path) -> Entries:
    """The entry functions of a kernel library, which stays loaded while there are any. The file's name must change with its content."""
    try:
        loaded = ctypes.CDLL(str(library))
        run, check = loaded.sparsec_run_program, loaded.sparsec_check_program
    except (OSError, AttributeError) as error:
        raise ArtifactError(f"{library} is not a kernel library this process can load: {error}") from error
    run.argtypes, run.restype = [ctypes.c_int64], None
    check.argtypes, check.restype = [ctypes.c_int64], ctypes.c_int64
    # At the end of the process threads may be in there still.
    weakref.finalize(loaded, _ctypes.dlclose, loaded._handle).atexit = False
    return Entries(waited_for(run), check)
