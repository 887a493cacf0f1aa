"""Pooling against float64, on each machine: every edge, count of cells and NaN as torch has them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsec.backends.cpu.pool import Window, global_pool, window_arguments, window_pool
from sparsec.backends.vector import Vector
from sparsec.lower.layouts import Geometry
from tests.backends.cpu.kernel_call import At, Call, Kernels, pixel_mask, to_halo, to_tiled
from tests.machines import MACHINES, WIDEST

COLUMNS = ((2, 2), (3, 1), (3, 2), (5, 1), (5, 3), (13, 1))  # (window columns, column stride)


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Vector, Kernels]:
    vector = request.param.vector
    lanes = vector.lanes
    windows = [window_pool(vector, kind, *c) for kind in ("max", "mean") for c in COLUMNS]
    return vector, Kernels([*windows, *(global_pool(vector, 64 // lanes, kind) for kind in ("max", "mean"))], request.param)


def reference(kind: str, x: np.ndarray, window: Window) -> np.ndarray:
    t = torch.from_numpy(x).double()[None]
    if kind == "max":
        return torch.nn.functional.max_pool2d(t, window.kernel, window.stride, window.padding)[0].numpy()
    out = torch.nn.functional.avg_pool2d(t, window.kernel, window.stride, window.padding, count_include_pad=window.padded_cells)
    return out[0].numpy()


def pool(built: Any, kind: str, x: np.ndarray, window: Window, pads: tuple[int, int], threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel left in halo storage, and what should be there."""
    vector, kernels = built
    want = reference(kind, x, window)
    gx, gy = Geometry(*x.shape[1:], pads[0]), Geometry(*want.shape[1:], pads[1])
    y = np.zeros((len(x), gy.stride), np.float32)
    y[:, gy.front : gy.front + gy.pixels] = np.nan
    source = window_pool(vector, kind, window.kernel[1], window.stride[1])
    call = Call(source, {"x": At("x", gx.front), "y": At("y", gy.front)} | window_arguments(window, gx, gy, vector.lanes))
    return kernels.run([call], {"x": to_halo(x, gx), "y": y}, len(x), threads=threads)["y"], to_halo(want, gy)


@settings(max_examples=80)
@given(
    kind=st.sampled_from(["max", "mean"]),
    columns=st.sampled_from(COLUMNS),
    rows=st.integers(1, 5),
    row_stride=st.integers(1, 3),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    padded_cells=st.booleans(),
    threads=st.integers(1, 2),
    data=st.data(),
)
@pytest.mark.slow
def test_any_window(built, kind, columns, rows, row_stride, size, pads, padded_cells, threads, data) -> None:
    padding = data.draw(st.tuples(st.integers(0, rows // 2), st.integers(0, columns[0] // 2)))
    assume(size[0] + 2 * padding[0] >= rows and size[1] + 2 * padding[1] >= columns[0])
    window = Window((rows, columns[0]), (row_stride, columns[1]), padding, padded_cells)
    x = np.random.default_rng(rows).standard_normal((3, *size)).astype(np.float32)
    got, want = pool(built, kind, x, window, pads, threads)
    np.testing.assert_allclose(got, want, rtol=0, atol=0 if kind == "max" else 2e-6)


@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.slow
def test_nan_and_infinities_stay_in_their_windows(built: Any, kind: str, columns: tuple[int, int]) -> None:
    k, stride = columns
    x = np.random.default_rng(k).standard_normal((2, 21, 37)).astype(np.float32)
    x[0, 3, 5], x[0, 0, 36], x[0, 20, 0], x[1, 9, 9], x[1, 15, 30] = np.nan, np.nan, -np.nan, np.inf, -np.inf
    got, want = pool(built, kind, x, Window((k, k), (stride, stride), (k // 2, k // 2)), (1, 1))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=2e-6)


@pytest.mark.slow
def test_pads_of_a_maximum_are_below_every_pixel(built: Any) -> None:
    x = np.full((1, 6, 6), -7, np.float32)
    got, want = pool(built, "max", x, Window((3, 3), (1, 1), (1, 1)), (1, 0))
    assert (want[:, : 6 * 6] == -7).all()
    np.testing.assert_array_equal(got, want)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["max", "mean"]),
    channels=st.integers(1, 40),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    pad=st.integers(0, 2),
    tiled=st.booleans(),
    threads=st.integers(1, 2),
    bad=st.booleans(),
)
@pytest.mark.slow
def test_pool_of_the_whole_map(built, kind, channels, size, pad, tiled, threads, bad) -> None:
    vector, kernels = built
    g = Geometry(*size, pad)
    x = np.random.default_rng(channels).standard_normal((channels, *size)).astype(np.float32)
    if bad:
        x[0, -1, -1] = np.nan
    place = {
        "x": At("x", 0 if tiled else g.front),
        "x_tile": channels * g.tile if tiled else g.tile,
        "x_channel": g.tile if tiled else g.stride,
    }
    numbers = {"y": "y", "mask": pixel_mask(g), "tiles": g.tiles, "scale": 1 / (g.height * g.width)}
    memory = {"x": to_tiled(x, g) if tiled else to_halo(x, g), "y": np.zeros(channels, np.float32)}
    source = global_pool(vector, 64 // vector.lanes, kind)
    got = kernels.run([Call(source, place | numbers)], memory, channels, threads=threads)["y"]
    want = x.max((1, 2)) if kind == "max" else x.astype(np.float64).mean((1, 2))
    np.testing.assert_allclose(got, want, rtol=0, atol=0 if kind == "max" else 2e-6)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        window_pool(WIDEST.vector, "median", 3, 2)
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        global_pool(WIDEST.vector, 4, "median")
