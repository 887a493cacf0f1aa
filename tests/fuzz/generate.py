"""Draws a case: inputs, steps on values of fitting kinds, results, a door, and what happens between calls."""

from __future__ import annotations

import random

from torch import Tensor

from tests.fuzz import doors, events, inputs
from tests.fuzz.case import Action, Case, Picks, Ref, Step, replace
from tests.fuzz.emit import Emitter, Idiom
from tests.fuzz.idioms import ALL
from tests.fuzz.prelude import PATTERNS

TRIES = 8
#: What networks end in.
ENDS = frozenset({
    "flatten", "flatten classifier", "flattened tokens", "map classifier", "pool to a vector", "pool of tokens", "class head",
    "question answering head", "score of tokens",
})  # fmt: skip
#: What a network of tokens that may be left out ends in.
POOLS = frozenset({"class head", "pool of tokens"})


def draw_case(seed: int, among: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> Case:
    """The case of a seed. among: doors to draw from, all if empty; without: idioms to leave out."""
    draw = random.Random(seed)
    listed = [door for door in doors.DOORS if not among or door.name in among]
    door = draw.choices(listed, [each.weight for each in listed])[0]
    sets = [kinds for kinds in inputs.SETS if not door.attention or {*kinds} & {"tokens", "ids"}]
    kinds = draw.choices(sets, [inputs.SETS[kinds] for kinds in sets])[0]
    first = inputs.draw_sizes(draw)
    sizes = (first, *(inputs.other_sizes(draw, first) for _ in range(draw.choice((1, 2)))))
    zeros = draw.choice(("90%", "mixed", "none", *PATTERNS[1:]))
    case = Case(seed, door.name, kinds, sizes, zeros=zeros, inductor=draw.random() < 0.04, writes=draw.random() < 0.1)
    case = replace(case, channels_last=draw.random() < 0.1)
    emitter = Emitter(case)
    steps = _steps(draw, emitter, [idiom for idiom in ALL if idiom.name not in without], 3 if door.attention else 0)
    returns, structure = _returns(draw, emitter, steps, numbers="structure=False" not in door.checks)
    return replace(case, steps=tuple(steps), returns=returns, structure=structure, actions=_actions(draw, door, len(sizes)))


def _steps(draw: random.Random, emitter: Emitter, idioms: list[Idiom], attentions: int) -> list[Step]:
    """Steps that fit; the first ``attentions`` are drawn from those that mix tokens, most of the time, where these fit."""
    steps: list[Step] = []
    wanted = draw.choice((2, 3, 4, 4, 5) if attentions else (2, 3, 4, 4, 5, 5, 6, 7, 8, 10))
    for number in range(wanted * TRIES):
        if len(steps) == wanted:
            break
        operands = (_recent(draw, emitter),)
        tensor = emitter.value(operands[0])[1]
        fitting = [i for i in idioms if i.admits([tensor])]
        if not emitter.layers and draw.random() < 0.7:
            fitting = [i for i in fitting if "nn." in i.text[-1]]
        if len(steps) < attentions and draw.random() < 0.9:
            fitting = [i for i in fitting if "attention" in i.name or "dot" in i.name or "i" in i.kinds] or fitting
        elif len(steps) == wanted - 1 and draw.random() < (0.8 if attentions else 0.5):
            fitting = [i for i in fitting if i.name in (POOLS if attentions else ENDS)] or fitting
        if not fitting:
            continue
        idiom = draw.choices(fitting, [i.weight for i in fitting])[0]
        for _ in range(1, idiom.operands):
            operands = (*operands, _partner(draw, emitter, idiom, tensor))
        picks = Picks((), draw)
        if emitter.step(Step(number, idiom.name, operands), idiom, picks):
            steps.append(Step(number, idiom.name, operands, tuple(picks.made)))
        else:
            del emitter.results[number]
    return steps


def _live(emitter: Emitter) -> list[tuple[Ref, Tensor]]:
    """All values, the latest last."""
    numbers = sorted(n for n in emitter.results if n >= 0)
    return [((n, i), t) for n in [*(n for n in emitter.results if n < 0), *numbers] for i, (_, t) in enumerate(emitter.results[n])]


def _recent(draw: random.Random, emitter: Emitter) -> Ref:
    live = [ref for ref, _ in _live(emitter)]
    return live[-1] if draw.random() < 0.75 else draw.choice(live)


def _partner(draw: random.Random, emitter: Emitter, idiom: Idiom, tensor: Tensor) -> Ref:
    """Another value that the idiom takes beside the first; any, where there is none."""
    live = _live(emitter)
    fitting = [ref for ref, other in live if idiom.admits([tensor, other])]
    return draw.choice(fitting or [ref for ref, _ in live])


def _returns(draw: random.Random, emitter: Emitter, steps: list[Step], numbers: bool) -> tuple[tuple[Ref, ...], str]:
    """Mostly the last value; else several, perhaps one of them twice, or an input. numbers: sizes may be among the results."""
    last = (steps[-1].number, 0) if steps else (-1, 0)
    if draw.random() < 0.55:
        return (last,), "one"
    live = [ref for ref, _ in _live(emitter) if ref[0] >= 0 or draw.random() < 0.1] or [last]
    others = tuple(draw.choice(live[-4:]) for _ in range(draw.choice((1, 1, 2))))
    return (last, *others), draw.choice(("tuple", "tuple", "list", "dict", *(("sizes", "names") if numbers else ())))


def _actions(draw: random.Random, door: doors.Door, sizes: int) -> tuple[Action, ...]:
    """Calls of every size, and between two calls an event."""
    actions = [Action("call", (0,)), *(Action("call", (draw.randrange(sizes),)) for _ in range(draw.choice((1, 2))))]
    if draw.random() < (0.6 if door.live else 0.2):
        fitting = [event for event in events.EVENTS if door.live or not event.live]
        for _ in range(draw.choice((1, 1, 2))):
            event = draw.choices(fitting, [each.weight for each in fitting])[0]
            actions += [Action(event.name, tuple(draw.randrange(1 << 16) for _ in range(3))), Action("call", (0,))]
    return tuple(actions)
