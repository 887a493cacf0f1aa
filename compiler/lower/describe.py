"""From a node of a fused graph to the KernelSpec it asks for, or the reason why no kernel can be asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from sparsec.ir.arguments import operands, shape_of
from sparsec.ir.forms import is_value, known_fact
from sparsec.ir.miss import Miss
from sparsec.ir.operators import Operator, operator_named, operator_of
from sparsec.lower.spec import KernelSpec

#: What a spec can be in beside the integers of some operators: backends say which of them they compute.
_COMPUTED = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


def spec_of(node: fx.Node) -> KernelSpec | Miss:
    """The spec of a value-producing node, without layouts. Dimension 0 of every activation must be the batch.

    ValueError where the operator's record makes a spec of an operator that the record does not name.
    """
    if node.op != "call_function" or not is_value(node):
        return Miss("not an operator with one tensor result", node)
    operator = operator_of(node)
    if operator is None:
        return Miss(f"{_name(node)} is an operator without a record", node)
    if operator.describe is None:
        return Miss(f"no kernel family computes {_name(node)}", node)
    if reason := _operand_breach(node, operator):
        return Miss(reason, node)
    found = operator.describe(node, operator)
    if isinstance(found, Miss):
        return found.at(node)
    name, attributes = found
    described = operator_named(name) if name in (operator.name, *operator.becomes) else None
    if described is None:
        raise ValueError(f"the record of {operator.name} does not say that it becomes {name}")
    return _spec(node, operator, described, attributes)


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _operand_breach(node: fx.Node, operator: Operator) -> str:
    if not operands(node):
        return "it reads constants only"
    for value in (node, *operands(node)):
        if not is_value(value):
            return f"{value.name} is not a tensor"
        tensor = value.meta["val"]
        if tensor.dtype not in (*_COMPUTED, *operator.dtypes):
            return f"{value.name} is {tensor.dtype}, kernels compute in float32"
        if tensor.dim() not in (2, 3, 4) or 0 in tensor.shape:
            return f"{value.name} has shape {list(tensor.shape)}; kernels take [N, C], [N, T, F] and [N, C, H, W] without empty axes"
    batches = {v.meta["val"].shape[0] for v in (node, *operands(node))}
    return "" if len(batches) == 1 else f"operands have batch sizes {sorted(batches)}"


def _spec(node: fx.Node, operator: Operator, described: Operator, attributes: Mapping[str, Any]) -> KernelSpec:
    constants = operator.weights(node)
    fact = known_fact(constants[described.decisive]) if constants else None
    spec = KernelSpec(
        op=described.name,
        inputs=tuple(shape_of(a) for a in operator.sources(node)),
        output=shape_of(node),
        weights=tuple(None if w is None else described.stored(i, tuple(w.meta["val"].shape)) for i, w in enumerate(constants)),
        attributes=tuple(sorted(attributes.items())),
        weight_fact="{}" if fact is None else json.dumps(fact.to_json(), sort_keys=True),
        residual=None if (added := operator.residual(node)) is None else shape_of(added),
        dtype=_dtype(node, operator),
    )
    return replace(spec, dtypes=_dtypes(node, operator, spec))


def _dtype(node: fx.Node, operator: Operator) -> str:
    """That of all numbers that are not whole; float32 where they differ, or there are none."""
    values = (node, *operator.sources(node), operator.residual(node))
    found = {value.meta["val"].dtype for value in values if value is not None and value.meta["val"].is_floating_point()}
    return _name_of(found.pop() if len(found) == 1 else torch.float32)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtypes(node: fx.Node, operator: Operator, spec: KernelSpec) -> tuple[tuple[str, str], ...]:
    named = [*zip(spec.operands(), operator.sources(node), strict=False), ("residual", operator.residual(node)), ("output", node)]
    found = ((name, _name_of(value.meta["val"].dtype)) for name, value in named if value is not None)
    return tuple((name, dtype) for name, dtype in found if dtype != spec.dtype)
