"""torch.compile(model, backend="sparse") with the real compiler, over everything that can change between two calls."""

import logging

import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import nn
from torch.nn.utils import parametrize, prune

from sparsec.doors.torch_compile import backend as torch_backend

# Whole compilations: the fast set has the parts.
pytestmark = pytest.mark.slow

TOLERANCE = 1e-5


class Block(nn.Module):
    """Stem, depthwise, pruned 1x1 with residual, pooling, head."""

    def __init__(self, seed: int = 0, channels: int = 32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.head = nn.Linear(channels, 5)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        mask_out(self.pointwise.weight, 0.9, seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self.norm(self.stem(x)))
        y = y + self.pointwise(F.relu(self.depthwise(y)))
        return self.head(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


def mask_out(weight: torch.Tensor, sparsity: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight.mul_(torch.rand(weight.shape, generator=generator) >= sparsity)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SPARSEC_STRICT", "1")
    monkeypatch.setattr(torch_backend, "_said", set())
    torch._dynamo.reset()


@pytest.fixture
def builds(monkeypatch):
    """The kernel libraries that are compiled, not found, during a test."""
    compiled = []
    real = tvm.compile

    def counted(*args, **kwargs):
        compiled.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(tvm, "compile", counted)
    return compiled


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return bool((got - want).abs().max() <= TOLERANCE * want.abs().max())


def image(batch: int = 1, height: int = 17, width: int = 20, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def agree(model: nn.Module, fast, x: torch.Tensor) -> None:
    with torch.no_grad():
        assert close(fast(x), model(x))


def test_two_instances_of_one_class_and_no_second_build(builds):
    first, second = Block(0).eval(), Block(1).eval()
    one, two = torch.compile(first, backend="sparse"), torch.compile(second, backend="sparse")
    x = image()
    agree(first, one, x)
    count = len(builds)
    for _ in range(2):
        agree(second, two, x)
        agree(first, one, x)
    assert len(builds) == count


@pytest.mark.parametrize("change", ["load_state_dict", "in_place", "replaced", "dense", "another_mask"])
@pytest.mark.slow
def test_weights_changed_after_compiling(change, builds):
    model = Block(0).eval()
    fast = torch.compile(model, backend="sparse")
    agree(model, fast, image())
    count = len(builds)
    with torch.no_grad():
        before = fast(image())
        if change == "load_state_dict":
            model.load_state_dict(Block(7).state_dict())
        elif change == "in_place":
            model.pointwise.weight.mul_(2)
        elif change == "replaced":
            model.pointwise.weight = nn.Parameter(Block(3).pointwise.weight.detach().clone())
        elif change == "dense":
            model.pointwise.weight.normal_()
        else:
            model.pointwise.weight.normal_()
            mask_out(model.pointwise.weight, 0.8, 11)
        assert not close(fast(image()), before)
    agree(model, fast, image())
    if change not in ("dense", "replaced"):
        assert len(builds) == count


def test_writes_without_a_version_are_noticed_and_a_refresh_finds_the_smallest():
    import sparsec

    model = Block(0).eval()
    fast = torch.compile(model, backend="sparse")
    agree(model, fast, image())
    model.pointwise.weight.data.mul_(3)
    agree(model, fast, image())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()
    agree(model, fast, image())
    model.head.weight.data[0, 0] += 9
    sparsec.refresh(fast)
    agree(model, fast, image())


def test_batch_sizes_and_memory_formats():
    model = Block(0).eval()
    fast = torch.compile(model, backend="sparse")
    for batch in (1, 3, 8, 2):
        agree(model, fast, image(batch, seed=batch))
    agree(model, fast, image(3).to(memory_format=torch.channels_last))
    storage = torch.zeros(3 * 17 * 20 + 1)
    misaligned = storage[1:].view(1, 3, 17, 20)
    misaligned.copy_(image())
    agree(model, fast, misaligned)
    with torch.inference_mode():
        assert close(fast(image()), model(image()))


@pytest.mark.slow
def test_training_is_dense_with_right_gradients(caplog):
    model = Block(0).train()
    fast = torch.compile(model, backend="sparse")
    twin = Block(0).train()
    with caplog.at_level(logging.WARNING, logger="sparsec"):
        fast(image(4)).square().sum().backward()
    twin(image(4)).square().sum().backward()
    assert sum("gradients" in record.message for record in caplog.records) == 1
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_unknown_operator_stays_dense_between_two_regions(caplog):
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(0), Block(1)

        def forward(self, x):
            y = F.relu(self.first.pointwise(F.relu(self.first.stem(x))))
            y = torch.cumsum(y, dim=2) * 0.1
            return self.second.head(self.second.pointwise(y).mean((2, 3)))

    model = Split().eval()
    fast = torch.compile(model, backend="sparse")
    agree(model, fast, image())
    agree(model, fast, image(3))


@pytest.mark.parametrize("how", ["prune", pytest.param("parametrize", marks=pytest.mark.slow)])
def test_sparsity_that_comes_as_a_mask(how):
    class Mask(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.register_buffer("mask", (torch.rand_like(weight) > 0.9).float())

        def forward(self, weight):
            return weight * self.mask

    model = Block(0).eval()
    with torch.no_grad():
        model.pointwise.weight.normal_()
    if how == "prune":
        prune.l1_unstructured(model.pointwise, "weight", amount=0.9)
    else:
        parametrize.register_parametrization(model.pointwise, "weight", Mask(model.pointwise.weight))
    fast = torch.compile(model, backend="sparse")
    agree(model, fast, image())
    import sparsec

    densities = [row.density for row in sparsec.compile(model, (image(),)).explain().layers if row.density is not None]
    assert min(densities) < 0.2


@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_sparse_layout_parameters(layout):
    from sparsec.models import as_sparse_parameters

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).eval()
    for layer in (model[0], model[2]):
        mask_out(layer.weight, 0.9, 2)
    x = torch.randn(3, 64)
    with torch.no_grad():
        want = model(x)
    as_sparse_parameters(model, layout)
    import sparsec

    assert close(sparsec.compile(model, (x,))(x), want)


@pytest.mark.slow
def test_dict_outputs_keywords_and_graph_breaks():
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(0)

        def forward(self, x, *, scale=None):
            y = self.block(x)
            torch._dynamo.graph_break()
            return {"logits": y, "pair": (F.relu(y), y * scale if scale is not None else y)}

    model = Many().eval()
    fast = torch.compile(model, backend="sparse")
    scale = torch.tensor([[2.0, 1.0, 0.5, 1.0, 3.0]])
    with torch.no_grad():
        got, want = fast(image(), scale=scale), model(image(), scale=scale)
    assert close(got["logits"], want["logits"]) and close(got["pair"][0], want["pair"][0]) and close(got["pair"][1], want["pair"][1])


@pytest.mark.slow
def test_a_model_without_zeros_is_inductors_and_notices_new_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    fast = torch.compile(model, backend="sparse")
    x = torch.randn(2, 3, 8, 8)
    agree(model, fast, x)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    agree(model, fast, x)
