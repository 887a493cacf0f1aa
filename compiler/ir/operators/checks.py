"""What has to hold of the records of operators: looked at once, when they are imported."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence

from sparsec.ir.arguments import tensor_places
from sparsec.ir.operators.record import Operator


def checked(operators: Sequence[Operator]) -> tuple[Operator, ...]:
    """The records. ValueError with the first breaches where some are missing or contradict each other."""
    found = [*_doubles(operators), *(breach for each in operators for breach in _breaches(each, operators))]
    if found:
        raise ValueError(f"The records of operators do not hold: {'; '.join(found[:5])}.")
    return tuple(operators)


def _doubles(operators: Sequence[Operator]) -> Iterator[str]:
    names = Counter(each.name for each in operators)
    targets = Counter(target for each in operators for target in each.targets)
    yield from (f"{count} records are named {name}" for name, count in names.items() if count > 1)
    yield from (f"{count} records have the target {target}" for target, count in targets.items() if count > 1)


def _breaches(operator: Operator, operators: Sequence[Operator]) -> Iterator[str]:
    named = {each.name: each for each in operators}
    made = {name for each in operators if each.describe for name in each.becomes}
    for name in operator.becomes:
        if name not in named or named[name].reference is None:
            yield f"{operator.name} becomes {name}, of which no record has a reference"
    if operator.describe and not operator.becomes and operator.reference is None:
        yield f"{operator.name} has no reference"
    if not operator.targets and operator.name not in made:
        yield f"nothing becomes {operator.name}, and it has no target"
    if operator.padding is None and (operator.attends or operator.tokens == "ends"):
        yield f"{operator.name} mixes tokens, and does not say what hides padding from it"
    yield from _operand_breaches(operator)


def _operand_breaches(operator: Operator) -> Iterator[str]:
    names = [operand.name for operand in operator.operands]
    if len(set(names)) < len(names):
        yield f"two operands of {operator.name} have one name"
    for name in operator.products:
        if name not in [operand.name for operand in operator.operands if operand.role == "weight"]:
            yield f"{operator.name} multiplies with {name}, which is no weight of it"
    for target in operator.targets:
        if len(tensor_places(target)) != len(names):
            yield f"{operator.name} gives {len(names)} operands a role, {target} reads {len(tensor_places(target))}"
    if operator.reference is not None:
        taken = inspect.signature(operator.reference).parameters.values()
        positional = [each for each in taken if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if len(positional) != len(names):
            yield f"the reference of {operator.name} takes {len(positional)} operands, not {', '.join(names)}"
