"""ARM processors by name, and what this machine refuses of them."""

import dataclasses
import json
import platform
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsec
from sparsec.backends import backend_for
from sparsec.backends.arm import machine as module
from sparsec.backends.arm.machine import PROCESSORS, describe
from sparsec.backends.base import Machine
from sparsec.backends.cpu import library
from sparsec.errors import InvalidInput, MachineError
from sparsec.models import prune
from sparsec.run import processor
from tests.backends.arm import emulated

FOREIGN = pytest.mark.skipif(platform.machine() == "aarch64", reason="this is an ARM machine")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)
    return prune(nn.Sequential(*layers), 0.8).eval()


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_data(name: str) -> None:
    found = describe(name)
    assert (found.arch, found.mcpu, found.vector.lanes, found.vector.registers) == ("aarch64", name, 4, 32)
    assert Machine.of(json.loads(json.dumps(dataclasses.asdict(found)))) == found
    assert found.peak_gflops > 0 and found.l2_gbs > 0 and found.l1 <= found.l2
    assert "neon" in found.features and set(found.features) <= {*processor.LINUX_NAMES, "bf16", "i8mm"}


@pytest.mark.parametrize("name", ["cortex-a9", "native", "", "Cortex-A76"])
def test_unknown_processors_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"cortex-a53, .*apple-m1"):
        describe(name)


ALL = 0xFFFFFFFF
MIDR = "CPU implementer\t: 0x{}\nCPU part\t: 0x{}\n"


@pytest.mark.parametrize(
    ("words", "parts", "best"),
    [
        ((1 << 1 | 1 << 7, 0), [], "cortex-a72"),
        ((ALL, 0), [], "neoverse-n1"),
        ((ALL, ALL), [("c0", "d0c")], "neoverse-v1"),
        ((ALL, 0), [("41", "d05"), ("41", "d0b"), ("41", "d44")], "cortex-x1"),
        ((1 << 1 | 1 << 7, 0), [("41", "d03")] * 4, "cortex-a53"),
        ((1 << 1 | 1 << 7, 0), [("41", "d0c")], "cortex-a72"),
    ],
)
def test_an_arm_machine_is_known_by_its_parts_and_by_what_it_can_do(
    words: tuple[int, int], parts: list[tuple[str, str]], best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = zip((processor._HWCAP, processor._HWCAP2), words, strict=True)
    here = frozenset(name for names, word in known for name, bit in names.items() if word >> bit & 1)
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(module, "flags", lambda: here)
    monkeypatch.setattr(module.Path, "read_text", lambda path: "".join(MIDR.format(*part) for part in parts))
    assert module.machine.__wrapped__().mcpu == best


def test_both_loaders_know_the_same_capabilities() -> None:
    text = (Path(processor.__file__).parent / "c/processor.h").read_text()
    rows = {(name, word, int(bit)) for name, word, bit in re.findall(r'\{"(\w+)", AT_(HWCAP2?), (\d+)\}', text)}
    known = (("HWCAP", processor._HWCAP), ("HWCAP2", processor._HWCAP2))
    assert rows == {(name, word, bit) for word, names in known for name, bit in names.items()}


def test_a_machine_without_neon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(module, "flags", frozenset)
    with pytest.raises(MachineError, match="NEON"):
        module.machine.__wrapped__()


@FOREIGN
@emulated.needed
def test_what_is_for_another_machine_is_saved_and_not_run(tmp_path: Path) -> None:
    model, x = network(), torch.randn(1, 3, 20, 20)
    compiled = sparsec.compile(model, x, target="arm", cpu="cortex-a72", cache_dir=tmp_path / "cache")
    for use in (lambda: compiled(x), lambda: compiled.profile(x)):
        with pytest.raises(MachineError, match=r"another machine \(cortex-a72\)\.\n.*aarch64.*\n.*artifact"):
            use()
    explained = compiled.explain()
    assert any("for cortex-a72: bounds are predicted" in note for note in explained.notes)
    assert all(layer.time_us is None and layer.bound_us > 0 for layer in explained.layers)
    path = compiled.save(tmp_path / "net.sparsec")
    with pytest.raises(MachineError, match=r"cannot run on this machine.*\n.*\n.*aarch64"):
        sparsec.load(path)


@FOREIGN
def test_measuring_is_refused_where_nothing_can_run() -> None:
    with pytest.raises(MachineError, match="Tuning measures kernels"):
        sparsec.compile(network(), torch.randn(1, 3, 20, 20), target="arm", cpu="cortex-a76", tune="quick")


@FOREIGN
@pytest.mark.parametrize("options", [{"target": "arm", "cpu": "cortex-a76"}, {"target": "arm"}, {"cpu": "80486"}])
def test_torch_compile_refuses_what_cannot_run_here(options: dict) -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"this machine cannot|not said|Unknown processor"), torch.no_grad():
        torch.compile(network(), backend="sparse", options=options)(torch.randn(1, 3, 20, 20))


@FOREIGN
def test_without_a_compiler_for_it_nothing_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CROSS_CC", "no-such-compiler")
    with pytest.raises(MachineError, match=r"links kernels for aarch64\.\n.*no-such-compiler.*\n.*gcc-aarch64-linux-gnu.*SPARSEC_CROSS_CC"):
        sparsec.compile(network(), torch.randn(1, 3, 20, 20), target="arm", cpu="cortex-a76", cache_dir=tmp_path)


def test_libraries_of_processors_have_names_of_their_own() -> None:
    assert len({library.key([], describe(name)) for name in PROCESSORS}) == len(PROCESSORS)
    assert backend_for("arm", "neoverse-v1").machine == describe("neoverse-v1")
