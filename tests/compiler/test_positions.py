"""Tables of positions shorter than what tokens are compiled for: numbers of tokens that fit are served, others raise as in eager mode."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsec

ROWS = 40


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.embedding = nn.Linear(16, 16), nn.Embedding(ROWS, 16)
        self.layer.weight.data.mul_(torch.rand(16, 16) > 0.8)
        self.register_buffer("table", torch.randn(ROWS, 16))
        self.register_buffer("bias", torch.randn(2, ROWS))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.positions(torch.arange(x.shape[1])))

    def positions(self, places: Tensor) -> Tensor:
        raise NotImplementedError


class Selected(Positions):
    def positions(self, places: Tensor) -> Tensor:
        return self.embedding.weight.index_select(0, places)


class Embedded(Positions):
    def positions(self, places: Tensor) -> Tensor:
        return self.embedding(places)


class Indexed(Positions):
    def positions(self, places: Tensor) -> Tensor:
        return self.table[places + 2]


class Sliced(Positions):
    def positions(self, places: Tensor) -> Tensor:
        return self.table[: places.shape[0]]


class Gathered(Positions):
    def positions(self, places: Tensor) -> Tensor:
        return self.table.gather(0, places[:, None].expand(-1, 16))


class Bias(Positions):
    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        bias = self.bias[:, (places[:, None] - places).abs()][None]
        heads = self.layer(x).unflatten(-1, (2, 8)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=bias).transpose(1, 2).flatten(2)


class Apart(Embedded):
    """An operator without a kernel leaves the table to Inductor, which folds what follows from constants."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cumsum(super().forward(x), 1))


def called(function: nn.Module, x: Tensor) -> Tensor | str:
    try:
        with torch.no_grad():
            return function(x)
    except Exception:
        return "raised"


WAYS = [way for way in Positions.__subclasses__() if way is not Apart]


@pytest.mark.parametrize("door", ["torch.compile", "object"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.filterwarnings("error:.*internal error")
def test_numbers_of_tokens_that_fit_are_served(without_inductor: None, strict: None, way: type[Positions], door: str) -> None:
    served(way().eval(), door, (30, 33, 38, 20, ROWS + 1, 5, 64, 38))


@pytest.mark.slow
@pytest.mark.parametrize("door", ["torch.compile", "object"])
@pytest.mark.filterwarnings("error:.*internal error")
def test_so_they_are_where_the_table_is_left_to_inductor(strict: None, door: str) -> None:
    served(Apart().eval(), door, (30, 33))


def served(model: nn.Module, door: str, sizes: tuple[int, ...]) -> None:
    """Calls with these numbers of tokens do as in eager mode."""
    if door == "object":
        free = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
        fast = sparsec.compile(model, (torch.randn(2, 30, 16),), threads=1, dynamic_shapes=free)
    else:
        fast = torch.compile(model, backend="sparse", options={"threads": 1})
    for tokens in sizes:
        x = torch.randn(3, tokens, 16)
        wanted, found = called(model, x), called(fast, x)
        if isinstance(wanted, Tensor) and isinstance(found, Tensor):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        else:
            assert wanted == found == "raised"
