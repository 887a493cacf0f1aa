"""Numbers that follow a run-time size: values, inverses, what they are of, words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.run.affine import Affine, Count, scaled

NUMBERS = st.builds(Affine, st.just("t"), st.integers(-5, 5), *[st.integers(1, 6)] * 3)


@given(NUMBERS, st.integers(0, 100))
def test_it_is_the_number_it_says(number: Affine, size: int) -> None:
    assert number.at(size) == number.scale * math.ceil((number.times * size + number.plus) / number.over)
    assert number.at(size) == eval(str(number), {"ceil": math.ceil, "t": size})


@given(plus=st.integers(-5, 5), times=st.integers(1, 6), size=st.integers(1, 100))
def test_an_axis_gives_back_its_size(plus: int, times: int, size: int) -> None:
    axis = Affine("t", plus, times)
    assert axis.size(axis.at(size)) == size
    assert times == 1 or axis.size(axis.at(size) + 1) is None


@given(NUMBERS, st.integers(-5, 5), st.integers(1, 9), st.integers(0, 100))
def test_what_is_made_of_it_follows_too(number: Affine, by: int, n: int, size: int) -> None:
    assert number.scaled(n).at(size) == n * number.at(size)
    if (number.over, number.scale) == (1, 1):
        assert number.moved(by).at(size) == number.at(size) + by
        assert number.ceil_div(n).at(size) == -(-number.at(size) // n)
        return
    for make in (number.moved, number.ceil_div, number.size):
        with pytest.raises(ValueError, match="divided or scaled"):
            make(2)


@given(st.integers(1, 300), st.integers(0, 3), st.integers(1, 64), st.integers(1, 8))
def test_a_count_follows_its_size(most: int, plus: int, over: int, times: int) -> None:
    tokens = Count(Affine("tokens", plus), most)
    tiles = scaled(tokens.ceil_div(over), times)
    assert (tokens, tiles) == (most + plus, times * -(-(most + plus) // over))
    assert isinstance(tiles, Count)
    assert [tiles.at(size) for size in (0, most)] == [times * -(-plus // over), tiles]
    assert scaled(5, times) == 5 * times
