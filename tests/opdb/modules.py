"""Modules that apply an operator to its samples: alone, in place, on strided inputs, between pruned layers of ours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.opdb.outcomes import outcome
from tests.opdb.samples import operators, strided, twins

WIDTH = 32


@dataclass(frozen=True)
class Place:
    """Stands for the tensor at this position of the inputs."""

    position: int


def fill(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """The tree with tensors in their places."""
    if isinstance(tree, Place):
        return tensors[tree.position]
    if type(tree) in (list, tuple):
        return type(tree)([fill(part, tensors) for part in tree])
    if type(tree) is dict:
        return {name: fill(part, tensors) for name, part in tree.items()}
    return tree


class Alone(nn.Module):
    """[operator(*sample) for each sample], all tensors being inputs."""

    def __init__(self, call: Callable[..., Any], samples: Sequence[Any]) -> None:
        super().__init__()
        self.call, self.given = call, []
        trees = [(s.input, tuple(s.args), dict(s.kwargs)) for s in samples]
        leaves, spec = pytree.tree_flatten(twins(trees))
        for position, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                leaves[position] = Place(len(self.given))
                self.given.append(leaf)
        self.trees = pytree.tree_unflatten(leaves, spec)

    def forward(self, *tensors: Tensor) -> list[Any]:
        return [self.call(first, *rest, **named) for first, rest, named in fill(self.trees, tensors)]


class Strided(Alone):
    """As Alone, on inputs with strides of their own."""

    def __init__(self, call: Callable[..., Any], samples: Sequence[Any]) -> None:
        super().__init__(call, samples)
        self.given = [strided(tensor) for tensor in self.given]


class Bordered(Alone):
    """layer → operator → layer for each sample; what else the operator takes are weights.

    The layer before returns the value as it is, so that the operator sees what the sample says.
    Returns the operator's operand, its result and the layer after.
    """

    def __init__(self, call: Callable[..., Any], samples: Sequence[Any]) -> None:
        super().__init__(call, samples)
        firsts = [tree[0] for tree in self.trees]
        inputs = {leaf.position for leaf in pytree.tree_leaves(firsts) if isinstance(leaf, Place)}
        order = sorted(inputs)
        for position, tensor in enumerate(self.given):
            if position not in inputs:
                self.register_buffer(f"constant{position}", tensor)
        self.order = [order.index(position) if position in inputs else None for position in range(len(self.given))]
        self.given = [self.given[position] for position in order]
        sizes = {width_of(tensor) for tensor in self.given}
        self.before = nn.ModuleDict({str(size): exact(size) for size in sizes})
        self.after = nn.ModuleDict({str(size): pruned(size) for size in range(4, WIDTH + 1)})
        # A pruned weight takes no part in 0·inf: nothing is claimed of layers at infinite or NaN values.
        self.entered, self.left = finite(self.given), False
        result = outcome(self, self.given)
        self.left = finite([leaf for _, leaf in result.leaves if isinstance(leaf, Tensor)])

    def forward(self, *tensors: Tensor) -> list[Any]:
        shown = [getattr(self, f"constant{p}") if at is None else self.enter(tensors[at]) for p, at in enumerate(self.order)]
        results = []
        for first, rest, named in fill(self.trees, shown):
            result = self.call(first, *rest, **named)
            parts = result if isinstance(result, list | tuple) else [result]
            results.append((first, result, [self.leave(part) for part in parts if isinstance(part, Tensor)]))
        return results

    def enter(self, tensor: Tensor) -> Tensor:
        if not self.entered or tensor.layout != torch.strided or tensor.dtype != torch.float32:
            return tensor
        size = width_of(tensor)
        layer = self.before[str(size)]
        if tensor.dim() and tensor.shape[-1] == size:
            return layer(tensor)
        return layer(padded(tensor)).flatten()[: tensor.numel()].view(tensor.shape)

    def leave(self, tensor: Tensor) -> Tensor:
        if not self.left or tensor.layout != torch.strided or tensor.is_complex():
            return tensor
        tensor = tensor.to(torch.float32)
        size = width_of(tensor)
        return self.after[str(size)](tensor if tensor.dim() and tensor.shape[-1] == size else padded(tensor))


def finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all values are."""
    return all(bool(t.isfinite().all()) for t in tensors if t.layout == torch.strided)


def width_of(tensor: Tensor) -> int:
    """Features of the layer at this value: its last axis where that is neither short nor long."""
    return tensor.shape[-1] if tensor.dim() and 4 <= tensor.shape[-1] <= WIDTH and tensor.numel() else WIDTH


def padded(tensor: Tensor) -> Tensor:
    """All values in rows of WIDTH, the last one filled with zeros."""
    rows = max(1, math.ceil(tensor.numel() / WIDTH))
    return F.pad(tensor.reshape(-1), (0, rows * WIDTH - tensor.numel())).view(rows, WIDTH)


def exact(size: int) -> nn.Linear:
    """The identity as a pruned layer."""
    layer = nn.Linear(size, size, bias=False)
    layer.weight.data.copy_(torch.eye(size))
    return layer


def pruned(size: int) -> nn.Linear:
    """One weight per row, and a bias."""
    layer = nn.Linear(size, 8)
    layer.weight.data.mul_(F.one_hot(torch.arange(8) * 5 % size, size))
    return layer


FORMS = {"alone": Alone, "strided": Strided, "in place": Alone, "bordered": Bordered, "bordered in place": Bordered}


def make(name: str, samples: Sequence[Any], form: str) -> Alone | None:
    """The module of a form; None where the operator has no such variant."""
    op = operators()[name]
    call = op.inplace_variant if form.endswith("in place") else op.method_variant or op.op if form == "bordered" else op.op
    if call is None:
        return None
    torch.manual_seed(0)
    return FORMS[form](call, samples).eval()
