"""Rows that a program looks up by numbers of its own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from sparsec.doors.from_torch.exported import read_symbols
from sparsec.errors import UnsupportedModel


class Table(nn.Module):
    """``use`` looks up rows of a table of 12 by numbers below the length of x [2, t]."""

    def __init__(self, use: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.use, self.rows = use, nn.Embedding(12, 4)
        self.register_buffer("places", torch.arange(100))

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() + self.use(self, torch.arange(x.shape[1]), x)


#: What is looked up, and the largest length at which eager mode finds it.
USES = {
    "embedding": (lambda m, i, _: m.rows(i), 12),
    "shifted": (lambda m, i, _: m.rows(i + 2), 10),
    "kept": (lambda m, i, x: m.rows(m.places[: x.shape[1]]), 12),
    "index": (lambda m, i, _: m.rows.weight[i], 12),
    "second axis": (lambda m, i, _: m.rows.weight.t()[:, i], 12),
    "from the end": (lambda m, i, _: m.rows.weight[-1 - i], 12),
    "selected": (lambda m, i, _: m.rows.weight.index_select(0, i), 12),
    "gathered": (lambda m, i, _: m.rows.weight.gather(0, i[:, None]), 12),
    "halved": (lambda m, i, _: m.rows(i // 2), 24),
    "bounded": (lambda m, i, _: m.rows(i.clamp(max=11)), 99),
    "given": (lambda m, i, x: m.rows((x[0] > 0).long() + i % 3), 99),
}


@pytest.mark.parametrize("name", USES)
def test_sizes_that_a_table_has_no_rows_for_are_refused(name: str) -> None:
    use, most = USES[name]
    model = Table(use).eval()
    program = export(model, (torch.ones(2, 8),), dynamic_shapes=({1: Dim.DYNAMIC},)).run_decompositions({})
    symbolic = read_symbols(program)
    (size,) = symbolic.signature.symbols
    for tokens in (8, most - 1, most):
        symbolic.graph({size: tokens})
        model(torch.ones(2, tokens))
    if most < 99:
        with pytest.raises(UnsupportedModel, match="looks up row"):
            symbolic.graph({size: most + 1})
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.ones(2, most + 1))


def test_numbers_that_are_drawn_are_no_constants() -> None:
    """And drawing them for a look would change those that the user draws next."""
    model = Table(lambda m, _, x: m.rows(torch.randint(0, 12, (x.shape[1],)))).eval()
    program = export(model, (torch.ones(2, 8),), dynamic_shapes=({1: Dim.DYNAMIC},)).run_decompositions({})
    symbolic = read_symbols(program)
    (size,) = symbolic.signature.symbols
    before = torch.random.get_rng_state()
    symbolic.graph({size: 9})
    assert torch.equal(torch.random.get_rng_state(), before)
