"""Every family of kernels computes what it declares, attribute by attribute and in pairs, and nothing else can be asked of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsec.backends.base import Machine
from sparsec.backends.cpu.families import FAMILIES
from sparsec.backends.family import Family, choose
from sparsec.backends.plan import Buffer
from sparsec.backends.x86.backend import X86
from sparsec.ir.miss import Miss
from sparsec.ir.operators import operator_named
from sparsec.lower.layouts import Storage
from sparsec.lower.spec import KernelSpec
from tests.backends.cpu.family_cases import Case, run, task_of
from tests.backends.cpu.family_specs import AXES, cases
from tests.machines import MACHINES

BACKEND = X86()
COMPUTING = {family.name: family for family in FAMILIES if not all(operator_named(op).is_view for op in family.ops)}
CASES = {name: list(cases(name)) for name in COMPUTING}
TOLERANCE = 2e-5
#: Attributes of some operator, with a value that means something, and two that no operator has.
FOREIGN = {
    "alpha": 2,
    "padding_mode": "reflect",
    "transposed": True,
    "output_padding": (1, 1),
    "ceil_mode": True,
    "divisor_override": 3,
    "padding_idx": 0,
    "approximate": "tanh",
    "dropout_p": 0.1,
    "rounding": "floor",
    "nobody_knows": 1,
    "residual": True,
    "weight": 1.0,
}


def family_of(spec: KernelSpec) -> Family | Miss:
    return choose(FAMILIES, spec)


@pytest.mark.parametrize("name", COMPUTING)
def test_the_cases_of_a_family_are_its_own(name: str) -> None:
    assert CASES[name]
    assert {getattr(family_of(case.spec), "name", case.spec) for case in CASES[name] if case.spec.op in COMPUTING[name].ops} == {name}


@pytest.mark.parametrize("name", COMPUTING)
def test_the_cases_of_a_family_hold_every_attribute_it_honours(name: str) -> None:
    seen = {
        attribute: {value for c in CASES[name] for key, value in c.spec.asked() if key == attribute}
        for attribute in COMPUTING[name].honours
    }
    for attribute, values in COMPUTING[name].honours.items():
        wanted = set(values) if isinstance(values, tuple) else set()
        wanted -= (
            {*values} - {*BACKEND.machine.vector.computes} if attribute == "dtype" else set()
        )  # those have cases where they are computed
        assert seen[attribute] >= wanted and (wanted or seen[attribute]), f"{attribute}: {wanted - seen[attribute]}"
    assert {operand for case in CASES[name] for operand in case.spec.operands()} == set(COMPUTING[name].operands.split())


@pytest.mark.parametrize("name", COMPUTING)
def test_a_family_takes_values_of_the_ranks_that_it_declares(name: str) -> None:
    """Of each of them there is a case, and what has other ranks is refused: a map without a batch was pooled along its channels."""
    family, signatures = COMPUTING[name], {_ranks(case.spec) for case in CASES[name] if case.spec.op in COMPUTING[name].ops}
    assert all(signature in family.ranks for signature in signatures)
    if isinstance(family.ranks, tuple):
        assert signatures >= set(family.ranks) - {(3, 3)} or signatures == set(family.ranks)
    for case in {_ranks(case.spec): case for case in CASES[name]}.values():
        for ranks in itertools.product((0, 1, 2, 3, 4), repeat=len(case.spec.inputs) + 1):
            if ranks not in family.ranks:
                shapes = [(*shape, 2, 2, 2, 2)[:rank] for shape, rank in zip((*case.spec.inputs, case.spec.output), ranks, strict=True)]
                assert family_of(replace(case.spec, inputs=tuple(shapes[:-1]), output=shapes[-1])) is not family, shapes


def _ranks(spec: KernelSpec) -> tuple[int, ...]:
    return (*map(len, spec.inputs), len(spec.output))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize("machine", MACHINES)
def test_each_family_computes_what_it_declares(machine: Machine, cache: Path) -> None:
    """By the default schedule."""
    check([(case, 0) for name in COMPUTING for case in cases(name, thorough=False)], X86(machine), cache)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", [name for name in COMPUTING if any("activation" in axis for axis in AXES.get(name, ()))])
@pytest.mark.turns(5)
def test_each_family_computes_every_activation(name: str, machine: Machine, cache: Path) -> None:
    check([(case, 0) for case in CASES[name]], X86(machine), cache)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["product over a map", "product with a vector", "depthwise and pointwise"])
@pytest.mark.turns(3)
def test_every_schedule_computes_the_same(name: str, machine: Machine, cache: Path) -> None:
    backend, chosen = X86(machine), list(cases(name, thorough=False))
    most = max(len(backend.schedules(task_of(case, 0)[0])) for case in chosen)
    check(list(zip(itertools.cycle(chosen), range(2 * max(most, len(chosen))), strict=False)), backend, cache)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", COMPUTING)
def test_kernels_are_known_without_weights(name: str, machine: Machine) -> None:
    """For every schedule: those that the calls call. Families with a choice are given no weights at all."""
    backend, family = X86(machine), COMPUTING[name]
    for case in cases(name, thorough=False):
        task = task_of(case, 0)[0]
        shapes_only = replace(task, weights=tuple(None for _ in task.weights)) if family.kernels is not None else task
        for schedule in backend.schedules(task):
            called = [call.source.symbol for group in backend.lower(task, schedule) for call in group.calls]
            assert [source.symbol for source in backend.kernels(shapes_only, schedule)] == called, f"{case} by {dict(schedule)}"


def check(chosen: list[tuple[Case, int]], backend: X86, cache: Path) -> None:
    wrong = [f"{case} by {dict(schedule)}: {error:.1e}" for case, schedule, error in run(chosen, backend, cache) if not error < TOLERANCE]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", COMPUTING)
def test_what_a_family_does_not_declare_is_refused_with_its_name(name: str) -> None:
    spec = CASES[name][0].spec
    assert BACKEND.offers(spec) is None
    for attribute, value in FOREIGN.items():
        refusal = BACKEND.offers(asking(spec, **{attribute: value}))
        assert refusal is not None and attribute in refusal.reason and family_of(spec).name in refusal.reason
    for attribute, values in COMPUTING[name].honours.items():
        for value in (float("nan"), "nobody knows") if isinstance(values, tuple) else ():
            assert attribute in BACKEND.offers(asking(spec, **{attribute: value})).reason
    for first, second in itertools.combinations(FOREIGN, 2):
        assert BACKEND.offers(asking(spec, **{first: FOREIGN[first], second: FOREIGN[second]})) is not None


@pytest.mark.parametrize("name", COMPUTING)
def test_numbers_of_another_kind_are_refused(name: str) -> None:
    """Each operand alone, and the result."""
    spec, family = CASES[name][0].spec, COMPUTING[name]
    for operand in (*list(spec.operands())[: len(spec.inputs)], "output"):
        for dtype in ("int8", "bfloat16", "float16"):
            wrong = ((operand, dtype),)
            assert wrong not in family.dtypes
            assert f"{operand} is torch.{dtype}, kernels compute in float32" in BACKEND.offers(replace(spec, dtypes=wrong)).reason


@pytest.mark.parametrize("name", COMPUTING)
def test_operands_that_a_family_does_not_read_are_refused(name: str) -> None:
    spec, family = CASES[name][-1].spec, COMPUTING[name]
    assert BACKEND.offers(replace(spec, weights=(*spec.weights, *[(1,)] * 4))) is not None
    assert BACKEND.offers(replace(spec, inputs=(*spec.inputs, *[spec.inputs[0]] * 4))) is not None
    added = BACKEND.offers(replace(spec, residual=spec.output))
    assert (added is None) == ("residual" in family.operands.split())
    if added is None:
        assert "residual" in BACKEND.offers(replace(spec, residual=(1, *spec.output[1:]))).reason


@pytest.mark.parametrize("name", COMPUTING)
def test_what_is_refused_cannot_be_lowered(name: str) -> None:
    task, _ = task_of(CASES[name][0], 0)
    schedule = BACKEND.schedules(task)[0]
    assert BACKEND.lower(task, schedule)
    for wrong in (asking(task.spec, nobody_knows=1), replace(task.spec, dtype="float16")):
        with pytest.raises(ValueError, match="no kernel computes"):
            BACKEND.lower(replace(task, spec=wrong), schedule)
    if task.residual is None:
        with pytest.raises(ValueError, match="its operands are not those"):
            BACKEND.lower(replace(task, residual=task.target), schedule)
    with pytest.raises(ValueError, match="its operands are not those"):
        BACKEND.lower(replace(task, sources=(*task.sources, Buffer("z", Storage("single", 1)))), schedule)


def asking(spec: KernelSpec, **attributes: object) -> KernelSpec:
    return replace(spec, attributes=tuple(sorted({**dict(spec.attributes), **attributes}.items())))


def test_an_operator_without_a_family_is_refused() -> None:
    assert "no kernel family computes erf" in BACKEND.offers(KernelSpec("erf", ((8,),), (8,))).reason


def test_a_reference_refuses_attributes_that_its_operator_does_not_have() -> None:
    import torch

    for name in COMPUTING:
        case = CASES[name][0]
        task, values = task_of(case, 0)
        tensors = [*map(torch.from_numpy, values), *(None if w is None else torch.from_numpy(np.asarray(w)) for w in task.weights)]
        with pytest.raises(TypeError):
            asking(case.spec, nobody_knows=1).reference(*tensors)
