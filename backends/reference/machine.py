"""The machine that runs references: this one, of which nothing needs to be known."""

from __future__ import annotations

import os
import platform

from sparsec.backends.base import Machine
from sparsec.backends.vector import Vector
from sparsec.errors import InvalidInput


def machine(cpu: str | None = None) -> Machine:
    """One element at a time, with the caches of a small processor. InvalidInput for a name: there is one such machine."""
    if cpu is not None:
        raise InvalidInput(f"Unknown processor {cpu!r}.", hint="The target 'reference' has no processors to choose among.")
    return Machine(
        arch=platform.machine(),
        mcpu="reference",
        features=(),
        vector=Vector("none", 4, 1, masks=False),
        l1=32 << 10,
        l2=1 << 20,
        l3=8 << 20,
        cores=len(os.sched_getaffinity(0)),
    )
