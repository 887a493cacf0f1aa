"""Our operators. The bodies are what the operators mean; every backend is tested against them.

They are plain functions, used as `call_function` targets of FX graphs, and run on real, fake and float64 tensors. The
epilogue is the same in all: y = activation(op(x) + bias + residual), residual of the shape of y.
"""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from sparsec.errors import InvalidInput

ACTIVATIONS = ("none", "clamp", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu", "gelu_tanh", "tanh")


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    lo: float = -math.inf,
    hi: float = math.inf,
) -> Tensor:
    """Convolution with epilogue: x [N,I,H,W], weight [O,I/groups,kh,kw], bias [O] → [N,O,H',W']."""
    y = F.conv2d(x, weight, bias, list(stride), list(padding), list(dilation), groups)
    return activate(_add(y, residual), activation=activation, lo=lo, hi=hi)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
    lo: float = -math.inf,
    hi: float = math.inf,
) -> Tensor:
    """Linear layer with epilogue: x [...,I], weight [O,I], bias [O] → [...,O]."""
    return activate(_add(F.linear(x, weight, bias), residual), activation=activation, lo=lo, hi=hi)


def depthwise_pointwise(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dw_activation: str = "none",
    dw_lo: float = -math.inf,
    dw_hi: float = math.inf,
    activation: str = "none",
    lo: float = -math.inf,
    hi: float = math.inf,
) -> Tensor:
    """Depthwise convolution, its epilogue, 1x1 convolution with epilogue.

    x [N,C,H,W], dw_weight [C,1,kh,kw], dw_bias [C], pw_weight [O,C,1,1], pw_bias [O] → [N,O,H',W'].
    """
    groups = dw_weight.shape[0]
    middle = conv2d(x, dw_weight, dw_bias, stride=stride, padding=padding, groups=groups, activation=dw_activation, lo=dw_lo, hi=dw_hi)
    return conv2d(middle, pw_weight, pw_bias, residual, activation=activation, lo=lo, hi=hi)


def activate(x: Tensor, *, activation: str, lo: float = -math.inf, hi: float = math.inf) -> Tensor:
    """Elementwise activation of any shape; "clamp" is min(max(x, lo), hi). NaN stays NaN.

    InvalidInput for a name that is not in ACTIVATIONS.
    """
    match activation:
        case "none":
            return x
        case "clamp":
            return x.clamp(lo, hi)
        case "silu":
            return F.silu(x)
        case "hardswish":
            return F.hardswish(x)
        case "hardsigmoid":
            return F.hardsigmoid(x)
        case "sigmoid":
            return x.sigmoid()
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "tanh":
            return x.tanh()
    raise InvalidInput(f"Unknown activation {activation!r}.", hint=f"Use one of {', '.join(ACTIVATIONS)}.")


def to_layout(x: Tensor, *, layout: str) -> Tensor:
    """The same values stored as `layout` says: the identity on values."""
    return x


def _add(y: Tensor, residual: Tensor | None) -> Tensor:
    if residual is None:
        return y
    if residual.shape != y.shape:
        raise InvalidInput(f"A residual of shape {tuple(residual.shape)} does not fit {tuple(y.shape)}.")
    return y + residual


FUNCTIONS = (conv2d, linear, depthwise_pointwise, activate, to_layout)
