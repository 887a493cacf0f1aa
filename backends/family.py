"""Families of kernels: what each honours of a spec, as data, so that what none declares is refused rather than half obeyed."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsec.backends.base import Machine, Source
from sparsec.backends.plan import Group, Task
from sparsec.ir.miss import Miss
from sparsec.lower.spec import KernelSpec, Schedule

_ONLY: Schedule = (("kernel", "only"),)


@dataclass(frozen=True)
class Values:
    """The values that a test accepts; ``text`` says which."""

    text: str
    test: Callable[[Any], bool]

    def __contains__(self, value: object) -> bool:
        return self.test(value)

    def __str__(self) -> str:
        return self.text


NUMBER = Values("a number", lambda value: isinstance(value, int | float) and value == value)
ANY = Values("any value", lambda value: True)
ALIKE = Values("values of one rank", lambda ranks: len(set(ranks)) == 1 and 1 <= ranks[0] <= 3)
WHOLE = Values("a whole number", lambda value: isinstance(value, int))
DIMS = Values("an order of axes", lambda value: isinstance(value, tuple) and sorted(value) == list(range(len(value))))
PAIR = Values("a pair of whole numbers", lambda value: isinstance(value, tuple) and [type(each) for each in value] == [int, int])


def _only(task: Task, machine: Machine) -> list[Schedule]:
    return [_ONLY]


@dataclass(frozen=True, eq=False)
class Family:
    """Kernels that compute some specs of some operators, and how they are called.

    ``operands``: names of the operands that they read, those that may be absent included. ``ranks``: of the activations that are read, in
    order, and of the result, all of one sample: 1 for vectors, 2 for tokens, 3 for maps. ``honours``: for each attribute, the values that
    they implement; an attribute that is not there has none. ``kernels``: what ``lower`` calls, without weights; None: whatever it calls.
    ``takes``: whether a spec of these ranks is of the family's kind. ``fits``: what its shapes lack for these kernels, "" for nothing;
    asked only if all attributes are honoured. ``dtypes``: what they read and write that is not of the spec's own dtype, as in a spec.
    """

    name: str
    ops: tuple[str, ...]
    operands: str
    ranks: Container[tuple[int, ...]]
    honours: Mapping[str, Container[Any]]
    lower: Callable[[Task, Schedule, Machine], list[Group]]
    schedules: Callable[[Task, Machine], list[Schedule]] = _only
    kernels: Callable[[Task, Schedule, Machine], tuple[Source, ...]] | None = None
    takes: Callable[[KernelSpec], bool] = lambda spec: True
    fits: Callable[[KernelSpec], str] = lambda spec: ""
    dtypes: Container[tuple[tuple[str, str], ...]] = ((),)

    def rank_breach(self, spec: KernelSpec) -> str:
        """What is wrong with the ranks of the values of ``spec``; "" for nothing."""
        ranks = (*map(len, spec.inputs), len(spec.output))
        return "" if ranks in self.ranks else f"values of {ranks} axes; kernels take {_listed(self.ranks)}"

    def breach(self, spec: KernelSpec) -> str:
        """What ``spec`` asks for that these kernels do not compute; "" for nothing."""
        for name, value in spec.asked():
            values = self.honours.get(name, ())
            if value not in values:
                return f"{name} {value!r}; kernels honour {_listed(values)}"
        if spec.dtypes not in self.dtypes:
            return f"{', '.join(f'{operand} is torch.{dtype}' for operand, dtype in spec.dtypes)}, kernels compute in {spec.dtype}"
        unread = [name for name in spec.operands() if name not in self.operands.split()]
        if unread:
            return f"{', '.join(unread)}; kernels read {self.operands}"
        if spec.residual not in (None, spec.output):
            return f"a residual {spec.residual} on {spec.output}"
        return self.fits(spec)

    def sources(self, task: Task, schedule: Schedule, machine: Machine) -> tuple[Source, ...]:
        """The kernels that compute ``task``, whatever its weights are."""
        if self.kernels is not None:
            return self.kernels(task, schedule, machine)
        blank = tuple(None if shape is None else np.broadcast_to(np.float32(0), shape) for shape in task.spec.weights)
        return tuple(call.source for group in self.lower(replace(task, weights=blank), schedule, machine) for call in group.calls)

    def groups(self, task: Task, schedule: Schedule, machine: Machine) -> list[Group]:
        """The groups of calls that compute ``task``. ValueError where its operands are not those that its spec speaks of."""
        spec = task.spec
        absent = [w is None for w in task.weights] == [w is None for w in spec.weights]
        if len(task.sources) != len(spec.inputs) or not absent or (task.residual is None) != (spec.residual is None):
            raise ValueError(f"{task.node}: its operands are not those of {spec.op} of {list(spec.operands())}")
        return self.lower(task, schedule, machine)


def _listed(values: Container[Any]) -> str:
    return ", ".join(map(str, values)) if isinstance(values, tuple) and values else str(values or "no value of it")


def choose(families: Sequence[Family], spec: KernelSpec) -> Family | Miss:
    """The first family that computes ``spec``, or why none does."""
    reasons, ranks = [], []
    for family in families:
        if spec.op not in family.ops:
            continue
        if reason := family.rank_breach(spec):
            ranks.append(f"{family.name}: {reason}")
        elif family.takes(spec):
            reason = family.breach(spec)
            if not reason:
                return family
            reasons.append(f"{family.name}: {reason}")
    return Miss("; ".join(reasons or ranks) or f"no kernel family computes {spec.op} of {_shapes(spec)}")


def _shapes(spec: KernelSpec) -> str:
    return f"{', '.join(map(str, spec.inputs))} to {spec.output}"
