"""ONNX losses of a classification, as exports of training graphs have them."""

from collections.abc import Callable
from typing import Any

import torch

from sparsec.doors.from_onnx.build import Step, Value, dtype, shape

aten = torch.ops.aten
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
#: A class that no target is.
_NONE = -100


def _likelihood(step: Step, logarithms: Value) -> Value:
    """-weight[target] * logarithms[target], of [N,C,...] and [N,...], over all or the mean by the weights."""
    target, reduction = step[1], step.text("reduction", "mean")
    if reduction not in _REDUCTIONS or (shape(target)[:1], shape(target)[1:]) != (shape(logarithms)[:1], shape(logarithms)[2:]):
        raise step.refusal(f"{reduction} of {list(shape(logarithms))} with targets {list(shape(target))}")
    if dtype(target) != torch.int64:
        target = step.call(aten._to_copy.default, target, dtype=torch.int64)
    ignored = step.integer("ignore_index", _NONE)
    return step.call(aten.nll_loss_nd.default, logarithms, target, step.maybe(2), _REDUCTIONS[reduction], ignored)


def _negative_log_likelihood(step: Step) -> Value:
    return _likelihood(step, step[0])


def _cross_entropy(step: Step) -> tuple[Value, Value]:
    logarithms = step.call(aten.log_softmax.int, step[0], 1)
    return _likelihood(step, logarithms), logarithms


TABLE: dict[str, Callable[[Step], Any]] = {
    "NegativeLogLikelihoodLoss": _negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": _cross_entropy,
}
