"""From a case to the script that runs it, with torch and sparsec only."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import doors, events
from tests.fuzz.case import Case, Picks
from tests.fuzz.emit import Emitter
from tests.fuzz.idioms import IDIOMS
from tests.fuzz.inputs import lines as input_lines

PRELUDE = Path(__file__).with_name("prelude.py").read_text()
#: What no region covers runs as it is: Inductor takes many seconds a graph.
WITHOUT_INDUCTOR = ("import torch._inductor.compile_fx", "torch._inductor.compile_fx.compile_fx = lambda graph, *_, **__: graph")

#: What does not follow the model answers as the model that it was made of.
_RIGHT = {True: "right = model", False: "right = copy.deepcopy(model)"}


def script(case: Case, header: str = "") -> str:
    """The whole text, runnable."""
    return "\n".join([PRELUDE, *([] if case.inductor else WITHOUT_INDUCTOR), "", body(case), header])


def body(case: Case, second: bool = False) -> str:
    """What follows the prelude; ``second``: with torch alone in place of sparsec."""
    door = doors.BY_NAME[case.door]
    making = door.second if second else door.lines
    if second and case.inductor:
        making = tuple(line.replace('"aot_eager"', '"inductor"') for line in making)
    parts = [
        *module_lines(case),
        "",
        *input_lines(case.inputs, case.sizes),
        "",
        *_make(case),
        "",
        "model = make(0)",
        *making,
        f"unspoiled(model, make(0), inputs{', fast' if door.live else ''})",
        _RIGHT[door.live],
        *_calls(case, door),
    ]
    return "\n".join(parts) + "\n"


def module_lines(case: Case) -> list[str]:
    """The class, as far as its steps fit together."""
    emitter = Emitter(case)
    for step in case.steps:
        emitter.step(step, IDIOMS.get(step.idiom), Picks(step.picks))
    arguments = ", ".join(["self", *(name for name, _ in emitter.inputs)])
    return [
        "class Model(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in emitter.init),
        "",
        f"    def forward({arguments}):",
        *(f"        {line}" for line in emitter.body),
        f"        return {_result(case, emitter)}",
    ]


def _result(case: Case, emitter: Emitter) -> str:
    names = [emitter.value(ref)[0] for ref in case.returns]
    match case.structure:
        case "dict":
            return "{" + ", ".join(f'"r{i}": {name}' for i, name in enumerate(names)) + "}"
        case "list":
            return f"[{', '.join(names)}]"
        case "tuple":
            return f"({', '.join(names)},)"
        case "sizes":
            return f"({', '.join(names)}, len({names[0]}), (*{names[-1]}.shape[1:],))"
        case "names":
            return "{" + ", ".join(f'f"r{i} of {{len({name})}}": {name}' for i, name in enumerate(names)) + "}"
    return names[0]


def _make(case: Case) -> list[str]:
    order = ".to(memory_format=torch.channels_last)" if case.channels_last else ""
    return [
        "def make(number):",
        f"    torch.manual_seed({case.seed} + number)",
        f'    return seeded(Model(), "{case.zeros}", {case.seed} + number){order}',
    ]


def _calls(case: Case, door: doors.Door) -> list[str]:
    lines = []
    for action in case.actions:
        if action.name == "call":
            lines.append(_call(case, door, action.picks[0] % len(case.sizes)))
        else:
            lines += [f"# {action.name}", *events.lines(action.name, Picks(action.picks), door.checks)]
    return lines


def _call(case: Case, door: doors.Door, number: int) -> str:
    """Other sizes than the first may be refused where the door does not say that it takes them."""
    options = door.checks + ("" if door.aliases else ", aliases=False")
    line = f"check(fast, right, inputs, {number}{options})"
    return line if door.live or case.sizes[number] == case.sizes[0] else f"refusable({line.replace('check(', 'check, ', 1)}"
