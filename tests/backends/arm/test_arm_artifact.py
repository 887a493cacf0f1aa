"""Networks compiled for ARM, run from C under an emulator, against eager mode; lesser processors are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sparsec
from sparsec.models import zoo
from sparsec.run.inspection import inspect
from tests.backends.arm import emulated
from tests.backends.arm.test_arm_machine import network

pytestmark = [pytest.mark.slow, emulated.needed]


def on_arm(path: Path, x: torch.Tensor, shape: tuple[int, ...], cpu: str) -> np.ndarray:
    """The one result of an artifact, of the dtype of its one input."""
    given = x.numpy()
    given.tofile(path / "in0.bin")
    np.zeros(shape, given.dtype).tofile(path / "out0.bin")
    done = emulated.emulate([emulated.harness(), path], cpu)
    assert done.returncode == 0, done.stderr
    return np.fromfile(path / "out0.bin", given.dtype).reshape(shape)


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1"])
def test_a_network(cpu: str, tmp_path: Path) -> None:
    model, x = network(), torch.randn(1, 3, 21, 19)
    path = sparsec.compile(model, x, threads=1, target="arm", cpu=cpu, cache_dir=tmp_path / "cache").save(tmp_path / "net.sparsec")
    with torch.no_grad():
        wanted = model.double()(x.double()).numpy()
    np.testing.assert_allclose(on_arm(path, x, wanted.shape, cpu), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.turns(6)
@pytest.mark.parametrize("name", zoo.NAMES)
def test_all_models_compile_for_three_processors(name: str, tmp_path: Path) -> None:
    model, inputs = getattr(zoo, f"{name}_90")()
    names = ("neoverse-v1", "cortex-a76", "cortex-a53")
    compiled = sparsec.compile(model, inputs, threads=1, target="arm", cpu=names, cache_dir=tmp_path / "cache")
    found = inspect(compiled.save(tmp_path / "net.sparsec"))
    assert tuple(each.variant for each in found.variants) == names
    assert all(each.arch == "aarch64" and each.kernels for each in found.variants)


def test_a_lesser_processor_is_refused_before_anything_runs(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 20, 20)
    compiled = sparsec.compile(network(), x, threads=1, target="arm", cpu="cortex-a76", cache_dir=tmp_path / "cache")
    path = compiled.save(tmp_path / "net.sparsec")
    done = emulated.emulate([emulated.harness(), path], "cortex-a72")
    assert done.returncode == 1 and "needs asimd" in done.stderr and "this processor does not have" in done.stderr


def test_mobilenet(tmp_path: Path) -> None:
    model, (x,) = zoo.mobilenet_v1_90()
    path = sparsec.compile(model, x, threads=1, target="arm", cpu="cortex-a76", cache_dir=tmp_path / "cache").save(tmp_path / "net.sparsec")
    with torch.no_grad():
        wanted = model(x).numpy()
    got = on_arm(path, x, wanted.shape, "cortex-a76")
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert np.argsort(got[0])[::-1][:5].tolist() == np.argsort(wanted[0])[::-1][:5].tolist()
