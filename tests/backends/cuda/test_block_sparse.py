"""Block-sparse products for GPUs: what is packed, how it is cut, and the kernels, on numpy by Triton's interpreter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.backends.cuda.block_sparse import Layer, Schedule, aligned_of, candidates, cut, launches, pack, slots
from sparsec.backends.cuda.machine import gpu
from tests.backends.cuda.tools import needs_triton, told


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(9))
@pytest.mark.turns(3)
def test_drawn_layers_are_exact(seed: int) -> None:
    """Of every size, empty rows and columns among them, in parts and whole, beside memory that is not theirs."""
    found = told("interpreted", str(seed), "120", TRITON_INTERPRET="1")
    assert len(found) == 120 and sum(case["split"] > 0 for case, _ in found) > 10
    assert [(case, error) for case, error in found if not error < 4] == []


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=20), most=st.integers(0, 4))
def test_items_hold_every_block_once(counts: list[int], most: int) -> None:
    items, split = cut(np.array(counts), most)
    start = np.concatenate([[0], np.cumsum(counts)])
    by_row = {row: sorted(tuple(item[1:3]) for item in items.tolist() if item[0] == row) for row in range(len(counts))}
    for row, parts in by_row.items():
        assert [parts[0][0], *(end for _, end in parts)] == [start[row], *(first for first, _ in parts[1:]), start[row + 1]]
        assert len(parts) == 1 or not most or max(b - a for a, b in parts) <= most
    lengths = (items[:, 2] - items[:, 1]).tolist()
    assert lengths == sorted(lengths, reverse=True)
    used = sorted(slot for slot in items[:, 3].tolist() if slot >= 0)
    assert used == list(range(len(used))) == [slot for _, first, end in split.tolist() for slot in range(first, end)]
    assert {row for row, *_ in split.tolist()} == {row for row, parts in by_row.items() if len(parts) > 1}


def test_blocks_are_packed_by_row_and_those_of_zeros_left_out() -> None:
    weight = np.zeros((5, 7), np.float32)
    weight[0, 6], weight[4, 1], weight[4, 3] = 1, 2, 3
    packed = pack(weight, Schedule(2, 4, 16, 4, 3))
    assert packed["columns"].tolist() == [1, 0]
    assert packed["weight"].tolist() == [[[0, 0, 1, 0], [0] * 4], [[0, 2, 0, 3], [0] * 4]]
    assert packed["items"].tolist() == [[0, 0, 1, -1], [2, 1, 2, -1], [1, 1, 1, -1]] and slots(packed) == 0


def test_a_new_mask_needs_no_other_kernel() -> None:
    layer = Layer(256, 128, "bfloat16")
    for schedule in candidates(layer, (64, 64), gpu("h100")):
        packed = [pack(np.kron(blocks, np.ones((64, 64))), schedule) for blocks in (np.eye(4, 2), np.ones((4, 2)))]
        first, second = (launches(layer, schedule, each, 100, {"x": 128, "y": 256}) for each in packed)
        assert first[0].kernel == second[0].kernel and not np.array_equal(packed[0]["items"], packed[1]["items"])


def test_only_rows_at_multiples_of_16_are_read_and_written_as_such() -> None:
    assert aligned_of({"k": 32, "x_row": 48, "n": 64, "y_row": 64, "r_row": 0}) == ("k", "x_row", "n", "y_row", "r_row")
    assert aligned_of({"k": 32, "x_row": 40, "n": 64, "y_row": 64, "r_row": 64}) == ("n", "y_row", "r_row")
    assert aligned_of({"n": 64, "y_row": 64, "r_row": 72}) == ()


def test_no_points_and_no_outputs_launch_nothing() -> None:
    schedule = Schedule(32, 32, 16, 4, 3)
    assert launches(Layer(64, 64, "float32"), schedule, pack(np.ones((64, 64), np.float32), schedule), 0, {"x": 64, "y": 64}) == []
    assert launches(Layer(0, 64, "float32"), schedule, pack(np.ones((0, 64), np.float32), schedule), 3, {"x": 64, "y": 0}) == []


def test_candidates_fit_the_gpu() -> None:
    found = {name: candidates(Layer(1280, 1280, "float32"), (128, 64), gpu(name), allow_tf32=True) for name in ("a100", "h100")}
    assert all(found.values())
    assert max(each.points for each in found["h100"]) <= 128
