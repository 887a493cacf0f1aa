"""Words that change exactly when a dictionary or a tensor does."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsec.doors.torch_compile import stamps as torch_memory

pytestmark = pytest.mark.skipif(not torch_memory.can_read(), reason="only CPython 3.11 stamps dictionaries where we look")


def words(places: list[int]) -> list[int]:
    return torch_memory.read(np.array(places, np.int64)).tolist()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 3))), max_size=20))
def test_the_stamp_of_a_dictionary_changes_with_every_write_that_does_something(writes):
    d: dict = {"a": object()}
    places = torch_memory.stamps([d])
    for key, value in writes:
        before, held = words(places), dict(d)
        if value is None:
            d.pop(key, None)
        else:
            d[key] = value
        assert d == held or words(places) != before
        after = words(places)
        assert (d.get("a"), len(d), list(d)) and words(places) == after


@pytest.mark.parametrize("shape", [(4, 4), (3,), (), (2, 3, 4, 5, 6)])
def test_writing_changes_contents_and_not_shapes(shape):
    p = nn.Parameter(torch.ones(shape))
    shapes, contents = torch_memory.shapes([p]), torch_memory.contents([p])
    before = words(shapes), words(contents)
    assert (words(shapes), words(contents)) == before
    with torch.no_grad():
        p.mul_(2)
    assert words(shapes) == before[0]
    assert words(contents) != before[1]


def test_other_memory_changes_contents_even_if_the_values_are_the_same():
    p = nn.Parameter(torch.ones(4, 4))
    kept, contents = p.untyped_storage(), torch_memory.contents([p])
    before = words(contents)
    p.data = p.data.clone()
    assert words(contents) != before
    assert kept.nbytes() == 64


def test_another_view_of_the_same_memory_changes_shapes():
    p = nn.Parameter(torch.rand(4, 4))
    shapes = torch_memory.shapes([p])
    before = words(shapes)
    p.data = p.data.t()
    assert words(shapes) != before


def test_swapped_tensors_change_identities():
    p, q = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
    places = torch_memory.identities([p])
    before = words(places)
    torch.utils.swap_tensors(p, q)
    assert words(places) != before


def test_tensors_without_a_version_or_with_many_axes_are_refused():
    with torch.inference_mode():
        made = torch.ones(3)
    with pytest.raises(ValueError, match="inference"):
        torch_memory.contents([made])
    with pytest.raises(ValueError, match="6 axes"):
        torch_memory.shapes([torch.zeros(1, 1, 1, 1, 1, 1)])
