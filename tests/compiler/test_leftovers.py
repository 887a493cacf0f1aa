"""A model that keeps tensors between calls is after compiling what it was before: nothing without data is left in it."""

from collections import deque
from collections.abc import Callable
from functools import cached_property, lru_cache, wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import sparsec


@lru_cache
def positions(count: int) -> Tensor:
    return torch.arange(count) / 8.0


def kept(function: Callable) -> Callable:
    """A cache inside of a decorator, as transformers has."""
    inner = lru_cache(maxsize=None)(function)

    @wraps(function)
    def outer(*args: Any) -> Any:
        return inner(*args)

    return outer


class Keeps(nn.Module):
    """A layer and a bias by position, which subclasses keep in their ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table, self.rows, self.grid = nn.Linear(16, 16), {}, [], None

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.bias(x.shape[0])[:, None, None] + self.bias(16)

    def bias(self, count: int) -> Tensor:
        raise NotImplementedError


class ByFunction(Keeps):
    def bias(self, count: int) -> Tensor:
        return positions(count)


class ByMethod(Keeps):
    @lru_cache  # noqa: B019
    def bias(self, count: int) -> Tensor:
        return torch.arange(count) / 8.0


class ByDecorator(Keeps):
    @kept
    def bias(self, count: int) -> Tensor:
        return torch.arange(count) / 8.0


class ByStaticMethod(Keeps):
    @staticmethod
    @kept
    def kept_bias(count: int) -> Tensor:
        return torch.arange(count) / 8.0

    def bias(self, count: int) -> Tensor:
        return self.kept_bias(count)


class ByProperty(Keeps):
    @cached_property
    def all(self) -> Tensor:
        return torch.arange(64) / 8.0

    def bias(self, count: int) -> Tensor:
        return self.all[:count]


class ByDictionary(Keeps):
    def bias(self, count: int) -> Tensor:
        if count not in self.table:
            self.table[count] = torch.arange(count) / 8.0
        return self.table[count]


class ByList(Keeps):
    def bias(self, count: int) -> Tensor:
        while len(self.rows) <= count:
            self.rows.append(torch.arange(len(self.rows)) / 8.0)
        return self.rows[count]


class ByAttribute(Keeps):
    def bias(self, count: int) -> Tensor:
        if self.grid is None or len(self.grid) < count:
            self.grid = torch.arange(count) / 8.0
        return self.grid[:count]


class Store:
    """A plain object: a table and how long it is."""

    def __init__(self) -> None:
        self.count, self.table = 0, None

    def upto(self, count: int) -> Tensor:
        if count > self.count:
            self.table, self.count = torch.arange(count) / 8.0, count
        return self.table[:count]


class ByObject(Keeps):
    def __init__(self) -> None:
        super().__init__()
        self.stores = {"first": [Store()]}

    def bias(self, count: int) -> Tensor:
        return self.stores["first"][0].upto(count)


class ByNestedContainer(Keeps):
    def bias(self, count: int) -> Tensor:
        by_kind = self.table.setdefault("bias", {})
        return by_kind.setdefault(count, torch.arange(count) / 8.0)


class ByQueue(Keeps):
    def __init__(self) -> None:
        super().__init__()
        self.latest = deque([(0, torch.zeros(0))], maxlen=1)

    def bias(self, count: int) -> Tensor:
        if self.latest[0][0] != count:
            self.latest.append((count, torch.arange(count) / 8.0))
        return self.latest[0][1]


class ByClass(Keeps):
    longest, made = 0, None

    def bias(self, count: int) -> Tensor:
        if count > ByClass.longest:
            ByClass.longest, ByClass.made = count, torch.arange(count) / 8.0
        return ByClass.made[:count]


BY_COUNT: dict[int, Tensor] = {}


class ByGlobal(Keeps):
    def bias(self, count: int) -> Tensor:
        if count not in BY_COUNT:
            BY_COUNT[count] = torch.arange(count) / 8.0
        return BY_COUNT[count]


class WhenCompiled(Keeps):
    """Keeps nothing where it is told that it is compiled."""

    def bias(self, count: int) -> Tensor:
        return torch.arange(count) / 8.0 if torch.compiler.is_compiling() else positions(count)


WAYS = [each for each in Keeps.__subclasses__() if each.__module__ == __name__]


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
@pytest.mark.parametrize("before", [False, True], ids=["first", "called before"])
@pytest.mark.parametrize("way", WAYS)
def test_the_model_runs_on_as_if_nothing_had_been(without_inductor: None, way: type[Keeps], before: bool) -> None:
    torch.manual_seed(0)
    model = way().eval()
    positions.cache_clear()
    BY_COUNT.clear()
    ByClass.longest = 0
    with torch.no_grad():
        if before:
            model(torch.randn(2, 3, 16))
        try:
            fast = sparsec.compile(model, (torch.randn(2, 3, 16),), threads=1)
        except sparsec.SparsecError:
            fast = None  # What is kept may be what torch.export refuses.
        for batch in (2, 1, 3, 4, 5, 2):
            x = torch.randn(batch, 3, 16)
            bias = torch.arange(16) / 8.0
            wanted = model.layer(x) + bias[:batch, None, None] + bias
            found = model(x)
            assert not isinstance(found, FakeTensor)
            torch.testing.assert_close(found, wanted)
            try:
                torch.testing.assert_close(fast(x) if fast else wanted, wanted, rtol=1e-4, atol=1e-5)
            except sparsec.SparsecError:
                assert batch != 2


class Busy(nn.Module):
    """Counts its calls, and keeps what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.seen = nn.Linear(16, 16), 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x.shape)
        self.latest = x
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
def test_compiling_is_no_call(without_inductor: None) -> None:
    model = Busy().eval()
    sparsec.compile(model, (torch.randn(2, 16),), threads=1)
    assert (model.calls, model.seen, hasattr(model, "latest")) == (0, [], False)
    with torch.no_grad():
        model(torch.randn(2, 16))
    first = model.latest
    sparsec.compile(model, (torch.randn(2, 16),), threads=1)
    assert (model.calls, model.seen) == (1, [(2, 16)]) and model.latest is first
