"""From plans to tables: constants once, records in parameter order, addresses as relocations."""

import math
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.backends.assemble import assemble, float_bits
from sparsec.backends.base import Param, Source
from sparsec.backends.plan import Buffer, Call, Group, Plan
from sparsec.lower.layouts import Geometry, Storage
from sparsec.run.affine import Affine, Count
from sparsec.run.program import GROUP_WIDTH, RECORD_WIDTH, Relocation, check_tables

PARAMS = (Param("x", "act", "float32"), Param("w", "ptr", "float32"), Param("n", "i32"), Param("y", "act", "float32"), Param("lo", "f32"))
KERNEL, OTHER = Source("kernel", PARAMS, lambda: None), Source("other", PARAMS, lambda: None)
SPACE = Geometry(5, 9, 2)
X = Buffer("x", Storage("nchw", 4, Geometry(5, 9, 0)), ("input", 0))
Y = Buffer("y", Storage("single", 12), ("output", 0))
MIDDLE = Buffer("middle", Storage("halo", 4, SPACE))
WEIGHT = np.arange(5, dtype=np.float32)


def call(x: Buffer, y: Buffer, kernel: Source = KERNEL, weight: np.ndarray = WEIGHT, units: int = 3) -> Call:
    return Call(kernel, "node", "kind", {"x": x, "y": y}, ("y",), {"w": weight}, {"n": 7, "lo": -math.inf}, units, 10, 20, {"a": 1})


def program(*groups: Group, threads: int = 2):
    return assemble(Plan(groups, (X,), (Y,)), [OTHER, KERNEL], (["image"], ["result"]), threads)


def test_records_hold_the_parameters_in_order():
    made = program(Group((call(X, MIDDLE),)), Group((call(MIDDLE, Y, OTHER),)))
    infinity = struct.unpack("<i", struct.pack("<f", -math.inf))[0]
    assert made.records[0].tolist()[:11] == [1, 0, 0, 0, 0, 7, 0, 0, 0, infinity, 0]
    assert made.records[1, 0] == 0
    assert made.relocations == (
        Relocation(1, "input", 0, 0),
        Relocation(4, "weights", 0),
        Relocation(6, "arena", 4 * SPACE.front),
        Relocation(RECORD_WIDTH + 1, "arena", 4 * SPACE.front),
        Relocation(RECORD_WIDTH + 4, "weights", 0),
        Relocation(RECORD_WIDTH + 6, "output", 0, 0),
    )
    check_tables(made)


def test_ports_steps_and_groups_describe_the_plan():
    made = program(Group((call(X, MIDDLE), call(MIDDLE, Y)), strip=2))
    assert [(p.name, p.shape) for p in (*made.inputs, *made.outputs)] == [("image", (4, 5, 9)), ("result", (12,))]
    assert made.groups.tolist() == [[0, 2, 3, 2, 0]]
    assert [(s.node, s.kernel, s.kind, s.flops, s.bytes, s.detail) for s in made.steps] == [
        ("node", "kernel", "kind", 10, 20, {"a": 1})
    ] * 2
    assert made.arena_bytes == 4 * 4 * SPACE.stride
    assert made.thread_slots == 2


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("int64", 8), ("bfloat16", 2), ("int8", 1)])
def test_strip_buffers_state_their_size_per_thread_and_unit(dtype, size):
    """In bytes: a thread's numbers of eight bytes were written over the next thread's."""
    strip = Buffer("strip", Storage("tiled", 4, SPACE, dtype), slot=100, unit=50)
    made = program(Group((call(X, strip), call(strip, Y)), strip=2))
    apart = -(-100 * size // 64) * 64
    assert made.records[0, 6:9].tolist() == [0, apart, size * 50]
    assert made.arena_bytes == 2 * apart
    assert made.has_strips
    check_tables(made)


@given(st.integers(1, 60), st.integers(0, 9), st.integers(1, 8), st.integers(1, 5))
def test_numbers_that_follow_a_size_are_patched_for_every_size(most, plus, over, times):
    units, n = (Count(Affine("tokens", plus, 1, *each), most) for each in ((over, times), ()))
    follows = replace(call(X, Y), units=units, scalars={"n": n, "lo": 0.0})
    made = program(Group((call(X, MIDDLE),)), Group((follows,)))
    where = {patch.table: patch for patch in made.patches}
    assert len(made.patches) == 2 and where["groups"].index == GROUP_WIDTH + 2
    assert where["records"].index == RECORD_WIDTH + 5 and made.records.reshape(-1)[RECORD_WIDTH + 5] == most + plus
    for size in range(1, most + 1):
        assert where["groups"].value({"tokens": size}) == times * -(-(size + plus) // over)
        assert where["records"].value({"tokens": size}) == size + plus


def test_equal_constants_are_stored_once_on_line_boundaries():
    other = WEIGHT + 1
    made = program(Group((call(X, MIDDLE),)), Group((call(MIDDLE, MIDDLE, weight=WEIGHT.copy()),)), Group((call(MIDDLE, Y, weight=other),)))
    places = [r.offset for r in made.relocations if r.segment == "weights"]
    assert places == [0, 0, 64]
    for place, array in ((0, WEIGHT), (64, other)):
        assert np.array_equal(made.weights.blob()[place : place + array.nbytes].view(np.float32), array)
    assert made.weights.nbytes >= 64 + other.nbytes + 256


def test_a_constant_of_another_dtype_is_refused():
    with pytest.raises(TypeError, match="'w' is float64, the kernel reads float32"):
        program(Group((call(X, Y, weight=WEIGHT.astype(np.float64)),)))


def test_calls_of_one_group_must_share_their_units():
    with pytest.raises(ValueError, match="differ in units"):
        program(Group((call(X, MIDDLE), call(MIDDLE, Y, units=4))))


@given(st.floats(width=32))
def test_float_bits_are_those_of_float32(value):
    found = struct.pack("<i", float_bits(value))
    assert found == struct.pack("<f", value) or math.isnan(value)
