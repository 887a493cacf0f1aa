"""A progress bar with the time left, for people: on a terminal, once the work has taken a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
_PATIENCE_S = 2.0


def shown(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """``items``, one after the other, under a bar on standard error that appears after two seconds."""
    if not sys.stderr.isatty():
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    work, begin, visible = bar.add_task(what, total=total), time.monotonic(), False
    try:
        for done, item in enumerate(items):
            bar.update(work, completed=done)
            yield item
            if not visible and done + 1 < total and time.monotonic() - begin > _PATIENCE_S:
                bar.start()
                visible = True
    finally:
        bar.stop()
