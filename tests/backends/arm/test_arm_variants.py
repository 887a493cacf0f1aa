"""One artifact for several ARM processors: each takes the variant that its capabilities allow, and none runs what it cannot."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsec
from sparsec.run import artifact
from tests.backends.arm import emulated
from tests.backends.arm.test_arm_artifact import on_arm
from tests.backends.arm.test_arm_machine import network
from tests.compiler.tiny_program import chain

pytestmark = [pytest.mark.slow, emulated.needed]

PROCESSORS = ("neoverse-v1", "cortex-a76", "cortex-a53")
X = torch.randn(1, 3, 21, 19, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    return sparsec.compile(network(), X, threads=1, target="arm", cpu=PROCESSORS[::-1], cache_dir=cache).save(cache / "net.sparsec")


@pytest.mark.parametrize(("cpu", "taken"), [("max", "neoverse-v1"), ("cortex-a76", "cortex-a76"), ("neoverse-n1", "cortex-a76")])
@pytest.mark.parametrize("alone", [False, True])
def test_each_takes_its_own(compiled: Path, tmp_path: Path, cpu: str, taken: str, alone: bool) -> None:
    """The others are there and cannot be loaded: their weights are damaged."""
    path = Path(shutil.copytree(compiled / taken if alone else compiled, tmp_path / "net.sparsec"))
    for other in (path / name for name in PROCESSORS if name != taken and not alone):
        (other / "weights.safetensors").write_bytes(b"damaged")
    with torch.no_grad():
        wanted = network().double()(X.double()).numpy()
    np.testing.assert_allclose(on_arm(path, X, wanted.shape, cpu), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a72"])
def test_the_least_takes_what_all_can_run(compiled: Path, tmp_path: Path, cpu: str) -> None:
    path = Path(shutil.copytree(compiled, tmp_path / "net.sparsec"))
    with torch.no_grad():
        wanted = network().double()(X.double()).numpy()
    np.testing.assert_allclose(on_arm(path, X, wanted.shape, cpu), wanted, rtol=1e-5, atol=1e-6)
    (path / "cortex-a53/weights.safetensors").write_bytes(b"damaged")
    done = emulated.emulate([emulated.harness(), path], cpu)
    assert done.returncode == 1 and "cortex-a53/weights.safetensors is incomplete or altered" in done.stderr


def test_an_artifact_for_greater_ones_is_refused(compiled: Path, tmp_path: Path) -> None:
    greater = sparsec.compile(network(), X, threads=1, target="arm", cpu=PROCESSORS[:2], cache_dir=compiled.parent)
    done = emulated.emulate([emulated.harness(), greater.save(tmp_path / "net.sparsec")], "cortex-a53")
    assert done.returncode == 1 and "No variant of the artifact can run here" in done.stderr and "needs asimd" in done.stderr


def test_an_instruction_that_is_not_there_traps_where_nobody_asks(tmp_path: Path) -> None:
    """What the check of capabilities is for. Kernels in float32 have none beyond ARMv8.0: a library of one dot product has."""
    library = tmp_path / "trap.so"
    source = Path(__file__).with_name("trap.c")
    subprocess.run([emulated.COMPILER, "-O2", "-march=armv8.2-a+dotprod", "-shared", "-fPIC", source, "-o", library], check=True)
    machine = {"arch": "aarch64", "features": ["neon", "dotprod"], "mcpu": "cortex-a76"}
    path = artifact.save(tmp_path / "net.sparsec", chain(), library, None, {"output": "leaf"}, machine)
    for name in ("in0.bin", "out0.bin"):
        np.zeros(96, np.float32).tofile(path / name)
    loader = Path(shutil.copytree(Path(artifact.__file__).parent / "c", tmp_path / "c"))
    asked = (loader / "processor.h").read_text()
    assert asked.rstrip().endswith("return 0;\n}")
    (loader / "processor.h").write_text(asked.rstrip().removesuffix("return 0;\n}") + "return 1;\n}\n")
    careless = emulated.harness(loader)
    outcomes = {
        (name, cpu): emulated.emulate([program, path], cpu)
        for name, program in (("asks", emulated.harness()), ("careless", careless))
        for cpu in ("cortex-a53", "cortex-a76")
    }
    assert outcomes["asks", "cortex-a76"].returncode == outcomes["careless", "cortex-a76"].returncode == 0
    assert outcomes["asks", "cortex-a53"].returncode == 1 and "needs asimddp" in outcomes["asks", "cortex-a53"].stderr
    trapped = outcomes["careless", "cortex-a53"]
    assert trapped.returncode in (-4, 128 + 4) and "Illegal instruction" in trapped.stderr, trapped
