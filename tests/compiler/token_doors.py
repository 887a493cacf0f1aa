"""What tests of the doors with models on tokens share."""

from typing import Any

import torch
from torch import nn

import sparsec
from sparsec.doors.torch_compile import backend as torch_backend

LIMIT = 1e-5


def said() -> set[str]:
    """What the door of torch.compile has warned of in this test."""
    return {message for _, message in torch_backend._said}


def free_axes(most: int = 40) -> dict[int, Any]:
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=1, max=most)}


def door(model: nn.Module, kernels: Any, **options: Any) -> Any:
    """The model behind torch.compile."""
    return torch.compile(model, backend="sparse", options={"threads": 1, "cache_dir": kernels, **options})


def program_of(fast: sparsec.CompiledModel) -> Any:
    assert fast._compiled.fully_compiled
    return fast._compiled.programs[0].program
