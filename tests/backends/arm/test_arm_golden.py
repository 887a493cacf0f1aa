"""What LLVM makes of kernels for each ARM processor: nothing goes to the stack in a loop, and loads are as few as they can be."""

import re

import pytest

from sparsec.backends.arm.machine import PROCESSORS, describe
from sparsec.backends.arm.panels import IN_ORDER
from sparsec.backends.base import Machine
from sparsec.backends.cpu.backend import FREE_TILE
from sparsec.backends.cpu.depthwise import depthwise
from sparsec.backends.cpu.depthwise_strided import depthwise_strided
from sparsec.backends.cpu.machine_code import assembly, busiest, inner_loops
from sparsec.backends.cpu.spmm import spmm
from tests.backends.cpu.test_golden import check, kernels, sums

NAMES = ("cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1")
TILES = sorted({tile for it in PROCESSORS.values() for tile in it.panels.tiles})


@pytest.mark.parametrize("tile", [*TILES, FREE_TILE])
@pytest.mark.parametrize("name", NAMES)
def test_no_product_takes_a_sum_to_the_stack(name: str, tile: int) -> None:
    """In any schedule, the default one among them."""
    machine = describe(name)
    found = kernels("product", machine, tile)
    assert {schedule["kernel"] for _, schedule in found} == {"block", "spmm"}
    for source, schedule in found:
        lines = assembly(source, machine)
        assert len(busiest(lines).accumulators) == sums(source, schedule, machine), source.symbol
        for loop in inner_loops(lines):
            assert not (loop.multiplies and loop.spills), source.symbol
        check(busiest(lines), machine)


@pytest.mark.parametrize(("family", "tile"), [("vector", 0), *(("depthwise", tile) for tile in TILES)])
@pytest.mark.parametrize("name", NAMES)
def test_no_other_product_does(name: str, family: str, tile: int) -> None:
    machine = describe(name)
    for source, schedule in kernels(family, machine, tile):
        if schedule.get("kernel") != "gemv_rows":  # sums of scattered nonzeros are no vectors
            check(busiest(assembly(source, machine)), machine)


def loads(machine: Machine, vectors: int, unroll: int, index: str) -> list[str]:
    """The loads of a turn of the inner loop of a sparse kernel."""
    loop = busiest(assembly(spmm(machine.vector, vectors, index, "clamp", False, True, unroll=unroll), machine))
    assert len(loop.multiplies) == vectors * unroll
    return [line for line in loop.lines if line.startswith("ld")]


@pytest.mark.parametrize(("unroll", "index", "words"), [(4, "uint16", 1), (2, "uint16", 1), (2, "int32", 1), (4, "int32", 2)])
@pytest.mark.parametrize("name", ["cortex-a76", "neoverse-n1"])
def test_a_group_of_nonzeros_loads_its_pixels_its_weights_and_its_offsets_once(name: str, unroll: int, index: str, words: int) -> None:
    found = loads(describe(name), 16, unroll, index)
    pixels = [line for line in found if re.match(r"ldp\s+q", line)]
    weights = [line for line in found if re.match(r"ldu?r\s+[dq]", line)]
    offsets = [line for line in found if re.match(r"ld[up]*r?\s+[wx]", line)]
    assert (len(pixels), len(weights)) == (8 * unroll, 1)
    assert len(re.findall(r"[wx]\d+(?=,)", " ".join(line.partition("[")[0] for line in offsets))) == words
    assert len(pixels) + len(weights) + len(offsets) == len(found)


@pytest.mark.parametrize("name", ["cortex-a76", "neoverse-n1"])
def test_multiply_adds_take_weights_by_element(name: str) -> None:
    machine = describe(name)
    for source, _ in kernels("product", machine, 64):
        assert all(re.search(r"\.s\[\d\]$", line) for line in busiest(assembly(source, machine)).multiplies), source.symbol


@pytest.mark.parametrize(("kernel", "vectors"), [(3, 18), *((5, tile // 4) for tile in TILES), (7, 16)])
@pytest.mark.parametrize("name", [name for name in NAMES if describe(name).panels != IN_ORDER])
def test_stencils_keep_weights_and_sums_in_registers(name: str, kernel: int, vectors: int) -> None:
    """For in-order cores LLVM makes several copies of a loop, which leaves no room for 26 numbers."""
    machine = describe(name)
    stride1 = depthwise(machine.vector, vectors, kernel, "clamp", True, unrolled=machine.panels.unrolled)
    for source in (stride1, depthwise_strided(machine.vector, vectors, kernel, "clamp", True)):
        loop = busiest(assembly(source, machine))
        assert len(loop.spills) <= (2 if kernel == 7 else 0), source.symbol
        assert all(re.search(r"\.s\[\d\]$", line) for line in loop.multiplies)
