"""Memory as it was: in C and by numpy, of any words and pieces, the same answers."""

import os
import platform

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsec.doors.torch_compile import seen, stamps
from sparsec.doors.torch_compile.contents import Contents
from sparsec.doors.torch_compile.seen import Samples, Words
from sparsec.settings import Settings
from sparsec.tools.c_library import c_library

MEMORY = 4096
WAYS = ["C", "numpy"]


@pytest.fixture(params=WAYS)
def compared(request, monkeypatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(seen, "native", lambda: None)
    else:
        assert seen.native() is not None
    return request.param


def samples_of(memory: np.ndarray, way: str, words: list[int], slices: list[list[tuple[int, int]]]) -> Samples:
    """``words`` and pieces by their place in ``memory``."""
    start = memory.ctypes.data
    with pytest.MonkeyPatch.context() as patch:
        if way == "numpy":
            patch.setattr(seen, "native", lambda: None)
        return Samples(np.array([start + 4 * word for word in words], np.int64), [[(start + at, size) for at, size in s] for s in slices])


PIECES = st.tuples(st.integers(0, MEMORY - 200), st.integers(0, 200))


@pytest.mark.parametrize("way", WAYS)
@given(
    words=st.lists(st.integers(0, MEMORY // 4 - 1), max_size=9),
    slices=st.lists(st.lists(PIECES, min_size=1, max_size=4), max_size=5),
    at=st.integers(0, MEMORY - 1),
    flip=st.integers(1, 255),
)
def test_a_changed_byte_is_seen_where_it_is_looked_at_and_nowhere_else(way, words, slices, at, flip):
    memory = np.random.default_rng(at).integers(0, 256, MEMORY).astype(np.uint8)
    held = samples_of(memory, way, words, slices)
    assert all(held.same() for _ in range(2 * len(slices) + 1)) and held.all_same()
    memory[at] ^= flip
    sampled = at // 4 in words
    inside = [any(first <= at < first + size for first, size in pieces) for pieces in slices]
    assert held.all_same() == (not any(inside))
    answers = [held.same() for _ in range(max(len(slices), 1))]
    assert answers.count(False) == (len(answers) if sampled else sum(inside))
    memory[at] ^= flip
    assert all(held.same() for _ in range(len(slices) + 1))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 31, 32, 33, 64, 100])
def test_what_is_moved_within_a_slice_is_seen(size, compared):
    """Equal bytes at other places, and other bounds of pieces, are another slice: for every length of the last words."""
    memory = np.arange(1, MEMORY + 1).astype(np.uint8)
    held = samples_of(memory, compared, [], [[(0, size), (size, 40)]])
    memory[: size + 40] = np.roll(memory[: size + 40], 8)
    assert not held.all_same() and not held.same()


@given(st.lists(st.integers(0, MEMORY // 8 - 1), max_size=20), st.integers(0, MEMORY // 8 - 1))
@pytest.mark.parametrize("way", WAYS)
def test_words_are_told_apart(way, places, at):
    memory = np.random.default_rng(at).integers(0, 1 << 62, MEMORY // 8)
    with pytest.MonkeyPatch.context() as patch:
        if way == "numpy":
            patch.setattr(seen, "native", lambda: None)
        first = (memory.ctypes.data - stamps.addresses(np.zeros(1, np.int64))[0]) // 8
        held = Words(first + np.array(places, np.int64))
    assert held.same() and not held.changed().any()
    memory[at] += 1
    assert held.same() == (at not in places)
    assert held.changed().tolist() == [place == at for place in places]


def test_without_a_compiler_numpy_compares_and_says_so(monkeypatch, tmp_path, caplog):
    seen.native.cache_clear()
    with monkeypatch.context() as patch, caplog.at_level("INFO", "sparsec"):
        patch.setenv("PATH", str(tmp_path))
        for name in ("CXX", "CC"):
            patch.delenv(name, raising=False)
        patch.setattr(seen, "Settings", lambda: Settings(cache_dir=tmp_path))
        assert seen.native() is None
    seen.native.cache_clear()
    assert "by numpy" in caplog.text and os.listdir(tmp_path) == []
    assert seen.native() is not None


def test_weights_are_compared_in_either_way(compared):
    weight = np.ones((300, 300), np.float32)
    held = Contents([torch.from_numpy(weight)])
    assert held.seem_same() and held.are_same()
    weight[17, 4] = 2
    assert not held.are_same() and not all(held.seem_same() for _ in range(held.calls))


def test_libraries_of_other_machines_in_the_same_cache_are_left_aside(monkeypatch, tmp_path):
    mine = c_library(seen._SOURCE, tmp_path)
    assert c_library(seen._SOURCE, tmp_path) == mine
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert c_library(seen._SOURCE, tmp_path) != mine
