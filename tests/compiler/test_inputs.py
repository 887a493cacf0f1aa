"""What a call gives a program: sizes, indices, dtypes, padding masks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sparsec.errors import InvalidInput
from sparsec.run.affine import Affine
from sparsec.run.inputs import check_indices, check_inputs, example_inputs, sizes_of, valid_tokens
from sparsec.run.program import Port, Program, Size
from tests.compiler.tiny_program import chain, sized

N = Affine("n")
X, IDS, MASK = Port("x", (12, 8), follows=N), Port("ids", (14,), "int64", Affine("n", 2), limit=5), Port("mask", (12,), "bool", N)


def program(*ports: Port) -> Program:
    """A program that is never run: its ports and sizes are what is checked."""
    return replace(chain(), inputs=ports, sizes=(Size("n", 3, 12),) if any(p.follows for p in ports) else ())


def inputs(batch: int, size: int) -> list[np.ndarray]:
    return [np.zeros((batch, size, 8), np.float32), np.zeros((batch, size + 2), np.int64), np.zeros((batch, size), bool)]


@pytest.mark.parametrize("size", [3, 4, 11, 12])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_batch_and_sizes_are_read_off_the_inputs(batch, size):
    assert check_inputs(program(X, IDS, MASK), inputs(batch, size)) == (batch, {"n": size})
    assert check_inputs(program(IDS), inputs(batch, size)[1:2]) == (batch, {"n": size})


@pytest.mark.parametrize("size", [0, 2, 13, 400])
def test_sizes_out_of_range_name_the_range(size):
    with pytest.raises(InvalidInput, match=rf"n = {size}\.(?s:.*)compiled for 3 to 12"):
        check_inputs(program(X, IDS, MASK), inputs(1, size))


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (0, np.zeros((2, 7, 9), np.float32), r"'x' must be float32 \[batch × 7 × 8\]"),
        (1, np.zeros((2, 7), np.int64), r"'ids' must be int64 \[batch × 9\]"),
        (1, np.zeros((2, 9), np.int32), r"'ids' must be int64 \[batch × 9\], it is int32"),
        (1, np.zeros((2, 9, 1), np.int64), "'ids'"),
        (2, np.zeros((2, 6), bool), r"'mask' must be bool \[batch × 7\]"),
        (2, np.zeros((3, 7), bool), r"'mask' must be bool \[batch × 7\], it is bool \[3, 7\]"),
        (2, np.zeros((2, 7), np.uint8), "'mask'"),
        (2, np.zeros(2, bool), "'mask'"),
    ],
)
def test_inputs_that_differ_in_sizes_or_dtypes_are_named(position, wrong, message):
    given = inputs(2, 7)
    given[position] = wrong
    with pytest.raises(InvalidInput, match=message):
        check_inputs(program(X, IDS, MASK), given)


def test_one_axis_less_is_no_size():
    with pytest.raises(InvalidInput, match="n = 0"):
        check_inputs(program(X), [np.zeros((2, 8), np.float32)])


def test_two_sizes_are_told_apart():
    keys = Port("keys", (6, 8), follows=Affine("m"))
    made = replace(program(X, keys), sizes=(Size("n", 3, 12), Size("m", 1, 6)))
    given = [np.zeros((1, 7, 8), np.float32), np.zeros((1, 2, 8), np.float32)]
    assert sizes_of(made, given) == {"n": 7, "m": 2}
    with pytest.raises(InvalidInput, match="m = 7"):
        sizes_of(made, [given[0], np.zeros((1, 7, 8), np.float32)])


def test_fixed_programs_have_no_sizes():
    assert check_inputs(program(Port("a", (4,))), [np.zeros((3, 4), np.float32)]) == (3, {})
    assert check_inputs(replace(chain(), inputs=()), []) == (1, {})


@pytest.mark.parametrize(("index", "fits"), [(0, True), (4, True), (5, False), (-1, False), (2**62, False), (-(2**63), False)])
def test_indices_must_name_rows_of_the_table(index, fits):
    ids = np.zeros((2, 9), np.int64)
    ids[1, 8] = index
    if fits:
        check_indices(program(IDS), [ids])
        return
    with pytest.raises(InvalidInput, match=r"'ids' holds indices out of range(?s:.*)rows 0 to 4"):
        check_indices(program(IDS), [ids])


def test_ports_without_a_table_and_empty_batches_hold_any_index():
    check_indices(program(replace(IDS, limit=None)), [np.full((1, 5), -7)])
    check_indices(program(IDS), [np.zeros((0, 5), np.int64)])


MASKS = arrays.arrays(
    st.sampled_from([np.bool_, np.int64, np.int32, np.float32]),
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.integers(0, 1),
)


@given(mask=MASKS)
def test_valid_tokens_are_those_up_to_the_last_one(mask):
    expected = []
    for row in mask:
        last = 0
        for position, value in enumerate(row, 1):
            if value:
                last = position
        expected.append(last or len(row))
    assert valid_tokens(mask).tolist() == expected


@pytest.mark.parametrize("value", [2, -1])
def test_whatever_is_not_zero_is_valid(value):
    assert valid_tokens(np.array([[value, 0, value, 0], [0, 0, 0, 0]])).tolist() == [3, 4]
    assert valid_tokens(np.array([[0.25, 0, 0], [float("nan"), 0, 0]], np.float32)).tolist() == [1, 1]


def test_examples_fit_their_program():
    made = program(X, IDS, MASK, Port("one", (4,), "int32", limit=1))
    examples = example_inputs(made)
    assert check_inputs(made, examples) == (1, {"n": 12})
    check_indices(made, examples)
    assert examples[2].all()


def test_a_port_tells_shapes_and_bytes_for_sizes():
    assert (IDS.shape_for({"n": 3}), IDS.shape_for({}), IDS.shape_for({"m": 3})) == ((5,), (14,), (14,))
    assert (IDS.nbytes, IDS.bytes_of({"n": 3}), X.bytes_of({"n": 3}), MASK.nbytes) == (8 * 14, 8 * 5, 4 * 3 * 8, 12)


def test_the_tiny_program_with_sizes_is_one():
    assert check_inputs(sized(), [np.zeros((2, 5, 8), np.float32)]) == (2, {"tokens": 5})
