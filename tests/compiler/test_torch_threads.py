"""The torch.compile door in several threads: first calls at once, writes while a program is made, entries that go meanwhile."""

import threading
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsec
from sparsec.doors.torch_compile import backend as torch_backend
from sparsec.doors.torch_compile import entries as torch_entries
from tests.compiler.stand_in import Small, agrees, compiled, images, warnings_in


def at_once(works: Sequence[Callable[[], object]]) -> None:
    """Run all, each in a thread of its own, from one moment on; raises what one of them raised."""
    start, failures = threading.Barrier(len(works)), []

    def run(work: Callable[[], object]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Broken(Small):
    """Two graphs, the second with an operator that no kernel covers."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.convolution(x)))
        torch._dynamo.graph_break()
        return self.head(y.cumsum(2).mean((2, 3)))


@pytest.mark.parametrize("kind", [Small, pytest.param(Broken, marks=pytest.mark.slow)])
def test_first_calls_at_once(driver, kind):
    for _ in range(2 if kind is Broken else 1):
        torch._dynamo.reset()
        models = [kind().eval(), kind().eval()]
        fasts = [compiled(model) for model in models]
        calls = [(fasts[i % 2], models[i % 2], images(1 + i % 3)) for i in range(6)]
        at_once([partial(agrees, *call) for call in calls])
    assert driver.count


@pytest.mark.slow
@pytest.mark.parametrize("dense", [False, True], ids=["pruned", "dense"])
@pytest.mark.turns(2)
def test_first_calls_at_once_with_the_compiler(strict, kernels, dense):
    """Also of programs that Inductor compiles, and beside sparsec.compile."""
    for _ in range(2):
        torch._dynamo.reset()
        model, other = Broken().eval(), Small().eval()
        if not dense:
            with torch.no_grad():
                for weight in (model.convolution.weight, model.head.weight, other.convolution.weight):
                    weight.mul_(torch.rand_like(weight) < 0.1)
        fast = torch.compile(model, backend="sparse", options={"cache_dir": kernels, "threads": 1})

        calls: list[Callable[[], object]] = [partial(agrees, fast, model, images(1 + i % 3)) for i in range(6)]
        at_once([*calls, *(partial(compiled_whole, other, x, other(x), kernels) for x in (images(1), images(2)))])


def compiled_whole(model: nn.Module, x: Tensor, wanted: Tensor, kernels: object) -> None:
    """torch.export takes any call of the module for one of its own, also one of another thread: the result is from before."""
    torch.testing.assert_close(sparsec.compile(model, (x,), threads=1, cache_dir=kernels)(x), wanted.detach(), rtol=1e-5, atol=1e-6)


WRITES = {
    "in place": lambda weight: weight.mul_(2),
    "data": lambda weight: weight.data.mul_(2),
    "one element": lambda weight: weight.data[1, 0, 0, 0].add_(7),
    "assigned": lambda weight: setattr(weight, "data", weight.data * 2),
}


@pytest.mark.parametrize("again", [1, pytest.param(99, marks=pytest.mark.slow)], ids=["once", "always"])
@pytest.mark.parametrize("write", ["in place", "one element", *(pytest.param(w, marks=pytest.mark.slow) for w in ("data", "assigned"))])
def test_weights_written_while_a_program_is_made_of_them(driver, monkeypatch, caplog, write, again):
    model, x, left = Small().eval().requires_grad_(False), images(), [again]
    make = torch_backend.Door._make

    def interrupted(door, args):
        made = make(door, args)
        if left[0]:
            left[0] -= 1
            with torch.no_grad():
                at_once([lambda: WRITES[write](model.convolution.weight)])
        return made

    monkeypatch.setattr(torch_backend.Door, "_make", interrupted)
    fast = compiled(model)
    agrees(fast, model, x)
    assert driver.count == (2 if again == 1 else torch_backend.ATTEMPTS)
    assert any("written to while" in message for message in warnings_in(caplog)) == (again != 1)
    left[0] = 0
    agrees(fast, model, x)
    agrees(fast, model, x)


@pytest.mark.slow
def test_entries_go_while_others_are_looked_for(driver, monkeypatch):
    """Each thread has an instance, writes to it between calls and lets it go; few entries are kept."""
    monkeypatch.setattr(torch_entries, "LIMIT", 2)
    monkeypatch.setattr(torch_backend, "STALE_IN_A_ROW", 10**6)
    monkeypatch.setattr(torch_backend, "MISSES_IN_A_ROW", 10**6)
    x = images()

    def work() -> None:
        for _ in range(3):
            model = Small().eval()
            fast = compiled(model)
            for _ in range(4):
                agrees(fast, model, x)
                model.head.weight.data.neg_()
                agrees(fast, model, x)

    at_once([work] * 4)
    at_once([*[work] * 2, lambda: [sparsec.refresh() for _ in range(50)]])
