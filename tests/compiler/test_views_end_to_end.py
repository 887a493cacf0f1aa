"""Modules whose views once were wrong or raised, through the object and torch.compile, against eager float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsec
from sparsec.models.attention import attend_packed
from sparsec.models.prune import prune
from tests.token_models import error, exact

pytestmark = pytest.mark.usefixtures("strict")
LIMIT = 1e-5


class Module(nn.Module):
    """A function of named layers."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> object:
        return self.function(self.layers, x)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def gated_map(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = m["norm"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    a, b = x.chunk(2, 1)
    y = a * b
    return (y * torch.sigmoid(m["up"](F.relu(m["down"](y.mean((2, 3), keepdim=True)))))).flatten(1)


def gated_tokens(m: nn.ModuleDict, x: Tensor) -> Tensor:
    a, b = m["wide"](x * torch.sigmoid(m["gate"](x))).chunk(2, -1)
    y = m["out"](attend_packed(m["qkv"](a * b), 2))
    return (y * torch.sigmoid(m["last"](y))).flatten(1)


MODULES = {
    "flattened tokens": lambda: (
        Module(lambda m, x: m["b"](m["a"](x).flatten(1)), a=nn.Linear(32, 8), b=nn.Linear(128, 5)),
        numbers(2, 16, 32),
    ),
    "reshaped tokens": lambda: (
        Module(lambda m, x: m["b"](m["a"](x).reshape(len(x), -1)), a=nn.Linear(32, 8), b=nn.Linear(128, 5)),
        numbers(2, 16, 32),
    ),
    "question answering": lambda: (
        Module(lambda m, x: [part.squeeze(-1).contiguous() for part in m["a"](x).split(1, dim=-1)], a=nn.Linear(32, 2)),
        numbers(2, 16, 32),
    ),
    "one score per token": lambda: (Module(lambda m, x: m["a"](x).squeeze(-1), a=nn.Linear(32, 1)), numbers(2, 70, 32)),
    "first feature": lambda: (Module(lambda m, x: m["a"](x)[..., :1].squeeze(-1), a=nn.Linear(32, 8)), numbers(2, 16, 32)),
    "squeezed pool": lambda: (
        Module(
            lambda m, x: m["b"](F.adaptive_avg_pool2d(m["a"](x), 1).squeeze(-1).squeeze(-1)),
            a=nn.Conv2d(4, 8, 3, padding=1),
            b=nn.Linear(8, 5),
        ),
        numbers(2, 4, 9, 7),
    ),
    "gated map": lambda: (
        Module(gated_map, norm=nn.LayerNorm(8), down=nn.Conv2d(4, 4, 1), up=nn.Conv2d(4, 4, 1)),
        numbers(2, 8, 14, 14),
    ),
    "gated tokens": lambda: (
        Module(
            gated_tokens,
            gate=nn.Linear(16, 16),
            wide=nn.Linear(16, 32),
            qkv=nn.Linear(16, 48),
            out=nn.Linear(16, 16),
            last=nn.Linear(16, 16),
        ),
        numbers(2, 17, 16),
    ),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = MODULES[name]()
        return prune(model, 0.7, classifier=True).eval(), x


EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name != "flattened tokens")) for name in MODULES]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.turns(3)
def test_objects_are_exact(name, kernels):
    model, x = made(name)
    fast = sparsec.compile(model, (x,), threads=1, cache_dir=kernels)
    assert error(fast(x), exact(model, x)) < LIMIT
    assert fast._compiled.programs


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.turns(4)
def test_compiled_modules_are_exact(name, kernels):
    model, x = made(name)
    fast = torch.compile(model, backend="sparse", options={"cache_dir": str(kernels), "threads": 1})
    with torch.no_grad():
        assert error(fast(x), exact(model, x)) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("function", [lambda y: y.flatten(1), lambda y: y[..., :1].squeeze(-1), lambda y: y.transpose(1, 2)])
def test_views_of_any_number_of_tokens(function, kernels):
    model = prune(Module(lambda m, x: function(m["a"](x)), a=nn.Linear(32, 8)), 0.7, classifier=True).eval()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=100)}
    fast = sparsec.compile(model, (numbers(2, 16, 32),), dynamic_shapes={"x": axes}, threads=1, cache_dir=kernels)
    for batch, count in ((2, 16), (3, 40), (1, 5)):
        x = numbers(batch, count, 32)
        assert error(fast(x), exact(model, x)) < LIMIT
