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

    ``native``: what Python calls such machines. ``room``: package whose ``machine.machine()`` describes this machine, without TVM, and
    whose ``backend.BACKEND`` is the class of the backend.
    """

    name: str
    native: tuple[str, ...]
    room: str


BACKENDS = (
    Target("x86", ("x86_64", "AMD64"), "sparsec.backends.x86"),
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


def machine_for(name: str = NATIVE) -> Machine:
    """What this machine is as one of the target. MachineError where it is none."""
    found: Machine = import_module(f"{target_named(name).room}.machine").machine()
    return found


def backend_for(name: str = NATIVE) -> Backend:
    """The backend of a target, for this machine. InvalidInput for an unknown target, MachineError where it cannot serve here."""
    made: Backend = import_module(f"{target_named(name).room}.backend").BACKEND()
    return made
