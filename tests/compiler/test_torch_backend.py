"""The torch.compile door: what Dynamo brings."""

import logging
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsec.doors.torch_compile import backend as torch_backend
from sparsec.errors import InvalidInput
from tests.compiler.stand_in import Small, agrees, compiled, images, warnings_in

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow

torch.set_num_threads(1)


@pytest.mark.slow
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


@pytest.mark.slow
def test_rates_of_dropout_that_is_off_do_not_matter(driver, caplog):
    """Dynamo makes an input of a Python float that differs between calls of one function."""

    def run(model, x, rate):
        return model(F.dropout(x, rate, model.training)) + 0 * F.dropout(x, p=rate, training=False).sum()

    fast, model, x = torch.compile(run, backend="sparse"), nn.Linear(8, 4).eval(), torch.randn(2, 8)
    for rate in (0.1, 0.2, 0.3, 0.0):
        with torch.no_grad():
            torch.testing.assert_close(fast(model, x, rate), model(x))
    assert driver.count and not warnings_in(caplog)


@pytest.mark.parametrize(("any_batch", "count"), [pytest.param(False, 5, marks=pytest.mark.slow), (True, 2)])
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


def test_reasons_are_warned_once(driver, caplog):
    driver.reasons = ["layer head stays dense: no kernel"]
    for model in (Small().eval(), Small().eval()):
        agrees(compiled(model), model, images())
    (said,) = warnings_in(caplog)
    assert said.startswith("sparsec: graph ") and said.endswith(": layer head stays dense: no kernel")


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
assert "sparsec.doors.torch_compile.backend" in sys.modules
print("ran")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "ran", done.stderr


def test_logger_is_the_packages_own():
    assert torch_backend.logger is logging.getLogger("sparsec")
