"""Backends with candidates that misbehave, regions to tune, and records made by hand."""

import os
import signal
import time
from dataclasses import replace

import torch
from torch import nn

from sparsec.autotune.record import Record
from sparsec.autotune.tune import place_of
from sparsec.backends.cpu.backend import Cpu
from sparsec.backends.plan import Group, Task
from sparsec.backends.x86.backend import X86
from sparsec.doors.from_torch.capture import capture
from sparsec.ir.pipeline import Context, run
from sparsec.lower.regions import Region, extract
from sparsec.lower.spec import KernelSpec, Schedule
from sparsec.passes import PIPELINE
from sparsec.settings import Settings

MISBEHAVIOURS = ("crash", "hang", "wrong", "raise")


class Misbehaving(X86):
    """The x86 backend with a candidate of each kind of misbehaviour between its own."""

    def schedules(self, task: Task) -> list[Schedule]:
        own = super().schedules(task)
        bad: list[Schedule] = [(("kernel", name),) for name in MISBEHAVIOURS]
        return [own[0], *bad, *own[1:2]] if len(own) > 1 else own

    def lower(self, task: Task, schedule: Schedule) -> list[Group]:
        match dict(schedule)["kernel"]:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                time.sleep(600)
            case "raise":
                raise KeyError("no such kernel")
            case "wrong":
                wrong = tuple(None if w is None else w * 1.001 for w in task.weights)
                return super().lower(replace(task, weights=wrong), super().schedules(task)[0])
        return super().lower(task, schedule)


def sparse(layer: nn.Module, density: float = 0.2) -> nn.Module:
    """The layer with weights that are zero at random places."""
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < density)
    return layer


class Variety(nn.Module):
    """A strided stem, a depthwise pair, a residual, two equal layers, a classifier: every kind of task that has a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise, self.pointwise = nn.Conv2d(16, 16, 3, padding=1, groups=16), sparse(nn.Conv2d(16, 24, 1))
        self.same, self.twin = sparse(nn.Conv2d(24, 24, 3, padding=1)), sparse(nn.Conv2d(24, 24, 1))
        self.twin_again = nn.Conv2d(24, 24, 1)
        self.twin_again.load_state_dict(self.twin.state_dict())
        self.head = sparse(nn.Linear(24, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.pointwise(torch.relu(self.depthwise(torch.relu(self.stem(x))))))
        y = torch.relu(y + self.same(y))
        y = torch.relu(self.twin_again(torch.relu(self.twin(y))))
        return self.head(y.mean((2, 3)))


class Pair(nn.Module):
    """One sparse convolution with a choice of kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = sparse(nn.Conv2d(16, 24, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


def region_of(model: nn.Module, x: torch.Tensor, settings: Settings, backend: Cpu | None = None) -> Region:
    """The only region of a model, as the driver finds it. ``backend``: None for this machine's."""
    backend = backend or X86()
    captured = capture(model.eval(), (x,), None)
    result = run(captured.graph_module, PIPELINE, Context(settings, backend.offers, backend.layouts, keep_dense=True))
    (region,) = extract(result.graph_module)
    return backend.arrange(region)


def record(settings: Settings, **changes: object) -> Record:
    """A good record of this machine for a task that does not exist; ``changes`` replace fields."""
    place, spec = place_of(X86(), settings), KernelSpec("conv2d", ((16, 8, 8),), (24, 8, 8))
    made = Record(
        run="r",
        task="shape-pattern",
        shape="shape",
        spec=spec.json(),
        spec_key=spec.key,
        storages={"sources": []},
        machine=place.machine,
        threads=place.threads,
        schedule=(("kernel", "spmm"), ("vectors", 4)),
        rank=0,
        status="ok",
        reason="",
        samples_ns=(1200, 1000, 1100),
        rival=(("kernel", "block"),),
        rival_median_ns=2000.0,
        error=1e-7,
        source="digest",
        kernels=("spmm_16",),
        library=place.library,
        tools={"sparsec": "0"},
        emulated=False,
        time=1.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]
