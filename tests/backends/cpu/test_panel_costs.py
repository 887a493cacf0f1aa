"""Schedules chosen by prediction: the choices that measurements on one machine settled, and choices any kernel accepts."""

import dataclasses

import pytest

from sparsec.backends.cpu.block import block
from sparsec.backends.cpu.panel_costs import Work, best_tile, candidates, default_schedule, sparse_cycles
from sparsec.backends.cpu.spmm import spmm
from tests.machines import BY_LANES

MACHINES = {lanes: dataclasses.replace(m, l1=32 << 10) for lanes, m in BY_LANES.items()}


def unstructured(outputs: int, inputs: int, pixels: int, density: float) -> Work:
    """Independent zeros: a block of R rows is empty with probability (1 - density)**R."""
    blocks = {r: round(-(-outputs // r) * inputs * (1 - (1 - density) ** r)) for r in (4, 6, 8)}
    return Work(outputs, inputs, pixels, round(outputs * inputs * density), blocks)


def chosen(work: Work, lanes: int = 16, **options) -> dict:
    return dict(default_schedule(work, MACHINES[lanes], **options))


@pytest.mark.skipif(16 not in MACHINES, reason="needs AVX512")
def test_measured_choices():
    assert chosen(unstructured(128, 128, 3192, 0.1)) == {"kernel": "spmm", "vectors": 4, "unroll": 2, "parts": 1, "tile": 64}
    assert chosen(unstructured(512, 256, 210, 0.1)) == {"kernel": "spmm", "vectors": 2, "unroll": 4, "parts": 1, "tile": 32}
    assert chosen(unstructured(512, 512, 210, 0.2)) == {"kernel": "spmm", "vectors": 2, "unroll": 4, "parts": 2, "tile": 32}
    assert chosen(unstructured(1024, 1024, 56, 0.2), tiles=(64,))["parts"] == 8


@pytest.mark.parametrize("lanes", list(MACHINES))
def test_dense_and_block_sparse_weights_take_the_block_kernel(lanes):
    dense = Work(512, 512, 210, 512 * 512, {r: -(-512 // r) * 512 for r in (4, 6, 8)})
    tenth = Work(512, 512, 210, 26214, {4: 6554, 6: 5000, 8: 3277})
    assert chosen(dense, lanes)["kernel"] == "block"
    assert chosen(tenth, lanes)["kernel"] == "block"
    assert chosen(unstructured(512, 512, 210, 0.1), lanes)["kernel"] == "spmm"


@pytest.mark.parametrize("lanes", list(MACHINES))
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 32, 12656), (1000, 1280, 1)])
def test_every_candidate_is_a_kernel(lanes, density, shape):
    found = candidates(unstructured(*shape, density), MACHINES[lanes])
    assert len({schedule for _, schedule in found}) == len(found) >= 4
    for cycles, schedule in found:
        choice = dict(schedule)
        if choice["kernel"] == "spmm":
            spmm(MACHINES[lanes].vector, choice["vectors"], "int32", "clamp", False, True, unroll=choice["unroll"], tile=choice["tile"])
        else:
            block(MACHINES[lanes].vector, choice["rows"], choice["vectors"], choice["tile"], "int32", "clamp", False, True)
        assert cycles > 0


def test_cost_grows_with_work():
    machine = next(iter(MACHINES.values()))
    costs = [sparse_cycles(unstructured(256, 256, 812, d), 64, 2, 1, machine) for d in (0.0, 0.05, 0.1, 0.5, 1.0)]
    assert costs == sorted(costs)


def test_small_maps_take_narrow_tiles():
    machine = next(iter(MACHINES.values()))
    assert best_tile([unstructured(512, 512, 210, 0.1)] * 5, machine) == 32
    assert best_tile([unstructured(128, 64, 3192, 0.1), unstructured(128, 128, 3192, 0.1)], machine) == 64
