"""Inputs whose values an ONNX graph is made for: axes, shapes, flags and other parameters that must be known when compiling.

ReduceSum(x, axes)   x, axes inputs, axes = [1] in the example   →   ReduceSum(x, [1]);  a call with other axes is refused
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from sparsec.doors.from_onnx.dimensions import examples_by_name
from sparsec.doors.from_onnx.graph import Network
from sparsec.errors import UnsupportedModel

#: Inputs with more elements are data, no parameters.
MOST_ELEMENTS = 64


class DependsOnInputs(UnsupportedModel):
    """A value has to be known that follows from these inputs of the model, by name."""

    def __init__(self, message: str, inputs: frozenset[str], **parts: Any) -> None:
        super().__init__(message, **parts)
        self.inputs = inputs


class RandomExamples(dict[str, Tensor]):
    """Example inputs of which shapes and dtypes are meant, and values only of those that it was made with."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.values_of = frozenset(values)


def sources(value: fx.Node) -> frozenset[str]:
    """The names of the model's inputs that a value is computed from."""
    seen, left = {value}, [value]
    while left:
        new = set(left.pop().all_input_nodes) - seen
        seen |= new
        left += new
    return frozenset(node.meta["custom"]["sparsec"]["source"] for node in seen if node.op == "placeholder")


def parameters(network: Network, example_inputs: Any) -> Mapping[str, Tensor]:
    """The values in the example of all inputs that are small enough to be parameters; none where the example has no values."""
    if example_inputs is None:
        return {}
    given = examples_by_name(network.inputs, example_inputs)
    if isinstance(example_inputs, RandomExamples):
        given = {name: given[name] for name in example_inputs.values_of}
    return {name: found for name, value in given.items() if (found := _parameter(value)) is not None}


def _parameter(value: Tensor | np.ndarray) -> Tensor | None:
    """A copy of a small tensor or array."""
    if not isinstance(value, Tensor):
        return torch.from_numpy(np.array(value)) if value.size <= MOST_ELEMENTS else None
    small = value.numel() <= MOST_ELEMENTS and value.device.type == "cpu" and value.layout == torch.strided
    return value.detach().clone() if small else None
