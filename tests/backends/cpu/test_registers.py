"""Loads and stores of some lanes: with masks where a machine has them, guarded and lane by lane where it has none."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.backends.cpu import convert, gemv_windows, matvec_calls, pointwise_ops, token_choice, token_moves
from tests.backends.cpu.kernel_call import At, Call, Kernels
from tests.backends.cpu.test_extents import all_kernels
from tests.machines import BY_LANES, UNMASKED, lanes_of

LENGTHS = (0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 40)


def test_code_for_a_machine_without_masks_has_none() -> None:
    """And names no instruction of another processor's."""
    for source in all_kernels(UNMASKED):
        text = source.make().script()
        assert not any(word in text for word in ("masked_load", "masked_store", "lane_mask", "llvm.x86")), source.symbol


def test_machines_with_masks_use_them() -> None:
    for machine in BY_LANES.values():
        if machine.vector.masks:
            for source in (convert.copy_rows(machine.vector), pointwise_ops.vector_op(machine.vector, "copy", "clamp")):
                assert {"T.masked_load", "T.masked_store"} <= set(source.make().script().replace("(", " ").split()), source.symbol


def test_what_needs_a_permute_is_refused_and_not_chosen_without_one() -> None:
    with pytest.raises(ValueError, match="have no permute"):
        gemv_windows.gemv_windows(UNMASKED.vector, "int32", "clamp", False)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    chosen = {dict(schedule)["kernel"] for schedule in matvec_calls.vector_schedules(weight, UNMASKED)}
    assert chosen == {"gemv_dense", "gemv_blocks", "gemv_rows"}


@pytest.fixture(scope="module")
def unmasked() -> Kernels:
    vector = UNMASKED.vector
    moves = (convert.copy_rows(vector), token_moves.rows_to_tiled(vector, 4), token_moves.tiled_to_rows(vector, 4))
    return Kernels([*moves, pointwise_ops.vector_op(vector, "copy", "clamp"), token_choice.keep_tokens(vector)], UNMASKED)


@pytest.mark.parametrize("length", LENGTHS)
def test_rows_are_copied_to_their_last_element_without_masks(unmasked: Kernels, length: int) -> None:
    """NaN lies before and behind; columns past the row become zero, and nothing beyond those is written."""
    x, fill = np.random.default_rng(length).standard_normal((3, length)).astype(np.float32), 2
    scalars = {"height": 3, "width": length, "fill": fill, "x_pitch": length, "x_channel": 0, "y_pitch": length + fill, "y_channel": 0}
    memory = {"x": x, "y": np.full((3, length + fill), np.nan, np.float32)}
    got = unmasked.run([Call(convert.copy_rows(UNMASKED.vector), {"x": "x", "y": "y"} | scalars)], memory, 1)["y"]
    np.testing.assert_array_equal(got, np.pad(x, ((0, 0), (0, fill))))


@pytest.mark.parametrize("length", LENGTHS)
def test_vectors_are_read_and_written_to_their_last_element_without_masks(unmasked: Kernels, length: int) -> None:
    x = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    rest = {"z": "x", "scale": x, "shift": x, "length": length, "lo": -np.inf, "hi": np.inf}
    call = Call(pointwise_ops.vector_op(UNMASKED.vector, "copy", "clamp"), {"x": "x", "y": "y"} | rest)
    got = unmasked.run([call], {"x": x, "y": np.full(length, np.nan, np.float32)}, -(-length // lanes_of(UNMASKED)))["y"]
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("tokens", [1, 3, 4, 17])
@pytest.mark.parametrize("features", [1, 4, 6, 9])
def test_tokens_are_packed_and_unpacked_without_masks(unmasked: Kernels, tokens: int, features: int) -> None:
    x, tile = np.random.default_rng(tokens).standard_normal((tokens, features)).astype(np.float32), 4 * lanes_of(UNMASKED)
    tiles, scalars = -(-tokens // tile), {"count": tokens, "features": features}
    memory = {"x": x, "packed": np.zeros((tiles, features, tile), np.float32), "y": np.full_like(x, np.nan)}
    pack, unpack = (make(UNMASKED.vector, 4) for make in (token_moves.rows_to_tiled, token_moves.tiled_to_rows))
    calls = [Call(pack, {"x": "x", "y": "packed"} | scalars), Call(unpack, {"x": At("packed"), "y": "y"} | scalars)]
    np.testing.assert_array_equal(unmasked.run(calls, memory, tiles, strip=tiles)["y"], x)
