"""The torch.compile door: every way to write to weights between two calls is noticed at the next."""

import itertools
import sys
import types
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsec.doors.torch_compile import watch as torch_watch
from tests.compiler.stand_in import StandIn, compiled
from tests.compiler.weight_writes import WRITES, flat_parameters


@pytest.fixture(scope="module")
def shared() -> Iterator[StandIn]:
    """A stand-in for the compiler; Dynamo's frames are kept from test to test, which all take other instances of the same classes."""
    stand_in, module = StandIn(), types.ModuleType("sparsec.driver")
    module.compile_graph = stand_in.compile_graph
    torch._dynamo.reset()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch(recompile_limit=100, accumulated_recompile_limit=1000):
        patch.setitem(sys.modules, "sparsec.driver", module)
        patch.setenv("SPARSEC_STRICT", "1")
        patch.setattr(torch_watch, "_RESTLESS", 1000)
        yield stand_in


class Maps(nn.Module):
    """A convolution, a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.convolution(x))).mean((2, 3)))


class Tokens(nn.Module):
    """Two linear layers and a norm over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.norm(self.up(x))))


NETWORKS = {"maps": (Maps, (2, 3, 8, 8)), "tokens": (Tokens, (2, 5, 6))}


def same(fast, model: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def cases() -> list:
    """Every write to each network in each mode; those to maps without gradients, less what traces the module again, are fast."""
    traced = ("parametrized", "parametrized and removed", "spectral norm", "pruned", "pruned twice", "pruned for good")
    every = list(itertools.product(WRITES, NETWORKS, (False, True)))
    fast = [network == "maps" and not grad_mode and name not in traced for name, network, grad_mode in every]
    return [pytest.param(*case, marks=() if quick else pytest.mark.slow) for case, quick in zip(every, fast, strict=True)]


@pytest.mark.parametrize(("name", "network", "grad_mode"), cases())
@pytest.mark.turns(2)
def test_a_write_between_two_calls_is_noticed(shared, name, network, grad_mode):
    kind, shape = NETWORKS[network]
    count = shared.count
    model, x = kind().eval().requires_grad_(False), torch.randn(shape)
    fast = compiled(model)
    with torch.set_grad_enabled(grad_mode):
        same(fast, model, x)
        same(fast, model, x)
        with torch.no_grad():
            before = model(x)
        assert shared.count > count
        WRITES[name](model)
        model.requires_grad_(False)
        assert not torch.allclose(model(x), before, rtol=1e-3)
        for _ in range(2):
            same(fast, model, x)


@pytest.mark.parametrize("grad_mode", [False, True], ids=["no_grad", "grad mode"])
def test_writes_to_a_flat_parameter(shared, grad_mode):
    model, x = Maps().eval().requires_grad_(False), torch.randn(2, 3, 8, 8)
    flat, fast = flat_parameters(model), compiled(model)
    with torch.set_grad_enabled(grad_mode):
        for _ in range(3):
            same(fast, model, x)
            flat.mul_(1.5)


@pytest.mark.parametrize("grad_mode", [False, True], ids=["no_grad", "grad mode"])
def test_functional_calls_with_other_weights(shared, grad_mode):
    model, x = Tokens().eval().requires_grad_(False), torch.randn(2, 5, 6)
    fast = compiled(model)
    with torch.set_grad_enabled(grad_mode):
        same(fast, model, x)
        for scale in (2.0, 3.0):
            other = {name: p * scale for name, p in model.named_parameters()}
            want = torch.func.functional_call(model, other, (x,))
            torch.testing.assert_close(torch.func.functional_call(fast, {f"_orig_mod.{n}": p for n, p in other.items()}, (x,)), want)
            same(fast, model, x)
