"""The verdict on one module through one door, with PyTorch's own tracing to tell its failures from ours."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._export.utils import _collect_all_valid_cia_ops

import sparsec
from sparsec.doors.from_torch import strides
from sparsec.doors.torch_compile import backend
from sparsec.errors import InvalidInput, UnsupportedModel
from tests.opdb.outcomes import Outcome, difference, line, outcome

DOORS = ("torch.compile", "sparsec.compile")


@contextmanager
def plain_inductor() -> Iterator[None]:
    """What Inductor would compile runs operator by operator: its C++ takes seconds a sample, and is not what is tested.

    Samples are called from torch.testing, which stands for the user.
    """

    def run(graph_module: Any, example_inputs: Sequence[Any], **options: Any) -> Any:
        return torch.compiler.disable(graph_module.forward)

    os.environ["SPARSEC_STRICT"] = "1"
    for name in ("sparsec", "torch"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with (
        mock.patch("torch._inductor.compile_fx.compile_fx", run),
        mock.patch("torch.export.exported_program._collect_all_valid_cia_ops", _composites),
        mock.patch("sparsec.doors.from_torch.strides.ON_BEHALF", (*strides.ON_BEHALF, os.path.join(strides.TORCH_FOLDER, "testing", ""))),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@cache
def _composites() -> set[Any]:
    """PyTorch's list of composite operators, which it makes again for each export."""
    return _collect_all_valid_cia_ops()


def judge(module: nn.Module, inputs: Sequence[Tensor], door: str, values: bool) -> tuple[str, str]:
    """(verdict, detail): equal, excepted (the same exception), torch, refused, memory, wrong or raised.

    values: whether results can be compared by value. torch: what PyTorch's own tracing of the module does too; refused: a clear
    refusal of ``sparsec.compile``, whose detail is the reason. Through torch.compile nothing is refused: what is not compiled runs dense.
    """
    eager = outcome(module, inputs)
    if values and difference(outcome(module, inputs), eager):
        values = False
    ours = through(module, inputs, door)
    found = difference(ours, eager, values)
    if not found or _same_cause(ours.error, eager.error):
        said = "; ".join(sorted(message for _, message in backend._said))
        return ("excepted", line(eager.error)) if eager.error is not None else ("equal", said)
    if reason := _torch_too(module, inputs, door, eager, ours, values):
        return "torch", reason
    if door == "sparsec.compile" and isinstance(ours.error, UnsupportedModel | InvalidInput):
        return "refused", line(ours.error)
    return found.partition(":")[0], found.partition(": ")[2]


def _same_cause(ours: BaseException | None, eager: BaseException | None) -> bool:
    """Whether the model was refused for what eager raises."""
    return eager is not None and isinstance(ours, UnsupportedModel) and type(ours.__cause__) is type(eager)


def through(module: nn.Module, inputs: Sequence[Tensor], door: str) -> Outcome:
    """What the module does behind a door, whatever was compiled before."""
    torch._dynamo.reset()
    backend._said.clear()
    with plain_inductor():
        if door == "torch.compile":
            return outcome(torch.compile(module, backend="sparse"), inputs)
        return outcome(lambda *given: sparsec.compile(module, given)(*given), inputs)


def _torch_too(module: nn.Module, inputs: Sequence[Tensor], door: str, eager: Outcome, ours: Outcome, values: bool) -> str:
    for name, call in _without_us(module, door):
        torch._dynamo.reset()
        theirs = outcome(call, inputs)
        found = difference(theirs, eager, values)
        if found and (theirs.error is None) == (ours.error is None):
            return f"{name}: {found}"
    return ""


def _without_us(module: nn.Module, door: str) -> Iterator[tuple[str, Any]]:
    if door == "torch.compile":
        for name in ("eager", "aot_eager"):
            yield name, torch.compile(module, backend=name)
    else:
        yield "torch.export", lambda *given: _exported(module, given)(*given)


def _exported(module: nn.Module, given: Sequence[Tensor]) -> Any:
    program = torch.export.export(module, tuple(given), strict=False)
    return program.run_decompositions({}).module()
