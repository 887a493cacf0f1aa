"""What the comparison of models with eager would not let pass."""

import pytest
import torch
from torch import nn

from tests.models.heads.agreement import LIMIT, disagreement
from tests.models.heads.case import SPARSITY, drawn

X = {"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}


class Heads(nn.Module):
    """Floats, scores that a mask hid, integers."""

    def forward(self, x):
        hidden = torch.where(x > 0, x, torch.finfo(x.dtype).min)
        return {"scores": 2 * x, "masked": hidden, "best": x.argmax(1)}


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
