"""What the comparison of models with eager would not let pass."""

import pytest
import torch
from torch import nn

from tests.models.heads.agreement import LIMIT, disagreement, eager, relative_error, wide
from tests.models.heads.case import SPARSITY, drawn

X = {"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}


class Heads(nn.Module):
    """Floats, scores that a mask hid, integers."""

    def forward(self, x):
        hidden = torch.where(x > 0, x, torch.finfo(x.dtype).min)
        return {"scores": 2 * x, "masked": hidden, "best": x.argmax(1)}


class Keeps(nn.Module):
    """A bias that is read once, and again after a change of dtype."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))
        self.kept = None

    def _apply(self, *args, **kwargs):
        self.kept = None
        return super()._apply(*args, **kwargs)

    def forward(self, x):
        self.kept = self.bias.detach().clone() if self.kept is None else self.kept
        return x + self.kept


def test_eagers_own_answer_passes():
    assert not disagreement(Heads()(**X), Heads(), X)


@pytest.mark.parametrize(
    "other",
    [
        {"scores": 2 * X["x"] * (1 + 2 * LIMIT)},
        {"scores": (2 * X["x"]).double()},
        {"scores": 2 * X["x"][:2]},
        {"scores": torch.where(X["x"] > 1, torch.nan, 2 * X["x"])},
        {"masked": X["x"]},
        {"best": X["x"].argmax(1) + 1},
        {"best": X["x"].argmax(1).int()},
        {"more": None},
    ],
    ids=["value", "dtype", "shape", "nan", "mask", "integer", "integer's dtype", "structure"],
)
def test_another_answer_does_not(other):
    assert disagreement({**Heads()(**X), **other}, Heads(), X)


def test_every_parameter_is_drawn_and_matrices_are_pruned():
    model = drawn(nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 32), nn.LayerNorm(32), nn.BatchNorm1d(32)), 0)
    assert all(value.std() > 0.05 for name, value in model.state_dict().items() if value.is_floating_point()), "constant"
    zeros = {name: (value == 0).double().mean().item() for name, value in model.named_parameters()}
    assert abs(zeros.pop("1.weight") - SPARSITY) < 0.01
    assert not any(zeros.values())


def test_what_a_model_keeps_aside_is_the_same_in_float64():
    model = Keeps()
    model(**X)
    model.load_state_dict({"bias": torch.full((4,), 2.0)})
    assert relative_error(eager(model, X), wide(model, X, None)) < 1e-6
