"""The block kernel against float64, on each machine."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsec.backends.base import Machine
from sparsec.backends.cpu.block import block, pack_block
from sparsec.backends.cpu.expr import ACTIVATIONS
from sparsec.backends.vector import Vector
from tests.backends.cpu.kernel_call import Kernels
from tests.backends.cpu.panel_call import Problem, problem
from tests.machines import MACHINES, WIDEST

#: By bytes of a register: rows and vectors.
PANELS = {64: [(8, 2), (6, 4), (12, 1)], 32: [(6, 2), (4, 2)], 16: [(8, 2), (4, 4)]}


def source(vector: Vector, rows: int, vectors: int, case: Problem):
    return block(vector, rows, vectors, case.geometry.tile, "int32", case.activation, case.residual is not None, True)


class Variants:
    """All code variants of this module in one library."""

    def __init__(self, machine: Machine) -> None:
        self.vector = vector = machine.vector
        rows, vectors = PANELS[vector.nbytes][0]
        variants = [block(vector, rows, vectors, 64, "int32", a, r, True) for a in ACTIVATIONS for r in (False, True)]
        variants += [block(vector, r, v, 64, "int32", "clamp", False, True) for r, v in PANELS[vector.nbytes][1:]]
        self.kernels = Kernels([*variants, block(vector, rows, vectors, 32, "uint16", "clamp", False, False)], machine)

    def check(self, case: Problem, panel: int = 0, **run: Any) -> None:
        rows, vectors = PANELS[self.vector.nbytes][panel]
        constants = pack_block(case.matrix, case.offsets(), rows, "int32", case.bias)
        case.check(case.run(self.kernels, source(self.vector, rows, vectors, case), constants, **run))


@pytest.fixture(scope="module", params=MACHINES)
def variants(request) -> Variants:
    return Variants(request.param)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 30),
    channels=st.integers(1, 40),
    inputs=st.integers(1, 40),
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    kernel=st.sampled_from([1, 1, 3, 5]),
    tiled=st.booleans(),
    residual=st.booleans(),
    threads=st.sampled_from([1, 2]),
    strip=st.integers(0, 3),
    sharing=st.tuples(st.integers(1, 9), st.booleans()),
)
@pytest.mark.slow
def test_matches_float64(variants, seed, channels, inputs, size, density, kernel, tiled, residual, threads, strip, sharing):
    rng = np.random.default_rng(seed)
    block = PANELS[variants.vector.nbytes][0][0]
    case = problem(rng, channels, inputs, size, density=density, kernel=kernel, tiled=tiled, residual=residual, block=block)
    variants.check(case, threads=threads, strip=strip, sharing=sharing)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow
def test_every_epilogue(variants, activation, residual):
    case = problem(np.random.default_rng(1), 19, 11, (7, 9), density=0.6, activation=activation, residual=residual)
    variants.check(case)


@pytest.mark.parametrize("panel", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 5, 6, 7, 8, 12, 13, 24])
@pytest.mark.slow
def test_row_counts_that_do_not_fill_a_block(variants, panel, channels):
    if panel < len(PANELS[variants.vector.nbytes]):
        variants.check(problem(np.random.default_rng(channels), channels, 9, (5, 6)), panel)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow
def test_nan_reaches_the_output_of_its_pixel_only(variants, activation):
    case = problem(np.random.default_rng(2), 9, 6, (6, 6), density=1.0, activation=activation)
    x = case.x.copy()
    x[3, 2, 4] = np.nan
    variants.check(dataclasses.replace(case, x=x))


@pytest.mark.slow
def test_infinite_bounds_change_nothing(variants):
    case = problem(np.random.default_rng(3), 9, 6, (6, 6), density=1.0)
    variants.check(dataclasses.replace(case, lo=-np.inf, hi=np.inf))


@pytest.mark.slow
def test_unmasked_output_and_narrow_offsets(variants):
    case = problem(np.random.default_rng(4), 21, 17, (8, 8), pad=0, tile=32)
    rows, vectors = PANELS[variants.vector.nbytes][0]
    kernel = block(variants.vector, rows, vectors, 32, "uint16", "clamp", False, False)
    case.check(case.run(variants.kernels, kernel, pack_block(case.matrix, case.offsets(), rows, "uint16", case.bias)))


def test_packing_leaves_out_zero_blocks_and_pads_rows():
    weight = np.array([[1, 0, 0], [0, 0, 2], [3, 0, 0]], np.float32)
    arrays = pack_block(weight, np.array([0, 64, 128]), 2, "int32", np.array([7, 8, 9], np.float32))
    assert arrays["value"].tolist() == [[1, 0], [0, 2], [3, 0]]
    assert arrays["offset"].tolist() == [0, 128, 0]
    assert arrays["row_start"].tolist() == [0, 2, 3]
    assert arrays["bias"].tolist() == [7, 8, 9, 0]


def test_a_tile_must_hold_whole_panels():
    with pytest.raises(ValueError, match="not a multiple"):
        block(WIDEST.vector, 8, 3, 64, "int32", "clamp", False, True)
