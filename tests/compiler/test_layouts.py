"""The flat index space: shifts by up to the pad meet the right pixel or a zero, and addresses never meet."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.lower.layouts import LINE, Geometry, Storage, ceil_to
from sparsec.run.affine import Affine, Count

geometries = st.builds(Geometry, st.integers(1, 20), st.integers(1, 20), st.integers(0, 3), st.sampled_from([16, 32, 64]))


def rows(geometry: Geometry, values: np.ndarray) -> np.ndarray:
    """Zero memory of some channels with values on their pixels."""
    memory = np.zeros((len(values), geometry.stride))
    for h in range(geometry.height):
        start = geometry.front + h * geometry.pitch
        memory[:, start : start + geometry.width] = values[:, h]
    return memory


@given(geometries, st.data())
def test_a_shift_is_a_padded_stencil_tap(geometry, data):
    """memory[p + dy * pitch + dx] is pixel (h + dy, w + dx), zero outside of the map."""
    values = np.arange(1.0, 1 + geometry.height * geometry.width).reshape(1, geometry.height, geometry.width)
    memory = rows(geometry, values)[0]
    pad = geometry.pad
    dy, dx = (data.draw(st.integers(-pad, pad)) for _ in range(2))
    padded = np.pad(values[0], pad)
    for h in range(geometry.height):
        for w in range(geometry.width):
            p = geometry.front + h * geometry.pitch + w
            assert memory[p + dy * geometry.pitch + dx] == padded[h + dy + pad, w + dx + pad]


@given(geometries)
def test_lines_tiles_and_margins_fit_a_row(geometry):
    assert geometry.front % LINE == geometry.stride % LINE == 0
    assert (geometry.tiles - 1) * geometry.tile < geometry.pixels <= geometry.tiles * geometry.tile
    assert geometry.front + geometry.tiles * geometry.tile <= geometry.stride
    reach = geometry.pad * geometry.pitch + geometry.pad
    assert reach <= geometry.front
    assert geometry.front + geometry.pixels + reach <= geometry.stride


@given(geometries, st.integers(1, 5), st.sampled_from(["halo", "tiled"]))
def test_every_pixel_of_every_channel_has_its_own_place(geometry, channels, layout):
    storage = Storage(layout, channels, geometry)
    c, p = np.meshgrid(np.arange(channels), np.arange(geometry.pixels), indexing="ij")
    tile, lane = np.divmod(p, geometry.tile)
    places = storage.origin + tile * storage.tile_step + c * storage.channel_step + lane
    assert len(np.unique(places)) == places.size
    assert places.min() >= 0
    assert places.max() < storage.elements


def test_vectors_and_callers_tensors_have_no_pads():
    assert Storage("single", 7).elements == 7
    assert Storage("nchw", 7, Geometry(5, 9, 0)).elements == 7 * 45
    assert not Storage("nchw", 7, Geometry(5, 9, 0)).is_map
    with pytest.raises(ValueError, match="single value has no geometry"):
        _ = Storage("single", 7).index_space


@given(st.integers(0, 1000), st.integers(1, 70))
def test_ceil_to_is_the_next_multiple(value, multiple):
    found = ceil_to(value, multiple)
    assert found % multiple == 0
    assert value <= found < value + multiple


def test_a_row_of_tokens_counts_what_is_there() -> None:
    space = Geometry(1, 130, 0, 64, Affine("tokens", 2))
    assert isinstance(space.count, Count) and space.count.at(100) == 102
    assert isinstance(space.tiles, Count) and (space.tiles, space.tiles.at(62), space.tiles.at(63)) == (3, 1, 2)
    assert not isinstance(Geometry(1, 130, 0).tiles, Count)
