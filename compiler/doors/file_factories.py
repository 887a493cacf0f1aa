"""Model files as factories, for what takes one by name: ``sparsec.doors.file_factories:1:model.pt2`` makes a file's model for batch 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, fx

from sparsec.doors.factories import checked_path
from sparsec.doors.open import open_model, with_shapes
from sparsec.errors import InvalidInput


def name_of(path: Path, batch: int) -> str:
    """The factory's name."""
    return f"{__name__}:{batch}:{path.absolute()}"


def opened(path: Path, batch: int) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """The graph of a file at one batch size, and its inputs. InvalidInput where the file has another batch size fixed."""
    model, examples, kwargs = with_shapes(path, (), batch)
    captured = open_model(model, examples, kwargs)
    tensors = captured.flatten((), examples) if isinstance(examples, dict) else captured.flatten(examples, kwargs)
    if captured.symbols:
        captured = captured.at(captured.sizes_of(tensors))
    pairs = zip(captured.inputs, tensors, strict=True)
    fixed = [spec for spec, x in pairs if spec.shape != tuple(x.shape) or (x.dim() and len(x) != batch)]
    if fixed:
        why = f"Input {fixed[0].name!r} is {list(fixed[0].shape)}."
        raise InvalidInput(f"The model does not run with batch {batch}.", where=str(path), why=why, hint="Give --batch as in the file.")
    return captured.graph_module, tuple(tensors)


def __getattr__(name: str) -> Callable[[], tuple[fx.GraphModule, tuple[Tensor, ...]]]:
    batch, colon, path = name.partition(":")
    if not (colon and batch.isdigit()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lambda: opened(checked_path(path), int(batch))
