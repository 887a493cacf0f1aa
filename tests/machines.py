"""The machines that this processor can play. Kernels and networks are tested on each: on the narrower ones in the slow set."""

import platform
from dataclasses import replace
from typing import Any

import pytest

from sparsec.backends.base import Machine
from sparsec.backends.vector import Vector
from sparsec.backends.x86.machine import _AVX512, describe
from sparsec.run.processor import flags

WIDEST, AVX2 = describe(flags(), 2), describe(flags() - set(_AVX512), 2)
#: What an ARM processor's vectors are like, and how kernels are written for them: many registers of 16 bytes, no masks, no permute.
#: SSE has as wide ones.
UNMASKED = replace(
    AVX2,
    arch=platform.machine(),
    mcpu="x86-64-v2",
    features=(),
    vector=Vector("16 bytes", 16, 32, masks=False, by_element=True, ahead=True, keeps_nan=True),
    panels=replace(AVX2.panels, block=((8, 8, False), (4, 16, False)), attention=((8, 2, 1.0), (8, 1, 1.1))),
)


def lanes_of(machine: Machine) -> int:
    """Float32 lanes of a vector."""
    return machine.vector.lanes


#: Machines by their lanes, the widest first.
BY_LANES = {lanes_of(machine): machine for machine in (WIDEST, AVX2, UNMASKED)}


def _each(values: dict[int, Any]) -> list[Any]:
    return [
        pytest.param(value, id=f"lanes{lanes}", marks=[pytest.mark.slow] * (lanes < lanes_of(WIDEST))) for lanes, value in values.items()
    ]


#: Parameters of tests and fixtures: machines, or their lanes.
MACHINES, LANES = _each(BY_LANES), _each({lanes: lanes for lanes in BY_LANES})
