"""Networks compiled for ARM, run by Python for ARM under an emulator: neither torch nor TVM is there."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sparsec
from sparsec.models import zoo
from tests.backends.arm import emulated
from tests.backends.arm.test_arm_machine import network

pytestmark = [pytest.mark.slow, emulated.needed, emulated.python_needed]

RUN = """
import sys

import numpy as np
import sparsec
from sparsec.run.inspection import inspect

model = sparsec.load(sys.argv[1], threads=1)
np.save(sys.argv[3], model(np.load(sys.argv[2])))
assert not {"torch", "tvm"} & set(sys.modules)
print(inspect(sys.argv[1]).variant)
"""


def on_arm(path: Path, x: torch.Tensor, cpu: str) -> tuple[np.ndarray, str]:
    """The result of an artifact, and the name of the variant that was taken."""
    folder = path.parent
    np.save(folder / "x.npy", x.numpy())
    done = emulated.python(RUN, [path, folder / "x.npy", folder / "y.npy"], cpu, folder)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "y.npy"), done.stdout.strip()


def test_mobilenet(tmp_path: Path) -> None:
    model, (x,) = zoo.mobilenet_v1_90()
    path = sparsec.compile(model, x, threads=1, target="arm", cpu="cortex-a76", cache_dir=tmp_path / "cache").save(tmp_path / "net.sparsec")
    with torch.no_grad():
        wanted = model(x).numpy()
    got, _ = on_arm(path, x, "cortex-a76")
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert np.argsort(got[0])[::-1][:5].tolist() == np.argsort(wanted[0])[::-1][:5].tolist()


def test_each_processor_takes_its_own(tmp_path: Path) -> None:
    model, x = network(), torch.randn(2, 3, 21, 19)
    names = ("cortex-a53", "cortex-a76", "neoverse-v1")
    path = sparsec.compile(model, x, threads=1, target="arm", cpu=names, cache_dir=tmp_path / "cache").save(tmp_path / "net.sparsec")
    with torch.no_grad():
        wanted = model.double()(x.double()).numpy()
    for cpu, taken in (("cortex-a72", "cortex-a53"), ("neoverse-n1", "cortex-a76"), ("max", "neoverse-v1")):
        got, variant = on_arm(path, x, cpu)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        assert variant == taken


def test_a_lesser_processor_is_refused(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 20, 20)
    compiled = sparsec.compile(network(), x, threads=1, target="arm", cpu="cortex-a76", cache_dir=tmp_path / "cache")
    path = compiled.save(tmp_path / "net.sparsec")
    np.save(tmp_path / "x.npy", x.numpy())
    done = emulated.python(RUN, [path, tmp_path / "x.npy", tmp_path / "y.npy"], "cortex-a72", tmp_path)
    assert done.returncode == 1 and "MachineError" in done.stderr and "lacks dotprod, fullfp16" in done.stderr
    assert not (tmp_path / "y.npy").exists()
