"""Our operators mean what torch's mean, on real, fake and double tensors."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from sparsec.errors import InvalidInput
from sparsec.ir import ops

MEANINGS = {
    ("none", -math.inf, math.inf): lambda y: y,
    ("clamp", 0.0, math.inf): F.relu,
    ("clamp", 0.0, 6.0): F.relu6,
    ("clamp", -1.0, 0.5): lambda y: F.hardtanh(y, -1.0, 0.5),
    ("silu", -math.inf, math.inf): F.silu,
    ("hardswish", -math.inf, math.inf): F.hardswish,
    ("hardsigmoid", -math.inf, math.inf): F.hardsigmoid,
    ("sigmoid", -math.inf, math.inf): torch.sigmoid,
    ("gelu", -math.inf, math.inf): F.gelu,
    ("gelu_tanh", -math.inf, math.inf): lambda y: F.gelu(y, approximate="tanh"),
    ("tanh", -math.inf, math.inf): torch.tanh,
}


def tensor(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def test_every_activation_is_listed() -> None:
    assert {name for name, _, _ in MEANINGS} == set(ops.ACTIVATIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epilogue", MEANINGS, ids=str)
def test_conv2d(epilogue: tuple, dtype: torch.dtype) -> None:
    activation, lo, hi = epilogue
    x, weight, bias = tensor(2, 4, 7, 5, dtype=dtype), tensor(6, 2, 3, 3, dtype=dtype), tensor(6, dtype=dtype)
    y = F.conv2d(x, weight, bias, (2, 1), (1, 2), (1, 2), 2)
    residual = tensor(*y.shape, dtype=dtype)
    found = ops.conv2d(
        x, weight, bias, residual, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, activation=activation, lo=lo, hi=hi
    )
    assert torch.equal(found, MEANINGS[epilogue](y + residual))
    assert found.dtype == dtype


@pytest.mark.parametrize("epilogue", MEANINGS, ids=str)
def test_linear(epilogue: tuple) -> None:
    activation, lo, hi = epilogue
    x, weight, bias, residual = tensor(3, 2, 5), tensor(4, 5), tensor(4), tensor(3, 2, 4)
    found = ops.linear(x, weight, bias, residual, activation=activation, lo=lo, hi=hi)
    assert torch.equal(found, MEANINGS[epilogue](F.linear(x, weight, bias) + residual))


def test_depthwise_pointwise_is_both_in_turn() -> None:
    x, dw, pw = tensor(2, 4, 6, 6), tensor(4, 1, 3, 3), tensor(5, 4, 1, 1)
    middle = F.relu6(F.conv2d(x, dw, tensor(4), 2, 1, groups=4))
    residual = tensor(2, 5, 3, 3)
    kwargs = {"stride": (2, 2), "padding": (1, 1), "dw_activation": "clamp", "dw_lo": 0.0, "dw_hi": 6.0, "activation": "silu"}
    found = ops.depthwise_pointwise(x, dw, tensor(4), pw, None, residual, **kwargs)
    assert torch.equal(found, F.silu(F.conv2d(middle, pw) + residual))


@pytest.mark.parametrize("epilogue", MEANINGS, ids=str)
def test_nan_stays_nan_and_infinity_is_limited(epilogue: tuple) -> None:
    activation, lo, hi = epilogue
    x = torch.tensor([math.nan, math.inf, -math.inf])
    found = ops.activate(x, activation=activation, lo=lo, hi=hi)
    assert found[0].isnan()
    assert torch.equal(found, MEANINGS[epilogue](x)) or torch.allclose(found, MEANINGS[epilogue](x), equal_nan=True, rtol=0, atol=0)


def test_fake_tensors_give_shapes() -> None:
    with FakeTensorMode():
        x = torch.empty(2, 4, 9, 9)
        y = ops.depthwise_pointwise(x, torch.empty(4, 1, 3, 3), None, torch.empty(7, 4, 1, 1), None, stride=(2, 2))
        assert y.shape == (2, 7, 4, 4)
        assert ops.linear(y.flatten(1), torch.empty(3, 112), activation="sigmoid").shape == (2, 3)


def test_a_layout_changes_no_value() -> None:
    x = tensor(2, 3)
    assert torch.equal(ops.to_layout(x, layout="halo"), x)


def test_bad_arguments_are_told() -> None:
    with pytest.raises(InvalidInput, match="Unknown activation 'mish'"):
        ops.activate(tensor(2), activation="mish")
    with pytest.raises(InvalidInput, match="residual of shape"):
        ops.linear(tensor(2, 3), tensor(4, 3), None, tensor(1, 4))
