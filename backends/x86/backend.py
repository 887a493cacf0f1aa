"""The x86 backend."""

from sparsec.backends.base import Machine
from sparsec.backends.cpu.backend import Cpu
from sparsec.backends.x86.machine import machine as this_machine


class X86(Cpu):
    """x86-64 with AVX2 or AVX512: this machine, where none is given."""

    name = "x86"

    def __init__(self, machine: Machine | None = None) -> None:
        super().__init__(machine or this_machine())


BACKEND = X86
