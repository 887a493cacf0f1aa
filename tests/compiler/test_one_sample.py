"""What is compiled for one sample is right for every batch that it takes: views that move, drop or pick the samples are seen as such."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsec
from sparsec.doors.from_torch.batches import dependence_on_batch
from sparsec.errors import InvalidInput
from sparsec.models.prune import prune
from tests.token_models import error, exact

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned": lambda x: x.transpose(0, 1),
    "turned and back": lambda x: x.transpose(0, 1).relu().transpose(0, 1),
    "softmax of turned": lambda x: x.transpose(0, 1).softmax(1).transpose(0, 1),
    "moved to the end": lambda x: x.movedim(0, -2),
    "added and dropped": lambda x: x.unsqueeze(0).squeeze(1),
    "squeezed": lambda x: x.squeeze(),
    "first axis squeezed": lambda x: x.squeeze(0),
    "first sample": lambda x: x[0],
    "last sample": lambda x: x[-1:],
    "slice of one": lambda x: x[:1],
    "all samples": lambda x: x[:, :],
    "merged": lambda x: x.flatten(0, 1),
    "merged and split": lambda x: x.flatten(0, 1).relu().unflatten(0, x.shape[:2]),
    "flattened and back": lambda x: x.reshape(-1, x.shape[-1]).relu().reshape(x.shape),
    "halves as samples": lambda x: x.reshape(-1, 8).repeat(1, 2),
    "one more axis": lambda x: x[None],
    "a view of one row": lambda x: x.reshape(1, 1, -1)[..., :16],
    "mean by hand": lambda x: x / len(x),
    "numbered": lambda x: x + torch.arange(len(x))[:, None, None],
    "numbered in a loop": lambda x: torch.stack([x[i] * (i + 1) for i in range(len(x))]),
    "kept": lambda x: x.view(len(x), -1, 16).relu(),
    "attention over the first axis": lambda x: nn.functional.scaled_dot_product_attention(*[x.transpose(0, 1)] * 3).transpose(0, 1),
}
FAST = ("turned", "first sample")
#: These are the same for every sample, and all batches have to be served.
SERVED = ("all samples", "kept", "turned and back", "flattened and back", "merged and split")


class Viewed(nn.Module):
    """Views between two layers."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names, self.before, self.after = names, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x).relu()
        for name in self.names:
            y = VIEWS[name](y)
        return self.after(y)


def agrees(model: Viewed, tokens: int, kernels) -> None:
    """Compiled for one sample and called with other numbers of them, which may be refused."""
    fast = sparsec.compile(model, (torch.zeros(1, tokens, 16),), threads=1, cache_dir=kernels)
    for batch in (1, 2, 5):
        x = torch.randn(batch, tokens, 16)
        try:
            found = fast(x)
        except InvalidInput:
            assert batch > 1 and not all(name in SERVED for name in model.names)
            continue
        assert found.shape == model(x).shape
        assert error(found, exact(model, x)) < 1e-5


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in VIEWS])
@pytest.mark.turns(5)
def test_views(name, tokens, kernels):
    agrees(prune(Viewed(name).eval(), 0.7, classifier=True), tokens, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
@pytest.mark.turns(8)
def test_chains_of_views(seed, kernels):
    draw = random.Random(seed)
    model = prune(Viewed(*draw.choices(list(VIEWS), k=draw.choice((2, 3)))).eval(), 0.7, classifier=True)
    x = torch.zeros(1, tokens := draw.choice((1, 2, 3)), 16)
    try:
        model(x)
    except (RuntimeError, IndexError):
        pytest.skip(f"torch cannot: {model.names}")
    agrees(model, tokens, kernels)


@pytest.mark.parametrize("batch", [1, 3])
def test_layers_of_torch_serve_all_batches(batch):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    assert dependence_on_batch(layer, (torch.zeros(batch, 5, 16),), {}) == ("", 0)


class Through(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.repeat(1, 12 // (5 - len(x))),
        lambda x: x[:, : 12 // (5 - len(x))],
        lambda x: x[:, : 7 % (6 - len(x)) + 1],
        lambda x: x if 12 // (6 - len(x)) > 2 else x + 1,
        lambda x: x if 12 / (7 - len(x)) > 2 else x + 1,
    ],
)
def test_a_size_that_divides_by_zero_at_another_batch(function):
    assert dependence_on_batch(Through(function), (torch.zeros(4, 16),), {})[0]


@pytest.mark.parametrize(
    ("function", "depends"),
    [
        (lambda x: x + torch.full((len(x), 1), 2.0), False),
        (lambda x: x + x.new_full((len(x), 1), 2.0), False),
        (lambda x: x + torch.zeros(len(x), 1), False),
        (lambda x: x + torch.full((len(x), 1), float(len(x))), True),
        (lambda x: x + x.new_full((len(x), 1), fill_value=len(x)), True),
        (lambda x: x * torch.tensor(len(x)), True),
        (lambda x: x.view(1, -1), True),
    ],
)
def test_what_depends_on_the_number_of_samples(function, depends):
    reason, least = dependence_on_batch(Through(function), (torch.zeros(1, 8),), {})
    assert (bool(reason), least) == (depends, 0)


def test_the_module_is_as_it_was():
    class Caching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            return x

    model = Caching()
    assert dependence_on_batch(model, (torch.zeros(2, 3),), {}) == ("", 0)
    assert not hasattr(model, "last")


def test_artifacts_refuse_other_batches(tmp_path, kernels):
    model = prune(Viewed("a view of one row").eval(), 0.7, classifier=True)
    x = torch.randn(1, 1, 16)
    fast = sparsec.compile(model, (x,), threads=1, cache_dir=kernels)
    assert any("batch of 1 only: reshape makes" in note for note in fast.explain().notes)
    loaded = sparsec.load(fast.save(tmp_path / "model"))
    assert error(torch.from_numpy(loaded(x.numpy())), exact(model, x)) < 1e-5
    with pytest.raises(InvalidInput, match="compiled for a batch of 1, the inputs have 3"):
        loaded(torch.randn(3, 1, 16).numpy())


class Two(nn.Module):
    """Rows of the example's number of samples, whichever way its code counts them."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.counts = nn.Linear(8, 8), counts

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(len(x) if self.counts else 2, -1, 4)


def as_file(model: nn.Module, form: str, folder: Path) -> Any:
    x, file = torch.randn(2, 3, 8), folder / f"model.{'pt2' if form == 'pt2' else 'onnx'}"
    if form in ("program", "pt2"):
        program = torch.export.export(model, (x,))
        torch.export.save(program, file)
        return program if form == "program" else file
    torch.onnx.export(model, (x,), file, dynamo=form == "onnx", verbose=False)
    return file


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("form", ["program", "pt2", "onnx", "onnx, TorchScript"])
def test_a_file_without_a_free_batch_serves_the_one_it_has(form, counts, tmp_path, kernels):
    model = prune(Two(counts).eval(), 0.7, classifier=True)
    fast = sparsec.compile(as_file(model, form, tmp_path), threads=1, cache_dir=kernels)
    assert any("batch of 2 only" in note and "leaves no batch free" in note for note in fast.explain().notes)
    loaded = sparsec.load(fast.save(tmp_path / "saved"))
    x = torch.randn(2, 3, 8)
    for found in (fast(x), torch.from_numpy(loaded(x.numpy()))):
        assert error(found, exact(model, x)) < 1e-5
    with pytest.raises(InvalidInput, match="leaves no batch free"):
        fast(torch.randn(4, 3, 8))
    with pytest.raises(InvalidInput, match="does not fit") as raised:
        fast(torch.randn(4, 5, 8))
    assert "leaves no batch free" not in str(raised.value)
    with pytest.raises(InvalidInput, match="compiled for a batch of 2, the inputs have 4"):
        loaded(torch.randn(4, 3, 8).numpy())
