"""The ARM backend."""

from sparsec.backends.arm.machine import machine as machine_of
from sparsec.backends.arm.machine import named
from sparsec.backends.base import Machine
from sparsec.backends.cpu.backend import Cpu


class Arm(Cpu):
    """AArch64 with NEON: a processor by name, or this machine where it is one and none is given."""

    name = "arm"

    def __init__(self, machine: Machine | None = None) -> None:
        super().__init__(machine or machine_of())

    def processors(self, cpuinfo: str) -> list[str]:
        """The known processors in a /proc/cpuinfo, by LLVM's names."""
        return named(cpuinfo)


BACKEND = Arm
