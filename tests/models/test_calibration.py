"""BatchNorm statistics after calibration are those of the batches."""

import pytest
import torch
from torch import nn

from sparsec.models.prune import calibrate_batchnorm, prune

torch.set_num_threads(1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 1))


def test_statistics_are_the_plain_average_over_batches():
    model, batches = network().double(), [torch.randn(3, 4, 5, 5).double() for _ in range(3)]
    calibrate_batchnorm(model, batches)
    with torch.no_grad():
        seen = [model[0](batch) for batch in batches]
    torch.testing.assert_close(model[1].running_mean, sum(x.mean((0, 2, 3)) for x in seen) / 3)
    torch.testing.assert_close(model[1].running_var, sum(x.var((0, 2, 3)) for x in seen) / 3)


def test_pruning_shifts_statistics_and_calibration_restores_the_scale():
    model, batch = network(), torch.randn(16, 4, 9, 9) + 3
    calibrate_batchnorm(model, [batch])
    before = model[1].running_var.clone()
    prune(model, 0.75)
    assert model[:2](batch).var((0, 2, 3)).lt(0.9).any()
    calibrate_batchnorm(model, [batch])
    assert not torch.allclose(model[1].running_var, before, rtol=0.05)
    normalised = model[:2](batch)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-4)
    live = (model[0].weight != 0).any(1).flatten()
    torch.testing.assert_close(normalised.var((0, 2, 3))[live], torch.ones(int(live.sum())), rtol=1e-2, atol=0)


def test_model_ends_in_evaluation_mode_with_its_momentum():
    model = calibrate_batchnorm(network().train(), [torch.randn(2, 4, 3, 3)])
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1


def test_no_batch_is_refused():
    with pytest.raises(ValueError, match="got no batch"):
        calibrate_batchnorm(network(), [])
