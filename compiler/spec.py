"""KernelSpec: one kernel to make, as plain data. Schedule: an ordered tuple of named choices that make it fast."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Choice names and values in order, such as (("kernel", "spmm"), ("vectors", 4)). Meaningless without a spec.
Schedule = tuple[tuple[str, str | int], ...]
#: Names of the activations and of the constants that an operator reads, in argument order; ("x", "") where it is not here.
_OPERANDS = {
    "conv2d": ("x", "weight bias"),
    "linear": ("x", "weight bias"),
    "depthwise_pointwise": ("x", "dw_weight dw_bias weight bias"),
    "add": ("x y", ""),
    "mul": ("x y", ""),
    "attention": ("query key value key_bias", "pair_bias"),
    "layer_norm": ("x", "weight bias"),
    "embedding": ("ids", "table"),
    "add_table": ("x", "table"),
    "prepend": ("x", "prefix"),
    "token_scores": ("query key key_bias", "pair_bias"),
    "gather_tokens": ("x index", ""),
    "gather_keys": ("x index", ""),
    "merge_tokens": ("x plan sizes", ""),
    "merge_sizes": ("plan sizes", ""),
    "mean_merged": ("x sizes", ""),
}
#: Fields that are not asked for by name: what a kernel family decides on as a whole.
_STRUCTURE = ("op", "inputs", "output", "weights", "residual", "sources", "layout", "attributes", "weight_fact")
#: Specs that compute nothing: "alias" keeps the order of elements, "permute" that of the axes ``dims``, "convert" everything.
VIEWS = ("alias", "permute", "convert")


@dataclass(frozen=True)
class KernelSpec:
    """What a kernel computes, per sample (the batch axis is the executor's loop).

    ``inputs``/``output``: shapes without the batch axis, of the activations in argument order (one that is read twice comes twice);
    ``residual``: the shape of a value that is added before the activation, which is not among ``inputs`` (None: nothing is added);
    ``weights``: shapes of constant operands in argument order (None: absent);
    ``sources``/``layout``: storage layouts of inputs and output; ``attributes``: sorted pairs (stride, groups, activation, ...);
    ``weight_fact``: the proved fact of the weight that kernels may rely on (plain JSON data).
    """

    op: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    weights: tuple[tuple[int, ...] | None, ...] = ()
    sources: tuple[str, ...] = ()
    layout: str = "nchw"
    attributes: tuple[tuple[str, Any], ...] = ()
    weight_fact: str = "{}"
    dtype: str = "float32"
    residual: tuple[int, ...] | None = None

    def __getitem__(self, name: str) -> Any:
        """The value of an attribute. KeyError where the op has none of this name."""
        return dict(self.attributes)[name]

    def asked(self) -> tuple[tuple[str, Any], ...]:
        """What a kernel has to honour, by name: all attributes, the dtype, and whatever fields a spec may get."""
        own = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name not in _STRUCTURE)
        return (*own, *self.attributes)

    def operands(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the operands that are there, by name; one that the operator does not know is named by its place."""
        activations, constants = (names.split() for names in _OPERANDS.get(self.op, ("x", "")))
        read = [*_named(self.inputs, activations, "input"), *_named(self.weights, constants, "weight"), ("residual", self.residual)]
        return {name: shape for name, shape in read if shape is not None}

    def arguments(self, read: Sequence[Any], constants: Sequence[Any], residual: Any = None) -> list[Any]:
        """Operands in the operator's argument order, as ``reference`` takes them: None for those that are not there."""
        room = len(_OPERANDS.get(self.op, ("x", ""))[0].split()) - len(read) if constants else 0
        return [*read, *[None] * room, *constants, *([] if residual is None else [residual])]

    def json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        return json.dumps(self.__dict__, sort_keys=True, separators=(",", ":"))

    @property
    def key(self) -> str:
        """Short stable digest of the canonical JSON."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:20]

    def reference(self, *tensors: Tensor | None) -> Tensor:
        """The result in plain torch for batched tensors in the op's argument order: the oracle for every backend."""
        return _references()[self.op](self, *tensors)


def _named(shapes: Sequence[tuple[int, ...] | None], names: Sequence[str], kind: str) -> list[tuple[str, tuple[int, ...] | None]]:
    return [(names[i] if i < len(names) else f"{kind} {i}", shape) for i, shape in enumerate(shapes)]


def _references() -> dict[str, Callable[..., Any]]:
    """By operator: (spec, *tensors) -> result. TypeError for an attribute that the operator does not have."""
    import torch
    from torch.nn import functional as F

    from sparsec import ops
    from sparsec.tokens import ops as token_ops
    from sparsec.tokens import pruning_ops

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda spec, *tensors: function(*tensors, **dict(spec.attributes))

    def shaped(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda spec, *tensors: function(*tensors, **dict(spec.attributes)).reshape(-1, *spec.output)

    def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    return {
        "conv2d": call(ops.conv2d),
        "linear": call(ops.linear),
        "depthwise_pointwise": call(ops.depthwise_pointwise),
        "activate": call(ops.activate),
        "convert": call(ops.to_layout),
        "add": call(torch.add),
        "mul": call(lambda x, y, *, channels=None: x * y),
        "max_pool2d": call(F.max_pool2d),
        "avg_pool2d": call(F.avg_pool2d),
        "global_avg_pool": shaped(lambda x: x.mean((2, 3))),
        "alias": shaped(lambda x: x),
        "permute": call(lambda x, *, dims: x.permute(0, *(dim + 1 for dim in dims))),
        "attention": call(token_ops.attention),
        "key_bias": call(token_ops.key_bias),
        "map_to_tokens": call(token_ops.map_to_tokens),
        "tokens_to_map": call(token_ops.tokens_to_map),
        "layer_norm": call(layer_norm),
        "embedding": call(lambda ids, table: F.embedding(ids, table)),
        "add_table": call(lambda x, table: x + table),
        "prepend": call(lambda x, prefix: torch.cat([prefix.expand(len(x), -1, -1), x], 1)),
        **{function.__name__: call(function) for function in pruning_ops.FUNCTIONS},
        "select_token": call(lambda x, *, index: x[:, index]),
        "mean_tokens": call(lambda x: x.mean(1)),
    }
