"""The function that runs a program table: every unit once, on whatever threads, images and strips."""

import numpy as np
import pytest
from tvm.script import tirx as T

from sparsec.backends.base import Param, Source
from sparsec.backends.cpu import library
from sparsec.backends.extents import over, reads, writes
from sparsec.run.constants import Constants
from sparsec.run.program import GROUP_WIDTH, RECORD_WIDTH, Port, Program, Relocation, Step
from sparsec.run.runtime import Runner
from tests.machines import MACHINES

FAR = 1 << 30
PARAMS = (Param("x", "act", "float32"), Param("y", "act", "float32"), Param("amount", "i32"), Param("factor", "f32"))


def count_up():
    """y[u] = (y[u] + x[u] + amount) * factor for its units: a unit run twice shows."""

    @T.prim_func(private=True)
    def body(x_: T.handle("float32"), y_: T.handle("float32"), amount: T.int32, factor: T.float32, begin: T.int32, end: T.int32) -> T.int32:
        x = T.decl_buffer((FAR,), "float32", data=x_, align=4)
        y = T.decl_buffer((FAR,), "float32", data=y_, align=4)
        for i in range(end - begin):
            y[begin + i] = (y[begin + i] + x[begin + i] + T.Cast("float32", amount)) * factor
        return T.int32(0)

    return body


def negate():
    """y[u] = -x[u]."""

    @T.prim_func(private=True)
    def body(x_: T.handle("float32"), y_: T.handle("float32"), amount: T.int32, factor: T.float32, begin: T.int32, end: T.int32) -> T.int32:
        x = T.decl_buffer((FAR,), "float32", data=x_, align=4)
        y = T.decl_buffer((FAR,), "float32", data=y_, align=4)
        for i in range(end - begin):
            y[begin + i] = T.float32(0) - x[begin + i]
        return T.int32(0)

    return body


TOUCHES = (reads("x", over("begin", "end")), writes("y", over("begin", "end")))
KERNELS = [Source("negate", PARAMS, negate, TOUCHES), Source("count_up", PARAMS, count_up, TOUCHES)]


@pytest.fixture(scope="module", params=MACHINES)
def path(request, tmp_path_factory):
    return library.build(KERNELS, request.param, tmp_path_factory.mktemp("kernels"))


def program(units: int, strip: int, slots: int) -> Program:
    """y = (y + negated + 2) * 0.5 with negated = -x, in one group of two records.

    The negated values live in strips: ``strip`` elements per thread, at the start of the strip whatever its first unit.
    """
    records = np.zeros((2, RECORD_WIDTH), np.int64)
    size = 4 * (strip or units)
    half = int(np.float32(0.5).view(np.int32))
    records[0, :9] = [0, 0, 0, 0, 0, size, 4, 0, 0]
    records[1, :9] = [1, 0, size, 4, 0, 0, 0, 2, half]
    relocations = (
        Relocation(1, "input", 0),
        Relocation(4, "arena", 0),
        Relocation(RECORD_WIDTH + 1, "arena", 0),
        Relocation(RECORD_WIDTH + 4, "output", 0),
    )
    port, steps = (Port("x", (units,)),), (Step("a", "negate", "k", 0, 0), Step("b", "count_up", "k", 0, 0))
    groups = np.array([[0, 2, units, strip, 0]], np.int64).reshape(-1, GROUP_WIDTH)
    weights = Constants.of(np.zeros(64, np.uint8))
    return Program(port, port, ("negate", "count_up"), records, groups, relocations, size * slots, weights, steps, slots)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("units", "strip"), [(1, 0), (7, 0), (7, 1), (7, 3), (64, 5), (64, 64), (5, 9)])
def test_every_unit_of_every_image_runs_once(path, threads, units, strip):
    runner = Runner(program(units, strip, 3), path, threads)
    x = np.random.default_rng(units).standard_normal((3, units)).astype(np.float32)
    y = np.full_like(x, 8.0)
    runner.run_addresses([x.ctypes.data], [y.ctypes.data], 3)
    np.testing.assert_array_equal(y, ((np.float32(8) + -x) + np.float32(2)) * np.float32(0.5))


def test_no_image_runs_nothing(path):
    x = np.ones((1, 7), np.float32)
    y = x.copy()
    Runner(program(7, 0, 1), path).run_addresses([x.ctypes.data], [y.ctypes.data], 0)
    assert (y == 1).all()
