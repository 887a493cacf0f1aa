"""Constants in pieces: where a byte is, what programs share, and when it goes."""

import ctypes
import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.run.constants import LINE, TAIL, Constants, Gathering

LARGE = np.arange(1 << 13, dtype=np.float32)


def read(constants: Constants, offset: int, nbytes: int) -> bytes:
    return ctypes.string_at(constants.address(offset), nbytes)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12), st.integers(0, 9), st.integers(0, 5000))
@settings(max_examples=50)
def test_every_byte_is_where_the_blob_has_it(lengths, seed, most):
    random = np.random.default_rng(seed)
    arrays = [random.integers(0, 256, n, np.uint8) for n in lengths]
    gathering = Gathering([most])
    places = [gathering.add(array)[0] for array in arrays]
    constants = gathering.constants()
    blob = constants.blob()
    whole = Constants.of(blob)
    assert blob.nbytes == constants.nbytes == whole.nbytes
    for place, array in zip(places, arrays, strict=True):
        assert place % LINE == 0 and place + array.nbytes + TAIL <= blob.nbytes + LINE
        assert blob[place : place + array.nbytes].tobytes() == array.tobytes()
        for held in (constants, whole):
            assert read(held, place, array.nbytes) == array.tobytes()
            assert held.address(place) % LINE == 0 or not array.nbytes
            assert not array.nbytes or read(held, place + array.nbytes - 1, 1) == array[-1:].tobytes()


def test_programs_share_large_arrays_as_long_as_one_of_them_lives():
    def made(*arrays: np.ndarray) -> Constants:
        gathering = Gathering(array.nbytes for array in arrays)
        for array in arrays:
            gathering.add(array)
        return gathering.constants()

    one, two = made(LARGE, np.ones(3, np.float32)), made(np.zeros(2, np.int32), LARGE.copy())
    assert one.address(0) == two.address(64)
    piece = weakref.ref(one.pieces[0])
    del one
    gc.collect()
    assert piece() is two.pieces[1]
    del two
    gc.collect()
    assert piece() is None


@pytest.mark.parametrize("nbytes", [1 << 14, 1 << 22])
def test_arrays_that_are_shared_lie_beside_new_ones(nbytes):
    old, new = np.full(nbytes, 1, np.uint8), np.full(nbytes + 1, 2, np.uint8)
    first = Gathering([1 << 20])
    first.add(old)
    kept = first.constants()
    second = Gathering([1 << 20])
    arrays = new, old, np.arange(9.0)
    places, held = zip(*map(second.add, arrays), strict=True)
    constants = second.constants()
    assert constants.address(places[1]) == kept.address(0)
    assert [read(constants, place, 3) for place in places[:2]] == [b"\2\2\2", b"\1\1\1"]
    assert read(constants, places[2], 72) == np.arange(9.0).tobytes()
    for array, place, each in zip(arrays, places, held, strict=True):
        assert each.dtype == array.dtype and np.array_equal(each, array) and each.ctypes.data == constants.address(place)


def test_equal_bytes_of_another_length_are_not_the_same():
    gathering = Gathering([1 << 20])
    assert len({gathering.add(each)[0] for each in (LARGE, LARGE[:-1], np.append(LARGE, 0).astype(np.float32))}) == 3
