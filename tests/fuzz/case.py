"""A case of the search as plain data: what the script of a program is made from."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: A value: the number of the step that made it (-1 - i: input i), and which of its results.
Ref = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """One idiom on values made before. ``picks`` are its choices in the order in which its text makes them; 0 is the simplest."""

    number: int
    idiom: str
    operands: tuple[Ref, ...]
    picks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Action:
    """What happens between compiling and the end: "call" with inputs number ``picks[0]``, or an event (see `events`)."""

    name: str
    picks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """A program, its inputs, and what is done with it.

    inputs: names in `inputs.KINDS`. sizes: for each set of inputs (batch, height, width, tokens, features). returns: the results, in
    ``structure`` "one", "tuple", "list", "dict", "sizes" (with numbers of their shapes) or "names" (a dict whose keys say the batch).
    zeros: a pattern of `prelude.seeded`. door: a name in `doors.DOORS`. inductor: whether what no region covers is compiled by Inductor,
    rather than run as it is. writes: whether it may write to its inputs. channels_last: whether weights of convolutions are stored so.
    """

    seed: int
    door: str
    inputs: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...] = ()
    returns: tuple[Ref, ...] = ()
    structure: str = "one"
    zeros: str = "none"
    actions: tuple[Action, ...] = (Action("call", (0,)),)
    inductor: bool = False
    writes: bool = False
    channels_last: bool = False

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The case that `to_json` wrote."""
        plain = _tuples(json.loads(text))
        steps = tuple(Step(**step) for step in plain.pop("steps"))
        return cls(steps=steps, actions=tuple(Action(**action) for action in plain.pop("actions")), **plain)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(entry) for entry in value)
    return {key: _tuples(entry) for key, entry in value.items()} if isinstance(value, dict) else value


@dataclass
class Picks:
    """Choices: read from a record as far as it goes, then drawn, or 0 without a generator."""

    recorded: Sequence[int] = ()
    draw: random.Random | None = None
    made: list[int] = field(default_factory=list)

    def __call__(self, count: int) -> int:
        """A number below ``count``."""
        position = len(self.made)
        if position < len(self.recorded):
            number = self.recorded[position] % count
        else:
            number = self.draw.randrange(count) if self.draw else 0
        self.made.append(number)
        return number


__all__ = ["Action", "Case", "Picks", "Ref", "Step", "replace"]
