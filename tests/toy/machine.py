"""The machine of the toy backend."""

import platform

from sparsec.backends.base import Machine
from sparsec.backends.vector import Vector


def machine(cpu: str | None = None) -> Machine:
    assert cpu is None
    return Machine(platform.machine(), "toy", (), Vector("none", 4, 1, masks=False), l1=32 << 10, l2=1 << 20, l3=8 << 20, cores=2)
