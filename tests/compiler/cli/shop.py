"""What the tests of the command run it on: factories, a compiler that only remembers, a model in a file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from typer.testing import Result

from sparsec.run import artifact
from sparsec.run.explanation import Explanation, Layer
from tests.compiler.tiny_program import ANY_MACHINE, chain, library

EXPLANATION = Explanation((Layer("layer0", "conv2d", (8, 8, 1, 1), 0.1, "unstructured", "affine", "spmm"),), notes=("a note",))
#: As many threads no compilation has.
BEYOND_US = 77

FACTORIES = """
import torch
from torch import nn

def both():
    return nn.Linear(24, 24), (torch.ones(1, 4, 24),)

def bare():
    return nn.Bilinear(8, 4, 2)

class Difference(nn.Module):
    def forward(self, left, right):
        return left - right

def alone():
    return nn.Linear(24, 24), torch.ones(2, 24)

def listed():
    return [nn.Linear(24, 24), torch.ones(2, 24)]

def in_lists():
    return nn.Linear(24, 24), [torch.ones(2, 24)]

def named():
    return Difference(), {"right": torch.ones(2, 24), "left": torch.zeros(2, 24)}

def mixed():
    return Difference(), (torch.ones(2, 24),), {"right": torch.ones(2, 24)}

def arrays():
    return Difference(), (torch.ones(2, 24).numpy(), torch.ones(2, 24).numpy())

def of_a_number():
    return nn.Linear(24, 24), 3

def of_nothing():
    return nn.Linear(24, 24), ()

def of_three():
    return nn.Linear(24, 24), torch.ones(2, 24), torch.ones(2, 24)

def fails():
    raise RuntimeError("no weights today")

def number():
    return 3

constant = 3
"""


@dataclasses.dataclass
class Compiled:
    """Stands in for a compiled model; remembers how it was asked for."""

    model: Any
    inputs: Any
    options: dict[str, Any]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def explain(self) -> Explanation:
        return EXPLANATION

    def save(self, path: Path) -> Path:
        return artifact.save(path, chain(), library(), EXPLANATION, {"output": "leaf"}, ANY_MACHINE)


Invoke = Callable[..., Result]


class Two(torch.nn.Module):
    """Two inputs with a common free batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(left)) + right


def save_program(path: Path) -> Path:
    """`Two` as a file, exported for a batch of 3."""
    rows = torch.export.Dim("rows")
    program = torch.export.export(Two().eval(), (torch.ones(3, 8), torch.ones(3, 4)), dynamic_shapes=({0: rows}, {0: rows}))
    torch.export.save(program, path)
    return path
