"""Running passes in order: forms first, a private copy, a check after each pass, and a story of what happened."""

import copy
import functools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx

from sparsec.errors import PipelineError, VerificationError, internal
from sparsec.ir.editor import Editor, Hit
from sparsec.ir.form_checks import check
from sparsec.ir.forms import Form, notes
from sparsec.ir.miss import Miss
from sparsec.ir.verify import Verifier
from sparsec.lower.costs import Costs
from sparsec.lower.layouts import Layouts
from sparsec.settings import Settings

if TYPE_CHECKING:
    from sparsec.lower.spec import KernelSpec

logger = logging.getLogger("sparsec")

__all__ = ["Approximate", "Context", "Editor", "Exact", "Form", "Miss", "NodePass", "Pass", "Result", "Story", "run"]


@dataclass(frozen=True)
class Exact:
    """The pass does not change answers beyond rounding."""


@dataclass(frozen=True)
class Approximate:
    """The pass changes answers within `budget` (of a kind that the pass names); 0 means not at all."""

    budget: float


def _offers_nothing(spec: "KernelSpec") -> Miss:
    """No backend: every kernel is refused."""
    return Miss(f"no backend offers {spec}")


def _no_layouts(spec: "KernelSpec") -> Layouts:
    raise ValueError(f"no backend says how {spec.op} reads and writes")


@dataclass(frozen=True)
class Context:
    """What passes may ask: settings, and of a backend whether it offers a kernel (None: yes, else why not), its layouts and its costs.

    keep_whole: a region that is the whole graph stays, whatever it gains; keep_dense: every region does.
    """

    settings: Settings = field(default_factory=Settings)
    offers: "Callable[[KernelSpec], Miss | None]" = _offers_nothing
    layouts: "Callable[[KernelSpec], Layouts]" = _no_layouts
    costs: Costs = field(default_factory=Costs)
    keep_whole: bool = False
    keep_dense: bool = False


class Pass(ABC):
    """A change of a whole graph. Has a name, the form it takes and gives, its effect on answers, and no state."""

    name: str
    takes: Form
    gives: Form
    effect: Exact | Approximate = Exact()

    @abstractmethod
    def apply(self, edit: Editor, context: Context) -> None:
        """Change the graph, reporting through `edit.hit` and `edit.miss`."""


class NodePass(Pass):
    """A pass that looks at one node at a time, in order, each once."""

    @abstractmethod
    def match(self, node: fx.Node, context: Context) -> dict[str, Any] | Miss | None:
        """What to rewrite, a refusal with its reason, or None for a node of no interest."""

    @abstractmethod
    def rewrite(self, *args: Any, **bindings: Any) -> str:
        """rewrite(edit, context, **bindings): change what `match` found; returns the line for the story."""

    def apply(self, edit: Editor, context: Context) -> None:
        """Match and rewrite every node that is still in the graph."""
        for node in edit.nodes():
            if node._erased:
                continue
            found = self.match(node, context)
            if isinstance(found, Miss):
                edit.misses.append(found)
            elif found is not None:
                name = node.name
                edit.hit(name, self.rewrite(edit, context, **found))
        edit.sweep()


@dataclass(frozen=True)
class Chapter:
    """What one pass did, in how many seconds."""

    name: str
    hits: tuple[Hit, ...]
    misses: tuple[Miss, ...]
    seconds: float

    def __str__(self) -> str:
        head = f"{self.name}: {len(self.hits)} changed, {len(self.misses)} refused ({self.seconds * 1e3:.0f} ms)"
        hits = [f"  + {hit.node}: {hit.line}" for hit in self.hits]
        misses = [f"  - {miss.where}: {miss.reason} {miss.source}".rstrip() for miss in self.misses]
        return "\n".join([head, *hits, *misses])


@dataclass(frozen=True)
class Story:
    """The chapters of one run, in order; `str` renders them."""

    chapters: tuple[Chapter, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.chapters))


@dataclass(frozen=True)
class Result:
    """The graph after the passes, the story, and a line for each pass that failed and was left out."""

    graph_module: fx.GraphModule
    story: Story
    failures: tuple[str, ...] = ()


def check_order(passes: Sequence[Pass]) -> None:
    """PipelineError where a pass takes a form that those before it do not give."""
    form = Form.CAPTURED
    for step in passes:
        if step.takes > form:
            raise PipelineError(f"Pass {step.name} cannot run here.", why=f"It takes {step.takes.name}, the graph is {form.name}.")
        if step.gives < step.takes:
            raise PipelineError(f"Pass {step.name} gives a form before the one it takes.")
        form = max(form, step.gives)


def run(graph_module: fx.GraphModule, passes: Sequence[Pass], context: Context, *, tolerant: bool = False) -> Result:
    """Run the passes on a copy of the graph; constants are shared, never written to.

    Checks the order of forms before anything runs and the graph after every pass. Honours `settings.stop_after`
    (PipelineError for a name that no pass has) and `settings.dump_dir`. ``tolerant``: a pass with an internal error is left out
    where the graph has the form that it gives without it.
    """
    check_order(passes)
    passes = _up_to(passes, context.settings.stop_after)
    edit, verifier, form = Editor(copied(graph_module)), Verifier(), Form.CAPTURED
    verifier(edit.graph_module, form)
    chapters: list[Chapter] = []
    failures: list[str] = []
    for number, step in enumerate(passes):
        form = max(form, step.gives)
        before = copied(edit.graph_module) if tolerant else None
        try:
            chapters.append(_run_one(step, edit, context))
            if context.settings.dump_dir is not None:
                _dump(context.settings.dump_dir, f"{number:02d}_{step.name}", edit.graph_module, chapters[-1])
            verifier(edit.graph_module, form)
        except Exception as error:
            if before is None or not _has_form(before, form):
                raise
            failures.append(f"{internal(error)}; the pass {step.name} is left out")
            edit = Editor(before)
    edit.graph_module.recompile()
    return Result(edit.graph_module, Story(tuple(chapters)), tuple(failures))


def _has_form(graph_module: fx.GraphModule, form: Form) -> bool:
    try:
        check(form, graph_module)
    except VerificationError:
        return False
    return True


def copied(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose graph and notes are its own; the constants are shared."""
    graph = fx.Graph()
    memo: dict[fx.Node, fx.Node] = {}
    returned = graph.graph_copy(graph_module.graph, memo)
    (output,) = graph_module.graph.find_nodes(op="output")
    graph.output(returned).meta = dict(output.meta)
    graph._codegen = copy.copy(graph_module.graph._codegen)
    for old, made in memo.items():
        if "custom" in old.meta:
            made.meta["custom"] = {**old.meta["custom"], "sparsec": dict(notes(old))}
    return fx.GraphModule(graph_module, graph)


def _up_to(passes: Sequence[Pass], last: str | None) -> Sequence[Pass]:
    names = [step.name for step in passes]
    if last is None:
        return passes
    if last not in names:
        raise PipelineError(f"There is no pass named {last!r} to stop after.", hint=f"Passes: {', '.join(names)}.")
    return passes[: names.index(last) + 1]


def _run_one(step: Pass, edit: Editor, context: Context) -> Chapter:
    edit.hits, edit.misses = [], []
    start = time.perf_counter()
    step.apply(edit, context)
    seconds = time.perf_counter() - start
    return Chapter(step.name, tuple(edit.hits), tuple(map(_told, edit.misses)), seconds)


def _told(miss: Miss) -> Miss:
    """The same without the graph."""
    source = notes(miss.where).get("source", "") if isinstance(miss.where, fx.Node) else miss.source
    return Miss(miss.reason, str(miss.where or ""), str(source))


def _dump(folder: Path, name: str, graph_module: fx.GraphModule, chapter: Chapter) -> None:
    graph_module.recompile()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(f"{graph_module.code.strip()}\n")
        (folder / f"{name}.txt").write_text(f"{chapter}\n")
    except OSError as error:
        _warn_not_dumped(folder, str(error.strerror))


@functools.cache
def _warn_not_dumped(folder: Path, why: str) -> None:
    logger.warning("Graphs are not written after passes: %s: %s. Set dump_dir or SPARSEC_DUMP to another folder.", folder, why)
