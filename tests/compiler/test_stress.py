"""Many threads, many calls, several programs: every result exact, memory flat, whatever is forgotten meanwhile."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparsec
from sparsec import graphs_by_size
from sparsec.graphs_by_size import GraphsBySize
from sparsec.models import prune
from sparsec.run.artifact import load, save
from sparsec.run.runtime import Runner
from tests.compiler.stand_in import Small
from tests.compiler.test_sizes import Program, graph
from tests.compiler.tiny_program import ANY_MACHINE, chain, library, sized, strips

RANDOM = np.random.default_rng(0)


def together(work: Sequence[Callable[[], Any]]) -> None:
    """Each in a thread of its own; the first exception is raised."""
    errors: list[BaseException] = []

    def run(each: Callable[[], Any]) -> None:
        try:
            each()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def resident() -> int:
    """Bytes of this process in memory that are its own."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def stressed(programs: Sequence[Callable[[Any], Any]], inputs: Sequence[Any], callers: int, calls: int) -> None:
    """``callers`` threads call every program ``calls`` times, in an order and with batches of their own."""
    wanted = [[np.array(program(x)) for x in inputs] for program in programs]

    def call(seed: int) -> None:
        order = np.random.default_rng(seed).integers(0, (len(programs), len(inputs)), (calls * len(programs), 2))
        with torch.no_grad():
            for p, i in order:
                assert np.array_equal(np.asarray(programs[p](inputs[i])), wanted[p][i])

    together([lambda seed=seed: call(seed) for seed in range(callers)])  # type: ignore[misc]


def drawn(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
def test_runners_in_many_threads(threads: int) -> None:
    runners = [Runner(program, library(), threads) for program in (chain(), strips(2))]
    stressed([lambda x, runner=runner: runner(x)[0] for runner in runners], [drawn(batch, 4, 24) for batch in (0, 1, 2, 7)], 8, 200)
    by_size = Runner(sized(), library(), threads)
    stressed([lambda x: by_size(x)[0]], [drawn(batch, tokens, 8) for batch, tokens in ((1, 12), (3, 1), (2, 5), (1, 7))], 8, 200)


@pytest.mark.slow
def test_all_doors_in_eight_threads(kernels: Path, strict: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = prune(Small().eval(), 0.9, classifier=True), torch.zeros(2, 3, 10, 10)
    with torch.no_grad():
        object_ = sparsec.compile(model, (x,), threads=2, cache_dir=kernels)
        artifact = load(object_.save(tmp_path / "net.sparsec"), 2)
        compiled = torch.compile(model, backend="sparse", dynamic=True, options={"threads": 2, "cache_dir": kernels})
        inputs = [torch.randn(batch, 3, 10, 10) for batch in (2, 3, 5, 8)]
        for given in inputs:
            compiled(given)
            torch.testing.assert_close(object_(given), model(given), atol=1e-4, rtol=1e-4)
        stressed([object_, lambda given: artifact(given.numpy()), compiled], inputs, 8, 2000)


def test_graphs_of_sizes_that_go_while_others_run_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_by_size, "give_back", lambda _: None)  # a collection of garbage for each of a thousand sizes takes minutes
    first: Any = Program({"batch": 1, "tokens": 64})
    by_size = GraphsBySize(first, graph(first, whole=True), lambda captured: graph(captured, whole=True))  # type: ignore[arg-type]

    def call(seed: int) -> None:
        for tokens in np.random.default_rng(seed).integers(20, 40, 300):
            assert by_size({"batch": 1, "tokens": int(tokens)}).sizes["tokens"] == tokens

    together([lambda seed=seed: call(seed) for seed in range(8)])  # type: ignore[misc]


@pytest.mark.slow
def test_entries_that_go_while_others_run_them(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsec.doors.torch_compile import backend, entries

    monkeypatch.setattr(entries, "LIMIT", 2)
    model = Small().eval()
    compiled = torch.compile(model, backend="sparse", dynamic=True)
    inputs = [torch.randn(1, 3, size, size) for size in (6, 7, 8, 9)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
        for x in inputs:
            compiled(x)

    def call(seed: int) -> None:
        with torch.no_grad():
            for n in np.random.default_rng(seed).integers(0, 4, 12):
                torch.testing.assert_close(compiled(inputs[n]), wanted[n], rtol=1e-5, atol=1e-5)
                if n == seed:
                    backend.refresh(compiled)

    together([lambda seed=seed: call(seed) for seed in range(4)])  # type: ignore[misc]
    assert driver.count > 4


@pytest.mark.slow
@pytest.mark.parametrize("door", ["object", "artifact"])
def test_memory_is_flat_over_a_hundred_thousand_calls(door: str, kernels: Path, tmp_path: Path) -> None:
    if door == "artifact":
        model: Any = load(save(tmp_path / "net.sparsec", chain(), library(), None, {"output": "leaf"}, ANY_MACHINE), 2)
        x: Any = drawn(1, 4, 24)
    else:
        net, x = prune(nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval(), 0.9, classifier=True), torch.randn(4, 64)
        model = sparsec.compile(net, (x,), threads=2, cache_dir=kernels)
    for _ in range(10_000):
        model(x)
    before = resident()
    for _ in range(100_000):
        model(x)
    assert resident() - before < 4 << 20


@pytest.mark.slow
def test_further_sizes_hold_no_weights_of_their_own(kernels: Path) -> None:
    """Indices of the values that are left depend on the size, at four bytes for each; nothing else of the weights' size does."""
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(256, 256, 3, 1, 1), nn.BatchNorm2d(256), nn.ReLU())]
    net = prune(nn.Sequential(nn.Conv2d(3, 256, 3, 2, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 8)).eval(), 0.9)
    weights = sum(p.nbytes for p in net.parameters())
    high, wide = (torch.export.Dim(name, min=8, max=256) for name in "hw")
    model = sparsec.compile(net, (torch.zeros(1, 3, 16, 16),), dynamic_shapes=({2: high, 3: wide},), threads=1, cache_dir=kernels)
    by_size = [model(torch.randn(1, 3, size, size)) is not None and resident() for size in (18, 20, 22)]
    grown = by_size[-1] - by_size[0]
    assert grown < 2 * weights // 2, f"{grown / 2 / 2**20:.1f} MiB for every size of a network of {weights / 2**20:.1f} MiB"


def test_idle_memory_of_programs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from sparsec.run import instance

    monkeypatch.setattr(instance, "_MOST_BYTES", 10 << 20)
    runners = [Runner(replace(chain(), arena_bytes=4 << 20), library()) for _ in range(6)]
    x = drawn(1, 4, 24)
    wanted = runners[0](x)[0]
    for _ in range(2):
        for runner in runners:
            np.testing.assert_array_equal(runner(x)[0], wanted)
    kept = [each for each in runners if each._idle.nbytes]
    assert 1 <= len(kept) <= 3 and runners[-1] in kept
