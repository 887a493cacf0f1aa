"""The torch.compile door: what users do to the weights of modules between calls."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsec.doors.torch_compile import backend as torch_backend
from sparsec.doors.torch_compile import entries as torch_entries
from sparsec.doors.torch_compile.backend import refresh
from tests.compiler.stand_in import Small, agrees, compiled, images

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow

torch.set_num_threads(1)


def test_several_instances_keep_their_own_weights(driver):
    pairs = [(compiled(model), model) for model in (Small().eval(), Small().eval(), Small().eval())]
    x = images()
    for _ in range(3):
        for fast, model in pairs:
            agrees(fast, model, x)
    assert driver.count == 3


def test_a_second_instance_is_not_exported_again(driver, monkeypatch):
    calls = []
    original = torch_backend.capture_graph
    monkeypatch.setattr(torch_backend, "capture_graph", lambda *args: calls.append(1) or original(*args))
    for model in (Small().eval(), Small().eval()):
        agrees(compiled(model), model, images())
    assert (len(calls), driver.count) == (1, 2)


def load(model):
    model.load_state_dict(Small().state_dict())


def write_in_place(model):
    with torch.no_grad():
        model.convolution.weight.mul_(2)


def write_a_buffer(model):
    model.norm.running_mean.add_(0.5)


def replace(model):
    model.head.weight = nn.Parameter(torch.randn(4, 8))


def replace_the_buffer(model):
    model.norm.running_var = torch.full((8,), 3.0)


def assign_data(model):
    model.convolution.weight.data = model.convolution.weight.data * 2


def alias_transposed(model):
    model.convolution.weight = nn.Parameter(model.convolution.weight.data.transpose(2, 3))


def grow_dense(model):
    with torch.no_grad():
        model.head.weight.fill_(0.25)


def write_data_and_refresh(model):
    model.head.weight.data.mul_(2)
    refresh(model)


CHANGES = [write_a_buffer, alias_transposed, write_data_and_refresh]
MORE_CHANGES = [load, write_in_place, replace, replace_the_buffer, assign_data, grow_dense]


@pytest.mark.parametrize(
    "change", [*CHANGES, *(pytest.param(change, marks=pytest.mark.slow) for change in MORE_CHANGES)], ids=lambda change: change.__name__
)
def test_changed_weights_are_noticed(driver, change):
    model, x = Small().eval(), images()
    with torch.no_grad():
        model.head.weight[:3] = 0
    fast = compiled(model)
    agrees(fast, model, x)
    change(model)
    agrees(fast, model, x)
    agrees(fast, model, x)
    assert driver.count == 2


def test_refresh_without_an_argument_forgets_everything_and_with_one_only_its_own(driver):
    models = [Small().eval() for _ in range(2)]
    fasts, x = [compiled(model) for model in models], images()
    for fast, model in zip(fasts, models, strict=True):
        agrees(fast, model, x)
    for model in models:
        model.head.weight.data.mul_(2)
    refresh(fasts[0])
    agrees(fasts[0], models[0], x)
    assert driver.count == 3
    refresh()
    agrees(fasts[1], models[1], x)
    assert driver.count == 4


def test_a_dead_instance_frees_its_program(driver):
    keep, gone = Small().eval(), Small().eval()
    agrees(compiled(keep), keep, images())
    agrees(compiled(gone), gone, images())
    [kept, freed] = driver.made
    del gone
    gc.collect()
    assert freed() is None and kept() is not None


def test_programs_are_bounded(driver, monkeypatch):
    monkeypatch.setattr(torch_entries, "LIMIT", 2)
    models, x = [Small().eval() for _ in range(4)], images()
    for model in models:
        agrees(compiled(model), model, x)
    gc.collect()
    assert sum(made() is not None for made in driver.made) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(driver, mode):
    model, x = Small().eval(), images()
    fast = compiled(model)
    with mode():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)
        write_in_place(model)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)
    assert driver.count == 2


def test_tied_weights(driver):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(F.relu(self.first(x)))

    model, x = Tied().eval(), torch.randn(2, 8)
    fast = compiled(model)
    agrees(fast, model, x)
    model.second.weight = nn.Parameter(torch.randn(8, 8))
    agrees(fast, model, x)


def test_weights_that_change_now_and_then_stay_compiled(driver):
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    fast = compiled(model)
    for _ in range(torch_backend.STALE_IN_A_ROW * 2):
        agrees(fast, model, x)
        agrees(fast, model, x)
        with torch.no_grad():
            model.weight.add_(1)
    assert driver.count == torch_backend.STALE_IN_A_ROW * 2
