"""KernelSpec: one kernel to make, as plain data. Schedule: an ordered tuple of named choices that make it fast."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Choice names and values in order, such as (("kernel", "spmm"), ("vectors", 4)). Meaningless without a spec.
Schedule = tuple[tuple[str, str | int], ...]
#: Specs that compute nothing: "alias" keeps the order of elements, "permute" that of the axes ``dims``, "convert" everything.
VIEWS = ("alias", "permute", "convert")


@dataclass(frozen=True)
class KernelSpec:
    """What a kernel computes, per sample (the batch axis is the executor's loop).

    ``inputs``/``output``: shapes without the batch axis; ``weights``: shapes of constant operands in argument order (None: absent);
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

    def __getitem__(self, name: str) -> Any:
        """The value of an attribute. KeyError where the op has none of this name."""
        return dict(self.attributes)[name]

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


def _references() -> dict[str, Callable[..., Any]]:
    import torch
    from torch.nn import functional as F

    from sparsec import ops
    from sparsec.tokens import ops as token_ops
    from sparsec.tokens import pruning_ops

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda spec, *tensors: function(*tensors, **dict(spec.attributes))

    return {
        "conv2d": call(ops.conv2d),
        "linear": call(ops.linear),
        "depthwise_pointwise": call(ops.depthwise_pointwise),
        "activate": call(ops.activate),
        "convert": call(ops.to_layout),
        "add": lambda spec, x, y: torch.add(x, y),
        "mul": lambda spec, x, y: torch.mul(x, y),
        "max_pool2d": call(F.max_pool2d),
        "avg_pool2d": call(F.avg_pool2d),
        "global_avg_pool": lambda spec, x: x.mean((2, 3)).reshape(-1, *spec.output),
        "alias": lambda spec, x: x.reshape(-1, *spec.output),
        "permute": lambda spec, x: x.permute(0, *(dim + 1 for dim in spec["dims"])),
        "attention": call(token_ops.attention),
        "key_bias": call(token_ops.key_bias),
        "map_to_tokens": call(token_ops.map_to_tokens),
        "tokens_to_map": call(token_ops.tokens_to_map),
        "layer_norm": lambda spec, x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias, spec["eps"]),
        "embedding": lambda spec, ids, table: F.embedding(ids, table),
        "add_table": lambda spec, x, table: x + table,
        "prepend": lambda spec, x, prefix: torch.cat([prefix.expand(len(x), -1, -1), x], 1),
        **{function.__name__: call(function) for function in pruning_ops.FUNCTIONS},
        "select_token": lambda spec, x: x[:, spec["index"]],
        "mean_tokens": lambda spec, x: x.mean(1),
    }
