"""A compiled model as an object: explaining, profiling, saving."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsec
import sparsec.passes
from sparsec.errors import ArtifactError, InvalidInput
from sparsec.lower import inductor

IMAGES = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """A convolution with zeros, whose result a function puts into a structure."""

    def __init__(self, function=lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv2d(3, 4, 1), function
        with torch.no_grad():
            self.conv.weight[::2] = 0

    def forward(self, x: Tensor):
        return self.function(self.conv(x))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


def made(cache, function=lambda y: y):
    model = Net(function).eval()
    return model, sparsec.compile(model, (IMAGES,), threads=1, cache_dir=cache)


NESTED = {
    "tensor": lambda y: y,
    "tuple": lambda y: (y, y.relu()),
    "list": lambda y: [y.relu()],
    "nested": lambda y: {"a": (y, [y.relu()]), "b": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("structure", NESTED)
def test_saved_models_return_what_the_model_returns(cache, tmp_path, structure):
    model, compiled = made(cache, NESTED[structure])
    loaded = sparsec.load(compiled.save(tmp_path / "net.sparsec"))
    with torch.no_grad():
        expected = model(IMAGES)
    found = torch.utils._pytree.tree_map_only(np.ndarray, torch.from_numpy, loaded(IMAGES.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_arrays_of_numpy(cache, tmp_path):
    """Mapped files are arrays as others; a mask is nothing that an answer could know of."""
    model, compiled = made(cache, NESTED["tensor"])
    loaded = sparsec.load(compiled.save(tmp_path / "net.sparsec"))
    np.save(tmp_path / "x.npy", IMAGES.numpy())
    expected = compiled(IMAGES).numpy()
    for mode in ("r", "c"):
        mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
        assert isinstance(mapped, np.memmap)
        np.testing.assert_array_equal(compiled(mapped), expected)
        np.testing.assert_allclose(loaded(mapped), expected, rtol=1e-5, atol=1e-6)
    masked = np.ma.masked_array(IMAGES.numpy(), mask=IMAGES.numpy() > 0)
    for call in (compiled, loaded, lambda x: sparsec.compile(model, (x,))):
        with pytest.raises(InvalidInput, match=r"masked|numpy arrays"):
            call(masked)


@pytest.mark.parametrize("function", [lambda y: (y, 3), lambda y: {"y": y, "name": "text"}], ids=["number", "text"])
@pytest.mark.slow
def test_results_that_are_no_tensors_cannot_be_saved(cache, tmp_path, function):
    _, compiled = made(cache, function)
    with pytest.raises(ArtifactError, match="more than tensors"):
        compiled.save(tmp_path / "net.sparsec")
    assert not (tmp_path / "net.sparsec").exists()


def test_parts_that_run_in_torch_are_named_when_saving_or_profiling(cache, tmp_path):
    _, compiled = made(cache, lambda y: y.cumsum(1))
    with pytest.raises(ArtifactError, match="cumsum"):
        compiled.save(tmp_path / "net.sparsec")
    with pytest.raises(InvalidInput, match="one region"):
        compiled.profile(IMAGES)


def test_dense_layers_around_an_operator_without_kernels_are_left_to_the_dense_compiler(cache, monkeypatch):
    """A network that cannot be saved gains nothing from kernels that are no faster; explain says what stayed dense, and why."""
    monkeypatch.setattr(inductor, "compile_dense", lambda graph_module, examples, **_: graph_module)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 4, 1)).eval()
    samples = torch.randn(2, 8, 16)
    compiled = sparsec.compile(model, (samples,), threads=1, cache_dir=cache)
    torch.testing.assert_close(compiled(samples), model(samples).detach())
    assert not compiled._compiled.programs
    reasons = dict(compiled.explain().uncovered)
    assert "conv1d" in reasons["conv1d"] and any("stays dense: predicted gain" in reason for reason in reasons.values())
    assert "3 nodes run by torch" in str(compiled.explain())


def test_the_story_names_every_pass_and_the_explanation_every_layer(cache):
    _, compiled = made(cache, lambda y: y.relu())
    assert all(step.name in compiled.story() for step in sparsec.passes.PIPELINE)
    (layer,) = [row for row in compiled.explain().layers if row.density is not None]
    assert layer.density == 0.5


def test_profiles_have_a_row_per_group(cache):
    _, compiled = made(cache)
    rows = compiled.profile(IMAGES, repeats=2)
    assert len(rows) == len(compiled._compiled.programs[0].program.groups)
    assert all(row.seconds >= 0 for row in rows)


@pytest.mark.parametrize("dtype", ["U3", "O"])
def test_arrays_that_torch_does_not_know_are_refused(cache, dtype):
    _, compiled = made(cache)
    with pytest.raises(InvalidInput, match="array of"):
        compiled(np.zeros(IMAGES.shape, dtype))
