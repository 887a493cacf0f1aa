"""Targets by name: the one of this machine, a named one, none of that name, none for this machine."""

import platform

import pytest
import torch
from torch import nn

import sparsec
from sparsec import backends
from sparsec.backends import backend_for, machine_for
from sparsec.errors import InvalidInput, MachineError

NAMES = ["native", *(target.name for target in backends.BACKENDS)]


#: A processor of each target; None: this one.
CPUS = [(name, "cortex-a76" if name == "arm" else None) for name in NAMES]


@pytest.mark.parametrize(("name", "cpu"), [*CPUS, ("x86", "x86-64-v3"), ("arm", "apple-m1")])
def test_a_target_has_a_backend_and_a_machine(name: str, cpu: str | None) -> None:
    backend = backend_for(name, cpu)
    assert backend.name in NAMES and backend.machine == machine_for(name, cpu)
    assert backend.name == name or name == "native"
    assert cpu is None or backend.machine.mcpu == cpu


@pytest.mark.parametrize("name", [target.name for target in backends.BACKENDS])
def test_unknown_processors_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"Unknown processor '80486'\.\n.*target '" + name):
        backend_for(name, "80486")


def test_which_processor_has_to_be_said_for_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(InvalidInput, match=r"not said, and this machine is x86_64\.\n.*neoverse-n1"):
        backend_for("arm")


def test_a_machine_is_described_without_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tvm", None)
    assert machine_for().arch == platform.machine() and not machine_for().not_here


@pytest.mark.parametrize("name", ["vax", "", "X86", "x86 "])
def test_unknown_targets_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"Unknown target '{name}'.\n.*Known targets: {', '.join(NAMES)}"):
        backend_for(name)


def test_a_machine_without_a_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(MachineError, match=r"No backend makes kernels for riscv64\.\n.*Known targets: native, x86"):
        backend_for()


def test_every_door_takes_the_target() -> None:
    model, x = nn.Linear(8, 8).eval(), torch.randn(2, 8)
    with pytest.raises(InvalidInput, match="Unknown target 'vax'"):
        sparsec.compile(model, (x,), target="vax")
    with pytest.raises(Exception, match="Unknown target 'vax'"), torch.no_grad():
        torch.compile(model, backend="sparse", options={"target": "vax"})(x)
