"""Threads that come and go: the system's threads are bounded, results are the same, and a process that ends ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsec.run import ending
from sparsec.run.runtime import Runner
from tests.children import forked, keeps_to_os_threads, os_threads
from tests.compiler.tiny_program import chain, library, pair, strips

X = np.random.default_rng(0).standard_normal((2, 4, 24)).astype(np.float32)
CORES = len(os.sched_getaffinity(0))


def test_a_thousand_short_lived_threads_leave_no_threads() -> None:
    runner, found = Runner(chain(), library(), 2), []
    wanted, before = Runner(chain(), library())(X)[0], os_threads()
    for _ in range(100):
        threads = [threading.Thread(target=lambda: found.append(runner(X)[0])) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 1000 and all(np.array_equal(each, wanted) for each in found)
    assert keeps_to_os_threads(before + CORES - 1)


def test_programs_share_the_threads_that_help() -> None:
    programs = [Runner(program, library(), threads) for program in (chain(), chain(2.0), strips(8)) for threads in (2, 3, 8)]
    programs[0](X)
    before = os_threads()
    for _ in range(3):
        for runner in programs:
            runner(X)
    assert keeps_to_os_threads(before + CORES - 1)


def test_executors_of_asyncio() -> None:
    runner = Runner(chain(), library(), 2)

    async def serve() -> list[np.ndarray]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(None, lambda: runner(X)[0]) for _ in range(200)))

    wanted = runner(X)[0]
    assert all(np.array_equal(found, wanted) for found in asyncio.run(serve()))


@pytest.mark.parametrize("threads", [2, 3, 5, 64, 2000])
def test_results_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    for program in (chain(), chain(joined=True)):
        np.testing.assert_array_equal(Runner(program, library(), threads)(X)[0], Runner(program, library())(X)[0])


@pytest.mark.parametrize("flush", [False, True])
def test_denormals_are_the_callers_choice_on_every_thread(flush: bool) -> None:
    """They are a property of a thread, and a helper is older than the call."""
    a, b = np.full((64, 8), 1e-40, np.float32), np.zeros((64, 4), np.float32)
    runner = Runner(pair(), library(), 2)
    runner(a, b)
    torch.set_flush_denormal(flush)
    try:
        found = runner(a, b)[0].view(np.int32)
    finally:
        torch.set_flush_denormal(False)
    wanted = (2 * a).view(np.int32)
    assert (found == (0 if flush else wanted)).all() and wanted.any()


_ENDING = """
import sys, threading, numpy as np
from sparsec.run.runtime import Runner
from tests.compiler.tiny_program import chain, library
runner, x = Runner(chain(), library(), 2), np.ones((2000, 4, 24), np.float32)
def call():
    for _ in range(20): runner(x)
for _ in range(3): threading.Thread(target=call).start()
for _ in range(5): runner(x)
print("ends", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "sys.exit(0)", "import os; os._exit(0)"])
def test_an_interpreter_ends_while_others_call(end: str) -> None:
    done = subprocess.run([sys.executable, "-c", _ENDING + end], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


_NUMPY = "x = np.ones(({batch}, 4, 24), np.float32)"
_DOORS = {
    "runner": "model = Runner(chain(), library(), 2); " + _NUMPY,
    "artifact": "model = load(save(sys.argv[1], chain(), library(), None, dict(output='leaf'), ANY_MACHINE), 2); " + _NUMPY,
    "object": "net, x = prune(torch.nn.Linear(64, 64).eval(), 0.9, classifier=True), torch.ones({batch}, 64); "
    "model = sparsec.compile(net, (x,), threads=2, cache_dir=sys.argv[1])",
    "torch.compile": "net, x = prune(torch.nn.Linear(64, 64).eval(), 0.9, classifier=True).requires_grad_(False), torch.ones({batch}, 64); "
    "model = torch.compile(net, backend='sparse', options={{'threads': 2, 'cache_dir': sys.argv[1]}})",
}
_DAEMONS = """
import sys, threading, time, numpy as np, torch, sparsec
from sparsec.run.artifact import load, save
from sparsec.models import prune
from sparsec.run.runtime import Runner
from tests.compiler.tiny_program import ANY_MACHINE, chain, library
torch.set_num_threads(1)
{door}
model(x)
def call():
    while True: model(x)
for _ in range(3): threading.Thread(target=call, daemon=True).start()
time.sleep(0.2)
print("ends", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2000])
@pytest.mark.parametrize("door", _DOORS)
@pytest.mark.turns(4)
def test_an_interpreter_ends_while_daemons_call(door: str, batch: int, tmp_path: Path) -> None:
    """In a call or between two. Of eager PyTorch such a process aborts."""
    command = [sys.executable, "-c", _DAEMONS.format(door=_DOORS[door].format(batch=batch)), str(tmp_path / "place")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")


_AFTER = """
import threading
from sparsec.run import ending
call, answers = ending.waited_for(lambda: "made"), []
def late():
    try: answers.append(call())
    except SystemExit: answers.append("ended")
ending._wait()
thread = threading.Thread(target=late)
thread.start(), thread.join()
print(*answers, call())
"""


def test_once_it_ends_only_the_thread_that_ends_it_calls() -> None:
    done = subprocess.run([sys.executable, "-c", _AFTER], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "ended made\n"


_DROPS = """
import atexit, threading, time
atexit.register(lambda: print(*dropped))
from sparsec.run import ending
dropped, made = [], threading.Event()
class Result:
    def __del__(self):
        made.set(), time.sleep(0.05)
        dropped.append("dropped")
call = ending.waited_for(Result)
def calls():
    result = call()
    {then}
threading.Thread(target=calls, daemon=True).start()
made.wait()
"""


@pytest.mark.parametrize("then", ["del result; call()", "result = call()", "del result", "pass"])
def test_threads_drop_what_calls_gave_them_before_it_ends(then: str) -> None:
    """Freed memory of a tensor is where PyTorch lets the interpreter go on, and may not be unwound when it ends."""
    done = subprocess.run([sys.executable, "-c", _DROPS.format(then=then)], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == {"result = call()": "dropped dropped\n"}.get(then, "dropped\n")


def test_a_forked_child_does_not_wait_for_calls_of_its_parent() -> None:
    begun, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=ending.waited_for(lambda: (begun.set(), over.wait())))
    thread.start()
    begun.wait()

    def child() -> None:
        assert not ending._running

    forked(child)
    over.set()
    thread.join()
    assert not ending._running


def test_many_callers_of_few_threads_at_once() -> None:
    runner = Runner(strips(4), library(), 4)
    wanted = runner(X)[0]
    with ThreadPoolExecutor(16) as pool:
        assert all(np.array_equal(found[0], wanted) for found in pool.map(lambda _: runner(X), range(2000)))
