"""Numbers of 16 bits on ARM processors that compute in them, emulated: families of kernels, networks, and processors that do not."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparsec
from sparsec.backends.arm.backend import Arm
from sparsec.backends.arm.machine import describe
from sparsec.backends.cpu.machine_code import assembly, busiest
from sparsec.backends.cpu.products import product_kernels
from sparsec.errors import ArtifactError
from sparsec.models import prune, zoo
from tests.backends.arm import emulated
from tests.backends.arm.test_arm_artifact import on_arm as of_artifact
from tests.backends.arm.test_arm_families import on_arm
from tests.backends.arm.test_arm_machine import network
from tests.backends.cpu.family_cases import Case, run, task_of
from tests.backends.cpu.family_specs import drawn
from tests.backends.cpu.test_families import CASES, COMPUTING

#: What rounding to the nearest number changes, as a share of it.
ROUNDING = 2.0**-11
MACHINE = describe("cortex-a76")
SUMS = ("product over a map", "depthwise stencil", "depthwise and pointwise")
HALF = {
    name: cases
    for name in COMPUTING
    if (cases := [c.of("float16") for c in CASES[name] if Arm(MACHINE).offers(c.of("float16").spec) is None])
}


def test_all_families_compute_in_half_precision() -> None:
    assert list(HALF) == list(COMPUTING)


def check(name: str, cases: Iterable[Case], folder: Path) -> None:
    """Products over maps sum in 16 bits, where each of many terms is rounded; others round results."""
    found = run(
        list(zip(cases, count(), strict=False)),
        Arm(MACHINE),
        folder,
        execute=partial(on_arm, folder / "program.sparsec", "cortex-a76", MACHINE),
    )
    most = (4 if name in SUMS else 1) * ROUNDING
    wrong = [f"{case} by {dict(schedule)}: {error:.1e}" for case, schedule, error in found if not error <= most]
    assert found and not wrong, "\n".join(wrong)


@pytest.mark.slow
@emulated.needed
@pytest.mark.turns(3)
@pytest.mark.parametrize("name", HALF)
def test_each_family_computes_what_it_declares(name: str, tmp_path: Path) -> None:
    check(name, HALF[name], tmp_path)


@pytest.mark.slow
@emulated.needed
@pytest.mark.turns(10)
@pytest.mark.parametrize("name", HALF)
def test_random_shapes_and_patterns(name: str, tmp_path: Path) -> None:
    check(name, [case.of("float16") for case in drawn(name, 50, seed=len(name))], tmp_path)


@pytest.mark.parametrize("cpu", ["cortex-a76", "neoverse-n1"])
def test_products_multiply_by_element_and_keep_sums_in_registers(cpu: str) -> None:
    machine, case = describe(cpu), next(c for c in HALF["product over a map"] if c.spec.op == "linear")
    backend, seen = Arm(machine), set()
    task = task_of(case, 0)[0]
    for schedule in backend.schedules(task):
        (kernel,) = product_kernels(task, schedule, machine.computing("float16"))
        inner = busiest(assembly(kernel, machine))
        assert inner.multiplies and not inner.spills and all(".8h" in line and ".h[" in line for line in inner.multiplies), kernel.symbol
        assert not any("fcvt" in line for line in inner.lines)
        seen.add(dict(schedule)["kernel"])
    assert seen == {"spmm", "block"}


class Tokens(nn.Module):
    """A layer of a transformer, and the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x).mean(1))


class Mean(nn.Module):
    """The mean of tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def saved(model: nn.Module, x: torch.Tensor, cpu: str, folder: Path) -> Path:
    return sparsec.compile(model, x, threads=1, target="arm", cpu=cpu, cache_dir=folder / "cache").save(folder / "net.sparsec")


@pytest.mark.slow
@emulated.needed
@pytest.mark.parametrize("name", ["maps", "tokens"])
def test_a_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (network(), torch.randn(1, 3, 21, 19)) if name == "maps" else (prune(Tokens().eval(), 0.8), torch.randn(1, 17, 32))
    model, x = model.half(), x.half()
    path = saved(model, x, "cortex-a76", tmp_path)
    with torch.no_grad():
        wanted = model.double()(x.double()).numpy()
    np.testing.assert_allclose(of_artifact(path, x, wanted.shape, "cortex-a76"), wanted, rtol=0, atol=8 * ROUNDING * np.abs(wanted).max())


@pytest.mark.slow
@emulated.needed
@pytest.mark.parametrize("strategy", ["prune", "merge"])
def test_a_network_that_leaves_tokens_out(strategy: str, tmp_path: Path) -> None:
    """As in float32 on this machine: of these tokens none are nearly equal in rank."""
    torch.manual_seed(0)
    model, x = (
        prune(nn.Sequential(*(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(3)), Mean()).eval(), 0.8),
        torch.randn(1, 17, 32),
    )
    options = {"token_pruning": {"keep": 0.6, "after": [1, 2], "strategy": strategy}, "cache_dir": tmp_path / "cache"}
    wanted = np.asarray(sparsec.compile(model.half().float(), x.half().float(), threads=1, **options)(x.half().float()))
    compiled = sparsec.compile(model.half(), x.half(), threads=1, target="arm", cpu="cortex-a76", **options)
    assert not sparsec.explain(compiled).uncovered
    found = of_artifact(compiled.save(tmp_path / "net.sparsec"), x.half(), wanted.shape, "cortex-a76")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=8 * ROUNDING * np.abs(wanted).max())


@pytest.mark.slow
@emulated.needed
def test_mobilenet(tmp_path: Path) -> None:
    """Sums of 16 bits are off by less than what rounding the weights to 16 bits changes."""
    model, (x,) = zoo.mobilenet_v1_90()
    with torch.no_grad():
        full = model.double()(x.double()).numpy()
        path = saved(model.half(), x.half(), "cortex-a76", tmp_path)
        wanted = model.double()(x.half().double()).numpy()
    got = of_artifact(path, x.half(), wanted.shape, "cortex-a76")
    np.testing.assert_allclose(got, wanted, rtol=0, atol=np.abs(wanted - full).max())
    assert set(np.argsort(got[0])[-5:]) == set(np.argsort(wanted[0])[-5:])


def test_a_processor_without_such_arithmetic_has_no_kernels(tmp_path: Path) -> None:
    with (
        pytest.warns(RuntimeWarning, match="No kernel of sparsec"),
        pytest.raises(ArtifactError, match=r"is torch.float16, kernels compute in float32"),
    ):
        saved(network().half(), torch.randn(1, 3, 8, 8).half(), "cortex-a53", tmp_path)
