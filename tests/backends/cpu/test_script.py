"""Arguments and buffers of a kernel's code are those that its parameters ask for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from sparsec.backends.base import Param
from sparsec.backends.cpu import script
from tests.backends.cpu.kernel_call import Call, Kernels
from tests.backends.cpu.test_extents import all_kernels
from tests.machines import AVX2, UNMASKED

PARAMS = (Param("x", "act"), Param("y", "act"), Param("table", "ptr", "uint16"), Param("count", "i32"), Param("factor", "f32"))
DTYPES = {"i32": "int32", "f32": "float32"}


def scaled(y, x, factor, table, begin, end, count, plus=2):
    for i in range((end - begin) * count):
        y[i] = x[T.Cast("int32", table[i])] * factor + T.float32(plus)


def test_statements_see_parameters_by_name_and_absent_ones_as_their_default() -> None:
    source = script.kernel(UNMASKED.vector, "scaled", PARAMS, scaled, ())
    kernels = Kernels([source], UNMASKED)
    x, table = np.array([1, 2, 3, 4], np.float32), np.array([3, 0, 0, 2, 1], np.uint16)
    arguments = {"x": "x", "y": "y", "table": table, "count": 5, "factor": 0.5}
    got = kernels.run([Call(source, arguments)], {"x": x, "y": np.zeros(5, np.float32)}, 1)
    np.testing.assert_array_equal(got["y"], x[table] / 2 + 2)


def test_statements_that_name_no_parameter_are_refused() -> None:
    def wrong(x, y, number, begin, end):
        y[begin] = x[end]

    with pytest.raises(ValueError, match="its statements name number; parameters are x, y, table, count, factor"):
        script.kernel(UNMASKED.vector, "wrong", PARAMS, wrong, ())


def test_pointers_show_numbers_of_the_vector_unless_they_say_otherwise() -> None:
    vector = replace(UNMASKED.vector, computes=("float32", "float16")).of("float16")
    source = script.kernel(vector, "scaled", PARAMS, scaled, ())
    assert source.symbol == "scaled_float16"
    assert [p.dtype for p in source.params] == ["float16", "float16", "uint16", "", ""]


def test_code_takes_the_parameters_in_order_then_the_units() -> None:
    for source in all_kernels(AVX2):
        function, pointers = source.make(), ("act", "ptr")
        wanted = [p.name + "_" * (p.kind in pointers) for p in source.params]
        assert [p.name for p in function.params] == [*wanted, "begin", "end"], source.symbol
        for param, var in zip(source.params, function.params, strict=False):
            if param.kind in DTYPES:
                assert str(var.ty.dtype) == DTYPES[param.kind], source.symbol


def test_code_is_well_formed() -> None:
    """What TVM's own parser looks at each time."""
    for source in all_kernels(UNMASKED):
        function = source.make()
        assert tvm.s_tir.analysis.verify_well_formed(tvm.IRModule.from_expr(function)), source.symbol
        tvm.tirx.analysis.verify_tirx_well_formed(function)
