"""One model compiled for several processors: an object that runs here, and one artifact."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparsec
from sparsec.backends.x86.machine import LEVELS
from sparsec.errors import InvalidInput, MachineError
from sparsec.models import prune
from sparsec.processors import for_each_processor
from sparsec.run import processor
from sparsec.settings import Settings
from tests.backends.arm import emulated

V3, V4 = "x86-64-v3", "x86-64-v4"
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="this is no x86-64 machine")


def network() -> nn.Module:
    torch.manual_seed(0)
    return prune(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), 0.8).eval()


@pytest.mark.parametrize("names", [(V3, V4), [V4, V3], iter([V3, V4])])
def test_the_one_that_needs_most_comes_first(names: Any) -> None:
    settings = for_each_processor(Settings(target="x86", cpu=names, threads=3))
    assert [each.processor for each in settings] == [V4, V3]
    assert {(each.target, each.threads) for each in settings} == {("x86", 3)}


def test_levels_of_arm_too() -> None:
    names = ("cortex-a53", "neoverse-v1", "cortex-a76")
    found = for_each_processor(Settings(target="arm", cpu=names))
    assert [each.cpu for each in found] == ["neoverse-v1", "cortex-a76", "cortex-a53"]


@pytest.mark.parametrize("names", [(V3, V3), (V3, V4, V3)])
def test_the_same_twice_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match=rf"{V3} and {V3} have the same instructions\.\n.*avx2.*\n.*Name one"):
        for_each_processor(Settings(target="x86", cpu=names))


def test_processors_that_no_flag_tells_apart_are_refused() -> None:
    with pytest.raises(InvalidInput, match="cortex-a76 and neoverse-n1 have the same instructions"):
        sparsec.compile(network(), torch.randn(1, 16), target="arm", cpu=("cortex-a53", "cortex-a76", "neoverse-n1"))


@pytest.mark.parametrize("cpu", [(), [], (V3, 4), 7, [None]])
def test_names_are_strings(cpu: Any) -> None:
    with pytest.raises(InvalidInput, match=r"cpu is the name of a processor, or several.*\n.*x86-64-v3"):
        Settings(cpu=cpu)


def test_a_list_of_one_is_one() -> None:
    settings = Settings(target="x86", cpu=[V3])
    assert settings == Settings(target="x86", cpu=V3) and settings.processor == V3 and for_each_processor(settings) == [settings]
    assert Settings().processors == (None,) and Settings().processor is None


def test_torch_compile_refuses_several() -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"names several processors[^$]*x86-64-v3, x86-64-v4"), torch.no_grad():
        torch.compile(network(), backend="sparse", options={"target": "x86", "cpu": (V3, V4)})(torch.randn(1, 16))


@X86
@pytest.mark.parametrize("flags", [LEVELS[V3], LEVELS[V4]])
def test_the_object_is_the_best_that_runs_here(flags: frozenset[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken only: this machine need not have the flags."""
    monkeypatch.setattr(processor, "flags", lambda: flags)
    compiled = sparsec.compile(network(), torch.randn(1, 16), target="x86", cpu=(V3, V4), cache_dir=tmp_path, threads=1)
    assert compiled._compiled.programs[0].backend.machine.mcpu == (V4 if flags == LEVELS[V4] else V3)
    assert [each.programs[0].backend.machine.mcpu for each in compiled._variants] == [V4, V3]


@X86
def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = network(), torch.randn(3, 16)
    compiled = sparsec.compile(model, x, target="x86", cpu=(V3, V4), cache_dir=tmp_path / "cache", threads=1)
    with torch.no_grad():
        wanted = model(x).numpy()
        np.testing.assert_allclose(compiled(x).numpy(), wanted, rtol=1e-5, atol=1e-6)
    path = compiled.save(tmp_path / "net.sparsec")
    model = sparsec.load(path)
    np.testing.assert_allclose(model(x.numpy()), wanted, rtol=1e-5, atol=1e-6)
    timed = {name: [row.time_us for row in sparsec.explain(path / name).layers] for name in (V3, V4)}
    assert all(time for time in timed[V3]) and len(timed[V4]) == len(timed[V3])
    alone = sparsec.compile(network(), x, target="x86", cpu=V3, cache_dir=tmp_path / "cache", threads=1).save(tmp_path / "alone.sparsec")
    programs = [json.loads((each / "manifest.json").read_text())["program"] for each in (path / V3, alone)]
    assert programs[0] == programs[1]


@X86
@pytest.mark.slow
def test_sizes_that_are_free(tmp_path: Path) -> None:
    """Batches at run time; other free sizes are compiled again for this machine alone."""
    pool = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    prune(pool, 0.5)
    axes = ({2: torch.export.Dim("h", min=4, max=40)},)
    compiled = sparsec.compile(
        pool, torch.randn(2, 3, 12, 12), dynamic_shapes=axes, target="x86", cpu=(V4, V3), cache_dir=tmp_path / "cache", threads=1
    )
    for shape in ((2, 3, 12, 12), (2, 3, 20, 12)):
        x = torch.randn(shape)
        with torch.no_grad():
            np.testing.assert_allclose(compiled(x).numpy(), pool(x).numpy(), rtol=1e-4, atol=1e-5)
    assert any("compiled again for h=20" in note for note in compiled.explain().notes)


@X86
@pytest.mark.slow
def test_weights_that_are_written_to_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All variants are of one moment: a write after the first of them makes both again."""
    from sparsec import driver

    model, real, made = network(), driver._complete, []

    def complete(captured: Any, settings: Settings) -> Any:
        found = real(captured, settings)
        made.append(settings.processor)
        if len(made) == 1:
            with torch.no_grad():
                model[0].weight.mul_(2)
        return found

    monkeypatch.setattr(driver, "_complete", complete)
    x = torch.randn(2, 16)
    compiled = sparsec.compile(model, x, target="x86", cpu=(V3, V4), cache_dir=tmp_path, threads=1)
    assert made == [V4, V3, V4, V3]
    with torch.no_grad():
        np.testing.assert_allclose(compiled(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)


@X86
@emulated.needed
def test_several_that_are_elsewhere_are_saved_and_not_run(tmp_path: Path) -> None:
    x = torch.randn(1, 16)
    compiled = sparsec.compile(network(), x, target="arm", cpu=("cortex-a53", "cortex-a76"), cache_dir=tmp_path / "cache")
    with pytest.raises(MachineError, match=r"another machine \(cortex-a76\)"):
        compiled(x)
    with pytest.raises(MachineError, match=r"cannot run on this machine.*\n.*\n.*aarch64"):
        sparsec.load(compiled.save(tmp_path / "net.sparsec"))
