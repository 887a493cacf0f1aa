"""Steps of optimizers: fused ones write to parameters and leave no version."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from sparsec.doors.torch_compile.entries import memory_of, outdate


@functools.cache
def follow_steps() -> None:
    """From now on, what was made of a parameter is not used after a step of an optimizer that may have written to it."""
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    outdate(memory_of(p for p in parameters if type(p.data) is Tensor and p.device.type == "cpu" and p.layout == torch.strided))
