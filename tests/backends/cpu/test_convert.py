"""Layout conversions: exact copies, on each machine, that touch nothing but what they own."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.backends.cpu import convert
from sparsec.backends.vector import Vector
from sparsec.lower.layouts import Geometry
from tests.backends.cpu.kernel_call import At, Call, Kernels, from_halo, from_tiled, pixel_mask, to_halo, to_tiled
from tests.machines import MACHINES

STEPS = (2, 3, 4, 5, 14, 16, 32)
SIZES = st.integers(1, 70)


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Vector, Kernels]:
    vector = request.param.vector
    lanes = vector.lanes
    retiles = [convert.retile(vector, 64 // lanes, masked) for masked in (False, True)]
    planes = [convert.to_planes(vector, s) for s in STEPS] + [convert.to_planes(vector, s, only_first=True) for s in (2, 3)]
    return vector, Kernels([convert.copy_rows(vector), *planes, *retiles], request.param)


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def empty(channels: int, g: Geometry) -> np.ndarray:
    """Flat storage as the arena gives it: margins zero, the pixel rows (pads included) anything."""
    out = np.zeros((channels, g.stride), np.float32)
    out[:, g.front : g.front + g.pixels] = np.nan
    return out


@settings(max_examples=40)
@given(channels=st.integers(1, 5), height=SIZES, width=SIZES, pad=st.integers(0, 4), threads=st.integers(1, 2), shift=st.integers(0, 3))
@pytest.mark.slow
def test_contiguous_to_halo_and_back(built: Any, channels: int, height: int, width: int, pad: int, threads: int, shift: int) -> None:
    vector, kernels = built
    g, source = Geometry(height, width, pad), convert.copy_rows(vector)
    x = values(height, channels, height, width)
    memory = {"x": np.concatenate([np.zeros(shift, np.float32), x.ravel()]), "y": empty(channels, g)}
    there = {"x": At("x", shift), "y": At("y", g.front)} | convert.nchw_to_halo(g)
    halo = kernels.run([Call(source, there)], memory, channels, threads=threads)["y"]
    np.testing.assert_array_equal(halo, to_halo(x, g))
    back = {"x": At("x", g.front), "y": "y"} | convert.halo_to_nchw(g)
    memory = {"x": halo, "y": np.full_like(x, np.nan)}
    np.testing.assert_array_equal(kernels.run([Call(source, back)], memory, channels, threads=threads)["y"], x)


@pytest.mark.parametrize("length", [1, 7, 8, 16, 33, 1000])
@pytest.mark.slow
def test_vectors_are_copied_whole(built: Any, length: int) -> None:
    vector, kernels = built
    x = values(length, length)
    call = Call(convert.copy_rows(vector), {"x": "x", "y": "y"} | convert.copy_vector(length))
    np.testing.assert_array_equal(kernels.run([call], {"x": x, "y": np.zeros(length, np.float32)}, 1)["y"], x)


def space_to_depth(x: np.ndarray, step: int) -> np.ndarray:
    """Channel (c * step + a) * step + b holds x[c, a::step, b::step], padded with zeros to whole cells."""
    channels, height, width = x.shape
    whole = np.zeros((channels, -(-height // step) * step, -(-width // step) * step), np.float32)
    whole[:, :height, :width] = x
    cells = whole.reshape(channels, whole.shape[1] // step, step, whole.shape[2] // step, step)
    return cells.transpose(0, 2, 4, 1, 3).reshape(-1, cells.shape[1], cells.shape[3])


@settings(max_examples=40)
@given(
    step=st.sampled_from(STEPS),
    channels=st.integers(1, 3),
    height=SIZES,
    width=SIZES,
    pads=st.tuples(st.integers(-1, 3), st.integers(0, 3)),
    threads=st.integers(1, 2),
    first=st.booleans(),
)
@pytest.mark.slow
def test_planes_of_a_strided_convolution(
    built: Any, step: int, channels: int, height: int, width: int, pads: tuple[int, int], threads: int, first: bool
) -> None:
    """From contiguous memory (no pad: -1) or halo rows; all planes or the first of each channel."""
    vector, kernels = built
    x, only_first = values(width, channels, height, width), first and step in (2, 3)
    want = space_to_depth(x, step)[:: step * step if only_first else 1]
    g, source = Geometry(want.shape[1], want.shape[2], pads[1]), Geometry(height, width, max(pads[0], 0))
    steps = {"x_channel": source.stride, "x_pitch": source.pitch} if pads[0] >= 0 else {"x_channel": height * width, "x_pitch": width}
    arguments = {"height": height, "width": width, **steps, "y_height": g.height, "y_pitch": g.pitch, "y_channel": g.stride}
    place = At("x", source.front if pads[0] >= 0 else 0)
    call = Call(convert.to_planes(vector, step, only_first), {"x": place, "y": At("y", g.front)} | arguments)
    memory = {"x": to_halo(x, source) if pads[0] >= 0 else x, "y": empty(len(want), g)}
    out = kernels.run([call], memory, channels * (1 if only_first else step), threads=threads)
    np.testing.assert_array_equal(out["y"], to_halo(want, g))


@settings(max_examples=25)
@given(channels=st.integers(1, 9), height=SIZES, width=SIZES, pad=st.integers(0, 2), threads=st.integers(1, 2), strip=st.integers(0, 3))
@pytest.mark.slow
def test_halo_to_tiled_and_back(built: Any, channels: int, height: int, width: int, pad: int, threads: int, strip: int) -> None:
    vector, kernels = built
    g, vectors = Geometry(height, width, pad), 64 // vector.lanes
    x, mask = values(height + width, channels, height, width), pixel_mask(g)
    halo = {"tile": g.tile, "row": g.stride}
    tiled = {"tile": channels * g.tile, "row": g.tile}

    def move(source: Any, of: dict[str, int], to: dict[str, int], memory: dict[str, np.ndarray], x0: int, y0: int) -> np.ndarray:
        numbers = {"channels": channels, "x_tile": of["tile"], "x_channel": of["row"], "y_tile": to["tile"], "y_channel": to["row"]}
        call = Call(source, {"x": At("x", x0), "y": At("y", y0), "mask": mask} | numbers)
        return kernels.run([call], memory, g.tiles, strip, threads)["y"]

    pack, unpack = convert.retile(vector, vectors, False), convert.retile(vector, vectors, True)
    tiles = move(pack, halo, tiled, {"x": to_halo(x, g), "y": to_tiled(x * 0, g)}, g.front, 0)
    np.testing.assert_array_equal(from_tiled(tiles, g), x)
    rows = move(unpack, tiled, halo, {"x": to_tiled(x, g), "y": empty(channels, g)}, 0, g.front)
    np.testing.assert_array_equal(from_halo(rows, g), x)
    np.testing.assert_array_equal(rows, to_halo(x, g))
