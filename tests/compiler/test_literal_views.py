"""Views whose sizes are written out: what a program takes for axis 0 of samples holds them at every batch, by enumeration."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.doors.from_torch.batches import dependence_on_batch
from sparsec.errors import InvalidInput

MOST_AXES = 4


class View(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        return x.view(self.sizes)


def products(count: int, axes: int) -> Iterator[tuple[int, ...]]:
    """All shapes of so many elements."""
    if axes == 1:
        yield (count,)
    for size in range(1, count + 1) if axes > 1 else ():
        if count % size == 0:
            yield from ((size, *rest) for rest in products(count // size, axes - 1))


def literal(count: int) -> list[tuple[int, ...]]:
    """All arguments of ``view`` for so many elements: one size is left to torch, as with none another batch raises."""
    shapes = [shape for axes in range(1, MOST_AXES + 1) for shape in products(count, axes)]
    return [(*shape[:axis], -1, *shape[axis + 1 :]) for shape in shapes for axis in range(len(shape))]


def held(view: nn.Module, x: Tensor, batch: int) -> bool:
    """Whether ``batch`` samples, the first of which are those of ``x``, give rows that are each of its own sample."""
    repeated = torch.cat([x, x + 1000, x + 2000])[:batch]
    try:
        made, before = view(repeated), view(x)
    except RuntimeError:
        return False
    both = min(batch, len(x))
    return len(made) == batch and torch.equal(made[:both], before[:both])


@pytest.mark.parametrize("shape", [(1, 6), (2, 6), (2, 8), (3, 6), (2, 2, 3), (2, 3, 4), (3, 2, 4), (4, 2, 3), (2, 2, 2, 2)])
def test_what_is_taken_for_samples_holds_them_at_every_batch(shape: tuple[int, ...]) -> None:
    batch, x, served = shape[0], torch.arange(float(math.prod(shape))).view(shape), 0
    for sizes in literal(x.numel()):
        view = View(*sizes)
        reason, least = dependence_on_batch(view, (x,), {})
        if not reason and len(view(x)) == batch:
            served += 1
            assert all(held(view, x, other) for other in (1, batch, batch + 1, 2 * batch, 3 * batch) if other >= least), sizes
    assert served


@pytest.mark.parametrize("sizes", [(2, 1, -1), (2, 3, -1), (2, 1, 3, -1), (1, 2, 1, -1)])
def test_a_batch_that_is_written_out_is_the_only_one(sizes: tuple[int, ...]) -> None:
    model = nn.Sequential(View(*sizes), nn.ReLU(), nn.Flatten(1)).eval()
    fast, x = sparsec.compile(model, torch.randn(2, 24), threads=1), torch.randn(2, 24)
    assert torch.equal(fast(x), model(x))
    with pytest.raises(InvalidInput, match=r"Other batches are refused"):
        fast(torch.randn(3, 24))
