"""The torch.compile door: Python floats that change between calls, which Dynamo makes tensors of."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.compiler.stand_in import agrees, compiled, warnings_in

VALUES = (1.0, 2.0, 1 / 3, -4.0, 0.0, 1e-3, 7.0)


class Adapted(nn.Module):
    """A layer with a low-rank addition that is scaled by an attribute."""

    def __init__(self, use: Callable[[Tensor, Tensor, float], Tensor]) -> None:
        super().__init__()
        self.layer, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(2, 8)
        self.use, self.scale = use, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.layer(x), self.up(self.down(x)), self.scale)


USES: dict[str, Callable] = {
    "product": lambda y, z, s: y + s * z,
    "arithmetic": lambda y, z, s: y + z * (s * 2.0 - 1.0) / 3 - s,
    "functions": lambda y, z, s: torch.add(y, torch.mul(z, s)).mul(-s),
    "integers": lambda y, z, s: y + z * (torch.arange(8) * s),
}


@pytest.mark.parametrize(
    "use", ["product", "integers", *(pytest.param(use, marks=pytest.mark.slow) for use in ("arithmetic", "functions"))]
)
def test_a_changing_float_leaves_the_graph_sparse(driver, caplog, use):
    model, x = Adapted(USES[use]).eval(), torch.randn(3, 8)
    fast = compiled(model)
    for value in VALUES:
        model.scale = value
        agrees(fast, model, x)
    assert driver.count == 2
    assert not warnings_in(caplog)


@pytest.mark.slow
@pytest.mark.parametrize("use", ["product", "arithmetic", "summand"])
@pytest.mark.turns(3)
def test_a_changing_float_with_the_compiler(strict, kernels, caplog, use):
    uses = {**USES, "summand": lambda y, z, s: torch.add(y, z, alpha=s)}
    model, x = Adapted(uses[use]).eval(), torch.randn(3, 8)
    with torch.no_grad():
        model.layer.weight.mul_(torch.rand(8, 8) < 0.2)
    fast = torch.compile(model, backend="sparse", options={"cache_dir": kernels})
    for value in VALUES[:4]:
        model.scale = value
        agrees(fast, model, x)
    assert not any("float64" in message for message in warnings_in(caplog))


@pytest.mark.slow
def test_a_changing_float_of_a_model_without_zeros(strict, kernels, caplog):
    """What nothing is sparse in is frozen by Inductor, which takes no number out of a tensor there."""
    model, x = Adapted(USES["product"]).eval(), torch.randn(3, 8)
    fast = torch.compile(model, backend="sparse", options={"cache_dir": kernels}, dynamic=True)
    for value in VALUES[:4]:
        model.scale = value
        agrees(fast, model, x)
    assert not any("internal error" in message for message in warnings_in(caplog))


class Through(nn.Module):
    """A layer, and a function of what it makes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(8, 8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.repeat(1, 12 // (5 - len(x))),
        lambda x: x + torch.arange(12 // (5 - len(x))).sum(),
        lambda x: x[:, : 7 % (5 - len(x)) + 1],
    ],
)
def test_a_size_that_divides_by_zero_at_another_batch(driver, caplog, function):
    model = Through(function).eval()
    fast = torch.compile(model, backend="sparse", dynamic=True)
    for batch in (4, 3, 2):
        agrees(fast, model, torch.randn(batch, 8))
    assert driver.count >= 1
    assert not any("internal error" in message for message in warnings_in(caplog))
