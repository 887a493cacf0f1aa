"""What became of each of Dynamo's graphs, kept with the object of torch.compile that asked for it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch._dynamo import external_utils
from torch._dynamo.eval_frame import OptimizedModule, innermost_backend
from torch._dynamo.symbolic_convert import InstructionTranslator

from sparsec.run.explanation import Explanation

#: Objects of torch.compile that have asked for a graph.
_askers: weakref.WeakSet[_Graphs] = weakref.WeakSet()
_DEPTH = 4


@dataclass
class GraphNote:
    """One graph: its number, the user's code that it is of, and what was found and chosen when it was compiled last."""

    number: int
    code: CodeType | None
    explanation: Explanation = field(default_factory=Explanation)

    @property
    def place(self) -> str:
        """Where the user wrote it."""
        if self.code is None or self.code.co_filename == external_utils.__file__:
            return f"graph {self.number}"
        return f"graph {self.number} ({self.code.co_name}, {Path(self.code.co_filename).name}:{self.code.co_firstlineno})"


class _Graphs:
    """The graphs of one object of torch.compile, of which equal ones share Dynamo's code; those that Dynamo has dropped are gone."""

    def __init__(self, asker: Any) -> None:
        self.asker = weakref.ref(asker)
        self.notes: list[Callable[[], GraphNote | None]] = []

    def __iter__(self) -> Iterator[GraphNote]:
        return (note for get in self.notes if (note := get()) is not None)


def new_note(number: int, explanation: Explanation | None = None) -> GraphNote:
    """A note of the graph that is being compiled. ``notes_of`` finds it as long as somebody holds it, or for ever with an explanation."""
    note = GraphNote(number, _code(), explanation or Explanation())
    asker = _asker()
    if asker is not None:
        if not hasattr(asker, "_sparsec_graphs"):
            asker._sparsec_graphs = _Graphs(asker)
            _askers.add(asker._sparsec_graphs)
        asker._sparsec_graphs.notes.append(weakref.ref(note) if explanation is None else lambda: note)
    return note


def notes_of(compiled: Any) -> list[GraphNote] | None:
    """The graphs of a compiled function or module in the order of their compilation; None for what torch.compile has not made.

    Dynamo gives what was compiled for one function to another of the same code and options: where none are its own, those are told.
    """
    asker = _asker_of(compiled)
    if asker is None:
        return None
    found = list(getattr(asker, "_sparsec_graphs", ()))
    if not found:
        codes = set(_codes(compiled))
        found = [note for graphs in list(_askers) if graphs.asker() == asker for note in graphs if note.code in codes]
    return sorted(found, key=lambda note: note.number)


def combined(notes: Sequence[GraphNote]) -> Explanation:
    """One explanation of several graphs, each with a line of its own among the notes."""
    parts = [note.explanation for note in notes]
    lines = [f"{note.place}: {note.explanation.summary()}" for note in notes]
    if not notes:
        lines = ["Nothing has been compiled yet: call it once. Graphs are made when they are first run."]
    return Explanation(
        layers=tuple(layer for part in parts for layer in part.layers),
        misses=tuple(miss for part in parts for miss in part.misses),
        uncovered=tuple(node for part in parts for node in part.uncovered),
        notes=(*lines, *_once_each(notes)),
    )


def _once_each(notes: Sequence[GraphNote]) -> Iterator[str]:
    """What is noted of all graphs, and with their numbers what is noted of some."""
    of: dict[str, list[int]] = {}
    for note in notes:
        for text in dict.fromkeys(note.explanation.notes):
            of.setdefault(text, []).append(note.number)
    for text, numbers in of.items():
        some = f"graph {', '.join(map(str, numbers))}: " if len(numbers) < len(notes) else ""
        yield some + text


def _asker() -> Any:
    """The object of torch.compile in whose call this is."""
    frame = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame.f_back is None:
            break
        frame = frame.f_back
        if isinstance(found := frame.f_locals.get("self"), torch._TorchCompileWrapper):
            return found
    return None


def _code() -> CodeType | None:
    """The outermost code that Dynamo is translating."""
    try:
        return InstructionTranslator.current_tx().output.root_tx.f_code
    except AttributeError:
        return None


def _asker_of(compiled: Any) -> Any:
    if isinstance(compiled, OptimizedModule):
        callback: Any = compiled.dynamo_ctx.callback
    else:
        cells = [cell.cell_contents for cell in getattr(compiled, "__closure__", None) or ()]
        callback = next((cell.callback for cell in cells if hasattr(cell, "enter_exit_hooks") and hasattr(cell, "callback")), None)
    found = innermost_backend(callback) if callback is not None else None
    return found if isinstance(found, torch._TorchCompileWrapper) else None


def _codes(compiled: Any) -> Iterator[CodeType]:
    """Code that is the function's or the modules' own."""
    if isinstance(compiled, OptimizedModule):
        yield from (code for module in compiled._orig_mod.modules() if (code := _code_of(type(module).forward)))
    elif code := _code_of(getattr(compiled, "_torchdynamo_orig_callable", None)):
        yield code


def _code_of(function: Callable[..., Any] | nn.Module | None) -> CodeType | None:
    return getattr(function, "__code__", None)
