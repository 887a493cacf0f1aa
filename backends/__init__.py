"""From regions of a graph to programs and libraries of kernels, a room per kind of machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from sparsec.errors import InvalidInput, MachineError

if TYPE_CHECKING:
    from sparsec.backends.base import Backend, Machine


@dataclass(frozen=True)
class Target:
    """A kind of machine to compile for.

    ``native``: what Python calls such machines. ``room``: package whose ``machine.machine(cpu)`` describes a processor, this machine's own
    where none is named, without TVM, and whose ``backend.BACKEND`` is the class of the backend.
    """

    name: str
    native: tuple[str, ...]
    room: str


BACKENDS = (
    Target("x86", ("x86_64", "AMD64"), "sparsec.backends.x86"),
    Target("arm", ("aarch64", "arm64"), "sparsec.backends.arm"),
    Target("reference", (), "sparsec.backends.reference"),
)
NATIVE = "native"


def target_named(name: str) -> Target:
    """The target of this name; ``native`` is that of this machine. InvalidInput or MachineError where there is none."""
    here = platform.machine()
    for target in BACKENDS:
        if name == target.name or (name == NATIVE and here in target.native):
            return target
    known = ", ".join((NATIVE, *(target.name for target in BACKENDS)))
    if name != NATIVE:
        raise InvalidInput(f"Unknown target {name!r}.", hint=f"Known targets: {known}.")
    raise MachineError(f"No backend makes kernels for {here}.", why=f"Known targets: {known}.", hint="Run the model without sparsec.")


def machine_for(name: str = NATIVE, cpu: str | None = None) -> Machine:
    """A processor of the target, or this machine as one. InvalidInput for an unknown one, MachineError where this machine is none."""
    found: Machine = import_module(f"{target_named(name).room}.machine").machine(cpu)
    return found


def backend_for(name: str = NATIVE, cpu: str | None = None) -> Backend:
    """The backend of a target, for a processor (see ``machine_for``). InvalidInput for an unknown target."""
    made: Backend = import_module(f"{target_named(name).room}.backend").BACKEND(machine_for(name, cpu))
    return made
