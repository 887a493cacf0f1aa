"""``python -m tests.opdb``: all operators, a shard of them, some by name, or one case again with its traceback."""

import argparse
import os
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.opdb.reports import failures, table
from tests.opdb.runs import Plan, supervise


def main() -> int:
    """Exit status 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.opdb", description=__doc__)
    parser.add_argument("names", nargs="*", help="operators; all if none is named")
    parser.add_argument("--shard", default="0/1", help="every n-th operator from i on, as i/n")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--folder", type=Path, help="where records are; a run goes on from those that are there")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes; a folder goes on with as many as before")
    parser.add_argument("--case", nargs=4, metavar=("NAME", "SAMPLES", "FORM", "DOOR"), help="one case, in this process")
    given = parser.parse_args()
    if given.case:
        return again(*given.case)
    folder = given.folder or Path(tempfile.mkdtemp())
    shard, shards = map(int, given.shard.split("/"))
    plans = [Plan(tuple(given.names), shard + job * shards, shards * given.jobs) for job in range(given.jobs)]
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = [pool.submit(supervise, plan, folder / f"{number}-of-{given.jobs}", given.seconds) for number, plan in enumerate(plans)]
    records = [record for run in runs for record in run.result()]
    print("\n".join([*failures(records), table(records)]))
    return bool(failures(records))


def again(name: str, numbers: str, form: str, door: str) -> int:
    """Print what eager and the door make of it."""
    from tests.opdb.cases import Case, check
    from tests.opdb.doors import through
    from tests.opdb.modules import make
    from tests.opdb.outcomes import outcome
    from tests.opdb.samples import samples

    case = Case(name, tuple(map(int, numbers.split(","))), form, door)
    module = make(name, [samples(name)[number] for number in case.samples], form)
    for record in check(case):
        print(record)
    if module is not None:
        for found in (outcome(module, module.given), through(module, module.given, door)):
            print(found.leaves)
            traceback.print_exception(found.error) if found.error else None
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
