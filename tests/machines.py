"""The machines that this processor can play. Kernels and networks are tested on each: on the narrower ones in the slow set."""

from typing import Any

import pytest

from sparsec.backends.x86.machine import _AVX512, _flags, describe

WIDEST, AVX2 = describe(_flags(), 2), describe(_flags() - set(_AVX512), 2)
#: Machines by the float32 lanes of a vector, the widest first.
BY_LANES = {machine.lanes: machine for machine in (WIDEST, AVX2)}


def _each(values: dict[int, Any]) -> list[Any]:
    return [pytest.param(value, id=f"lanes{lanes}", marks=[pytest.mark.slow] * (lanes < WIDEST.lanes)) for lanes, value in values.items()]


#: Parameters of tests and fixtures: machines, or their lanes.
MACHINES, LANES = _each(BY_LANES), _each({lanes: lanes for lanes in BY_LANES})
