"""Kernel sizes, strides, dilations and pads of ONNX convolutions and poolings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparsec.doors.from_onnx.build import Step, Value, shape

aten = torch.ops.aten
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Window:
    """Per spatial axis; `before` and `after` are the pads."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        """Whether torch can say the pads itself."""
        return self.before == self.after and min(self.before, default=0) >= 0


def window_of(step: Step, kernel: Sequence[int]) -> Window:
    """The window that a node's attributes say over its first input [N,C,...]."""
    sizes = shape(step[0])[2:]
    rank = len(kernel)
    if len(sizes) != rank or not 1 <= rank <= 3:
        raise step.refusal(f"a window {list(kernel)} does not fit an input {list(shape(step[0]))}")
    stride = _positive(step, "strides", rank)
    dilation = _positive(step, "dilations", rank)
    before, after = _pads(step, sizes, kernel, stride, dilation)
    return Window(tuple(kernel), stride, dilation, before, after)


def padded(step: Step, value: Value, window: Window, fill: float = 0.0) -> Value:
    """The value with the window's pads as elements."""
    pairs = zip(reversed(window.before), reversed(window.after), strict=True)
    return step.call(aten.constant_pad_nd.default, value, [pad for pair in pairs for pad in pair], fill)


def _positive(step: Step, name: str, rank: int) -> tuple[int, ...]:
    values = tuple(step.listed(name, [1] * rank))
    if len(values) != rank or not all(isinstance(value, int) and 1 <= value <= _LARGEST for value in values):
        raise step.refusal(f"the attribute {name} is {list(values)}")
    return values


def _pads(step: Step, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Any:
    mode, rank = step.text("auto_pad", "NOTSET"), len(kernel)
    if mode == "NOTSET":
        pads = step.listed("pads", [0] * (2 * rank))
        if len(pads) != 2 * rank or not all(isinstance(pad, int) and abs(pad) <= _LARGEST for pad in pads):
            raise step.refusal(f"the attribute pads is {pads}")
        return tuple(pads[:rank]), tuple(pads[rank:])
    if mode == "VALID":
        return (0,) * rank, (0,) * rank
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise step.refusal(f"the attribute auto_pad is {mode!r}")
    # As many outputs as ceil(size / stride); the odd pad goes where the mode says.
    totals = [
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0) for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
    ]
    less, more = tuple(total // 2 for total in totals), tuple(-(-total // 2) for total in totals)
    return (less, more) if mode == "SAME_UPPER" else (more, less)
