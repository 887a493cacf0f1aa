"""What surrounds torch.export: its noise kept out, its errors in words of what the user can do."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode

from sparsec.errors import InvalidInput, SparsecError, UnsupportedModel

#: Errors of tracing, as opposed to those that the model's own code raises.
OF_TRACING = (TorchDynamoException, DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)


@contextmanager
def quiet_shapes() -> Iterator[None]:
    """Without torch's log of errors about shapes without data, which are raised too."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def quiet_export(module: nn.Module) -> Iterator[None]:
    """The same, and without warnings of weights that torch.nn.utils.prune computes in a call."""
    masked = [re.escape(name.removesuffix("_mask")) for name, _ in module.named_buffers() if name.endswith("_mask")]
    with quiet_shapes(), warnings.catch_warnings():
        if masked:
            # One tensor, or several in a list.
            names = "|".join(masked)
            message = rf"The tensor attributes? (self\.)?({names})((, |,? and )(self\.)?({names}))* (was|were) assigned during export"
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        yield


def uncaptured(where: str, error: Exception) -> SparsecError:
    """What to tell a user whose model torch.export does not capture."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    if isinstance(error.__cause__, ConstraintViolationError) or "Constraints violated" in str(error):
        return InvalidInput(
            "An axis that dynamic_shapes makes free is fixed by the model or by the example.",
            where=where,
            why=" ".join(lines[1:2]) or first_line(error),
            hint="Give an example with 2 or more on each free axis, or leave dynamic_shapes out: the batch is free without.",
        )
    if isinstance(error, OF_TRACING):
        hint = "Remove control flow that depends on tensor values, or use torch.compile, which splits the model there."
    else:
        hint = "Call the model on the example inputs: it has to run, so their number, shapes and dtypes have to be those that it takes."
    return UnsupportedModel("torch.export cannot capture this model.", where=where, why=first_line(error), hint=hint)


def first_line(error: Exception) -> str:
    """An exception's kind and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
