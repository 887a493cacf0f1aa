"""Forked children run what their parents compiled or loaded, whatever other threads were doing: at once, and with the same result."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.convert_frame import compile_lock

import sparsec
from sparsec.models import prune
from sparsec.run.artifact import load, save
from sparsec.run.forks import opened_in_children
from sparsec.run.runtime import Runner
from tests.children import LIMIT, forked
from tests.compiler.stand_in import Small as StandInNet
from tests.compiler.tiny_program import ANY_MACHINE, chain, library

X = np.random.default_rng(0).standard_normal((2, 4, 24)).astype(np.float32)
THREADS = pytest.mark.parametrize("threads", [1, 2])


def checked(run: Callable[[], Any], wanted: Any) -> Callable[[], None]:
    """Calls ``run`` a few times and compares."""

    def check() -> None:
        for _ in range(20):
            np.testing.assert_array_equal(run(), wanted)

    return check


@contextmanager
def busy(run: Callable[[], Any], callers: int = 2) -> Iterator[None]:
    """While ``run`` is called all the time in other threads."""
    ended = threading.Event()

    def call() -> None:
        while not ended.is_set():
            run()

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def fork_in_every_way(run: Callable[[], Any], *, while_others_call: bool = True) -> None:
    """Before any call of this thread, after some, from a thread, from a child, and while others call."""
    wanted = Runner(chain(), library())(X)[0] if run is None else run()
    check = checked(run, wanted)
    for _ in range(2):
        forked(check)
        check()
    forked(lambda: (check(), forked(check), check()))
    failures: list[BaseException] = []
    thread = threading.Thread(target=lambda: failures.extend(raised(lambda: forked(check))))
    thread.start()
    thread.join()
    assert not failures
    with busy(run) if while_others_call else nullcontext():
        for _ in range(4):
            forked(check)
    check()


def raised(work: Callable[[], Any]) -> list[BaseException]:
    try:
        work()
    except BaseException as error:
        return [error]
    return []


@THREADS
def test_a_runner_in_forked_children(threads: int) -> None:
    runner = Runner(chain(), library(), threads)
    wanted = Runner(chain(), library(), 1)(X)[0]
    forked(checked(lambda: runner(X)[0], wanted))
    fork_in_every_way(lambda: runner(X)[0])


@THREADS
def test_a_loaded_artifact_in_forked_children(threads: int, tmp_path: Path) -> None:
    path = save(tmp_path / "net.sparsec", chain(), library(), None, {"output": "leaf"}, ANY_MACHINE)
    model = load(path, threads)
    forked(checked(lambda: model(X), Runner(chain(), library())(X)[0]))
    fork_in_every_way(lambda: model(X))
    forked(lambda: checked(lambda: load(path, threads)(X), Runner(chain(), library())(X)[0])())


def call_artifact(path: str, threads: int, x: np.ndarray) -> np.ndarray:
    """For a process of its own."""
    return load(path, threads)(x)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pools_of_processes(method: str, tmp_path: Path) -> None:
    path = save(tmp_path / "net.sparsec", chain(), library(), None, {"output": "leaf"}, ANY_MACHINE)
    wanted = load(path, 2)(X)
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in pool.starmap_async(call_artifact, [(str(path), 2, X)] * 6).get(LIMIT):
            np.testing.assert_array_equal(found, wanted)


def test_other_programs_can_be_started_between_calls() -> None:
    runner = Runner(chain(), library(), 2)
    wanted = runner(X)[0]
    with busy(lambda: runner(X)):
        for _ in range(3):
            assert subprocess.run([sys.executable, "-S", "-c", "print(7)"], capture_output=True, timeout=60, check=True).stdout == b"7\n"
    np.testing.assert_array_equal(runner(X)[0], wanted)


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_a_lock_that_another_thread_holds_is_open_in_a_child(make: Callable[[], Any]) -> None:
    lock, held, done = opened_in_children(make()), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    def take() -> None:
        assert lock.acquire(timeout=10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    forked(take, 30)
    assert not lock.acquire(blocking=False)
    done.set()
    thread.join()


def test_a_lock_that_the_forking_thread_holds_stays_held() -> None:
    lock = opened_in_children(threading.RLock())

    def child() -> None:
        lock.release()
        assert lock.acquire(timeout=10) and not raised(lock.release)

    with lock:
        forked(child, 30)


def test_a_child_compiles_although_another_thread_of_its_parent_was_compiling(driver: Any) -> None:
    """Dynamo's own lock is held meanwhile, by our door too."""
    model, inputs = StandInNet().eval(), [torch.randn(1, 3, size, size) for size in (6, 7)]
    compiled, held, done = torch.compile(model, backend="sparse", dynamic=True), threading.Event(), threading.Event()

    def compile_for_long() -> None:
        with compile_lock:
            held.set()
            done.wait()

    def child() -> None:
        with torch.no_grad():
            for x in inputs:
                torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.compile(lambda x: x.sin() + 1, backend="eager")(inputs[0]), inputs[0].sin() + 1)

    with torch.no_grad():
        compiled(inputs[0])
    thread = threading.Thread(target=compile_for_long)
    thread.start()
    held.wait()
    try:
        forked(child)
    finally:
        done.set()
        thread.join()


class Small(nn.Module):
    """A convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.slow
@THREADS
@pytest.mark.parametrize("door", ["object", "torch.compile"])
def test_compiled_models_in_forked_children(door: str, threads: int, kernels: Path, strict: None) -> None:
    torch.manual_seed(0)
    model, x = prune(Small().eval(), 0.9), torch.randn(2, 3, 12, 12)
    options = {"threads": threads, "cache_dir": kernels}
    compiled = sparsec.compile(model, (x,), **options) if door == "object" else torch.compile(model, backend="sparse", options=options)

    def run() -> np.ndarray:
        with torch.no_grad():
            return compiled(x).numpy()

    np.testing.assert_allclose(run(), model(x).detach().numpy(), atol=1e-4)
    # A fork while another thread is inside of PyTorch can leave locks of PyTorch's own closed in the child: eager models hang there too.
    fork_in_every_way(run, while_others_call=door == "object")
