"""Code that asks for sizes: a program serves those for which it would do the same, and says so of others, through every way in."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.errors import InvalidInput
from sparsec.from_torch.batches import dependence_on_batch
from tests.fuzz.prelude import seeded

AUTO = torch.export.Dim.AUTO
BATCHES, TOKENS = (1, 2, 3, 4, 5, 8, 9, 16), (3, 6, 7, 33)


class Asks(nn.Module):
    """A pruned layer, and a function of it and the input."""

    def __init__(self, then: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(16, 16), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer, x)


def if_(condition: Callable[..., bool]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Another function where a condition on batch and tokens holds."""
    return lambda layer, x: layer(x).relu() if condition(*x.shape[:2]) else layer(x)


CONDITIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "more than 3": if_(lambda n, t: n > 3),
    "at least 8": if_(lambda n, t: n >= 8),
    "even": if_(lambda n, t: n % 2 == 0),
    "one": if_(lambda n, t: n == 1),
    "five": if_(lambda n, t: n == 5),
    "between": if_(lambda n, t: 2 < n < 5),
    "nested": if_(lambda n, t: n != 3 and (n < 5 or n > 8)),
    "even tokens": if_(lambda n, t: t % 2 == 0),
    "more than 6 tokens": if_(lambda n, t: t > 6),
    "more tokens than samples": if_(lambda n, t: t > n),
    "squeeze": lambda layer, x: layer(x).squeeze(),
    "length": lambda layer, x: layer(x).relu() if len(x) > 3 else layer(x),
    "loop": lambda layer, x: torch.cat([layer(x[n : n + 1]) for n in range(x.shape[0])]),
    "range": lambda layer, x: layer(x).relu() if x.shape[0] in range(3, 5) else layer(x),
    "harmless": lambda layer, x: layer(x).view(len(x), -1, 16) if x.shape[0] > 0 else x,
    "halves": lambda layer, x: layer(x) if x.chunk(2, 1)[0].shape == x.chunk(2, 1)[1].shape else layer(x).relu(),
}


def outcome(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    """None where the call is refused."""
    try:
        return call(x)
    except InvalidInput:
        return None


def served(call: Callable[[Tensor], Tensor], model: nn.Module, shapes: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """The shapes that are not refused, all of them right."""
    found = set()
    for shape in shapes:
        x = torch.randn(*shape, 16)
        with torch.no_grad():
            result, wanted = outcome(call, x), model(x)
        if result is not None:
            torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)
            found.add(shape)
    return found


def artifact(fast: Any, folder: Path) -> Callable[[Tensor], Tensor]:
    loaded = sparsec.load(fast.save(folder / "net.sparsec"))
    return lambda x: torch.from_numpy(loaded(x.numpy()))


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONDITIONS)
def test_other_batches_are_right_or_refused(tmp_path: Path, name: str, batch: int) -> None:
    model, shapes = seeded(Asks(CONDITIONS[name]), "90%", 0), [(n, 6) for n in BATCHES]
    fast = sparsec.compile(model, (torch.randn(batch, 6, 16),), threads=1)
    found = served(fast, model, shapes)
    assert (batch, 6) in found
    if not fast.explain().uncovered:
        assert served(artifact(fast, tmp_path), model, shapes) == found
    if name in ("harmless", "even tokens", "more than 6 tokens"):
        assert found == {*shapes}
    if (name, batch) in (("one", 2), ("squeeze", 4)):
        assert found == {*shapes} - {(1, 6)}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 6), (3, 7)])
@pytest.mark.parametrize("name", CONDITIONS)
def test_free_sizes_are_right_or_refused(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    model, shapes = seeded(Asks(CONDITIONS[name]), "90%", 0), [(n, t) for n in (1, 2, 3, 4, 8) for t in TOKENS]
    fast = sparsec.compile(model, (torch.randn(*shape, 16),), threads=1, dynamic_shapes=({0: AUTO, 1: AUTO},))
    found = served(fast, model, shapes)
    assert shape in found
    if not fast.explain().uncovered:
        served(artifact(fast, tmp_path), model, shapes)


def test_a_range_of_the_user_holds_in_the_artifact(tmp_path: Path) -> None:
    model, shapes = seeded(Asks(lambda layer, x: layer(x)), "90%", 0), [(n, 6) for n in BATCHES]
    fast = sparsec.compile(model, (torch.randn(2, 6, 16),), threads=1, dynamic_shapes=({0: torch.export.Dim("n", max=4)},))
    assert served(fast, model, shapes) == served(artifact(fast, tmp_path), model, shapes) == {(n, 6) for n in (1, 2, 3, 4)}


def test_what_is_refused_is_said(tmp_path: Path) -> None:
    model = seeded(Asks(CONDITIONS["one"]), "90%", 0)
    fast = sparsec.compile(model, (torch.randn(2, 6, 16),), threads=1)
    assert any("batches of 2 or more only: other functions run" in note for note in fast.explain().notes)
    with pytest.raises(InvalidInput, match="Other batches are refused"):
        fast(torch.randn(1, 6, 16))
    with pytest.raises(InvalidInput, match="compiled for batches of 2 or more, the inputs have 1"):
        artifact(fast, tmp_path)(torch.randn(1, 6, 16))


def test_conditions_that_change_nothing_leave_the_batch_free() -> None:
    model = Asks(lambda layer, x: layer(x) if x.shape[0] > 3 else layer.forward(x))
    assert dependence_on_batch(model, (torch.randn(2, 6, 16),), {}) == ("", 0)
