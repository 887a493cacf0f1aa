"""The arguments of operators in one shape, whichever of several operators says the same."""

import functools
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, fx
from torch.fx.node import Target

from sparsec.errors import PassRefused
from sparsec.ir import ops
from sparsec.ir.forms import constant, is_value

aten = torch.ops.aten
IDENTITIES = frozenset(
    {
        ops.to_layout,
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.detach_.default,
        aten.lift_fresh_copy.default,
    }
)


@functools.cache
def _parameters(target: Target) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of the parameters of an operator, None where there is no default."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return tuple((argument.name, argument.default_value) for argument in schema.arguments)
    named = inspect.signature(target).parameters.values()  # type: ignore[arg-type]
    return tuple((each.name, None if each.default is inspect.Parameter.empty else each.default) for each in named)


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen operator or one of ours by name, defaults filled in."""
    parameters = _parameters(node.target)
    bound = dict(parameters)
    bound.update(zip(bound, node.args, strict=False))
    return {**bound, **node.kwargs}


def positional(target: Target, named: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Arguments by name as positional and keyword arguments: what `arguments` reads back."""
    keywords = _keyword_only(target)
    args = tuple(value for name, value in named.items() if name not in keywords)
    return args, {name: value for name, value in named.items() if name in keywords}


@functools.cache
def tensor_places(target: Target) -> tuple[int, ...]:
    """The parameters of an operator that take tensors, or a list of them, by position."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return tuple(i for i, argument in enumerate(schema.arguments) if "Tensor" in str(argument.type))
    named = inspect.signature(target).parameters.values()  # type: ignore[arg-type]
    return tuple(i for i, each in enumerate(named) if each.annotation is Tensor or Tensor in get_args(each.annotation))


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The activations that ``node`` reads, each once; constants are left out."""
    return tuple(a for a in node.all_input_nodes if a.op != "get_attr")


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Of a value, without the batch."""
    return tuple(int(s) for s in node.meta["val"].shape[1:])


@functools.cache
def _keyword_only(target: Target) -> frozenset[str]:
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return frozenset(argument.name for argument in schema.arguments if argument.kwarg_only)
    named = inspect.signature(target).parameters.values()  # type: ignore[arg-type]
    return frozenset(each.name for each in named if each.kind is inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Activation:
    """An activation of ours with its limits; see `sparsec.ir.ops.activate`."""

    name: str = "none"
    lo: float = -math.inf
    hi: float = math.inf

    @classmethod
    def read(cls, named: Mapping[str, Any], prefix: str = "") -> "Activation":
        """The activation among the keyword arguments of one of our operators."""
        return cls(named[f"{prefix}activation"], named[f"{prefix}lo"], named[f"{prefix}hi"])

    def keywords(self, prefix: str = "") -> dict[str, Any]:
        """The keyword arguments that say this activation."""
        return {f"{prefix}activation": self.name, f"{prefix}lo": self.lo, f"{prefix}hi": self.hi}

    def __call__(self, x: Tensor) -> Tensor:
        """The activation of a tensor."""
        return ops.activate(x, activation=self.name, lo=self.lo, hi=self.hi)


RELU = Activation("clamp", 0.0)
_NAMED = {
    aten.relu: RELU,
    aten.relu_: RELU,
    aten.relu6: Activation("clamp", 0.0, 6.0),
    aten.silu: Activation("silu"),
    aten.silu_: Activation("silu"),
    aten.hardswish: Activation("hardswish"),
    aten.hardswish_: Activation("hardswish"),
    aten.hardsigmoid: Activation("hardsigmoid"),
    aten.hardsigmoid_: Activation("hardsigmoid"),
    aten.sigmoid: Activation("sigmoid"),
    aten.sigmoid_: Activation("sigmoid"),
    aten.tanh: Activation("tanh"),
    aten.tanh_: Activation("tanh"),
}
#: Activations without parameters, and the names of the limits of those that are clamps.
ACTIVATIONS = {packet.default: activation for packet, activation in _NAMED.items()}
LIMITS = {
    aten.hardtanh.default: ("min_val", "max_val"),
    aten.hardtanh_.default: ("min_val", "max_val"),
    aten.clamp.default: ("min", "max"),
    aten.clamp_.default: ("min", "max"),
    aten.clamp_min.default: ("min", None),
}


def activation_of(node: fx.Node) -> tuple[fx.Node, Activation] | None:
    """The input and the activation that a floating-point node applies; None where it applies none of ours."""
    if node.op != "call_function" or not is_value(node) or not node.meta["val"].is_floating_point():
        return None
    named = arguments(node) if node.target in LIMITS or node.target is ops.activate else {}
    if node.target in ACTIVATIONS:
        return node.args[0], ACTIVATIONS[node.target]  # type: ignore[return-value]
    if node.target is ops.activate:
        return named["x"], Activation.read(named)
    if node.target is aten.gelu.default:
        return node.args[0], Activation("gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu")  # type: ignore[return-value]
    if node.target not in LIMITS:
        return None
    lo, hi = (named[name] if name else None for name in LIMITS[node.target])
    if isinstance(lo, fx.Node) or isinstance(hi, fx.Node):
        return None
    return named["self"], Activation("clamp", -math.inf if lo is None else float(lo), math.inf if hi is None else float(hi))


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with its epilogue. A linear layer reads as a 1x1 convolution without extent."""

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    residual: fx.Node | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: Activation = Activation()

    @property
    def is_linear(self) -> bool:
        """Whether this is a linear layer."""
        return self.node.target in (aten.linear.default, ops.linear)

    @property
    def makes_channels(self) -> bool:
        """Whether output o of the weight is index o of dimension 1: not so for a linear layer of more than 2 dimensions."""
        return not self.is_linear or self.node.meta["val"].dim() == 2

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[O, I/groups, kh, kw] or [O, I]."""
        return tuple(self.weight.meta["val"].shape)

    @property
    def is_depthwise(self) -> bool:
        """One filter per channel: as many groups as inputs and outputs."""
        return self.groups > 1 and self.groups == self.weight_shape[0] and self.weight_shape[1] == 1

    @property
    def constant_weight(self) -> Tensor | None:
        """The weight where it is a constant."""
        return constant(self.weight)

    @property
    def constant_bias(self) -> Tensor | None:
        """The bias where it is a constant; zeros where there is none and the weight is a constant."""
        if self.bias is not None:
            return constant(self.bias)
        weight = self.constant_weight
        return None if weight is None else weight.new_zeros(weight.shape[0])

    @property
    def is_constant(self) -> bool:
        """Whether the weight, and the bias if there is one, are constants."""
        return self.constant_weight is not None and self.constant_bias is not None

    def constants(self) -> tuple[Tensor, Tensor]:
        """Weight and bias (zeros where there is none). PassRefused where they are not constants."""
        weight, bias = self.constant_weight, self.constant_bias
        if weight is None or bias is None:
            raise PassRefused(f"The weight or bias of {self.node.name} is not a constant.")
        return weight, bias

    def attributes(self) -> dict[str, Any]:
        """The keyword arguments that one of our operators takes for this layer, activation included."""
        shape = (
            {}
            if self.is_linear
            else {
                "stride": self.stride,
                "padding": self.padding,
                "dilation": self.dilation,
                "groups": self.groups,
            }
        )
        return {**shape, **self.activation.keywords()}


def layer_of(node: fx.Node) -> Layer | None:
    """The layer that a node computes; None for other nodes, layers without batch, and one-sided "same" padding."""
    if node.target in (aten.linear.default, ops.linear):
        return _linear(node)
    if node.target in (aten.conv2d.default, aten.conv2d.padding, ops.conv2d) and node.meta["val"].dim() == 4:
        return _conv2d(node)
    return None


def _linear(node: fx.Node) -> Layer:
    named = arguments(node)
    if node.target is ops.linear:
        return Layer(node, named["x"], named["weight"], named["bias"], named["residual"], activation=Activation.read(named))
    return Layer(node, named["input"], named["weight"], named["bias"], None)


def _conv2d(node: fx.Node) -> Layer | None:
    named = arguments(node)
    padding = _padding(named)
    if padding is None:
        return None
    ours = node.target is ops.conv2d
    return Layer(
        node,
        named["x" if ours else "input"],
        named["weight"],
        named["bias"],
        named.get("residual"),
        pair(named["stride"]),
        padding,
        pair(named["dilation"]),
        named["groups"],
        Activation.read(named) if ours else Activation(),
    )


def _padding(named: Mapping[str, Any]) -> tuple[int, int] | None:
    padding = named["padding"]
    if padding == "valid":
        return 0, 0
    if padding != "same":
        return pair(padding)
    weight = named["weight"].meta["val"]
    reach = [step * (size - 1) for step, size in zip(pair(named["dilation"]), weight.shape[2:], strict=True)]
    return None if any(total % 2 for total in reach) else (reach[0] // 2, reach[1] // 2)


def pair(value: Any) -> tuple[int, int]:
    """Two integers from a list of one or two, as ATen writes sizes of two dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def is_identity(node: fx.Node) -> bool:
    """Whether a node returns the values of its first argument: copies, inactive dropout, `to` of the same dtype."""
    if node.target in IDENTITIES:
        return True
    if node.target in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default):
        named = arguments(node)
        return not named["train"] or named["p"] == 0
    if node.target in (aten.to.dtype, aten._to_copy.default, aten.expand.default, aten.view.default, aten.reshape.default):
        return _same_value(node)
    return node.target is ops.activate and node.kwargs["activation"] == "none"


def _same_value(node: fx.Node) -> bool:
    source = node.args[0]
    if not (is_value(node) and isinstance(source, fx.Node) and is_value(source)):
        return False
    a, b = node.meta["val"], source.meta["val"]
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
