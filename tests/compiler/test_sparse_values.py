"""Tensors of sparse layouts that a model makes on its way: objects refuse them, torch.compile leaves them to torch."""

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.errors import UnsupportedModel


def of_values(values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(torch.arange(values.numel())[None], values, (values.numel(),))


MAKERS = {
    "to_sparse": lambda y: y.to_sparse(),
    # Inductor gave the memory of the values to another result: a wrong answer that nothing told of.
    "of computed values": lambda y: of_values(y.flatten() * 2),
    "of the layer's own": lambda y: of_values(y.reshape(-1)),
    "and back": lambda y: y.to_sparse().to_dense() + 1,
    "a product": lambda y: torch.sparse.mm(y.flatten(1).to_sparse(), torch.ones(90, 2)),
}


class Making(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.make = nn.Conv2d(4, 3, 3, padding=1), MAKERS[kind]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.layer(x)
        return self.make(y), y, y.flatten(1)


@pytest.mark.parametrize("kind", MAKERS)
def test_objects_refuse_sparse_values_by_their_layout(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"(?s)layout torch.sparse_coo.*torch\.compile"):
        sparsec.compile(Making(kind).eval(), torch.randn(2, 4, 5, 6))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_leaves_them_to_torch(kind: str) -> None:
    model, x = Making(kind).eval(), torch.randn(2, 4, 5, 6)
    torch._dynamo.reset()
    with torch.no_grad():
        found, wanted = torch.compile(model, backend="sparse")(x), model(x)
    for a, b in zip(found, wanted, strict=True):
        assert a.layout == b.layout and torch.allclose(a.to_dense(), b.to_dense(), atol=1e-5)
