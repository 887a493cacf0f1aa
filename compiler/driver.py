"""From a captured graph to something that runs: passes, kernels for regions, Inductor for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from sparsec import follow, padding
from sparsec import regions as region_module
from sparsec.autotune import tune
from sparsec.autotune.layout_costs import layout_costs
from sparsec.backends.assemble import assemble
from sparsec.backends.base import Machine, Source
from sparsec.backends.lowering import Lowered, lower_region
from sparsec.backends.x86.backend import X86
from sparsec.doors import open_model
from sparsec.errors import InvalidInput
from sparsec.explain import Explanation
from sparsec.forms import Form, notes
from sparsec.from_torch import Captured
from sparsec.inputs import check_indices, sizes_of
from sparsec.model import CompiledModel
from sparsec.passes import PIPELINE
from sparsec.pipeline import Context, Story, run
from sparsec.program import Program
from sparsec.rows import explanation_of
from sparsec.runtime import Runner
from sparsec.settings import Settings


@dataclass(frozen=True, eq=False)
class RegionProgram:
    """One region, executable: its program bound to weights and kernels."""

    region: region_module.Region
    lowered: Lowered
    program: Program
    library: Path
    runner: Runner
    machine: Machine

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run on contiguous tensors with a common leading batch axis. InvalidInput for sizes or indices out of range."""
        batch, program = inputs[0].shape[0], self.program
        sizes = sizes_of(program, inputs) if program.sizes else {}
        arrays = [x.numpy() for x in inputs] if self.looks_inside else []
        if arrays:
            check_indices(program, arrays)
        outputs = [torch.empty((batch, *port.shape_for(sizes)), dtype=torch.float32) for port in program.outputs]
        if batch and program.padding is not None:
            self.runner.run_arrays(arrays, [y.numpy() for y in outputs], sizes)
        elif batch:
            self.runner.run_addresses([x.data_ptr() for x in inputs], [y.data_ptr() for y in outputs], batch, sizes)
        return outputs

    @cached_property
    def looks_inside(self) -> bool:
        """Whether values of inputs are read before the program runs: indices to check, a padding mask."""
        return self.program.padding is not None or any(port.limit is not None for port in self.program.inputs)


@dataclass(eq=False)
class CompiledGraph:
    """What a captured graph became. Called with a flat list of contiguous tensors, returns a flat list.

    ``any_batch``: every batch size runs. ``fully_compiled``: one region, no torch operator. ``nothing_sparse``: no region was worth it.
    ``reasons``: fallbacks that the user should hear of. Of one region that is everything, ``picks`` are the positions of its inputs among
    the graph's, ``returns`` the positions of the graph's outputs among its.
    """

    programs: list[RegionProgram]
    story: Story
    explanation: Explanation
    fully_compiled: bool
    nothing_sparse: bool
    reasons: list[str] = field(default_factory=list)
    run_rest: Any = None
    picks: tuple[int, ...] = ()
    returns: tuple[int, ...] = ()

    @property
    def any_batch(self) -> bool:
        """Whether the batch size is free: the executor loops over images."""
        return self.fully_compiled

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the graph."""
        if not self.fully_compiled:
            return list(self.run_rest(inputs))
        results = self.programs[0]([inputs[i] for i in self.picks])
        return [results[i] for i in self.returns]


def compile_graph(captured: Captured, settings: Settings, *, keep_dense: bool = False) -> CompiledGraph:
    """Compile a captured graph for this machine.

    ``keep_dense`` makes regions of everything that kernels exist for, sparse or not (an artifact must not need torch).
    Raises SparsecError subclasses for machines and inputs that cannot be served.
    """
    settings = replace(settings, threads=settings.threads or torch.get_num_threads())
    backend = X86()
    context = Context(settings, backend.offers, _costs(backend, settings, keep_dense))
    result = run(captured.graph_module, PIPELINE, context)
    reasons = _odd_weights(result.graph_module)
    follows, rigid = _follows(captured, result.graph_module, context)
    mask = None
    if settings.remove_padding:
        mask, follows = _padding(result.graph_module, follows)
    found = [backend.with_tiles(r) for r in region_module.extract(result.graph_module, backend.tile, follows)]
    least = {name: spec.least for name, spec in captured.symbols.items()}
    programs = [_compile_region(region, backend, settings, least, mask) for region in found]
    whole = len(programs) == 1 and _covers(programs[0].region, result.graph_module)
    explanation = explanation_of(result, programs, backend, settings)
    explanation = replace(explanation, notes=(*explanation.notes, *rigid))
    compiled = CompiledGraph(programs, result.story, explanation, whole, not programs, reasons)
    if whole:
        compiled.picks, compiled.returns = _ports(programs[0].region, result.graph_module)
    elif programs:
        compiled.run_rest = _compile_rest(result.graph_module, programs, captured)
    return compiled


def _follows(captured: Captured, graph_module: fx.GraphModule, context: Context) -> tuple[dict[str, region_module.Follows], list[str]]:
    """Which inputs' tokens follow a run-time size that kernels can take; if there is one that they cannot, a note that says why."""
    found = follow.followers(captured)
    if not found:
        return {}, []
    reason = found if isinstance(found, str) else _rigid(captured, graph_module, context, found)
    if isinstance(found, str) or reason:
        return {}, [f"compiled for fixed sizes: {reason}"]
    return found, []


def _rigid(captured: Captured, graph_module: fx.GraphModule, context: Context, follows: Mapping[str, region_module.Follows]) -> str:
    """Why kernels cannot take every size at run time; empty if they can."""
    regions = region_module.extract(graph_module, 1, follows)
    if len(regions) != 1 or not _covers(regions[0], graph_module):
        return "parts of the graph are not in one region"
    if reason := follow.unserved(regions[0], captured, _returned(graph_module.graph)):
        return reason
    simple = tuple(each for each in PIPELINE if each.gives == Form.CAPTURED)
    other = captured.at(follow.smaller(captured, follows))
    return follow.difference(*(run(part.graph_module, simple, context).graph_module for part in (captured, other)))


def _costs(backend: X86, settings: Settings, keep_dense: bool) -> dict[str, Any]:
    """What passes may ask of this machine."""
    measured = layout_costs(backend, settings.cache_dir, measuring=settings.tune != "off")
    # Joining a depthwise to its 1x1 convolution gained from four times L2 on (MobileNetV1 and V2, 224 and 448 pixels, 1 MiB of L2): strips
    # break the long streams of the depthwise, which costs more than a map that the next cache level holds.
    joined = {"depthwise_pointwise_bytes": 4 * backend.machine.l2}
    return {"keep_dense": keep_dense, **joined, **(asdict(measured) if measured else {})}


def _padding(graph_module: fx.GraphModule, follows: dict[str, region_module.Follows]) -> tuple[fx.Node, dict[str, region_module.Follows]]:
    """The mask that says which tokens are padding, and the inputs that follow their number. InvalidInput where they cannot be removed."""
    regions = region_module.extract(graph_module, 1, follows)
    whole = len(regions) == 1 and _covers(regions[0], graph_module)
    mask = padding.mask_of(regions[0]) if whole else "parts of the graph are not in one region"
    if isinstance(mask, str):
        raise InvalidInput("Padding cannot be removed.", why=mask, hint="Compile without remove_padding.")
    return mask, follows or padding.follows_of(regions[0].inputs, mask)


def _compile_region(
    region: region_module.Region, backend: X86, settings: Settings, least: Mapping[str, int], mask: fx.Node | None = None
) -> RegionProgram:
    """Tune if asked to, lower, build the library of every candidate kernel, assemble.

    The library holds all default candidates of each layer, so that another mask, which may make another candidate win, compiles
    nothing.
    """
    chosen = tune.choose(region, backend, settings)
    lowered = lower_region(region, backend, chosen)
    kernels = _kernels(lowered, backend)
    library = backend.build(kernels, settings.cache_dir)
    names = [n.name for n in region.inputs], [n.name for n in region.outputs]
    program = assemble(lowered.plan, kernels, names, max(settings.thread_count, backend.machine.cores), least)
    if mask is not None:
        program = replace(program, padding=region.inputs.index(mask))
    return RegionProgram(region, lowered, program, library, Runner(program, library, settings.thread_count), backend.machine)


def _kernels(lowered: Lowered, backend: X86) -> list[Source]:
    used = {call.source.symbol: call.source for group in lowered.plan.groups for call in group.calls}
    for task in lowered.tasks:
        for schedule in backend.schedules(task):
            for group in backend.lower(task, schedule):
                used |= {call.source.symbol: call.source for call in group.calls}
    return [used[symbol] for symbol in sorted(used)]


def _returned(graph: fx.Graph) -> tuple[Any, ...]:
    (output,) = graph.find_nodes(op="output")
    values = output.args[0]
    return tuple(values) if isinstance(values, list | tuple) else (values,)


def _covers(region: region_module.Region, graph_module: fx.GraphModule) -> bool:
    """Whether the region computes every output of the graph and leaves no operator out."""
    graph = graph_module.graph
    calls = [n for n in graph.nodes if n.op == "call_function"]
    return set(_returned(graph)) <= set(region.outputs) and all(n in region.specs for n in calls)


def _ports(region: region_module.Region, graph_module: fx.GraphModule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions of the region's inputs among the graph's, and of the graph's outputs among the region's."""
    placeholders = list(graph_module.graph.find_nodes(op="placeholder"))
    returned = _returned(graph_module.graph)
    return tuple(placeholders.index(n) for n in region.inputs), tuple(region.outputs.index(n) for n in returned)


def _odd_weights(graph_module: fx.GraphModule) -> list[str]:
    """Weights with infinities or NaN: their layers get dense kernels, which the user should know."""
    reasons = []
    for node in graph_module.graph.find_nodes(op="get_attr"):
        fact = notes(node).get("fact")
        if fact is not None and fact.reason == "non-finite":
            users = ", ".join(u.name for u in node.users)
            reasons.append(f"The weight {node.target} has infinite or NaN values: {users} is compiled dense.")
    return reasons


def _compile_rest(graph_module: fx.GraphModule, programs: Sequence[RegionProgram], captured: Captured) -> Any:
    """The graph with each region as one opaque operator, handed to Inductor."""
    from sparsec.inductor import RegionOp, compile_dense
    from sparsec.splice import splice

    operators = [RegionOp(p, [(tuple(n.meta["val"].shape), torch.float32) for n in p.region.outputs]) for p in programs]
    spliced = splice(graph_module, [(p.region, op) for p, op in zip(programs, operators, strict=True)])
    examples = [torch.zeros(spec.shape, dtype=spec.dtype) for spec in captured.inputs]
    # Freezing rewrites convolutions for oneDNN, which knows no float64.
    freezing = all(b.dtype == torch.float32 for b in spliced.buffers() if b.is_floating_point())
    compiled = compile_dense(spliced, examples, freezing=freezing)

    def call(inputs: Sequence[Tensor], _keep: Any = operators) -> Any:
        return compiled(*inputs)

    return call


def compile(
    model: Any, example_inputs: Any = None, kwargs: Mapping[str, Any] | None = None, *, dynamic_shapes: Any = None, **options: Any
) -> CompiledModel:
    """Compile a model for inputs of the example's shapes, and for every size of the axes that it leaves free.

    Any batch size runs where one region covers everything. Other sizes that kernels cannot take at run time are compiled at first use.

    Args:
        model: ``torch.nn.Module`` in eval mode, ``torch.export.ExportedProgram``, or the path of a ``.pt2`` or ``.onnx`` file.
        example_inputs: tuple of positional inputs (a lone tensor or array stands for a tuple of one); only a module needs them.
        kwargs: keyword inputs.
        dynamic_shapes: the free axes of a module's inputs, as ``torch.export.export`` takes them.
        options: fields of ``Settings`` (tune, threads, cache_dir, ...).

    Raises:
        InvalidInput, UnsupportedModel, MachineError.
    """
    settings = Settings.from_options(options)
    captured = open_model(model, example_inputs, kwargs, dynamic_shapes)

    def build(part: Captured) -> CompiledGraph:
        compiled = compile_graph(part, settings, keep_dense=True)
        if compiled.nothing_sparse:
            compiled.run_rest = _compile_rest(part.graph_module, [], part)
        return compiled

    return CompiledModel(captured, build(captured), settings, build)
