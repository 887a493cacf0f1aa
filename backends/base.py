"""What a backend is to the rest: a machine description, kernels as (template, schedule) pairs, and the protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sparsec.backends.extents import Step
from sparsec.backends.panels import Panels
from sparsec.backends.vector import Permute, Vector
from sparsec.run.processor import lacking

if TYPE_CHECKING:
    import numpy as np

    from sparsec.backends.plan import Call, Group, Move, Task
    from sparsec.ir.miss import Miss
    from sparsec.lower.costs import Costs
    from sparsec.lower.layouts import Layouts, Storage
    from sparsec.lower.regions import Region
    from sparsec.lower.spec import KernelSpec, Schedule
    from sparsec.run.program import Program
    from sparsec.run.runtime import StepTime

ParamKind = Literal["act", "ptr", "i32", "f32"]


@dataclass(frozen=True)
class Machine:
    """The facts of a processor that kernels depend on.

    ``features``: of LLVM's names, those that code may need. ``tuning``: entries of LLVM's ``mattr`` that need nothing of the processor.
    Cache sizes are bytes per core (``l3``: whole package). ``peak_gflops``, ``l2_gbs``, ``memory_gbs``: limits of one core as it
    is described, for machines that are not here (0: unknown).
    """

    arch: str
    mcpu: str
    features: tuple[str, ...]
    vector: Vector
    l1: int
    l2: int
    l3: int
    cores: int
    panels: Panels = field(default_factory=Panels)
    tuning: tuple[str, ...] = ()
    peak_gflops: float = 0.0
    l2_gbs: float = 0.0
    memory_gbs: float = 0.0

    @property
    def not_here(self) -> str:
        """Why this machine cannot run code for it; empty if it can."""
        return lacking(self.arch, self.features)

    def computing(self, dtype: str) -> Machine:
        """The same, for kernels that compute in ``dtype``. ValueError where it has no arithmetic for it."""
        return self if dtype == self.vector.dtype else replace(self, vector=self.vector.of(dtype))

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Machine:
        """The inverse of ``dataclasses.asdict``, also after JSON."""
        fields = _frozen(plain)
        vector, panels = fields.pop("vector"), fields.pop("panels")
        permute = vector.pop("permute")
        return cls(**fields, vector=Vector(**vector, permute=permute and Permute(**permute)), panels=Panels(**panels))

    def key(self) -> str:
        """Identity used by tuned records and kernel caches."""
        registers = f"{self.vector.lanes}x{self.vector.registers}"
        return f"{self.arch}-{self.mcpu}-{registers}-l1.{self.l1 >> 10}k-l2.{self.l2 >> 10}k"


def _frozen(value: Any) -> Any:
    """``value`` with tuples for its lists."""
    if isinstance(value, Mapping):
        return {name: _frozen(item) for name, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Param:
    """One parameter of a kernel.

    ``act``: pointer to an activation (may live in a per-thread strip buffer) · ``ptr``: pointer to a constant ·
    ``i32``/``f32``: scalar known when the program is laid out. ``dtype``: of what a pointer shows; none
    where the kernel's own decides.
    """

    name: str
    kind: ParamKind
    dtype: str = ""


@dataclass(frozen=True)
class Source:
    """One code variant: its symbol, its parameters in call order, how to make its TIR function and what that touches.

    Every kernel takes, after ``params``, the half-open range of units ``[begin, end)`` it has to produce. No program may call a kernel that
    does not say what it touches.
    """

    symbol: str
    params: tuple[Param, ...]
    make: Callable[[], Any] = field(compare=False, repr=False)
    touches: tuple[Step, ...] | None = field(default=None, compare=False, repr=False)


#: Values for the non-activation parameters of one call, by parameter name: arrays become weights, numbers become scalars.
Arguments = Mapping[str, Any]


class Verdict(Protocol):
    """Why a layer runs the kernel it runs; ``flip_density``: of nonzeros, at which the choice would change, None where it would not."""

    @property
    def flip_density(self) -> float | None: ...

    def reason(self, seconds: Callable[[float], float]) -> str:
        """One sentence; ``seconds`` converts cycles."""


class Executor(Protocol):
    """What runs one program, on ``threads`` threads of the host; ``sparsec.run.runtime.Runner`` says what its methods do."""

    program: Program
    threads: int

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run on numpy arrays ``[batch, *port.shape]``. InvalidInput for arrays that do not fit."""

    def run_addresses(self, inputs: Sequence[int], outputs: Sequence[int], batch: int, sizes: Mapping[str, int] = ...) -> None:
        """Run on addresses of contiguous tensors with a leading batch axis, whose run-time sizes are ``sizes``."""

    def run_arrays(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], sizes: Mapping[str, int]) -> None:
        """Run on contiguous arrays that were checked, without the padding that the program removes."""

    def profile(self, inputs: Sequence[np.ndarray], repeats: int = 20) -> list[StepTime]:
        """Median seconds of each group."""


class Backend(Protocol):
    """What the compiler asks of a target. Nothing outside of ``sparsec.backends`` names one.

    ``name``: of the target. ``executor``: of its programs. ``tile``: points of a tile where ``arrange`` has no reason for another.
    """

    name: str
    executor: str
    machine: Machine
    tile: int

    def offers(self, spec: KernelSpec) -> Miss | None:
        """None if a kernel exists for ``spec``, else why not."""

    def schedules(self, task: Task) -> list[Schedule]:
        """Candidate schedules of a task, the default first."""

    def kernels(self, task: Task, schedule: Schedule) -> tuple[Source, ...]:
        """The kernels that compute a task. Pure: no weights, no device."""

    def lower(self, task: Task, schedule: Schedule) -> list[Group]:
        """The groups of calls that compute a task, its weights packed for them. ValueError where no kernel does."""

    def share(self, groups: Sequence[Group]) -> list[Group]:
        """``groups``, in their order, with what threads take of each decided."""

    def covers(self, have: Storage, want: Storage, shape: tuple[int, ...]) -> bool:
        """Whether one kernel copies a value of ``shape`` from one storage to the other."""

    def move(self, move: Move) -> Call:
        """The call that writes a value from one buffer to another."""

    def layouts(self, spec: KernelSpec) -> Layouts:
        """How the kernels of ``spec`` read and write maps."""

    def costs(self) -> Costs:
        """What passes may know of the kernels' speed without a measurement."""

    def arrange(self, region: Region) -> Region:
        """``region`` with the index space of each resolution: zeros around maps, points of a tile, which suit all its layers together."""

    def verdict(self, task: Task, call: Call) -> Verdict | None:
        """Why ``call``, of ``task``, runs the kernel it runs; None where there is no choice."""

    def build(self, kernels: Sequence[Source], cache: Path | None) -> Path:
        """The path of a library with these kernels, from ``cache`` if it is there. MachineError where it cannot be made."""

    def build_alone(self, kernel: Source, path: Path) -> str:
        """Write a library with one kernel as a C function, which needs nothing else, to ``path``; the digest of its code. MachineError."""

    def runner(self, program: Program, library: Path, threads: int, room: int = 0) -> Executor:
        """What runs ``program``, whose kernels ``build`` put into ``library``. MachineError for a program of another executor.

        ``room``: bytes before and after inputs and outputs that kernels may touch.
        """

    def processors(self, cpuinfo: str) -> list[str]:
        """The processors that the text of a /proc/cpuinfo names, as ``machine.mcpu`` would; empty where it names none that is known."""

    def digest(self, kernels: Sequence[Source] = ()) -> str:
        """Identity of these kernels' code, or of all code that kernels of this backend are made from."""
