"""Activations over the whole float32 range against float64, on each machine."""

import numpy as np
import pytest
import torch

from sparsec.backends.cpu.expr import ACTIVATIONS, activate
from sparsec.backends.cpu.pointwise_ops import vector_op
from sparsec.backends.vector import Vector
from sparsec.ir import ops
from tests.backends.cpu.kernel_call import Call, Kernels
from tests.machines import MACHINES

SMOOTH = ("sigmoid", "silu", "gelu", "gelu_tanh", "tanh")
HUGE = np.array([11, 30, 87, 88, 89, 1e3, 1e10, 1e30, 3e38, np.inf], np.float32)
TINY = np.array([0, 1e-45, 1e-39, 1e-30, 1e-10, 1e-5, 1e-3], np.float32)


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest) -> tuple[Vector, Kernels]:
    vector = request.param.vector
    return vector, Kernels([vector_op(vector, "copy", a) for a in ACTIVATIONS], request.param)


def computed(built: tuple[Vector, Kernels], activation: str, x: np.ndarray) -> np.ndarray:
    vector, kernels = built
    zeros = np.zeros(len(x), np.float32)
    rest = {"x": "x", "z": "x", "y": "y", "scale": zeros, "shift": zeros, "length": len(x), "lo": -np.inf, "hi": np.inf}
    memory = {"x": x, "y": np.zeros_like(x)}
    return kernels.run([Call(vector_op(vector, "copy", activation), rest)], memory, -(-len(x) // vector.lanes))["y"]


def exact(activation: str, x: np.ndarray) -> np.ndarray:
    return ops.activate(torch.from_numpy(x).double(), activation=activation).numpy()


@pytest.mark.parametrize("activation", SMOOTH)
def test_error_is_a_few_units_of_the_last_place_of_the_larger_of_x_and_1(built, activation) -> None:
    x = np.linspace(-10, 10, 400_001, dtype=np.float32)
    error = abs(computed(built, activation, x) - exact(activation, x)) / np.maximum(abs(x), 1)
    assert error.max() <= (2e-7 if activation in ("tanh", "gelu", "gelu_tanh") else 3e-7)


@pytest.mark.parametrize("activation", SMOOTH)
def test_huge_tiny_and_no_numbers(built, activation) -> None:
    x = np.concatenate([HUGE, -HUGE, TINY, -TINY, [np.nan]])
    got, want = computed(built, activation, x), exact(activation, x)
    eager = ops.activate(torch.from_numpy(x), activation=activation).numpy()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(eager))
    np.testing.assert_allclose(got[~np.isnan(got)], want[~np.isnan(got)], rtol=2e-6, atol=1e-36)


def test_the_left_tail_of_gelu_keeps_its_digits(built) -> None:
    x = np.linspace(-7, -1e-3, 100_000, dtype=np.float32)[1:]
    want = (torch.from_numpy(x).double() * torch.special.ndtr(torch.from_numpy(x).double())).numpy()
    np.testing.assert_allclose(computed(built, "gelu", x), want, rtol=6e-5)
    near = x > -3
    np.testing.assert_allclose(computed(built, "gelu", x[near]), want[near], rtol=4e-6)


def test_tanh_is_odd_and_small_values_keep_their_digits(built) -> None:
    x = np.geomspace(1e-30, 20, 50_000).astype(np.float32)
    got = computed(built, "tanh", x)
    np.testing.assert_array_equal(computed(built, "tanh", -x), -got)
    np.testing.assert_allclose(got, np.tanh(x.astype(np.float64)), rtol=3e-7)
    assert got.max() == 1


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'mish'"):
        activate("mish", None, None, None)
