"""The smallest case that fails in the same manner: greedy, over steps, actions, results, inputs, sizes, choices and doors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.fuzz.case import Action, Case, Step, replace
from tests.fuzz.child import work
from tests.fuzz.inputs import KINDS

#: Idioms that may stand for another one.
PLAIN = ("same conv", "same linear", "scalar")
_SMALLEST = (2, 4, 4, 4, 8)


def shrink(case: Case, fails: Callable[[Case], bool], seconds: float = 60.0) -> Case:
    """``fails``: whether a case fails as the given one does. Stops after ``seconds`` of the processor."""
    end = work() + seconds
    again = True
    while again:
        again = False
        for candidate in _simpler(case):
            if work() > end:
                return case
            if candidate != case and fails(candidate):
                case, again = candidate, True
                break
    return case


def _simpler(case: Case) -> Iterator[Case]:
    """Cases with a little less in them, those first that leave out most or make the next tries cheap."""
    for door in ("object", "torch.compile"):
        if case.door not in ("object", door):
            yield replace(case, door=door)
    yield from _fewer_steps(case)
    for i, step in enumerate(case.steps):
        for simpler in _simpler_steps(step):
            yield replace(case, steps=(*case.steps[:i], simpler, *case.steps[i + 1 :]))
    for i in range(len(case.actions)):
        if len(case.actions) > 1:
            yield replace(case, actions=case.actions[:i] + case.actions[i + 1 :])
    yield from _fewer_results(case)
    yield from _simpler_inputs(case)
    if case.inductor:
        yield replace(case, inductor=False)
    if case.channels_last:
        yield replace(case, channels_last=False)
    if case.zeros != "none":
        yield replace(case, zeros="none")
        yield replace(case, zeros="90%")
    yield from _simpler_sizes(case)


def _simpler_steps(step: Step) -> Iterator[Step]:
    if step.idiom and step.idiom not in PLAIN:
        for plain in PLAIN:
            yield replace(step, idiom=plain, picks=())
    for j, pick in enumerate(step.picks):
        if pick:
            yield replace(step, picks=(*step.picks[:j], 0, *step.picks[j + 1 :]))


def _fewer_steps(case: Case) -> Iterator[Case]:
    """A step that is left out is its first operand from then on, so its number stays, with an idiom that is none."""
    kept = [i for i, step in enumerate(case.steps) if step.idiom]
    size = len(kept) // 2
    while size:
        for start in range(0, len(kept), size):
            gone = set(kept[start : start + size])
            yield replace(case, steps=tuple(replace(s, idiom="", picks=()) if i in gone else s for i, s in enumerate(case.steps)))
        size //= 2


def _fewer_results(case: Case) -> Iterator[Case]:
    if len(case.returns) > 1:
        for ref in case.returns:
            yield replace(case, returns=(ref,), structure="one")
        for i in range(len(case.returns)):
            yield replace(case, returns=case.returns[:i] + case.returns[i + 1 :])
    for step in reversed(case.steps):
        if step.idiom and len(case.returns) == 1 and step.number < case.returns[0][0]:
            yield replace(case, returns=((step.number, 0),))
    if case.structure not in ("one", "tuple"):
        yield replace(case, structure="tuple")


def _simpler_inputs(case: Case) -> Iterator[Case]:
    used = {ref[0] for step in case.steps for ref in step.operands} | {ref[0] for ref in case.returns}
    count = len(case.inputs)
    if count > 1 and -count not in used:
        yield replace(case, inputs=case.inputs[:-1])
    for i, kind in enumerate(case.inputs):
        for plainer in ("map", "tokens"):
            if KINDS[kind] != KINDS[plainer] and kind in ("image", "same", "view", "flat view", "ids"):
                yield replace(case, inputs=(*case.inputs[:i], plainer, *case.inputs[i + 1 :]))


def _simpler_sizes(case: Case) -> Iterator[Case]:
    same = tuple(case.sizes[0] for _ in case.sizes)
    if any(action.name == "call" and action.picks[0] for action in case.actions):
        yield replace(case, actions=tuple(Action("call", (0,)) if a.name == "call" else a for a in case.actions))
    elif case.sizes != same[:1]:
        yield replace(case, sizes=same[:1])
    for axis, small in enumerate(_SMALLEST):
        for value in (small, 1, 2):
            if case.sizes[0][axis] > value:
                yield replace(
                    case, sizes=tuple((*s[:axis], value, *s[axis + 1 :]) if s[axis] == case.sizes[0][axis] else s for s in case.sizes)
                )
