"""From steps to the text of a module, by running every line on real tensors.

An idiom's text is a list of lines of Python over ``{x}`` (and ``{y}``, ``{z}``), its operands:

    $name = expression      a local name, made unique; the names of the last line are the step's results
    [[nn.Linear(...)]]      a layer, made in ``__init__``; ``[[buffer: expression]]`` a buffer, ``[[value: expression]]`` a plain attribute
    «a|b|c», «r:a|b|c»      a choice, the simplest first; ``«r»`` repeats it; choices nest
    {N} {C} {H} {W}, {N} {T} {F}, {N} {F}    sizes of ``{x}`` of four, three and two dimensions; {M}: a padding mask among the inputs

A line that fails makes the step vanish: its results are then its first operand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz import prelude
from tests.fuzz.case import Case, Picks, Ref, Step
from tests.fuzz.inputs import lines as input_lines

SIZES = {4: "NCHW", 3: "NTF", 2: "NF"}
LARGEST = 1e4
_CHOICE = re.compile(r"«(?:(\w+):)?([^«»]*\|[^«»]*)»|«(\w+)»")
_SHAPE = re.compile(r"\b\w+\.shape(\[[^\]]*\])?")
_LAYER = re.compile(r"\[\[(?:(buffer|value): )?(.*?)\]\]")


@dataclass(frozen=True)
class Idiom:
    """One thing that people write. kinds: numbers of dimensions of the first operand. fits: an expression over the operands' tensors."""

    name: str
    kinds: str
    weight: float
    text: tuple[str, ...]
    fits: str = "True"
    operands: int = 1
    passes: bool = False

    def admits(self, tensors: list[Tensor]) -> bool:
        """Whether the idiom may be tried on these operands; of fewer than it takes, on these and some others."""
        x = tensors[0]
        kind = "i" if x.dtype == torch.int64 else str(x.dim()) if x.is_floating_point() else "-"
        if kind not in self.kinds or any(not t.is_floating_point() for t in tensors[1:]):
            return False
        if len(tensors) < self.operands:
            return True
        try:
            return bool(eval(self.fits, dict(zip("xyz", tensors, strict=False))))
        except (IndexError, RuntimeError):
            return False


class Vanished(Exception):
    """A step that cannot be made of its operands."""


@dataclass
class Emitter:
    """The text of a module while it grows, and its values on the first inputs."""

    case: Case
    init: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    results: dict[int, list[tuple[str, Tensor]]] = field(default_factory=dict)
    layers: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(self.case.seed)
        self.scope: dict[str, Any] = {**vars(prelude), "self": nn.Module().eval()}
        exec("\n".join(input_lines(self.case.inputs, self.case.sizes)), self.scope)
        self.inputs = list(zip("xyz", self.scope["inputs"](), strict=False))
        self.results |= {-1 - i: [pair] for i, pair in enumerate(self.inputs)}
        self.scope |= dict(self.inputs)
        self.masks = [name for name, t in self.inputs if t.dim() == 2 and self.case.inputs["xyz".index(name)] in ("valid", "lengths")]

    def value(self, ref: Ref) -> tuple[str, Tensor]:
        """Name and tensor of a value."""
        found = self.results[ref[0]]
        return found[min(ref[1], len(found) - 1)]

    def step(self, step: Step, idiom: Idiom | None, picks: Picks) -> bool:
        """Append a step; False, and nothing is changed but that its results are its first operand, where it does not fit."""
        before = len(self.init), len(self.body), self.layers
        operands = [self.value(ref) for ref in step.operands]
        try:
            if idiom is None or not idiom.admits([tensor for _, tensor in operands]):
                raise Vanished
            self.results[step.number] = self._run(step, idiom, operands, picks)
        except Vanished:
            del self.init[before[0] :], self.body[before[1] :]
            self.layers = before[2]
            self.results[step.number] = operands[:1]
            return False
        return True

    def _run(self, step: Step, idiom: Idiom, operands: list[tuple[str, Tensor]], picks: Picks) -> list[tuple[str, Tensor]]:
        known: dict[str, str] = {}
        versions = [tensor._version for _, tensor in self.inputs]
        names: list[str] = []
        for template in idiom.text:
            line = self._filled(chosen(template, known, picks), operands)
            names = re.findall(r"\$(\w+)", line.partition(" = ")[0]) if " = " in line and line.startswith("$") else []
            line = re.sub(r"\$(\w+)", rf"\g<1>{step.number}", line)
            line = _LAYER.sub(self._layer, line)
            self._execute(line)
            self.body.append(line)
        if not self.case.writes and versions != [tensor._version for _, tensor in self.inputs]:
            raise Vanished
        made = [(f"{name}{step.number}", self.scope[f"{name}{step.number}"]) for name in names]
        results = operands[:1] if idiom.passes or not made else made
        if not all(isinstance(t, Tensor) and t.numel() and _tame(t) for _, t in results):
            raise Vanished
        return results

    def _filled(self, line: str, operands: list[tuple[str, Tensor]]) -> str:
        x = operands[0][1]
        known: dict[str, Any] = dict(zip("xyz", (name for name, _ in operands), strict=False))
        known |= dict(zip(SIZES.get(x.dim(), ""), x.shape, strict=True)) if x.dim() in SIZES else {}
        if "{M}" in line and not self.masks:
            raise Vanished
        known |= {"M": self.masks[0]} if self.masks else {}
        try:
            return re.sub(r"\{(\w)\}", lambda match: str(known[match[1]]), line)
        except KeyError:
            raise Vanished from None

    def _layer(self, match: re.Match[str]) -> str:
        kind, text = match.groups()
        self.layers += 1
        text = _SHAPE.sub(lambda found: repr(_plain(eval(found[0], self.scope))), text)
        name = f"{kind or re.sub('.*[.]', '', text.partition('(')[0]).lower()}{self.layers}"
        line = f'self.register_buffer("{name}", {text})' if kind == "buffer" else f"self.{name} = {text}"
        self._execute(line)
        self.init.append(line)
        return f"self.{name}"

    def _execute(self, line: str) -> None:
        try:
            with torch.no_grad():
                exec(line, self.scope)
                self.scope["self"].eval()
        except Exception:
            raise Vanished from None


def chosen(line: str, known: dict[str, str], picks: Picks) -> str:
    """The line with its choices made; ``known`` has the named ones of the lines before, and gets those of this one."""
    while "«" in line:
        line = _CHOICE.sub(lambda match: _choose(match, known, picks), line)
    return line


def _choose(match: re.Match[str], known: dict[str, str], picks: Picks) -> str:
    name, options, again = match.groups()
    if again:
        return known[again]
    listed = options.split("|")
    text = listed[picks(len(listed))]
    if name:
        known[name] = text
    return text


def _plain(size: Any) -> Any:
    return size if isinstance(size, int) else tuple(size)


def _tame(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all() and tensor.abs().max() < LARGEST)
