"""Work on a hostile file in a forked child of a warm process: what came of it, what it took, and whether anything of the file ran.

The child has the parent's modules and compiled kernels, so that little but the file decides what happens. A hook sees the interpreter's own
events: processes that are started, files that are written outside the scratch folder, modules that are imported and code that is run with
`MARK` among its names, as every payload has. To parse such code is no harm.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsec.errors import SparsecError

#: What all code in hostile files has in it.
MARK = "canary_of_hostile_files"
#: Address space that a child may take beyond what it begins with: five times the memory that it may use.
_SPACE = 5 << 30
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "pty.spawn", "os.startfile")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Outcome:
    """``kind``: refused, right or what else the work said, "raw" for an exception that is none of ours, "died" for a signal or
    a limit of time.

    ``peak``: largest resident memory in bytes. ``seen``: what the file ran or wrote.
    """

    kind: str
    text: str
    seconds: float
    peak: int
    seen: tuple[str, ...]


def watched(work: Callable[[], str], scratch: Path, seconds: int = 20) -> Outcome:
    """What becomes of ``work`` in a child that may take ``seconds`` and write below ``scratch``."""
    done, mine = os.pipe()
    begin, child = time.monotonic(), os.fork()
    if not child:
        os.close(done)
        _child(work, scratch, seconds, mine)
    os.close(mine)
    with open(done, "rb") as stream:
        said = stream.read()
    _, status, usage = os.wait4(child, 0)
    took, peak = time.monotonic() - begin, usage.ru_maxrss << 10
    if os.WIFSIGNALED(status) or not said:
        return Outcome("died", signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "silent", took, peak, ())
    kind, text, seen = json.loads(said)
    return Outcome(kind, text, took, peak, tuple(seen))


def _child(work: Callable[[], str], scratch: Path, seconds: int, mine: int) -> None:
    seen: list[str] = []
    signal.alarm(seconds)
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + _SPACE, space + _SPACE))
    sys.addaudithook(lambda event, arguments: _note(seen, event, arguments, scratch))
    try:
        kind, text = work(), ""
    except SparsecError as error:
        kind, text = "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:
        kind, text = "raw", "".join(traceback.format_exception(error)[-4:])[-1500:]
    os.write(mine, json.dumps([kind, text, seen]).encode())
    os._exit(0)


def _note(seen: list[str], event: str, arguments: tuple[Any, ...], scratch: Path) -> None:
    if event in _STARTS:
        seen.append(f"{event} {arguments[:2]!r}"[:200])
    elif event == "open" and isinstance(arguments[0], str | bytes) and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith((str(scratch), "/dev/null", "/proc/self", f"/proc/{os.getpid()}")):
            seen.append(f"wrote {path}")
    elif event == "import" and MARK in str(arguments[0]):
        seen.append(f"import {arguments[0]}"[:200])
    elif event == "exec" and _holds_mark(arguments[0]):
        seen.append(f"exec {arguments[0]!r}"[:200])


def _holds_mark(code: Any) -> bool:
    """Whether a name of code, or of code inside of it, holds it. Text in code is no code."""
    if not isinstance(code, types.CodeType):
        return False
    return any(MARK in name for name in (*code.co_names, *code.co_varnames)) or any(_holds_mark(each) for each in code.co_consts)
