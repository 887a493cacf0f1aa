"""Building an ATen graph from ONNX nodes: what depends on constants only is computed at once, the rest becomes calls.

A value is a torch tensor while it is known and an fx.Node otherwise; shapes are always known, so shape arithmetic disappears.
"""

import operator
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsec.doors.from_onnx.graph import Network
from sparsec.doors.from_onnx.nodes import OnnxNode
from sparsec.doors.from_onnx.specialize import MOST_ELEMENTS, DependsOnInputs, sources
from sparsec.errors import UnsupportedModel
from sparsec.ir.budget import Budget

Value: TypeAlias = Tensor | fx.Node
aten = torch.ops.aten
_REQUIRED = object()


class Constants:
    """The constants of a network as tensors, each read and each transposed once for all graphs that are made of it."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.bytes = network.bytes()
        self._budget = Budget(self.bytes)
        self._read: dict[str, Tensor] = {}
        self._transposed: dict[int, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._read:
            self._read[name] = held(self._budget, self._network.constant(name), name)
        return self._read[name]

    def transposed(self, weight: Tensor) -> Tensor:
        """A matrix [I,O] as [O,I]; remembered if it is one of the network's."""
        if id(weight) in self._transposed:
            return self._transposed[id(weight)][1]
        turned = weight.t().contiguous()
        if any(weight is known for known in self._read.values()):
            self._transposed[id(weight)] = weight, turned
        return turned


def held(budget: Budget, tensor: Tensor, where: str) -> Tensor:
    """A constant that was read; UnsupportedModel where the file makes more of them than its size accounts for."""
    if reason := budget.hold(tensor):
        raise UnsupportedModel("The model's constants are too large.", where=where, why=reason)
    return tensor


class Builder:
    """One graph in the making."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.source = ""
        self._mode = FakeTensorMode()
        self.budget = Budget(constants.bytes)
        self._placed: dict[int, tuple[Tensor, fx.Node]] = {}
        self._names: dict[int, tuple[Tensor, str]] = {}
        self._transposed: dict[int, tuple[Tensor, Tensor]] = {}

    def placeholder(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> fx.Node:
        """An input of the graph, contiguous."""
        node = self.graph.placeholder(_identifier(name, "input"))
        with self._mode:
            node.meta["val"] = torch.empty(tuple(shape), dtype=dtype)
        node.meta["custom"] = {"sparsec": {"source": name}}
        return node

    def name(self, value: Any, wish: str) -> None:
        """The name under which a constant is stored, should a call read it."""
        if isinstance(value, Tensor):
            self._names.setdefault(id(value), (value, wish))

    def call(self, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of an operator: computed where all arguments are known, else a node."""
        if not any(isinstance(leaf, fx.Node) for leaf in tree_leaves((args, kwargs))):
            return self._fold(target, args, kwargs)
        args, kwargs = tree_map_only(Tensor, self.place, (tuple(args), kwargs))
        value = self._run(target, *tree_map_only(fx.Node, lambda node: node.meta["val"], (args, kwargs)))
        name = getattr(target, "__name__", "").partition(".")[0] or None
        return self._described(self.graph.create_node("call_function", target, tuple(args), kwargs, name), value)

    def item(self, value: Any, index: int) -> Value:
        """One of several results."""
        if not isinstance(value, fx.Node):
            return value[index]
        node = self.graph.call_function(operator.getitem, (value, index))
        return self._described(node, value.meta["val"][index])

    def place(self, tensor: Tensor) -> fx.Node:
        """The constant as a node, stored once."""
        if id(tensor) not in self._placed:
            name = self._free_name(self._names[id(tensor)][1] if id(tensor) in self._names else "constant")
            stored = tensor.detach().contiguous()
            self.root.register_buffer(name, stored)
            node = self.graph.get_attr(name)
            self._placed[id(tensor)] = tensor, self._described(node, self._like(stored))
        return self._placed[id(tensor)][1]

    def transposed(self, weight: Tensor) -> Tensor:
        """A constant [I,O] as [O,I], once for all its readers."""
        if id(weight) not in self._transposed:
            turned = self.constants.transposed(weight)
            self._transposed[id(weight)] = weight, turned
            self.name(turned, self._names.get(id(weight), (weight, "weight"))[1])
        return self._transposed[id(weight)][1]

    def _fold(self, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Computed for real, once fake tensors have shown that there is room and time for it."""
        fakes, named = tree_map_only(Tensor, self._like, (tuple(args), kwargs))
        if reason := self.budget.spend(target, fakes, named, self._run(target, fakes, named)):
            raise UnsupportedModel("A value computed from constants is too large.", where=self.source, why=reason)
        with torch.no_grad():
            return target(*args, **kwargs)

    def _run(self, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        with self._mode, torch.no_grad():
            return target(*args, **kwargs)

    def _like(self, tensor: Tensor) -> Tensor:
        with self._mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)

    def _described(self, node: fx.Node, value: Any) -> fx.Node:
        node.meta["val"] = value
        node.meta["custom"] = {"sparsec": {"source": self.source}}
        return node

    def _free_name(self, wish: str) -> str:
        name = base = _identifier(wish, "constant")
        number = 0
        while hasattr(self.root, name):
            number += 1
            name = f"{base}_{number}"
        return name


class Step:
    """The translation of one ONNX node: its inputs and attributes, and the calls it makes."""

    def __init__(self, build: Builder, node: OnnxNode, inputs: Sequence[Value | None]) -> None:
        self.build, self.node, self.inputs = build, node, tuple(inputs)

    # Inputs

    def __getitem__(self, position: int) -> Value:
        value = self.maybe(position)
        if value is None:
            raise self.refusal(f"input {position} is missing")
        return value

    def maybe(self, position: int) -> Value | None:
        """An input that may be left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def known(self, position: int) -> Tensor:
        """An input that must be known when compiling. UnsupportedModel otherwise."""
        value = self[position]
        if not isinstance(value, Tensor):
            why = f"input {position} depends on inputs of the model and must be known when compiling"
            hint = f"Give example inputs with values, of at most {MOST_ELEMENTS} elements each: what is compiled serves calls with these."
            raise DependsOnInputs(self._refused(why), sources(value), where=self.node.place, hint=hint)
        return value

    def integers(self, position: int) -> list[int] | None:
        """A known list of integers, or None where the input is left out."""
        if self.maybe(position) is None:
            return None
        tensor = self.known(position)
        if tensor.is_floating_point() or tensor.dim() > 1 or tensor.numel() > 1 << 16:
            raise self.refusal(f"input {position} is no list of integers")
        return [int(value) for value in tensor.reshape(-1).tolist()]

    def number(self, position: int) -> Any:
        """A known scalar, or None where the input is left out."""
        if self.maybe(position) is None:
            return None
        tensor = self.known(position)
        if tensor.numel() != 1:
            raise self.refusal(f"input {position} is no scalar")
        return tensor.item()

    # Attributes

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        """An integer attribute."""
        return self._attribute(name, int, default)

    def real(self, name: str, default: Any = _REQUIRED) -> float:
        """A float attribute."""
        return self._attribute(name, float, default)

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """A string attribute."""
        return self._attribute(name, str, default)

    def listed(self, name: str, default: Any = _REQUIRED) -> list[int]:
        """A list of integers."""
        return self._attribute(name, list, default)

    def _attribute(self, name: str, kind: type, default: Any) -> Any:
        value = self.node.attributes.get(name, default)
        if value is _REQUIRED:
            raise self.refusal(f"the attribute {name} is missing")
        if value is not default and not isinstance(value, kind):
            raise self.refusal(f"the attribute {name} is of another type")
        return value

    # Values

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of an ATen operator."""
        return self.build.call(target, args, kwargs)

    def item(self, value: Any, index: int) -> Value:
        """One of several results."""
        return self.build.item(value, index)

    def axis(self, value: Value, axis: int, extra: int = 0) -> int:
        """An axis as a number from 0. UnsupportedModel if the value (with `extra` more axes) has none such."""
        rank = len(shape(value)) + extra
        if not -rank <= axis < rank:
            raise self.refusal(f"axis {axis} is outside a value of {rank} dimensions")
        return axis % rank

    def refusal(self, reason: str) -> UnsupportedModel:
        """The error to raise for this node."""
        return UnsupportedModel(self._refused(reason), where=self.node.place)

    def _refused(self, reason: str) -> str:
        return f"{self.node.kind} cannot be translated: {reason}."


def shape(value: Value) -> tuple[int, ...]:
    """The shape of a value."""
    return tuple(fake(value).shape)


def dtype(value: Value) -> torch.dtype:
    """The dtype of a value."""
    return fake(value).dtype


def fake(value: Value) -> Tensor:
    """The tensor itself, or the fake one noted at the node."""
    return value if isinstance(value, Tensor) else value.meta["val"]


def _identifier(name: str, fallback: str) -> str:
    """A Python identifier near to an ONNX name."""
    cleaned = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_")
    return f"{fallback}_{cleaned}" if not cleaned or cleaned[0].isdigit() else cleaned
