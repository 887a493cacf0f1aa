"""A program for another machine: here it can be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from sparsec.backends.base import Machine
from sparsec.errors import MachineError
from sparsec.run.program import Program
from sparsec.run.runtime import StepTime


class Elsewhere:
    """An executor that never runs. MachineError from every method."""

    def __init__(self, program: Program, threads: int, machine: Machine) -> None:
        self.program, self.threads, self._machine = program, threads, machine

    def _refuse(self) -> NoReturn:
        what = f"The model was compiled for another machine ({self._machine.mcpu})."
        raise MachineError(what, why=self._machine.not_here, hint="Save it and run the artifact there, or compile it for this machine.")

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Refused."""
        self._refuse()

    def run_addresses(self, inputs: Sequence[int], outputs: Sequence[int], batch: int, sizes: Mapping[str, int] | None = None) -> None:
        """Refused."""
        self._refuse()

    def run_arrays(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], sizes: Mapping[str, int]) -> None:
        """Refused."""
        self._refuse()

    def profile(self, inputs: Sequence[np.ndarray], repeats: int = 20) -> list[StepTime]:
        """Refused."""
        self._refuse()
