"""ONNX matrix products and the Attention operator."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape
from sparsec.doors.from_onnx.ops_elementwise import combine
from sparsec.doors.from_onnx.ops_shape import reshaped

aten = torch.ops.aten


def _matmul(step: Step) -> Value:
    """A product with a constant matrix on the right is a linear layer with the transposed weight."""
    left, right = step[0], step[1]
    if isinstance(right, Tensor) and right.dim() == 2 and len(shape(left)) >= 2 and not isinstance(left, Tensor):
        if shape(left)[-1] != right.shape[0]:
            raise step.refusal(f"{list(shape(left))} · {list(right.shape)}")
        return step.call(aten.linear.default, left, step.build.transposed(right))
    return step.call(aten.matmul.default, left, right)


def _gemm(step: Step) -> Value:
    alpha, beta = step.real("alpha", 1.0), step.real("beta", 1.0)
    left, weight = step[0], step[1]
    if len(shape(left)) != 2 or len(shape(weight)) != 2:
        raise step.refusal(f"{list(shape(left))} · {list(shape(weight))}")
    left = step.call(aten.t.default, left) if step.integer("transA", 0) else left
    weight = _rows(step, weight, bool(step.integer("transB", 0)))
    if shape(left)[1] != shape(weight)[1]:
        raise step.refusal(f"{list(shape(left))} · {list(shape(weight))} transposed")
    weight = weight if alpha == 1.0 else step.call(aten.mul.Tensor, weight, alpha)
    added = step.maybe(2)
    if added is None:
        return step.call(aten.linear.default, left, weight)
    added = added if beta == 1.0 else step.call(aten.mul.Tensor, added, beta)
    bias = _bias(added, shape(weight)[0])
    if bias is not None:
        return step.call(aten.linear.default, left, weight, bias)
    return combine(step, aten.add.Tensor, step.call(aten.linear.default, left, weight), added)


def _rows(step: Step, weight: Value, is_turned: bool) -> Value:
    """The second factor as [O,I]."""
    if is_turned:
        return weight
    return step.build.transposed(weight) if isinstance(weight, Tensor) else step.call(aten.t.default, weight)


def _bias(added: Value, outputs: int) -> Value | None:
    """What is added as [O], where it is the same for each row."""
    if shape(added) == (outputs,):
        return added
    if isinstance(added, Tensor) and added.shape == (1, outputs):
        return added[0]
    return None


def _einsum(step: Step) -> Value:
    return step.call(aten.einsum.default, step.text("equation"), [step[position] for position in range(len(step.inputs))])


def _attention(step: Step) -> Value:
    """Attention of opset 23 on: [N,H,T,D], or [N,T,H·D] with the numbers of heads as attributes."""
    _check_attention(step)
    packed = len(shape(step[0])) == 3
    query, key, value = (_heads(step, position) for position in range(3))
    mask, is_causal = step.maybe(3), bool(step.integer("is_causal", 0))
    if mask is not None and is_causal:
        mask, is_causal = _causal(step, mask, shape(query)[2], shape(key)[2]), False
    grouped = shape(query)[1] != shape(key)[1]
    keywords = {"enable_gqa": True} if grouped else {}
    scale = step.real("scale", shape(query)[-1] ** -0.5)
    result = step.call(aten.scaled_dot_product_attention.default, query, key, value, mask, 0.0, is_causal, scale=scale, **keywords)
    if not packed:
        return result
    n, heads, tokens, width = shape(result)
    return reshaped(step, step.call(aten.transpose.int, result, 1, 2), [n, tokens, heads * width])


def _check_attention(step: Step) -> None:
    refused = [name for position, name in ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen")) if step.maybe(position) is not None]
    refused += ["softcap"] if step.real("softcap", 0.0) else []
    refused += [name for name in ("left_window_size", "right_window_size") if step.integer(name, -1) >= 0]
    if refused:
        raise step.refusal(f"{', '.join(refused)} is used")


def _heads(step: Step, position: int) -> Value:
    value, sizes = step[position], shape(step[position])
    if len(sizes) == 4:
        return value
    heads = step.integer("kv_num_heads" if position else "q_num_heads", 0)
    if len(sizes) != 3 or heads < 1 or sizes[2] % heads:
        raise step.refusal(f"an input {list(sizes)} in {heads} heads")
    return step.call(aten.transpose.int, reshaped(step, value, [sizes[0], sizes[1], heads, sizes[2] // heads]), 1, 2)


def _causal(step: Step, mask: Value, queries: int, keys: int) -> Value:
    """The mask without the keys after each query."""
    visible = torch.ones(queries, keys, dtype=torch.bool).tril()
    if dtype(mask) == torch.bool:
        return step.call(aten.logical_and.default, mask, visible)
    return step.call(aten.where.self, visible, mask, torch.tensor(float("-inf"), dtype=dtype(mask)))


TABLE: dict[str, Callable[[Step], Any]] = {"Attention": _attention, "Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
