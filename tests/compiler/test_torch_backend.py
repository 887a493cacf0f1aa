"""The torch.compile door: what users do to modules between calls, and what Dynamo brings."""

import gc
import logging
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsec.errors import InvalidInput, SparsecError
from sparsec.torch_door import backend as torch_backend
from sparsec.torch_door import entries as torch_entries
from sparsec.torch_door.backend import refresh
from tests.compiler.stand_in import Small, agrees, compiled, images, warnings_in

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


CHANGES = [
    load,
    write_in_place,
    write_a_buffer,
    replace,
    replace_the_buffer,
    assign_data,
    alias_transposed,
    grow_dense,
    write_data_and_refresh,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
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


def test_weights_made_in_inference_mode_run_dense(driver, caplog):
    with torch.inference_mode():
        model, x = Small().eval(), images()
        fast = compiled(model)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        model.head.weight.mul_(2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert driver.count == 0
    assert any("made in inference mode" in message for message in warnings_in(caplog))


def test_training_is_dense_with_one_warning_and_right_gradients(driver, caplog):
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
    assert len(messages) == 1 and "gradients are needed" in messages[0]
    agrees(fast, model, x)
    assert driver.count == 1


def test_frozen_parameters_need_no_gradients_until_they_do(driver):
    model, x = nn.Linear(8, 4).eval().requires_grad_(False), torch.randn(2, 8)
    fast = compiled(model)
    assert not fast(x).requires_grad
    assert driver.count == 1
    model.weight.requires_grad_(True)
    fast(x).sum().backward()
    torch.testing.assert_close(model.weight.grad, x.sum(0).expand(4, 8))


def test_graph_breaks(driver):
    class Broken(Small):
        def forward(self, x):
            y = F.relu(self.norm(self.convolution(x)))
            torch._dynamo.graph_break()
            return self.head(y.mean((2, 3)))

    model = Broken().eval()
    agrees(compiled(model), model, images())
    assert driver.count == 2


@pytest.mark.parametrize(("any_batch", "count"), [(False, 5), (True, 2)])
def test_changing_batch_sizes(driver, any_batch, count):
    driver.any_batch = any_batch

    class Pooled(Small):
        def forward(self, x):
            return self.head(F.relu(self.norm(self.convolution(x))).mean((2, 3)))

    model = Pooled().eval()
    fast = compiled(model)
    for batch in (2, 3, 5, 7, 2, 3, 5, 7):
        agrees(fast, model, images(batch))
    assert driver.count == count


def test_batch_free_programs_do_not_serve_other_sizes(driver):
    driver.any_batch = True
    model = nn.Conv2d(3, 4, 3).eval()
    fast = torch.compile(model, backend="sparse", dynamic=True)
    for size in (8, 9, 8, 9):
        agrees(fast, model, torch.randn(2, 3, size, size))
    assert driver.count == 2


def test_channels_last_and_misaligned_inputs(driver):
    model, x = Small().eval(), images()
    fast = compiled(model)
    agrees(fast, model, x.to(memory_format=torch.channels_last))
    shifted = torch.randn(x.numel() + 1)[1:].view_as(x)
    assert shifted.data_ptr() % 64
    agrees(fast, model, shifted)
    agrees(fast, model, x[:, :, ::2, ::2].expand(2, 3, 4, 4))
    channels_last = Small().eval().to(memory_format=torch.channels_last)
    agrees(compiled(channels_last), channels_last, x)


def test_an_aligned_input_is_not_copied(driver):
    model, x = Small().eval(), images()
    agrees(compiled(model), model, x)
    assert driver.made[0]().seen[0].data_ptr() == x.data_ptr()


def test_keywords_and_nested_results(driver):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x, *, scale, flag=False, extra=None):
            y = self.linear(x) * scale["s"]
            return {"y": y, "pair": (x, y + 1, None, 3), "flag": flag, "size": x.shape[0]}

    model, x, scale = Nested().eval(), torch.randn(2, 8), {"s": torch.tensor(2.0)}
    fast = compiled(model)
    for batch in (2, 3, 4):
        x = torch.randn(batch, 8)
        with torch.no_grad():
            result, expected = fast(x, scale=scale, flag=True), model(x, scale=scale, flag=True)
        torch.testing.assert_close(result["y"], expected["y"])
        torch.testing.assert_close(result["pair"][1], expected["pair"][1])
        assert result["pair"][0] is x and result["pair"][2:] == (None, 3)
        assert (result["flag"], result["size"]) == (True, batch)
    assert driver.count == 3


def test_an_operator_nobody_knows(driver):
    library = torch.library.Library("sparsec_test", "FRAGMENT")
    library.define("twist(Tensor x) -> Tensor")
    library.impl("twist", lambda x: x.flip(-1), "CompositeExplicitAutograd")
    torch.library.register_fake("sparsec_test::twist", torch.empty_like, lib=library)

    class Twisted(nn.Linear):
        def forward(self, x):
            return torch.ops.sparsec_test.twist(super().forward(x))

    model = Twisted(8, 8).eval()
    agrees(compiled(model), model, torch.randn(2, 8))
    assert driver.count == 1


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


def test_a_frozen_dense_program_takes_any_strides(driver):
    driver.nothing_sparse = True
    model, x = nn.Conv2d(3, 4, 3).eval(), images()
    fast = torch.compile(model, backend="sparse", dynamic=True)
    with torch.no_grad():
        for given in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3)):
            torch.testing.assert_close(fast(given), model(given), rtol=1e-4, atol=1e-5)


def test_a_reported_error_runs_dense_and_is_said_once(driver, caplog):
    driver.error = SparsecError("Nothing works today.", why="a reason")
    model, x = Small().eval(), images()
    fast = compiled(model)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    [message] = warnings_in(caplog)
    assert "Nothing works today" in message and "a reason" in message


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


def test_weights_that_change_now_and_then_stay_compiled(driver):
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    fast = compiled(model)
    for _ in range(torch_backend.STALE_IN_A_ROW * 2):
        agrees(fast, model, x)
        agrees(fast, model, x)
        with torch.no_grad():
            model.weight.add_(1)
    assert driver.count == torch_backend.STALE_IN_A_ROW * 2


def test_reasons_are_warned_once(driver, caplog):
    driver.reasons = ["layer head stays dense: no kernel"]
    for model in (Small().eval(), Small().eval()):
        agrees(compiled(model), model, images())
    assert warnings_in(caplog) == driver.reasons


def test_options_and_mode_reach_the_compiler(driver):
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    agrees(torch.compile(model, backend="sparse", options={"tune": "quick", "threads": 1}), model, x)
    assert (driver.settings.tune, driver.settings.threads) == ("quick", 1)
    torch._dynamo.reset()
    agrees(torch.compile(model, backend="sparse", mode="max-autotune"), model, x)
    assert driver.settings.tune == "full"
    with pytest.raises(InvalidInput, match="tune"):
        torch_backend.sparse_backend(None, [], options={"tone": "off"})
    with pytest.raises(InvalidInput, match="Unknown mode"):
        torch_backend.sparse_backend(None, [], mode="fastest")


@pytest.mark.slow
def test_the_entry_point_needs_no_import():
    script = """
import sys, torch
torch.set_num_threads(1)
model, x = torch.nn.Linear(8, 4).eval(), torch.randn(2, 8)
assert "sparsec" not in sys.modules
fast = torch.compile(model, backend="sparse")
with torch.no_grad():
    torch.testing.assert_close(fast(x), model(x))
assert "sparsec.torch_door.backend" in sys.modules
print("ran")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "ran", done.stderr


def test_logger_is_the_packages_own():
    assert torch_backend.logger is logging.getLogger("sparsec")
