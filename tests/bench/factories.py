"""Small factories and loaders that the workers of these tests import."""

import os
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from sparsec.bench.program import Program


def tiny() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Two linear layers with weights drawn from the global generator."""
    return nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 4)), (torch.randn(1, 8),)


def tiny_90() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The same, under a name made like those of the zoo."""
    return tiny()


class Masked(nn.Module):
    """The mean of the embeddings of those ids whose mask is not zero, and their number."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        valid = mask.to(torch.float32)
        number = valid.sum(1, keepdim=True)
        return (self.words(ids) * valid[..., None]).sum(1) / number, number


def masked() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A model with two integer inputs and two outputs, none of which may be taken for the other."""
    return Masked(), (torch.tensor([[3, 49, 7, 20, 31]]), torch.tensor([[1, 1, 0, 1, 0]]))


class Chatty(nn.Module):
    """Prints on every call, as engines do."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        print("noise on standard output", flush=True)
        os.system("echo noise from a child")
        return {"double": 2 * x, "sum": x.sum()}


def chatty() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A model that writes to the stream the protocol would use."""
    return Chatty(), (torch.ones(2, 3),)


def broken() -> nn.Module:
    """Raises while the model is made."""
    raise ValueError("the weights are on holiday")


def off_by_a_tenth(program: Program) -> Callable[[], torch.Tensor]:
    """A rival whose answer is 10% too large."""
    return lambda: program.model(*program.inputs) * 1.1


def missing(program: Program) -> Callable[[], torch.Tensor]:
    """A rival whose engine is not installed."""
    raise ModuleNotFoundError("No module named 'imaginary_engine'")


def crashing(program: Program) -> Callable[[], torch.Tensor]:
    """A rival that takes its process down."""
    os.abort()


def crashing_later(program: Program) -> Callable[[], torch.Tensor]:
    """A rival that survives loading and warm-up, then dies in its first round."""
    calls = iter(range(6))
    return lambda: program.model(*program.inputs) if next(calls, None) is not None else os.abort()


def hanging(program: Program) -> Callable[[], torch.Tensor]:
    """A rival that never finishes loading."""
    time.sleep(60)
    return lambda: program.inputs[0]


def resources() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Writes to standard error what this process may use."""
    cores = sorted(os.sched_getaffinity(0))
    omp, policy = os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]
    print(f"threads={torch.get_num_threads()},cores={cores},omp={omp},policy={policy}".replace(" ", ""), file=sys.stderr)
    return tiny()
