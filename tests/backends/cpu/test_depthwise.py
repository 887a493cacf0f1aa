"""Depthwise kernels against float64 convolutions, on each machine, through the executor."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.backends.base import Machine, Source
from sparsec.backends.cpu.depthwise import depthwise, pack_depthwise
from sparsec.backends.cpu.depthwise_strided import depthwise_strided, scratch_elements
from sparsec.backends.cpu.expr import ACTIVATIONS
from sparsec.backends.cpu.partition import one_run, runs_of, units_of
from sparsec.lower.layouts import Geometry
from tests.backends.cpu.kernel_call import At, Call, Kernels, from_halo, from_tiled, pixel_mask, to_halo, to_tiled
from tests.machines import AVX2, MACHINES, lanes_of

VARIANTS = [(k, "clamp", masked) for k in (3, 5, 7) for masked in (False, True)] + [(3, a, True) for a in ACTIVATIONS[1:]]
REFERENCE = {
    "clamp": lambda y: y.clamp(-1.0, 2.5),
    "silu": torch.nn.functional.silu,
    "hardswish": torch.nn.functional.hardswish,
    "hardsigmoid": torch.nn.functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "tanh": torch.tanh,
}


def source(machine: Machine, tile: int, stride: int, kernel: int, activation: str, masked: bool, residual: bool = False) -> Source:
    template = depthwise if stride == 1 else depthwise_strided
    return template(machine.vector, tile // lanes_of(machine), kernel, activation, masked, residual)


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Machine, Kernels]:
    variants = [source(request.param, 64, s, *v) for s in (1, 2) for v in VARIANTS]
    narrow = [source(request.param, 16, s, 3, "clamp", False) for s in (1, 2)]
    added = [source(request.param, 64, s, 3, "clamp", masked, True) for s in (1, 2) for masked in (False, True)]
    return request.param, Kernels([*variants, *narrow, *added], request.param)


@dataclass(frozen=True)
class Layer:
    """A layer with random data; ``out_pad`` is the padding that consumers of the output need."""

    channels: int
    height: int
    width: int
    kernel: int
    stride: int
    tile: int = 64
    out_pad: int = 1
    activation: str = "clamp"

    @property
    def g(self) -> Geometry:
        return Geometry(self.height, self.width, self.kernel // 2, self.tile)

    @property
    def o(self) -> Geometry:
        if self.stride == 1:
            return self.g
        return Geometry(-(-self.height // 2), -(-self.width // 2), self.out_pad, self.tile)

    def data(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        shapes = (self.channels, self.height, self.width), (self.channels, 1, self.kernel, self.kernel), (self.channels,)
        x, w, b = (rng.standard_normal(s).astype(np.float32) for s in shapes)
        return x, w, b

    def expected(self, x: np.ndarray, w: np.ndarray, b: np.ndarray, added: np.ndarray | float = 0.0) -> np.ndarray:
        x64, w64, b64 = (torch.from_numpy(a).double() for a in (x, w, b))
        y = torch.nn.functional.conv2d(x64[None], w64, b64, self.stride, self.kernel // 2, 1, self.channels)[0]
        return REFERENCE[self.activation](y + torch.as_tensor(added, dtype=torch.float64)).numpy()


def run(
    built: tuple[Machine, Kernels],
    layer: Layer,
    data: Any,
    *,
    masked: bool,
    tiled: bool,
    strip: int = 0,
    threads: int = 1,
    runs: int = 0,
    added: Any = None,
) -> np.ndarray:
    """The output storage: halo [C, stride] over zeros, or tiled [tiles, C, tile] over NaN. Units are runs of channels if ``runs``.

    ``added``: a residual [C, H, W], stored the other way than the output.
    """
    machine, kernels = built
    x, w, b = data
    g, o, c = layer.g, layer.o, layer.channels
    y = np.full((o.tiles, c, o.tile), np.nan, np.float32) if tiled else np.zeros((c, o.stride), np.float32)
    bounds = runs_of(np.ones(c), runs) if runs else one_run(c)
    units, shares = units_of(o.tiles, bounds, runs > 0)
    arguments = {
        "x": At("x", g.front),
        "runs": bounds,
        **shares,
        "y": At("y", 0 if tiled else o.front),
        "mask": pixel_mask(o),
        "channels": c,
        "x_channel": g.stride,
        "pitch": o.pitch,
        "y_tile": c * o.tile if tiled else o.tile,
        "y_channel": o.tile if tiled else o.stride,
        "lo": -1.0,
        "hi": 2.5,
    } | pack_depthwise(w, b)
    memory = {"x": to_halo(x, g), "y": y}
    if layer.stride == 2:
        n = scratch_elements(o.tiles if runs else min(strip or o.tiles, o.tiles), o.tile, o.pitch)
        arguments |= {"scratch": At("scratch", 0, n), "x_pitch": g.pitch, "height": o.height, "width": o.width}
        memory["scratch"] = np.full((threads, n), np.nan, np.float32)
    if added is not None:
        memory["residual"] = to_halo(added, o) if tiled else to_tiled(added, o)
        arguments |= {"residual": At("residual", o.front if tiled else 0), "r_tile": o.tile if tiled else c * o.tile}
        arguments["r_channel"] = o.stride if tiled else o.tile
    kernel = source(machine, layer.tile, layer.stride, layer.kernel, layer.activation, masked, added is not None)
    out = kernels.run([Call(kernel, arguments)], memory, units, strip, threads)
    assert np.array_equal(out["x"], memory["x"], equal_nan=True)
    return out["y"]


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=6e-6)


LAYERS = st.builds(
    Layer,
    channels=st.integers(1, 5),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    kernel=st.sampled_from((3, 5, 7)),
    stride=st.sampled_from((1, 2)),
    out_pad=st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(layer=LAYERS, seed=st.integers(0, 99), strip=st.integers(0, 3), threads=st.sampled_from((1, 2)), runs=st.integers(0, 5))
@pytest.mark.slow
def test_any_shape_into_a_tiled_output(built: Any, layer: Layer, seed: int, strip: int, threads: int, runs: int) -> None:
    data = layer.data(seed)
    out = run(built, layer, data, masked=False, tiled=True, strip=strip, threads=threads, runs=runs)
    assert_close(from_tiled(out, layer.o), layer.expected(*data))


@settings(max_examples=60, deadline=None)
@given(layer=LAYERS, seed=st.integers(0, 99), strip=st.integers(0, 3), threads=st.sampled_from((1, 2)), runs=st.integers(0, 5))
@pytest.mark.slow
def test_any_shape_into_a_halo_output_with_zero_pads(built: Any, layer: Layer, seed: int, strip: int, threads: int, runs: int) -> None:
    data = layer.data(seed)
    out = run(built, layer, data, masked=True, tiled=False, strip=strip, threads=threads, runs=runs)
    assert_close(from_halo(out, layer.o), layer.expected(*data))
    from_halo(out, layer.o)[...] = 0
    assert not out.any()


@settings(max_examples=60, deadline=None)
@given(layer=LAYERS, seed=st.integers(0, 99), strip=st.integers(0, 3), threads=st.sampled_from((1, 2)), tiled=st.booleans())
@pytest.mark.slow
def test_a_residual_is_added_before_the_activation(built: Any, layer: Layer, seed: int, strip: int, threads: int, tiled: bool) -> None:
    layer = replace(layer, kernel=3)
    data, o = layer.data(seed), layer.o
    added = np.random.default_rng(seed).standard_normal((layer.channels, o.height, o.width)).astype(np.float32)
    out = run(built, layer, data, masked=not tiled, tiled=tiled, strip=strip, threads=threads, added=added)
    assert_close(from_tiled(out, o) if tiled else from_halo(out, o), layer.expected(*data, added))
    if not tiled:
        from_halo(out, o)[...] = 0
        assert not out.any()


@pytest.mark.parametrize("residual", (False, True))
def test_only_kernels_that_add_a_residual_have_its_parameters(residual: bool) -> None:
    for template in (depthwise, depthwise_strided):
        names = [param.name for param in template(AVX2.vector, 8, 3, "clamp", True, residual).params]
        assert ({"residual", "r_tile", "r_channel"} <= set(names)) == residual


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow
def test_every_activation(built: Any, activation: str, stride: int) -> None:
    layer = Layer(3, 15, 22, 3, stride, activation=activation)
    data = layer.data(5)
    out = run(built, layer, data, masked=True, tiled=False)
    assert_close(from_halo(out, layer.o), layer.expected(*data))


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.slow
def test_tiles_of_one_vector(built: Any, stride: int) -> None:
    layer = Layer(3, 13, 21, 3, stride, tile=16)
    data = layer.data(6)
    out = run(built, layer, data, masked=False, tiled=True, strip=1, threads=2)
    assert_close(from_tiled(out, layer.o), layer.expected(*data))


@pytest.mark.parametrize(("kernel", "stride"), [(k, s) for k in (3, 5, 7) for s in (1, 2)])
@pytest.mark.slow
def test_integers_are_exact(built: Any, kernel: int, stride: int) -> None:
    layer = Layer(4, 29, 31, kernel, stride)
    rng = np.random.default_rng(7)
    x, w, b = (rng.integers(-4, 5, a.shape).astype(np.float32) for a in layer.data(0))
    out = run(built, layer, (x, w, b), masked=False, tiled=True)
    assert np.array_equal(from_tiled(out, layer.o), layer.expected(x, w, b))


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow
def test_nan_reaches_its_window_and_nothing_else(built: Any, activation: str, stride: int) -> None:
    layer = Layer(2, 18, 18, 3, stride, activation=activation)
    x, w, b = layer.data(8)
    x[1, 9, 16] = np.nan
    out = from_halo(run(built, layer, (x, w, b), masked=True, tiled=False), layer.o)
    want = layer.expected(x, w, b)
    assert np.isnan(want).any()
    assert np.array_equal(np.isnan(out), np.isnan(want))


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.slow
def test_a_range_of_tiles_writes_only_these(built: Any, stride: int) -> None:
    machine, kernels = built
    layer = Layer(3, 30, 30, 3, stride)
    g, o, (x, w, b) = layer.g, layer.o, layer.data(9)
    arguments = {"x": At("x", g.front), "y": "y", "mask": pixel_mask(o), "channels": 3, "x_channel": g.stride, "pitch": o.pitch}
    arguments |= {"runs": one_run(3)} | units_of(o.tiles, one_run(3), False)[1]
    arguments |= {"y_tile": 192, "y_channel": 64, "lo": -1.0, "hi": 2.5} | pack_depthwise(w, b)
    memory = {"x": to_halo(x, g), "y": np.full((o.tiles, 3, 64), 77.0, np.float32)}
    if stride == 2:
        arguments |= {"scratch": "scratch", "x_pitch": g.pitch, "height": o.height, "width": o.width}
        memory["scratch"] = np.zeros(scratch_elements(o.tiles, 64, o.pitch), np.float32)
    out = kernels.run([Call(source(machine, 64, stride, 3, "clamp", False), arguments)], memory, units=2)["y"]
    assert (out[2:] == 77.0).all()
    assert (out[:2] <= 2.5).all()


def test_packing_keeps_order_and_defaults_to_no_bias() -> None:
    weight = np.arange(18, dtype=np.float64).reshape(2, 1, 3, 3)
    packed = pack_depthwise(weight)
    assert packed["weight"].dtype == packed["bias"].dtype == np.float32
    assert np.array_equal(packed["weight"], weight.reshape(2, 9))
    assert not packed["bias"].any()
