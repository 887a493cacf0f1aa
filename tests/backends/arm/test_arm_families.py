"""Every family of kernels on ARM processors, emulated: what each declares, by every schedule, against float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from sparsec.backends.arm.backend import Arm
from sparsec.backends.arm.machine import describe
from sparsec.backends.base import Machine
from sparsec.run.program import Port, Program
from tests.backends.arm import emulated
from tests.backends.cpu.family_cases import BATCH, ROOM, Memory, run, task_of
from tests.backends.cpu.family_specs import cases, drawn
from tests.backends.cpu.test_families import CASES, COMPUTING, TOLERANCE

pytestmark = [pytest.mark.slow, emulated.needed]


def on_arm(
    folder: Path, cpu: str, machine: Machine, program: Program, library: Path, reads: Sequence[Memory], writes: Sequence[Memory]
) -> None:
    """Image by image: a port is an image with the room around it."""
    sides = {"input": reads, "output": writes}

    def beside(m: Memory) -> int:
        return 2 * ROOM + m.words

    moved = [
        replace(r, offset=r.offset + 4 * ROOM + sides[r.segment][r.port].origin) if r.segment in sides else r for r in program.relocations
    ]
    ports = [
        tuple(Port(p.name, (beside(m),)) for p, m in zip(side, memories, strict=True))
        for side, memories in ((program.inputs, reads), (program.outputs, writes))
    ]
    whole = replace(program, relocations=tuple(moved), inputs=ports[0], outputs=ports[1])
    for image in range(BATCH):
        views = [[m.whole[m.first - ROOM + image * m.words :][: beside(m)] for m in memories] for memories in (reads, writes)]
        emulated.run(folder, whole, library, machine, *views, cpu)


def check(chosen: list, cpu: str, cache: Path) -> None:
    machine = describe(cpu)
    found = run(chosen, Arm(machine), cache, execute=partial(on_arm, cache / "program.sparsec", cpu, machine))
    wrong = [f"{case} by {dict(schedule)}: {error:.1e}" for case, schedule, error in found if not error < TOLERANCE]
    assert found and not wrong, "\n".join(wrong)


@pytest.mark.turns(3)
@pytest.mark.parametrize("name", COMPUTING)
def test_each_family_computes_what_it_declares(name: str, tmp_path: Path) -> None:
    check([(case, number) for number, case in enumerate(CASES[name])], "cortex-a76", tmp_path)


@pytest.mark.turns(10)
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
@pytest.mark.parametrize("name", COMPUTING)
def test_random_shapes_and_patterns(name: str, cpu: str, tmp_path: Path) -> None:
    check([(case, number) for number, case in enumerate(drawn(name, 50, seed=len(name)))], cpu, tmp_path)


@pytest.mark.parametrize("cpu", ["cortex-a53", "neoverse-n1"])
def test_other_processors(cpu: str, tmp_path: Path) -> None:
    check([(case, 0) for name in COMPUTING for case in cases(name, thorough=False)], cpu, tmp_path)


@pytest.mark.parametrize("name", ["product over a map", "product with a vector", "depthwise and pointwise"])
def test_every_schedule(name: str, tmp_path: Path) -> None:
    chosen = list(cases(name, thorough=False))
    most = max(len(Arm(describe("cortex-a76")).schedules(task_of(case, 0)[0])) for case in chosen)
    check(list(zip(itertools.cycle(chosen), range(2 * max(most, len(chosen))), strict=False)), "cortex-a76", tmp_path)
