"""From regions to plans: conversions once, tasks in order, results where the caller wants them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsec.backends.cpu.access import parity_step
from sparsec.backends.lowering import Lowered, draft, lower
from sparsec.backends.plan import Call
from sparsec.backends.x86.backend import X86
from sparsec.doors.from_torch.capture import capture
from sparsec.lower.spec import KernelSpec
from tests import convnets

IMAGES = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


class Module(nn.Module):
    """A function of some layers."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.three, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        self.strided, self.other = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(3, 5, 1, 2)
        self.function = function

    def forward(self, *args):
        return self.function(self, *args)


def lowered(function, *inputs: torch.Tensor, chosen=None, **costs) -> tuple[Lowered, nn.Module, X86, object]:
    model, backend = Module(function).eval(), X86()
    _, (region,) = convnets.grouped(capture(model, inputs or (IMAGES,)).graph_module, backend, **costs)
    return lower(draft(region, backend), backend, chosen), model, backend, region


def calls(made: Lowered) -> list[Call]:
    return [call for group in made.plan.groups for call in group.calls]


def kinds(made: Lowered) -> list[str]:
    return [call.kind for call in calls(made)]


def answers(made: Lowered, backend: X86, region, tmp_path: Path, *inputs: torch.Tensor) -> list[np.ndarray]:
    kernels = convnets.sources_of([made])
    part = convnets.Part(0, region, made, None)
    return part.runner(kernels, backend.build(kernels, tmp_path))(*[x.numpy() for x in inputs])


def test_an_input_is_converted_once_for_all_its_readers():
    made, *_ = lowered(lambda m, x: m.three(x) + F.max_pool2d(x, 3, 1, 1) + m.three(x.relu()) + x)
    assert sum(call.buffers["x"].port == ("input", 0) for call in calls(made)) == 1


def test_strided_convolutions_share_the_parity_planes_of_their_input():
    made, *_ = lowered(lambda m, x: m.strided(x) * m.strided(x).relu())
    planes = [call for call in calls(made) if "planes" in call.source.symbol]
    assert len(planes) == 1
    assert planes[0].buffers["x"].port == ("input", 0)


def test_an_inner_value_goes_straight_to_its_parity_planes(tmp_path):
    made, model, backend, region = lowered(lambda m, x: m.strided(m.one(x)))
    assert kinds(made)[2] == "convert" and kinds(made)[3] != "convert"
    with torch.no_grad():
        np.testing.assert_allclose(answers(made, backend, region, tmp_path, IMAGES)[0], model(IMAGES), rtol=1e-5, atol=1e-5)


def test_vectors_are_written_straight_to_the_callers_tensor():
    made, *_ = lowered(lambda m, x: m.last(x.mean((2, 3))))
    assert calls(made)[-1].buffers["y"].port == ("output", 0)
    assert kinds(made) == ["convert", "pool", kinds(made)[-1]]


def test_an_output_that_is_read_on_is_both(tmp_path):
    made, model, backend, region = lowered(lambda m, x: ((v := x.mean((2, 3))), m.last(v)), IMAGES)
    with torch.no_grad():
        for found, expected in zip(answers(made, backend, region, tmp_path, IMAGES), model(IMAGES), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before", [lambda m, x: x, lambda m, x: m.one(x), lambda m, x: m.three(x)], ids=["input", "1x1", "3x3"])
@pytest.mark.slow
def test_flattening_a_map_copies_it_in_order(before, tmp_path):
    made, model, backend, region = lowered(lambda m, x: before(m, x).flatten(1).relu())
    with torch.no_grad():
        np.testing.assert_allclose(answers(made, backend, region, tmp_path, IMAGES)[0], model(IMAGES), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_chosen_schedules_are_used_and_all_are_reported():
    made, _, backend, _ = lowered(lambda m, x: m.three(m.one(x)))
    names = {task.node for task in made.tasks}
    assert set(made.schedules) == names
    for task in made.tasks:
        for schedule in backend.schedules(task):
            again, *_ = lowered(lambda m, x: m.three(m.one(x)), chosen={task.node: schedule})
            assert again.schedules[task.node] == schedule
            (call,) = (c for c in calls(again) if c.node == task.node)
            assert call.detail["schedule"] == dict(schedule)


@pytest.mark.slow
def test_every_schedule_gives_the_same_answer(tmp_path):
    made, model, backend, _ = lowered(lambda m, x: m.last(m.three(x).mean((2, 3))))
    with torch.no_grad():
        expected = model(IMAGES)
    plans = []
    for task in made.tasks:
        for schedule in backend.schedules(task):
            plans.append(lowered(model.function, chosen={task.node: schedule}))
    kernels = convnets.sources_of([plan for plan, *_ in plans])
    library = backend.build(kernels, tmp_path)
    assert len(plans) > 4
    for plan, _, _, region in plans:
        (found,) = convnets.Part(0, region, plan, None).runner(kernels, library)(IMAGES.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "stride", "step"),
    [((3, 9, 9), 4, 1, 2, 2), ((3, 9, 9), 4, 1, 1, 1), ((3, 9, 9), 3, 3, 2, 1), ((3, 1, 1), 4, 1, 2, 1), ((1, 9, 9), 1, 1, 2, 2)],
    ids=["dense", "stride 1", "depthwise", "one pixel", "one channel"],
)
def test_parity_planes_are_for_dense_strided_convolutions_over_maps(inputs, outputs, groups, stride, step):
    size = tuple(-(-n // stride) for n in inputs[1:])
    weights = ((outputs, inputs[0] // groups, 3, 3), None)
    spec = KernelSpec("conv2d", (inputs,), (outputs, *size), weights, attributes=(("groups", groups), ("stride", (stride, stride))))
    assert parity_step(spec) == step
