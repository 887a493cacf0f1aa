"""Results of torch.compile lie in memory as those of eager mode, and what comes after a graph break means the same."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsec.doors.torch_compile.placement import place
from tests.fuzz.prelude import seeded

#: What is returned of tokens [N, T, 16] and maps [N, 16, H, W] that a sparse layer made.
TOKENS: dict[str, Callable[[Tensor], Any]] = {
    "as they are": lambda y: y,
    "turned": lambda y: y.transpose(1, 2),
    "turned and changed": lambda y: y.transpose(1, 2).relu(),
    "the first": lambda y: y[:, 0],
    "every other": lambda y: y[:, ::2],
    "heads": lambda y: y.unflatten(2, (4, 4)).transpose(1, 2),
    "heads in one": lambda y: y.unflatten(2, (4, 4)).transpose(1, 2).flatten(2),
    "expanded": lambda y: y.mean(1, keepdim=True).expand(-1, 3, -1),
    "several": lambda y: (y.mT, y[:, 1] * 2, y.sum(1)),
    "views of one": lambda y: (y.mT, y[:, 0]),
}
MAPS: dict[str, Callable[[Tensor], Any]] = {
    "as it is": lambda y: y,
    "tokens": lambda y: y.flatten(2).transpose(1, 2),
    "last": lambda y: y.permute(0, 2, 3, 1),
    "one row": lambda y: y[:, :, 0],
    "changed": lambda y: y.permute(0, 2, 3, 1).sigmoid(),
}
CASES = [*product(["tokens"], TOKENS), *product(["map"], MAPS), *product(["channels last"], MAPS)]


class Returns(nn.Module):
    """A pruned layer and what is returned of its result."""

    def __init__(self, layer: nn.Module, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.then = layer, then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.layer(x))


def made(kind: str, name: str) -> tuple[nn.Module, Callable[[int], Tensor]]:
    if kind == "tokens":
        return seeded(Returns(nn.Linear(16, 16), TOKENS[name]), "90%", 0), lambda n: torch.randn(n, 6, 16)
    layer = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1))
    form = torch.channels_last if kind == "channels last" else torch.contiguous_format
    return seeded(Returns(layer, MAPS[name]), "90%", 0), lambda n: torch.randn(n, 8, 5, 7).to(memory_format=form)


@pytest.mark.parametrize("dynamic", [False, pytest.param(None, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "name"), [pytest.param(*c, marks=[pytest.mark.slow] * (i % 4 != 1)) for i, c in enumerate(CASES)])
@pytest.mark.turns(3)
def test_results_lie_as_in_eager_mode(kind: str, name: str, dynamic: bool | None, without_inductor: None) -> None:
    model, inputs = made(kind, name)
    fast = torch.compile(model, backend="sparse", dynamic=dynamic)
    with torch.no_grad():
        for batch in (2, 3, 5, 2):
            x = inputs(batch)
            for mine, theirs in zip(tree_leaves(fast(x)), tree_leaves(model(x)), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
                assert [s for s, n in zip(mine.stride(), mine.shape, strict=True) if n > 1] == [
                    s for s, n in zip(theirs.stride(), theirs.shape, strict=True) if n > 1
                ]


class Breaks(nn.Module):
    """What is read in another shape behind a break, and then written to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x).transpose(1, 2)
        torch._dynamo.graph_break()
        z = y.reshape(len(y), -1)
        y.mul_(3)
        return z, y


@pytest.mark.turns(2)
def test_a_reshape_behind_a_break_copies_where_eager_mode_copies() -> None:
    model, x = seeded(Breaks(), "90%", 0), torch.randn(2, 6, 16)
    fast = torch.compile(model, backend="sparse")
    with torch.no_grad():
        for _ in range(2):
            (z, y), (right, also_right) = fast(x), model(x)
            torch.testing.assert_close(z, right, rtol=1e-4, atol=1e-5)
            z.add_(1)
            torch.testing.assert_close(y, also_right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "theirs",
    [torch.ones(2, 3, 4).permute(2, 0, 1), torch.ones(2, 9)[:, ::3], torch.ones(3, 1).expand(3, 4), torch.ones(8).unfold(0, 4, 2)],
)
def test_a_value_is_placed_with_its_elements(theirs: Tensor) -> None:
    found = place(theirs.contiguous(), theirs.stride())
    assert found.stride() == theirs.stride() and torch.equal(found, theirs)
    assert place(theirs, theirs.stride()) is theirs


@pytest.mark.parametrize("name", ["turned", "views of one"])
@pytest.mark.turns(2)
def test_a_default_device_around_a_call_says_nothing_of_its_results(name: str, without_inductor: None) -> None:
    model, inputs = made("tokens", name)
    fast, x = torch.compile(model, backend="sparse"), inputs(2)
    with torch.no_grad():
        fast(x)
        with torch.device("meta"):
            results = tree_leaves(fast(x))
        for mine, theirs in zip(results, tree_leaves(model(x)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
