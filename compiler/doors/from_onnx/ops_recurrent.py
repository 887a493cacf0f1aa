"""ONNX LSTM, GRU and RNN as torch's: gates in another order, directions along an axis of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsec.doors.from_onnx.build import Step, Value, shape

aten = torch.ops.aten
#: Order of torch's gates among those of ONNX: input, forget, cell, output of i, o, f, c; reset, update, new of z, r, h.
_LSTM, _GRU, _RNN = (0, 2, 3, 1), (1, 0, 2), (0,)


def _lstm(step: Step) -> tuple[Value, ...]:
    _plain(step, ["Sigmoid", "Tanh", "Tanh"])
    if step.integer("input_forget", 0) or step.maybe(7) is not None:
        raise step.refusal("gates that are coupled or look at the cell")
    x, both, params = _parameters(step, _LSTM)
    state = [_state(step, position, both) for position in (5, 6)]
    found = step.call(aten.lstm.input, x, state, params, step.maybe(3) is not None, 1, 0.0, False, both, False)
    return _sequence(step, step.item(found, 0), both), step.item(found, 1), step.item(found, 2)


def _gru(step: Step) -> tuple[Value, ...]:
    _plain(step, ["Sigmoid", "Tanh"])
    if not step.integer("linear_before_reset", 0):
        raise step.refusal("linear_before_reset is 0, which torch has not")
    x, both, params = _parameters(step, _GRU)
    found = step.call(aten.gru.input, x, _state(step, 5, both), params, step.maybe(3) is not None, 1, 0.0, False, both, False)
    return _sequence(step, step.item(found, 0), both), step.item(found, 1)


def _rnn(step: Step) -> tuple[Value, ...]:
    kinds = set(step.listed("activations", ["Tanh"]))
    if kinds not in ({"Tanh"}, {"Relu"}):
        raise step.refusal(f"the activations {sorted(kinds)}")
    _plain(step, [str(kind) for kind in kinds])
    x, both, params = _parameters(step, _RNN)
    target = aten.rnn_tanh.input if kinds == {"Tanh"} else aten.rnn_relu.input
    found = step.call(target, x, _state(step, 5, both), params, step.maybe(3) is not None, 1, 0.0, False, both, False)
    return _sequence(step, step.item(found, 0), both), step.item(found, 1)


def _plain(step: Step, activations: Sequence[str]) -> None:
    """Refuse what torch's have not: other activations, clipped sums, sequences of unequal lengths, batches first."""
    given = step.listed("activations", list(activations))
    if given not in (list(activations), list(activations) * 2):
        raise step.refusal(f"the activations {given}")
    if step.real("clip", 0.0):
        raise step.refusal("clip is set")
    if step.integer("layout", 0):
        raise step.refusal("layout is 1")
    lengths = step.maybe(4)
    if lengths is not None and not (isinstance(lengths, Tensor) and bool((lengths == shape(step[0])[0]).all())):
        raise step.refusal("sequences of unequal lengths")


def _parameters(step: Step, order: Sequence[int]) -> tuple[Value, bool, list[Value]]:
    """x [T,B,I], reversed where the direction is, whether there are two directions, and the weights and biases of each."""
    direction, weight, recurrent, bias = step.text("direction", "forward"), step[1], step[2], step.maybe(3)
    count, hidden = shape(weight)[0], shape(recurrent)[2]
    if direction not in ("forward", "reverse", "bidirectional") or count != 1 + (direction == "bidirectional"):
        raise step.refusal(f"the direction {direction!r} of {count}")
    if step.integer("hidden_size", hidden) != hidden or shape(weight)[1] != len(order) * hidden:
        raise step.refusal(f"a hidden size {step.integer('hidden_size', hidden)} with weights {list(shape(weight))}")
    params: list[Value] = []
    for number in range(count):
        params += [_gates(step, step.call(aten.select.int, value, 0, number), order, hidden) for value in (weight, recurrent)]
        if bias is not None:
            both = step.call(aten.reshape.default, step.call(aten.select.int, bias, 0, number), [2, -1])
            params += [_gates(step, step.call(aten.select.int, both, 0, half), order, hidden) for half in (0, 1)]
    x = step.call(aten.flip.default, step[0], [0]) if direction == "reverse" else step[0]
    return x, count == 2, params


def _gates(step: Step, value: Value, order: Sequence[int], hidden: int) -> Value:
    """Rows of a weight [G*H, ..] or a bias [G*H] in torch's order of gates."""
    if len(order) == 1:
        return value
    rows = torch.cat([torch.arange(gate * hidden, (gate + 1) * hidden) for gate in order])
    return step.call(aten.index_select.default, value, 0, rows)


def _state(step: Step, position: int, both: bool) -> Value:
    """The state before the first step, zeros where it is left out."""
    given = step.maybe(position)
    return torch.zeros(1 + both, shape(step[0])[1], shape(step[2])[2]) if given is None else given


def _sequence(step: Step, found: Value, both: bool) -> Value:
    """[T,B,D*H] as [T,D,B,H], in the order of the input."""
    if step.text("direction", "forward") == "reverse":
        found = step.call(aten.flip.default, found, [0])
    length, batch, width = shape(found)
    split = step.call(aten.reshape.default, found, [length, batch, 1 + both, width // (1 + both)])
    return step.call(aten.permute.default, split, [0, 2, 1, 3])


TABLE: dict[str, Callable[[Step], Any]] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
