"""The unstructured sparse kernel against float64, on each machine."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsec.backends.base import Machine
from sparsec.backends.cpu.expr import ACTIVATIONS
from sparsec.backends.cpu.partition import one_run, units_of
from sparsec.backends.cpu.spmm import pack_rows, spmm
from sparsec.backends.vector import Vector
from tests.backends.cpu.kernel_call import At, Call, Kernels, pixel_mask, to_halo, to_tiled
from tests.backends.cpu.panel_call import Problem, problem
from tests.machines import MACHINES, WIDEST

#: (bytes of a panel, unroll, split): narrow and wide panels, every unroll.
SHAPES = [(256, 1, False), (256, 2, False), (128, 4, False), (256, 2, True), (128, 4, True)]


def source(vector: Vector, shape: tuple[int, int, bool], case: Problem, index: str = "int32"):
    nbytes, unroll, split = shape
    vectors = nbytes // vector.nbytes
    return spmm(
        vector, vectors, index, case.activation, case.residual is not None, True, unroll=unroll, split=split, tile=case.geometry.tile
    )


class Variants:
    """All code variants of this module in one library."""

    def __init__(self, machine: Machine) -> None:
        self.vector = vector = machine.vector
        case = problem(np.random.default_rng(0), 1, 1, (1, 1))
        epilogues = [
            dataclasses.replace(case, activation=a, residual=r) for a in ACTIVATIONS for r in (None, case.x) if a == "clamp" or r is None
        ]
        variants = [source(vector, shape, e) for shape in SHAPES for e in epilogues if e.activation == "clamp" or shape == SHAPES[2]]
        self.kernels = Kernels([*variants, source(vector, SHAPES[2], case, "uint16"), self.unmasked()], machine)

    def unmasked(self):
        return spmm(self.vector, 256 // self.vector.nbytes, "uint16", "clamp", False, False)

    def check(self, case: Problem, shape: tuple[int, int, bool] = SHAPES[2], parts: int = 1, index: str = "int32", **run: Any) -> None:
        _, unroll, split = shape
        parts = parts if split else 1
        constants = pack_rows(case.matrix, case.offsets(), index, case.bias, unroll=unroll, parts=parts)
        scalars = {"parts": parts} if split else {}
        case.check(case.run(self.kernels, source(self.vector, shape, case, index), constants | scalars, **run))


@pytest.fixture(scope="module", params=MACHINES)
def variants(request) -> Variants:
    return Variants(request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 30),
    channels=st.integers(1, 30),
    inputs=st.integers(1, 60),
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    kernel=st.sampled_from([1, 1, 3]),
    tiled=st.booleans(),
    residual=st.booleans(),
    parts=st.integers(1, 5),
    threads=st.sampled_from([1, 2]),
    strip=st.integers(0, 3),
    sharing=st.tuples(st.integers(1, 9), st.booleans()),
)
@pytest.mark.slow
def test_matches_float64(variants, shape, seed, channels, inputs, size, density, kernel, tiled, residual, parts, threads, strip, sharing):
    rng = np.random.default_rng(seed)
    case = problem(rng, channels, inputs, size, density=density, kernel=kernel, tiled=tiled, residual=residual)
    variants.check(case, shape, parts, threads=threads, strip=strip, sharing=sharing)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow
def test_every_activation(variants, activation):
    variants.check(problem(np.random.default_rng(1), 19, 11, (7, 9), density=0.6, activation=activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow
def test_nan_reaches_the_output_of_its_pixel_only(variants, activation):
    case = problem(np.random.default_rng(2), 9, 6, (6, 6), density=1.0, activation=activation)
    x = case.x.copy()
    x[3, 2, 4] = np.nan
    variants.check(dataclasses.replace(case, x=x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.slow
def test_padding_a_row_does_not_read_another_input(variants, shape):
    """Rows of one nonzero are mostly padding; NaN in every other input must not reach them."""
    case = problem(np.random.default_rng(3), 8, 8, (3, 3))
    x = case.x.copy()
    x[1:] = np.nan
    weight = np.zeros_like(case.weight)
    weight[:, 0] = 2
    kept = dataclasses.replace(case, x=case.x, weight=weight, lo=-np.inf, hi=np.inf)
    constants = pack_rows(kept.matrix, kept.offsets(), "int32", kept.bias, unroll=shape[1])
    poisoned = dataclasses.replace(kept, x=x)
    kept.check(poisoned.run(variants.kernels, source(variants.vector, shape, kept), constants | ({"parts": 1} if shape[2] else {})))


@pytest.mark.slow
def test_the_output_may_take_the_place_of_the_residual(variants):
    """In parts, y holds partial sums: the residual must have been read before."""
    case = problem(np.random.default_rng(6), 12, 40, (9, 9), residual=True)
    g, shape = case.geometry, SHAPES[4]
    constants = pack_rows(case.matrix, case.offsets(), "int32", case.bias, unroll=shape[1], parts=3)
    memory = {"x": to_tiled(case.x, g), "y": to_halo(case.residual, g)}
    places = {"x": At("x"), "y": At("y", g.front), "residual": At("y", g.front), "mask": pixel_mask(g), "lo": case.lo, "hi": case.hi}
    scalars = {
        "rows": 12,
        "x_tile": 40 * g.tile,
        "y_tile": g.tile,
        "y_channel": g.stride,
        "r_tile": g.tile,
        "r_channel": g.stride,
        "parts": 3,
    }
    scalars |= {"runs": one_run(12)} | units_of(g.tiles, one_run(12), False)[1]
    call = Call(source(variants.vector, shape, case), places | scalars | constants)
    case.check(variants.kernels.run([call], memory, g.tiles)["y"])


@pytest.mark.slow
def test_narrow_offsets(variants):
    variants.check(problem(np.random.default_rng(4), 21, 17, (8, 8)), index="uint16")


@pytest.mark.slow
def test_unmasked_output_whose_tile_is_the_panel(variants):
    case = problem(np.random.default_rng(5), 21, 17, (8, 8), pad=0)
    case.check(case.run(variants.kernels, variants.unmasked(), pack_rows(case.matrix, case.offsets(), "uint16", case.bias)))


def test_packing_orders_by_part_and_pads_to_groups():
    weight = np.array([[1, 0, 2, 3], [0, 0, 0, 0], [0, 4, 0, 0]], np.float32)
    whole = pack_rows(weight, np.array([0, 64, 128, 192]), "uint16", unroll=2)
    assert whole["value"].tolist() == [1, 2, 3, 0, 4, 0]
    assert whole["offset"].tolist() == [0, 128, 192, 192, 64, 64]
    assert whole["row_start"].tolist() == [0, 4, 4, 6]
    halves = pack_rows(weight, np.array([0, 64, 128, 192]), "int32", np.ones(3), parts=2)
    assert halves["value"].tolist() == [1, 4, 2, 3]
    assert halves["offset"].tolist() == [0, 64, 128, 192]
    assert halves["row_start"].tolist() == [0, 1, 1, 2, 4, 4, 4]


def test_a_tile_must_hold_whole_panels():
    with pytest.raises(ValueError, match="not a multiple"):
        spmm(WIDEST.vector, 3, "int32", "clamp", False, True, tile=64)
