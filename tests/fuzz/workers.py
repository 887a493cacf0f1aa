"""One search in several processes: each takes its share of the cases."""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.connection import Connection

from tests.fuzz.findings import Findings
from tests.fuzz.search import Search


def spread(search: Search, minutes: float, jobs: int) -> Findings:
    """Run it in ``jobs`` processes; together they draw the cases that one would."""
    context = get_context("fork")
    workers, ends = [], []
    for first in range(jobs):
        mine, theirs = context.Pipe(duplex=False)
        workers.append(context.Process(target=_work, args=(search, minutes, first, jobs, theirs)))
        workers[-1].start()
        theirs.close()
        ends.append(mine)
    for worker, end in zip(workers, ends, strict=True):
        search.findings.merge(_received(end))
        worker.join()
    return search.findings


def _received(end: Connection) -> Findings:
    try:
        return end.recv()
    except EOFError:
        raise RuntimeError("A worker of the search died; what it said is above.") from None


def _work(search: Search, minutes: float, first: int, step: int, end: Connection) -> None:
    end.send(search.run(minutes, first, step))
    end.close()
