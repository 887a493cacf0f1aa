"""The machine that runs references: this one, of which nothing needs to be known."""

from __future__ import annotations

import os
import platform

from sparsec.backends.base import Machine
from sparsec.backends.vector import Vector


def machine() -> Machine:
    """One element at a time, with the caches of a small processor."""
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
