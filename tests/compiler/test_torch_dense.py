"""The torch.compile door: what runs dense, why, and that it stays right."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from sparsec.doors.torch_compile import backend as torch_backend
from sparsec.errors import SparsecError, UnsupportedModel
from tests.compiler.stand_in import Small, agrees, compiled, images, warnings_in

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow

torch.set_num_threads(1)


def test_weights_made_in_inference_mode_run_dense(driver, caplog):
    with torch.inference_mode():
        model, x = Small().eval(), images()
        fast = compiled(model)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        model.head.weight.mul_(2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert driver.count == 0
    assert any("made in inference mode" in message for message in warnings_in(caplog))


class WritesToAView(nn.Module):
    """Its second graph takes a value and a view of it, and writes to the view."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        first = y[:, :1]
        torch._dynamo.graph_break()
        first.zero_()
        return y * 2


@pytest.mark.parametrize("modes", list(itertools.product(("no_grad", "inference_mode"), repeat=3)))
def test_views_among_inputs_are_written_to_in_every_mode(modes, caplog):
    torch._dynamo.reset()
    model = WritesToAView().eval()
    fast = compiled(model)
    for mode, batch in zip(modes, (2, 5, 3), strict=True):
        with getattr(torch, mode)():
            for x in torch.randn(2, batch, 8):
                torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert any("runs as in eager mode" in message for message in warnings_in(caplog))


@pytest.mark.slow
def test_training_is_dense_with_a_warning_per_graph_and_right_gradients(driver, caplog):
    model, twin, x = Small().train(), Small().train(), images()
    twin.load_state_dict(model.state_dict())
    fast = compiled(model)
    for _ in range(2):
        fast(x).square().sum().backward()
        twin(x).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(model.norm.running_var, twin.norm.running_var)
    model.eval()
    fast(x).sum().backward()
    messages = warnings_in(caplog)
    assert len(messages) == 2 and all("gradients are needed" in message for message in messages)
    agrees(fast, model, x)
    assert driver.count == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_dense(driver, caplog, dtype):
    model, x = nn.Linear(8, 4).eval().to(dtype), torch.randn(2, 8, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x), rtol=1e-2, atol=1e-2)
    assert driver.count == 0 and str(dtype) in warnings_in(caplog)[0]


def test_autocast_runs_dense(driver, caplog):
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(model)(x).dtype == torch.bfloat16
    assert driver.count == 0 and "autocast" in warnings_in(caplog)[0]


def test_a_model_that_keeps_state_runs_dense(driver, caplog):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return self.linear(x) * self.count

    model, twin, x = Counting().eval(), Counting().eval(), torch.randn(2, 8)
    twin.load_state_dict(model.state_dict())
    fast = compiled(model)
    for _ in range(3):
        agrees(fast, twin, x)
    assert float(model.count) == 3
    assert driver.count == 0 and len(warnings_in(caplog)) == 1


def test_a_result_that_is_a_view_of_the_input_can_be_written_through(driver):
    class Writing(nn.Linear):
        def forward(self, x):
            rows = x.view(-1, 8)
            torch._dynamo.graph_break()
            rows.add_(1)
            return super().forward(rows)

    model, slow = Writing(8, 4).eval(), torch.randn(2, 8)
    fast, x = torch.empty(17)[1:].view(2, 8).copy_(slow), slow.clone()
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(fast), model(slow))
    torch.testing.assert_close(fast, x + 1)


@pytest.mark.slow
def test_a_frozen_dense_program_takes_any_strides(driver):
    driver.nothing_sparse = True
    model, x = nn.Conv2d(3, 4, 3).eval(), images()
    fast = torch.compile(model, backend="sparse", dynamic=True)
    with torch.no_grad():
        for given in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3)):
            torch.testing.assert_close(fast(given), model(given), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sizes_among_the_results_of_a_dense_program(driver, strict, caplog):
    """Which Inductor cannot freeze."""

    class Sized(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            return y, len(y), (*x.shape[1:],), 2 * x.shape[0]

    driver.nothing_sparse = True
    model = Sized(3, 4, 1).eval()
    fast = torch.compile(model, backend="sparse", dynamic=True)
    for batch in (2, 4, 3):
        agrees(fast, model, images(batch))
    assert not warnings_in(caplog)


def test_a_reported_error_runs_dense_and_is_said_once(driver, caplog):
    driver.error = SparsecError("Nothing works today.", why="a reason")
    model, x = Small().eval(), images()
    fast = compiled(model)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    [message] = warnings_in(caplog)
    assert "Nothing works today" in message and "a reason" in message


@pytest.mark.parametrize(
    "error",
    [pytest.param(UnsupportedModel("Not at this size."), marks=pytest.mark.slow), ZeroDivisionError("deep inside")],
    ids=["unsupported", "internal"],
)
def test_what_goes_wrong_at_one_size_costs_that_size(driver, caplog, monkeypatch, error):
    monkeypatch.delenv("SPARSEC_STRICT")
    model = Small().eval()
    fast = torch.compile(model, backend="sparse", dynamic=True)
    for batch, wrong in ((2, error), (3, None), (2, None), (4, error), (3, None), (5, None)):
        driver.error = wrong
        agrees(fast, model, images(batch))
    assert driver.count == 2
    assert len(warnings_in(caplog)) == 1


def test_a_graph_that_is_refused_at_every_size_is_not_tried_for_ever(driver, monkeypatch):
    tried = []

    def refuse(*args):
        tried.append(args)
        raise UnsupportedModel("Not at this size.")

    monkeypatch.setattr(torch_backend, "REFUSALS", 3)
    monkeypatch.setattr(torch_backend.Door, "_compiled", refuse)
    model = Small().eval()
    fast = torch.compile(model, backend="sparse", dynamic=True)
    for batch in (2, 3, 4, 5, 6, 2):
        agrees(fast, model, images(batch))
    assert len(tried) == 3


@pytest.mark.slow
def test_a_reason_is_said_once_by_each_graph(driver, caplog):
    driver.error = ZeroDivisionError("deep inside")

    class Twice(Small):
        def forward(self, x):
            y = self.convolution(x)
            torch._dynamo.graph_break()
            return self.head(self.norm(y).mean((2, 3)))

    model = Twice().eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPARSEC_STRICT")
        fast = compiled(model)
        for _ in range(2):
            agrees(fast, model, images())
    assert len(warnings_in(caplog)) == 2


def test_an_internal_error_is_raised_only_if_asked(driver, caplog, monkeypatch):
    driver.error = ZeroDivisionError("deep inside")
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        compiled(model)(x)
    monkeypatch.delenv("SPARSEC_STRICT")
    torch._dynamo.reset()
    agrees(compiled(model), model, x)
    assert any("ZeroDivisionError: deep inside" in message for message in warnings_in(caplog))


def test_a_model_without_zeros_goes_to_inductor_with_its_weights_and_stays_right(driver):
    driver.nothing_sparse = True
    models, x = [nn.Linear(8, 8).eval() for _ in range(2)], torch.randn(2, 8)
    fasts = [compiled(model) for model in models]
    for fast, model in zip(fasts, models, strict=True):
        agrees(fast, model, x)
    for step in range(torch_backend.FREEZES + 1):
        with torch.no_grad():
            models[0].weight.add_(step)
        agrees(fasts[0], models[0], x)
    agrees(fasts[1], models[1], x)


def test_weights_that_change_all_the_time_run_dense(driver, caplog):
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    fast = compiled(model)
    for _ in range(torch_backend.STALE_IN_A_ROW + 3):
        agrees(fast, model, x)
        with torch.no_grad():
            model.weight.add_(1)
    assert driver.count == torch_backend.STALE_IN_A_ROW + 1
    assert any("change at almost every call" in message for message in warnings_in(caplog))
