"""Copies and pickles of compiled models and artifacts, and models that come wrapped."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import sparsec
from sparsec.doors.from_torch.capture import unwrapped
from sparsec.errors import ArtifactError

IMAGES = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(5))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight[::2] = 0
    return model


def expected() -> torch.Tensor:
    with torch.no_grad():
        return network()(IMAGES)


@pytest.fixture(scope="module")
def fast(kernels):
    return sparsec.compile(network(), (IMAGES,), threads=1, cache_dir=kernels)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.slow
def test_copies_of_compiled_models_run(fast, copied):
    torch.testing.assert_close(copied([fast])[0](IMAGES), expected(), rtol=1e-5, atol=1e-6)


def test_compiled_models_cannot_be_pickled_but_saved(fast):
    with pytest.raises(ArtifactError, match=r"(?s)cannot be pickled.*save\(path\)"):
        pickle.dumps({"model": fast})


def test_pickles_of_artifacts_hold_their_path(fast, tmp_path):
    loaded = sparsec.load(fast.save(tmp_path / "net.sparsec"))
    written = pickle.dumps(loaded)
    assert len(written) < 1000
    for model in (pickle.loads(written), copy.copy(loaded), copy.deepcopy([loaded])[0]):
        np.testing.assert_allclose(model(IMAGES.numpy()), expected().numpy(), rtol=1e-5, atol=1e-6)
    (tmp_path / "net.sparsec").rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="no artifact here"):
        pickle.loads(written)


@pytest.fixture
def one_process():
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "data parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "compiled, distributed": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m), backend="eager"),
    "distributed, compiled": lambda m: nn.parallel.DistributedDataParallel(torch.compile(m, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_models_are_taken_out_of_their_wrappers(wrapper, one_process, kernels):
    model = network()
    wrapped = WRAPPERS[wrapper](model).eval()
    assert unwrapped(wrapped) is model
    if wrapper == "distributed":
        fast = sparsec.compile(wrapped, (IMAGES,), threads=1, cache_dir=kernels)
        torch.testing.assert_close(fast(IMAGES), expected(), rtol=1e-5, atol=1e-6)
