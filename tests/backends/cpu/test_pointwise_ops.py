"""Elementwise kernels against float64, on each machine, between every pair of layouts."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.backends.cpu.expr import ACTIVATIONS
from sparsec.backends.cpu.pointwise_ops import MAP_OPS, VECTOR_OPS, map_op, vector_op
from sparsec.backends.vector import Vector
from sparsec.lower.layouts import Geometry
from tests.backends.cpu.kernel_call import At, Call, Kernels, from_tiled, pixel_mask, to_halo, to_tiled
from tests.backends.cpu.panel_call import ACTIVATIONS as EXACT
from tests.machines import MACHINES, WIDEST

MAPS = [("clamp", op) for op in MAP_OPS] + [(a, "add") for a in ACTIVATIONS] + [("silu", "copy"), ("sigmoid", "scale")]
VECTORS = [("clamp", op) for op in VECTOR_OPS] + [(a, "copy") for a in ACTIVATIONS]


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Vector, Kernels]:
    vector = request.param.vector
    lanes = vector.lanes
    maps = [map_op(vector, 64 // lanes, op, a, masked) for a, op in MAPS for masked in (False, True)]
    return vector, Kernels([*maps, *(vector_op(vector, op, a) for a, op in VECTORS)], request.param)


def reference(op: str, x: np.ndarray, z: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    x, z = x.astype(np.float64), z.astype(np.float64)
    return {"copy": x, "add": x + z, "mul": x * z, "scale": x * z, "affine": x * scale + shift}[op]


def stored(name: str, values: np.ndarray, g: Geometry, tiled: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """A map in storage, and the arguments that describe it."""
    if tiled:
        return to_tiled(values, g), {name: At(name), f"{name}_tile": len(values) * g.tile, f"{name}_channel": g.tile}
    return to_halo(values, g), {name: At(name, g.front), f"{name}_tile": g.tile, f"{name}_channel": g.stride}


@settings(max_examples=80)
@given(
    choice=st.sampled_from(MAPS),
    channels=st.integers(1, 9),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    pad=st.integers(0, 2),
    tiled=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    threads=st.integers(1, 2),
    strip=st.integers(0, 3),
    bad=st.booleans(),
)
@pytest.mark.slow
def test_maps(built, choice, channels, size, pad, tiled, threads, strip, bad) -> None:
    (activation, op), (vector, kernels), g = choice, built, Geometry(*size, pad)
    rng = np.random.default_rng(channels)
    x, z = rng.standard_normal((2, channels, *size)).astype(np.float32)
    scale, shift = rng.standard_normal((2, channels, 1, 1)).astype(np.float32)
    if bad:
        x[0, 0, 0] = np.nan
    memory, arguments = {}, {"scale": scale, "shift": shift, "mask": pixel_mask(g), "channels": channels, "lo": -0.5, "hi": 0.75}
    for name, values, p in zip("xzy", (x, z, x * 0), tiled, strict=True):
        memory[name], described = stored(name, values, g, p)
        arguments |= described
    if op == "scale":
        memory["z"], z = z[:, 0, 0].copy(), z[:, :1, :1]
        arguments |= {"z": "z", "z_tile": 0, "z_channel": 1}
    source = map_op(vector, 64 // vector.lanes, op, activation, masked=not tiled[2])
    got = kernels.run([Call(source, arguments)], memory, g.tiles, strip, threads)["y"]
    want = EXACT[activation](reference(op, x, z, scale, shift), -0.5, 0.75)
    got, want = (from_tiled(got, g), want) if tiled[2] else (got, to_halo(want, g))
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


@settings(max_examples=60)
@given(choice=st.sampled_from(VECTORS), length=st.integers(1, 100), threads=st.integers(1, 2), bad=st.booleans())
@pytest.mark.slow
def test_vectors(built, choice, length, threads, bad) -> None:
    (activation, op), (vector, kernels) = choice, built
    x, z, scale, shift = np.random.default_rng(length).standard_normal((4, length)).astype(np.float32)
    if bad:
        x[-1] = np.nan
    numbers = {"length": length, "lo": -0.5, "hi": 0.75}
    call = Call(vector_op(vector, op, activation), {"x": "x", "z": "z", "y": "y", "scale": scale, "shift": shift} | numbers)
    memory = {"x": x, "z": z, "y": np.full(length, np.nan, np.float32)}
    got = kernels.run([call], memory, -(-length // vector.lanes), threads=threads)["y"]
    np.testing.assert_allclose(got, EXACT[activation](reference(op, x, z, scale, shift), -0.5, 0.75), rtol=2e-6, atol=1e-6)


@pytest.mark.slow
def test_in_place(built: Any) -> None:
    vector, kernels = built
    g = Geometry(9, 13, 1)
    x = np.random.default_rng(0).standard_normal((5, 9, 13)).astype(np.float32)
    storage, of_x = stored("x", x, g, False)
    place = of_x | {"y": of_x["x"], "y_tile": g.tile, "y_channel": g.stride, "z": of_x["x"], "z_tile": g.tile, "z_channel": g.stride}
    rest = {"scale": x, "shift": x, "mask": pixel_mask(g), "channels": 5, "lo": -np.inf, "hi": np.inf}
    source = map_op(vector, 64 // vector.lanes, "add", "clamp", True)
    got = kernels.run([Call(source, place | rest)], {"x": storage}, g.tiles)["x"]
    np.testing.assert_array_equal(got, to_halo(2 * x, g))


def test_unknown_operators_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown operator 'pow' on maps"):
        map_op(WIDEST.vector, 4, "pow", "clamp", True)
    with pytest.raises(ValueError, match="unknown operator 'scale' on vectors"):
        vector_op(WIDEST.vector, "scale", "clamp")
