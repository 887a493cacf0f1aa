"""What every rival of one comparison is given: the same model, the same inputs, the same expected outputs."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from sparsec.doors.factories import make_model
from sparsec.errors import InvalidInput
from sparsec.settings import Tune


class Positional(torch.nn.Module):
    """A model that takes inputs by name, taking them in order: engines and exporters know no names."""

    def __init__(self, model: torch.nn.Module, count: int, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.count, self.names = model, count, tuple(names)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.model(*inputs[: self.count], **dict(zip(self.names, inputs[self.count :], strict=True)))


@dataclass(frozen=True)
class Program:
    """One model to run.

    `inputs` are float32 (or integer) CPU tensors whose leading dimension is the batch; `expected` are the flattened
    outputs of the eager model in float32, computed before any rival touched the model. `folder` is shared by all
    rivals of a comparison; `tune` is handed to our own compiler.
    """

    model: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    expected: tuple[np.ndarray, ...]
    folder: Path
    threads: int
    tune: Tune


def load_attribute(path: str) -> Callable[..., Any]:
    """The object named by `module:name`; ImportError or AttributeError when there is none."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def load_program(factory: str, batch: int, folder: Path, threads: int, tune: Tune, shapes: Sequence[str] = ()) -> Program:
    """Call `factory`, bring its example inputs (normal numbers of `shapes` if given) to `batch` rows and run it once in eager mode.

    The random generator is seeded first, so that a factory that draws from it makes the same model in every process. InvalidInput where
    there are no inputs, or where some are no tensors.
    """
    model, args, kwargs = make_model(factory, shapes)
    given = (*args, *kwargs.values())
    if not all(isinstance(value, torch.Tensor | np.ndarray) for value in given):
        raise InvalidInput(f"The factory {factory!r} gives inputs that are no tensors.", hint="Engines are compared on tensors only.")
    inputs = tuple(with_batch(torch.as_tensor(value), batch) for value in given)
    model = Positional(model, len(args), tuple(kwargs)) if kwargs else model
    with torch.no_grad():
        expected = arrays(model.eval()(*inputs))
    return Program(model, inputs, expected, folder, threads, tune)


def with_batch(value: torch.Tensor, batch: int) -> torch.Tensor:
    """`value` with its leading dimension repeated or cut to `batch`; a scalar stays as it is."""
    if value.dim() == 0 or value.shape[0] == batch:
        return value
    rows = torch.arange(batch) % value.shape[0]
    return value[rows].contiguous()


def arrays(outputs: Any) -> tuple[np.ndarray, ...]:
    """Tensors or arrays nested in tuples, lists and dicts, as a flat tuple of float32 arrays."""
    return tuple(_array(leaf) for leaf in tree_leaves(outputs) if leaf is not None)


def _array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().to(torch.float32).numpy()
    return np.asarray(leaf, dtype=np.float32)


def relative_error(got: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> float:
    """The largest over the outputs of max|got - expected| / max|expected|; infinite if shapes differ or NaN appears."""
    if [a.shape for a in got] != [b.shape for b in expected]:
        return float("inf")
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        difference = float(np.max(np.abs(a - b), initial=0.0))
        scale = float(np.max(np.abs(b), initial=0.0))
        if difference == 0.0:
            continue
        worst = max(worst, difference / scale if scale > 0 else float("inf"))
        if not np.isfinite(difference):
            return float("inf")
    return worst
